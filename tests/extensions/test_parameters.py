"""Optional extensions: their parameters, what handlers get, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, Client, handler
from txsmtpd import Envelope, Extension
from txsmtpd.extensions import DSN, RRVS, DeliverBy, FutureRelease, Limits, MTPriority, RequireTLS
from txsmtpd.parameters import DeliverBy as By
from txsmtpd.parameters import Notify, OriginalRecipient, Recipient, Return, ValidSince
from txsmtpd.session import TLSInfo

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class TermsTestCase(SynchronousTestCase):
    """A test case whose client is connected to a server with some extensions."""

    def client(self, *extensions: Extension, **options: Any) -> Client:
        """A client that has sent EHLO to a server with these extensions."""
        client = Client(extensions=extensions, **options)
        client.talk(GREETING)
        return client

    def mail(self, extension: Extension, parameters: bytes, **options: Any) -> tuple[int, str | None, Envelope]:
        """Code and status of the reply to MAIL with the parameters, and the envelope after it."""
        client = self.client(extension, **options)
        answer = client.ask(b"MAIL FROM:<a@b> " + parameters)
        return answer.code, answer.status, client.server.envelope

    def refused(self, extension: Extension, *parameters: bytes, code: int = 501, status: str = "5.5.4") -> None:
        """Assert that MAIL with each of these is refused, and leaves no transaction and no parameter behind."""
        for each in parameters:
            *reply, envelope = self.mail(extension, each)
            self.assertEqual(reply, [code, status], each)
            self.assertEqual(vars(envelope), vars(Envelope()), each)

    def rcpt(self, extension: Extension, parameters: bytes, **options: Any) -> tuple[int, list[Recipient]]:
        """Code of the reply to RCPT with the parameters, and the parameters of all recipients after it."""
        client = self.client(extension, **options)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        return client.ask(b"RCPT TO:<c@d> " + parameters).code, client.server.envelope.recipients

    def rcpt_refused(self, extension: Extension, *parameters: bytes, **options: Any) -> None:
        """Assert that RCPT with each of these is refused with 501, and leaves nothing behind."""
        for each in parameters:
            self.assertEqual(self.rcpt(extension, each, **options), (501, []), each)

    def offered(self, extension: Extension, **options: Any) -> list[str]:
        """The line of the reply to EHLO with the extension's keyword, if there is one."""
        lines = Client(extensions=[extension], **options).ask(b"EHLO x").lines
        return [line for line in lines if line.split(" ")[0] == extension.keyword]

    def assert_growth(self, extension: Extension, parameters: bytes, command: bytes = b"MAIL FROM:") -> None:
        """Assert that these parameters fit into the longest command."""
        client = self.client(extension, data_size_limit=None, decode_data=True)
        if command == b"RCPT TO:":
            client.talk(b"MAIL FROM:<a@b>\r\n")
        path = command + b"<" + b"x" * (512 - len(command) - len(b"<@b>")) + b"@b>"
        self.assertEqual(client.ask(path + b" " + parameters).code, 250)


class SwitchedOnTests(TermsTestCase):
    """Extensions that are not enabled are not offered."""

    def test_offByDefault(self) -> None:
        """They are not offered, and their parameters are unknown, unless the application enables them."""
        client = Client()
        lines = " ".join(client.ask(b"EHLO x").lines)
        for extension in (DSN, RRVS, DeliverBy, FutureRelease, Limits, MTPriority, RequireTLS):
            self.assertNotIn(extension.keyword, lines)
        for parameter in (b"RET=FULL", b"REQUIRETLS", b"BY=1;R", b"MT-PRIORITY=1", b"HOLDFOR=1"):
            self.assertEqual(client.ask(b"MAIL FROM:<a@b> " + parameter).code, 555)

    def test_nothingSaid(self) -> None:
        """Without parameters, each attribute has its default."""
        code, _, envelope = self.mail(DSN(), b"")
        self.assertEqual(code, 250)
        self.assertEqual(
            (envelope.dsn_return, envelope.dsn_id, envelope.deliver_by, envelope.mt_priority, envelope.hold_until),
            (None,) * 5,
        )
        self.assertFalse(envelope.require_tls)
        self.assertEqual(self.rcpt(DSN(), b""), (250, [Recipient()]))

    def test_together(self) -> None:
        """All together: the parameters are independent, and options are passed as they were written."""
        client = self.client(DSN(), RRVS(), DeliverBy(), MTPriority(), FutureRelease(60), Limits())
        client.talk(b"MAIL FROM:<a@b> ret=hdrs BY=60;n MT-PRIORITY=-3 HOLDFOR=60 ENVID=x+2By\r\n")
        client.talk(b"RCPT TO:<c@d> RRVS=2026-11-22T12:00:00Z NOTIFY=never\r\n")
        envelope = client.server.envelope
        self.assertEqual(envelope.mail_options, ["RET=hdrs", "BY=60;n", "MT-PRIORITY=-3", "HOLDFOR=60", "ENVID=x+2By"])
        self.assertEqual(envelope.rcpt_options, ["RRVS=2026-11-22T12:00:00Z", "NOTIFY=never"])
        self.assertEqual((envelope.dsn_return, envelope.dsn_id, envelope.mt_priority), (Return.HEADERS, "x+y", -3))
        self.assertEqual(envelope.recipients, [Recipient(frozenset([Notify.NEVER]), None, ValidSince(NOON))])


class RecipientTests(TermsTestCase):
    """The parameters of a recipient stay with that recipient."""

    def test_each(self) -> None:
        """Each recipient has its own parameters, in the order of the recipients. Without parameters, they are empty."""
        client = self.client(DSN())
        client.talk(b"MAIL FROM:<a@b>\r\nRCPT TO:<1@d> NOTIFY=NEVER\r\nRCPT TO:<2@d>\r\nRCPT TO:<1@d> NOTIFY=DELAY\r\n")
        self.assertEqual(
            client.server.envelope.recipients,
            [Recipient(frozenset([Notify.NEVER])), Recipient(), Recipient(frozenset([Notify.DELAY]))],
        )

    def test_refusedByHook(self) -> None:
        """Nothing is kept of a recipient that a hook refuses, even if it has added the address before. The same is true
        for a dropped recipient."""

        def rcpt(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
            if address != "dropped@d":
                envelope.rcpt_tos.append(address)
            return "550 5.1.1 No" if address == "no@d" else "250 2.1.5 OK"

        client = self.client(DSN(), handler=handler(RCPT=rcpt))
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertEqual(client.ask(b"RCPT TO:<no@d> NOTIFY=NEVER").code, 550)
        self.assertEqual(client.ask(b"RCPT TO:<dropped@d> NOTIFY=NEVER").code, 250)
        self.assertEqual(client.ask(b"RCPT TO:<yes@d>").code, 250)
        self.assertEqual(client.server.envelope.recipients, [Recipient()])

    def test_seenByHook(self) -> None:
        """handle_RCPT sees the parameters of the current recipient, and not those of the previous one."""
        seen = []

        def rcpt(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
            seen.append(envelope.recipient.notify)
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"

        client = self.client(DSN(), handler=handler(RCPT=rcpt))
        client.talk(b"MAIL FROM:<a@b>\r\nRCPT TO:<1@d> NOTIFY=NEVER\r\nRCPT TO:<2@d> NOTIFY=x\r\nRCPT TO:<3@d>\r\n")
        self.assertEqual(seen, [frozenset([Notify.NEVER]), None])

    def test_severalForOne(self) -> None:
        """If a hook adds several recipients for one, the parameters apply to each of them, but not to later
        recipients."""

        def rcpt(server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
            envelope.rcpt_tos.extend(["x@d", "y@d"] if address == "list@d" else [address])
            return "250 2.1.5 OK"

        client = self.client(DSN(), handler=handler(RCPT=rcpt))
        client.talk(b"MAIL FROM:<a@b>\r\nRCPT TO:<list@d> NOTIFY=NEVER\r\nRCPT TO:<z@d>\r\n")
        envelope = client.server.envelope
        never = Recipient(frozenset([Notify.NEVER]))
        self.assertEqual(envelope.recipients, [never, never, Recipient()])
        del envelope.rcpt_tos[0]
        self.assertEqual(envelope.recipients[1:], [Recipient()])

    def test_nextTransaction(self) -> None:
        """Nothing is kept in the next transaction."""
        client = self.client(DSN())
        client.talk(b"MAIL FROM:<a@b> RET=FULL\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\nRSET\r\n")
        client.talk(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
        self.assertIsNone(client.server.envelope.dsn_return)
        self.assertEqual(client.server.envelope.recipients, [Recipient()])


class DSNTests(TermsTestCase):
    """DSN (RFC 3461)."""

    def test_offered(self) -> None:
        """The keyword has no parameter."""
        self.assertEqual(self.offered(DSN()), ["DSN"])

    def test_mail(self) -> None:
        """RET is case-insensitive. ENVID is decoded from xtext."""
        _, _, envelope = self.mail(DSN(), b"RET=Full ENVID=QQ+20314159")
        self.assertEqual((envelope.dsn_return, envelope.dsn_id), (Return.FULL, "QQ 314159"))

    def test_mailRefused(self) -> None:
        """Invalid RET and ENVID: unknown words, invalid xtext, characters that are not printable ASCII, too long,
        empty, or given twice."""
        self.refused(DSN(), b"RET", b"RET=", b"RET=ALL", b"RET=FULL,HDRS", b"RET=FULL RET=HDRS", b"ENVID", b"ENVID=+2g")
        self.refused(DSN(), b"ENVID=a+0D+0Ab", b"ENVID=+C3+A9", b"ENVID=+", b"ENVID=+7F", b"ENVID=" + b"x" * 101)
        self.assertEqual(self.mail(DSN(), b"ENVID=" + b"x" * 100)[0], 250)

    def test_notify(self) -> None:
        """NOTIFY is a set of words, or NEVER alone."""
        wanted = frozenset([Notify.SUCCESS, Notify.DELAY])
        self.assertEqual(self.rcpt(DSN(), b"NOTIFY=success,DELAY"), (250, [Recipient(wanted)]))
        self.rcpt_refused(
            DSN(), b"NOTIFY", b"NOTIFY=", b"NOTIFY=NEVER,SUCCESS", b"NOTIFY=SUCCESS,NEVER", b"NOTIFY=SUCCESS,",
            b"NOTIFY=SUCCESS,SUCCESS", b"NOTIFY=ALWAYS", b"NOTIFY=NEVER NOTIFY=DELAY", b"NOTIFY=NEVER,NEVER",
        )  # fmt: skip

    def test_originalRecipient(self) -> None:
        """ORCPT is an address type, and the address decoded from xtext."""
        original = OriginalRecipient("rfc822", "Bob+list@example.com")
        self.assertEqual(self.rcpt(DSN(), b"ORCPT=RFC822;Bob+2Blist@example.com"), (250, [Recipient(None, original)]))
        self.rcpt_refused(
            DSN(), b"ORCPT", b"ORCPT=rfc822", b"ORCPT=rfc822;", b"ORCPT=;a@b", b"ORCPT=rfc 822;a@b", b"ORCPT=r;a+2",
            b"ORCPT=rfc822;a+0Ab", b"ORCPT=rfc822;+C3+A9", b"ORCPT=a@b;c@d", b"ORCPT=rfc822;" + b"x" * 494,
        )  # fmt: skip
        self.assertEqual(self.rcpt(DSN(), b"ORCPT=rfc822;" + b"x" * 493)[0], 250)

    def test_originalRecipientInUtf8(self) -> None:
        """An address of type utf-8 has encoded characters, or plain ones if MAIL has SMTPUTF8 (RFC 6533)."""
        original = OriginalRecipient("utf-8", "é+=\\@b")
        by_number = b"ORCPT=utf-8;\\x{E9}\\x{2B}\\x{3D}\\x{5C}@b"
        self.assertEqual(self.rcpt(DSN(), by_number), (250, [Recipient(None, original)]))
        self.rcpt_refused(DSN(), b"ORCPT=utf-8;\xc3\xa9@b", enable_SMTPUTF8=True)
        self.rcpt_refused(
            DSN(), b"ORCPT=utf-8;a+2Bb", b"ORCPT=utf-8;\\x{0A}", b"ORCPT=utf-8;\\x{D800}", b"ORCPT=utf-8;\\x{FFFFFF}",
            b"ORCPT=utf-8;\\x{e9}", b"ORCPT=utf-8;\\", b"ORCPT=utf-8;\\x{2028}",
        )  # fmt: skip
        client = self.client(DSN(), enable_SMTPUTF8=True)
        client.talk(b"MAIL FROM:<a@b> SMTPUTF8\r\n")
        self.assertEqual(client.ask(b"RCPT TO:<c@d> ORCPT=utf-8;\xc3\xa9@b").code, 250)
        self.assertEqual(client.server.envelope.recipients[0].original, OriginalRecipient("utf-8", "é@b"))

    def test_growth(self) -> None:
        """All parameters fit into a command with the longest address."""
        self.assert_growth(DSN(), b"RET=FULL ENVID=" + b"x" * 100)
        self.assert_growth(DSN(), b"NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;" + b"x" * 493, b"RCPT TO:")


class RequireTLSTests(TermsTestCase):
    """REQUIRETLS (RFC 8689)."""

    def test_inTLS(self) -> None:
        """It is offered with TLS, and sets an attribute of the envelope."""
        client = Client(extensions=[RequireTLS()])
        client.server.session.ssl = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
        self.assertIn("REQUIRETLS", client.ask(b"EHLO x").lines)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> REQUIRETLS=1").code, 501)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b> REQUIRETLS").code, 250)
        self.assertTrue(client.server.envelope.require_tls)

    def test_inClear(self) -> None:
        """Without TLS it is not offered, and refused. Other messages are accepted."""
        self.assertEqual(self.offered(RequireTLS()), [])
        self.refused(RequireTLS(), b"REQUIRETLS", code=530, status="5.7.0")
        self.assertEqual(self.mail(RequireTLS(), b"")[0], 250)


class DeliverByTests(TermsTestCase):
    """DELIVERBY (RFC 2852)."""

    def test_offered(self) -> None:
        """It is offered with the minimum time, if the server has one."""
        self.assertEqual(self.offered(DeliverBy()), ["DELIVERBY"])
        self.assertEqual(self.offered(DeliverBy(120)), ["DELIVERBY 120"])
        self.assertRaises(ValueError, DeliverBy, -1)

    def test_by(self) -> None:
        """Seconds, mode and trace. In mode N, the time may be over."""
        for parameter, terms in (
            (b"BY=120;R", By(120, True)),
            (b"BY=+120;rt", By(120, True, True)),
            (b"BY=-5;N", By(-5, False)),
            (b"BY=0;NT", By(0, False, True)),
        ):
            self.assertEqual(self.mail(DeliverBy(), parameter)[2].deliver_by, terms)

    def test_refused(self) -> None:
        """Invalid times are refused. So are times that are over or too short, if the message must be returned."""
        self.refused(
            DeliverBy(), b"BY", b"BY=", b"BY=5", b"BY=5;", b"BY=5;X", b"BY=5;RR", b"BY=1234567890;R", b"BY=5;TR"
        )
        self.refused(DeliverBy(), b"BY=0;R", b"BY=-1;R", b"BY=\xd9\xa1;N")
        self.refused(DeliverBy(60), b"BY=59;R", code=555)
        self.assertEqual(self.mail(DeliverBy(60), b"BY=59;N")[0], 250)

    def test_growth(self) -> None:
        """The parameter fits into a command with the longest address."""
        self.assert_growth(DeliverBy(), b"BY=-12345678;NT")


class MTPriorityTests(TermsTestCase):
    """MT-PRIORITY (RFC 6710)."""

    def test_offered(self) -> None:
        """It is offered with the name of a profile, if the server has one."""
        self.assertEqual(self.offered(MTPriority()), ["MT-PRIORITY"])
        self.assertEqual(self.offered(MTPriority("STANAG4406")), ["MT-PRIORITY STANAG4406"])
        self.assertRaises(ValueError, MTPriority, "a b")

    def test_priority(self) -> None:
        """The values are -9 to 9."""
        for text, priority in ((b"0", 0), (b"9", 9), (b"-9", -9)):
            self.assertEqual(self.mail(MTPriority(), b"MT-PRIORITY=" + text)[2].mt_priority, priority)
        for text in (b"10", b"+3", b"-0", b"00", b"high", b"", b"3.5", b"\xd9\xa3"):
            self.refused(MTPriority(), b"MT-PRIORITY=" + text)
        self.refused(MTPriority(), b"MT-PRIORITY")
        self.assert_growth(MTPriority(), b"MT-PRIORITY=-9")


class FutureReleaseTests(TermsTestCase):
    """FUTURERELEASE (RFC 4865)."""

    extension = FutureRelease(3600, now=NOON.timestamp)

    def test_offered(self) -> None:
        """It is offered with the longest hold time, and with the latest time."""
        self.assertEqual(self.offered(self.extension), ["FUTURERELEASE 3600 2026-11-22T13:00:00Z"])
        self.assertRaises(ValueError, FutureRelease, 0)

    def test_hold(self) -> None:
        """HOLDFOR and HOLDUNTIL both result in a time. A time in the past is accepted."""
        for parameter, until in (
            (b"HOLDFOR=3600", datetime(2026, 11, 22, 13, tzinfo=UTC)),
            (b"HOLDUNTIL=2026-11-22T14:00:00+01:00", datetime(2026, 11, 22, 13, tzinfo=UTC)),
            (b"HOLDUNTIL=2026-11-22t12:00:00.5z", datetime(2026, 11, 22, 12, 0, 0, 500000, UTC)),
            (b"HOLDUNTIL=1996-11-22T12:00:00Z", datetime(1996, 11, 22, 12, tzinfo=UTC)),
        ):
            self.assertEqual(self.mail(self.extension, parameter)[2].hold_until, until)

    def test_refused(self) -> None:
        """Invalid times, times that are too late, and both parameters together are refused (RFC 4865 4.2)."""
        self.refused(
            self.extension, b"HOLDFOR", b"HOLDFOR=0", b"HOLDFOR=-1", b"HOLDFOR=1234567890", b"HOLDFOR=3601",
            b"HOLDUNTIL",
            b"HOLDUNTIL=2026-11-22", b"HOLDUNTIL=2026-11-22T13:00:01Z", b"HOLDUNTIL=2026-11-22T12:00:00",
            b"HOLDUNTIL=2026-13-22T12:00:00Z", b"HOLDUNTIL=0001-01-01T00:00:00+23:59", b"HOLDUNTIL=20261122T120000Z",
            b"HOLDFOR=5 HOLDUNTIL=2026-11-22T12:30:00Z", b"HOLDUNTIL=2026-11-22T12:00:00+25:00",
        )  # fmt: skip

    def test_growth(self) -> None:
        """The parameter fits into a command with the longest address."""
        self.assert_growth(self.extension, b"HOLDUNTIL=2026-11-22T12:00:00+00:00")


class RRVSTests(TermsTestCase):
    """RRVS (RFC 7293)."""

    def test_since(self) -> None:
        """A time, and what to do if the next server lacks the extension. The default is to reject."""
        for text, or_reject in ((b"", True), (b";R", True), (b";c", False)):
            parameter = b"RRVS=2026-11-22T12:00:00Z" + text
            self.assertEqual(self.rcpt(RRVS(), parameter), (250, [Recipient(None, None, ValidSince(NOON, or_reject))]))
        self.assert_growth(RRVS(), b"RRVS=2026-11-22T12:00:00+00:00;R", b"RCPT TO:")

    def test_refused(self) -> None:
        """Invalid times and values other than C and R are refused."""
        self.rcpt_refused(RRVS(), b"RRVS", b"RRVS=;C", b"RRVS=2026-11-22T12:00:00Z;", b"RRVS=2026-11-22T12:00:00Z;X")
        self.rcpt_refused(RRVS(), b"RRVS=now", b"RRVS=2026-11-22T12:00:00Z;CR")


class LimitsTests(TermsTestCase):
    """LIMITS (RFC 9422)."""

    def test_offered(self) -> None:
        """It advertises the server's own limit of recipients, and its own two limits."""
        self.assertEqual(self.offered(Limits()), ["LIMITS RCPTMAX=1000"])
        self.assertEqual(
            self.offered(Limits(mail_max=5, rcpt_domain_max=2), recipient_limit=100),
            ["LIMITS MAILMAX=5 RCPTMAX=100 RCPTDOMAINMAX=2"],
        )
        self.assertEqual(self.offered(Limits(), recipient_limit=None), [])
        for wrong in (0, -1, 1_000_000):
            self.assertRaises(ValueError, Limits, wrong)
            self.assertRaises(ValueError, Limits, None, wrong)

    def test_mailMax(self) -> None:
        """The limit of MAIL commands counts all of them, successful or not. The next one ends the session."""
        client = self.client(Limits(mail_max=2))
        self.assertEqual(client.codes(b"MAIL FROM:<a@b>\r\nRSET\r\nMAIL FROM:<a@b>\r\nRSET\r\n"), [250] * 4)
        self.assertEqual(client.ask(b"MAIL FROM:<a@b>").code, 421)
        self.assertTrue(client.closed)

    def test_rcptDomainMax(self) -> None:
        """The limit of domains is per session and case-insensitive. A recipient in another domain gets a temporary
        refusal; known domains are still accepted."""
        client = self.client(Limits(rcpt_domain_max=2))
        client.talk(b"MAIL FROM:<a@b>\r\n")
        recipients = b"RCPT TO:<1@x>\r\nRCPT TO:<2@X>\r\nRCPT TO:<postmaster>\r\nRCPT TO:<1@y>\r\nRCPT TO:<1@z>\r\n"
        self.assertEqual(client.codes(recipients + b"RCPT TO:<3@y>\r\n"), [250, 250, 250, 250, 452, 250])
        client.talk(b"RSET\r\nMAIL FROM:<a@b>\r\n")
        self.assertEqual(client.codes(b"RCPT TO:<1@z>\r\nRCPT TO:<1@x>\r\n"), [452, 250])

    def test_rcptMax(self) -> None:
        """The server enforces the advertised limits."""
        client = self.client(Limits(), recipient_limit=1)
        client.talk(b"MAIL FROM:<a@b>\r\n")
        self.assertEqual(client.codes(b"RCPT TO:<1@x>\r\nRCPT TO:<2@x>\r\n"), [250, 452])
