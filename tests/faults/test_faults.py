"""Fault injection: stages, matches, schedules, effects, and the syntax of the command line."""

from __future__ import annotations

import json
import smtplib
import socket
import ssl
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.engine.test_tcp import TCPTestCase, read_all, read_replies
from tests.service.test_commandline import LOOPBACK, CommandLineTestCase
from tests.support import GREETING, MESSAGE, TRANSACTION, Client, LoggingTestCase, Waiting, codes, handler
from tests.support.tls import TLSTestCase, combined, issue, secured, trusting, write
from tests.test_lmtp import BCD, lmtp, recipients
from tests.test_lmtp import send as send_lmtp
from txsmtpd import SMTP, Envelope, Extension, SMTPFactory, syntax
from txsmtpd.faults.rules import STAGES, Occasion
from txsmtpd.faults.schedules import Every, First, Nth, Rate, Schedule, Share
from txsmtpd.faults.spec import add_fault
from txsmtpd.lmtp import LMTP
from txsmtpd.testing import Faults, PretendedTLS, Transcripts
from txsmtpd.tls.certificates import Certificates

TLS = PretendedTLS()
LATER = "451 4.7.1 Try again later"


class Inbox:
    """A handler that keeps its messages."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 kept"


def facing(faults: Faults, handler: object = None, **options: Any) -> Client:
    """A client that has sent EHLO to a server with these faults."""
    client = Client(handler, faults=faults, **options)
    client.talk(GREETING)
    return client


class ScheduleTests(SynchronousTestCase):
    """When rules apply."""

    def strikes(self, schedule: Schedule, times: list[float] | None = None) -> list[int]:
        """Return at which of ten occasions, or of those at these times, it applies."""
        random = Random(0)
        asked = [schedule.strikes(now, random) for now in times or [0.0] * 10]
        return [number for number, struck in enumerate(asked, 1) if struck]

    def test_counted(self) -> None:
        """The first ones; one; every n-th."""
        self.assertEqual(self.strikes(First(2)), [1, 2])
        self.assertEqual(self.strikes(Nth(3)), [3])
        self.assertEqual(self.strikes(Every(3)), [3, 6, 9])

    def test_share(self) -> None:
        """None, all, or approximately this share."""
        self.assertEqual(self.strikes(Share(0)), [])
        self.assertEqual(len(self.strikes(Share(1))), 10)
        share = len(self.strikes(Share(0.3), [0.0] * 10_000)) / 10_000
        self.assertTrue(0.28 < share < 0.32, share)

    def test_rate(self) -> None:
        """The occasions beyond a rate: the bucket is full at first, and is refilled over time up to its size."""
        self.assertEqual(self.strikes(Rate(3, 60), [0, 0, 0, 0, 19.9, 20.1, 20.2]), [4, 5, 7])
        self.assertEqual(self.strikes(Rate(3, 60), [0, 0, 0, 1000, 1000, 1000, 1000]), [7])
        self.assertEqual(self.strikes(Rate(10, 1), [n / 10 for n in range(1000)]), [])

    def test_senseless(self) -> None:
        """Invalid numbers are refused immediately."""
        rule = Faults().on("rcpt")
        for number in (0, -1):
            for method in (rule.first, rule.nth, rule.every):
                with self.assertRaises(ValueError):
                    method(number)
        for wrong in (lambda: rule.share(1.5), lambda: rule.rate(0, per=1), lambda: rule.rate(1, per=0)):
            with self.assertRaises(ValueError):
                wrong()
        for method in (rule.first, rule.nth, rule.every, rule.share, rule.delay, rule.slow):
            with self.assertRaises(TypeError):
                method("2")  # type: ignore[arg-type]


class RuleTests(SynchronousTestCase):
    """Which rule applies to what."""

    def test_retry(self) -> None:
        """A client that tries again delivers its message at the third attempt. The server has it once."""
        faults = Faults()
        faults.on("rcpt", to="*@example.com").first(2).reply(LATER)
        inbox = Inbox()
        client = facing(faults, inbox)
        tried = []
        while not tried or tried[-1] // 100 == 4:  # this loop stands for the user's code under test
            client.wait(60)
            tried.append(client.send().code)
            client.talk(b"RSET\r\n")
        self.assertEqual(tried, [451, 451, 250])
        self.assertEqual(len(inbox.envelopes), 1)
        self.assertEqual([each.at for each in faults.fired], [60, 120])

    def test_rateLimit(self) -> None:
        """A sender that slows down delivers everything, as fast as allowed. No real time passes."""
        faults = Faults()
        faults.on("mail").rate(10, per=60).reply("421 4.7.0 Too fast, come back later")
        inbox = Inbox()
        clock = Clock()
        factory = SMTPFactory(inbox, faults=faults, reactor=clock)
        refused = 0
        while len(inbox.envelopes) < 40:
            client = Client(factory=factory)
            if client.send().code == 421:
                refused += 1
                self.assertTrue(client.closed)
                clock.advance(6)  # the sender under test must find this pause by itself
        self.assertEqual(refused, 30)
        self.assertAlmostEqual(clock.seconds(), 30 * 6)

    def test_stages(self) -> None:
        """A rule can apply to each command, by its name, if the command is valid."""
        lines = {
            "helo": b"HELO a",
            "ehlo": b"EHLO a",
            "auth": b"AUTH PLAIN AAAA",
            "starttls": b"STARTTLS",
            "noop": b"NOOP",
            "rset": b"RSET",
            "vrfy": b"VRFY a@b",
            "help": b"HELP",
            "quit": b"QUIT",
            "mail": b"MAIL FROM:<a@b>",
            "expn": b"EXPN x",
        }
        lines |= {"rcpt": TRANSACTION[:-2], "data": TRANSACTION + b"DATA", "bdat": TRANSACTION + b"BDAT 0 LAST"}
        for stage, line in lines.items():
            said = []
            for status in (None, "459 4.7.1 as told"):
                faults = Faults()
                if status is not None:
                    faults.on(stage).reply(status)
                client = facing(faults, auth_require_tls=False, authenticator=lambda *all: True, tls_context=TLS)
                said.append(client.codes(line + b"\r\n"))
            self.assertEqual(said[1], [*said[0][:-1], 459], stage)
            self.assertNotEqual(said[0], said[1], stage)

    def test_any(self) -> None:
        """``any`` is each command. A rule may have several stages."""
        faults = Faults()
        faults.on("any").nth(3).reply(LATER)
        faults.on("noop", "rset").nth(4).drop()
        client = facing(faults)
        self.assertEqual(client.codes(b"NOOP\r\nNOOP\r\nNOOP\r\nRSET\r\nNOOP\r\nNOOP\r\n"), [250, 451, 250, 250])
        self.assertTrue(client.closed)

    def test_outOfOrder(self) -> None:
        """Commands that the server refuses anyway are refused as usual, and do not count."""
        faults = Faults()
        faults.on("rcpt", "mail").first(1).reply(LATER)
        client = facing(faults)
        refused = b"RCPT TO:<a@b>\r\nMAIL FROM\r\nMAIL FROM:<a@@b>\r\nMAIL\r\nFOO\r\n"
        self.assertEqual(client.codes(refused), [503, 501, 553, 501, 500])
        self.assertEqual(client.codes(TRANSACTION + b"MAIL FROM:<a@b>\r\n"), [451, 503, 250])

    def test_matches(self) -> None:
        """A rule applies only if all its matches fit."""
        cases: list[tuple[dict[str, Any], bool]] = [
            ({"to": "b@example.com"}, True),
            ({"to": "B@EXAMPLE.*"}, True),
            ({"to": "example.com"}, False),
            ({"to": "?@example.com"}, False),
            ({"to": "b@example.com", "mail_from": "a@*"}, True),
            ({"to": "b@example.com", "mail_from": "c@*"}, False),
            ({"mail_from": ""}, False),
            ({"helo": "client.*"}, True),
            ({"helo": "other"}, False),
            ({"peer": "192.0.2.7"}, True),
            ({"peer": "192.0.2.*"}, True),
            ({"peer": "192.0.2.0/28"}, True),
            ({"peer": "192.0.3.0/28"}, False),
            ({"peer": "2001:db8::/32"}, False),
            ({"when": lambda occasion: occasion.session.extended_smtp}, True),
            ({"when": lambda occasion: occasion.argument != "TO:<b@example.com>"}, False),
        ]
        for matches, strikes in cases:
            for stage, line in (("rcpt", 1), ("data", 2)):
                if stage == "data" and "when" in matches and not strikes:
                    continue
                faults = Faults()
                faults.on(stage, **matches).reply("459 told")
                said = facing(faults).codes(TRANSACTION + b"DATA\r\n")
                self.assertEqual(said[line] == 459, strikes, (stage, matches))

    def test_localPeer(self) -> None:
        """A client without an address fits no rule with an address."""
        faults = Faults()
        for peer in ("*", "0.0.0.0/0"):
            faults.on("noop", peer=peer).drop()
        self.assertEqual(facing(faults, peer=UNIXAddress(None)).codes(b"NOOP\r\n"), [250])
        self.assertEqual(facing(faults, peer=IPv4Address("TCP", "10.0.0.1", 1)).codes(b"NOOP\r\n"), [])

    def test_nullSender(self) -> None:
        """A bounce has the empty sender."""
        faults = Faults()
        faults.on("mail", mail_from="").reply(LATER)
        self.assertEqual(facing(faults).codes(b"MAIL FROM:<>\r\nMAIL FROM:<a@b>\r\n"), [451, 250])

    def test_size(self) -> None:
        """A rule can match the size that MAIL declares, and the size of the message."""
        faults = Faults()
        faults.on("mail", size=1000).reply("459 announced")
        faults.on("message", size=100).reply("458 real")
        client = facing(faults)
        self.assertEqual(client.codes(b"MAIL FROM:<a@b> SIZE=1000\r\n"), [459])
        self.assertEqual(client.codes(b"MAIL FROM:<a@b> SIZE=999\r\nRSET\r\n"), [250, 250])
        self.assertEqual(client.send_message(b"x" * 98 + b"\r\n").code, 458)
        self.assertEqual(client.send_message(b"x" * 97 + b"\r\n").code, 250)

    def test_order(self) -> None:
        """Only the first rule that fits is applied. Later rules do not count the occasion."""
        faults = Faults()
        faults.on("noop").first(2).reply("456 one")
        faults.on("noop").first(2).reply("457 two")
        self.assertEqual(facing(faults).codes(b"NOOP\r\n" * 5), [456, 456, 457, 457, 250])

    def test_schedulesTogether(self) -> None:
        """Several schedules apply one after the other."""
        faults = Faults()
        faults.on("noop").every(2).first(2).reply("456 one")
        self.assertEqual(facing(faults).codes(b"NOOP\r\n" * 8), [250, 456, 250, 456, 250, 250, 250, 250])

    def test_seed(self) -> None:
        """The same seed results in the same run, another seed in another one. Rules are independent of each other."""

        def run(seed: int, *, more: bool = False) -> list[int]:
            faults = Faults(seed)
            rule = faults.on("noop").share(0.5).reply("456 one")
            if more:
                faults.on("rset").share(0.5).garbage()
            client = facing(faults, junk_command_limit=None)
            if more:
                client.talk(b"RSET\r\n" * 20)
            self.assertEqual(rule.effect, "456 one")
            return client.codes(b"NOOP\r\n" * 60)

        self.assertEqual(run(1), run(1))
        self.assertEqual(run(1), run(1, more=True))
        self.assertNotEqual(run(1), run(2))

    def test_addedLater(self) -> None:
        """Rules can be added while connections are open, and cleared."""
        faults = Faults()
        client = facing(faults)
        self.assertEqual(client.codes(b"NOOP\r\n"), [250])
        faults.on("noop").reply("456 one")
        self.assertEqual(client.codes(b"NOOP\r\n"), [456])
        self.assertEqual([(each.stage, each.rule, each.effect) for each in faults.fired], [("noop", "noop", "456 one")])
        faults.clear()
        self.assertEqual((client.codes(b"NOOP\r\n"), faults.fired, list(faults)), ([250], [], []))

    def test_wrong(self) -> None:
        """Invalid rules are refused, with the most similar valid word."""
        faults = Faults()
        for wrong, words in (
            (lambda: faults.on("rctp"), "there is no stage 'rctp'; did you mean rcpt?"),
            (lambda: faults.on(), "a rule needs a stage"),
            (lambda: faults.on("rcpt").reply("354 go on"), "final reply"),
            (lambda: faults.on("rcpt").reply("later"), "is not a status"),
            (lambda: faults.on("rcpt").drop().reply(LATER), "a rule has one effect"),
            (lambda: faults.on("rcpt").certificate(object()), "certificate requires the stage"),
            (lambda: faults.on("rcpt", peer="300.1.1.1/8"), "300.1.1.1/8"),
            (lambda: faults.on("rcpt").delay(0), "above 0"),
        ):
            with self.assertRaises(ValueError) as caught:
                wrong()
            self.assertIn(words, str(caught.exception))
        for matches in ({"to": 3}, {"size": "3"}, {"when": "now"}):
            with self.assertRaises(TypeError):
                faults.on("rcpt", **matches)  # type: ignore[arg-type]
        with self.assertRaisesRegex(TypeError, "faults must be a txsmtpd.testing.Faults"):
            SMTPFactory(faults=Faults)  # type: ignore[arg-type]

    def test_ownCommands(self) -> None:
        """Commands of a subclass, and its overrides, are unchanged."""

        class Mine(SMTP):
            @syntax("PING")
            def smtp_PING(self, arg: str | None) -> str:
                return "250 pong"

            async def smtp_NOOP(self, arg: str | None) -> Any:
                return "251 mine"

        faults = Faults()
        faults.on("noop").first(1).reply(LATER)
        self.assertEqual(facing(faults, protocol=Mine).codes(b"PING\r\nNOOP\r\nNOOP\r\n"), [250, 451, 251])
        faults.on("any", when=lambda occasion: occasion.stage == "ping").reply("456 one")
        self.assertEqual(facing(faults, protocol=Mine).codes(b"PING\r\n"), [456])

    def test_extensions(self) -> None:
        """``any`` includes the commands of extensions."""

        class Pong(Extension):
            keyword = "PONG"

            @syntax("PONG")
            def smtp_PONG(self, server: Any, arg: str | None) -> str:
                return "250 ping"

        faults = Faults()
        faults.on("any", when=lambda occasion: occasion.stage == "pong").nth(2).reply(LATER)
        client = facing(faults, extensions=[Pong()])
        self.assertEqual(client.codes(b"PONG\r\n" * 3), [250, 451, 250])

    def test_offCostsNothing(self) -> None:
        """Without faults, the class of the protocol is the one that was passed. With faults, it is created once."""
        self.assertIs(SMTPFactory().protocol, SMTP)
        first, second = (SMTPFactory(faults=Faults()).protocol for _ in "ab")
        self.assertIs(first, second)

    def test_transcript(self) -> None:
        """A fault and its rule are in the transcript, before their effect."""
        transcripts = Transcripts()
        faults = Faults()
        faults.on("noop", helo="client.*").nth(1).delay(2).reply(LATER)
        client = facing(faults, transcript=transcripts)
        client.say(b"NOOP\r\n")
        client.wait(3)
        self.assertEqual(
            transcripts[-1].lines[-3:],
            ["C: NOOP", f"F: after 2 s, {LATER} (noop helo=client.*, number 1)", f"S: {LATER}"],
        )
        self.assertEqual([record.at for record in transcripts[-1]][-3:], [0, 0, 2])

    def test_everyStageIsTold(self) -> None:
        """The stages are the commands of SMTP and LMTP, and four other moments."""
        self.assertEqual(
            {"connect", "greeting", "message", "accepted", "any", "lhlo", "ehlo", "bdat"} - {*STAGES}, set()
        )


class EffectTests(LoggingTestCase):
    """The effects of rules."""

    def test_delay(self) -> None:
        """After the delay, the session continues as usual. Pipelined commands wait, and replies are in order."""
        faults = Faults()
        faults.on("mail", "data", "message").delay(5)
        client = facing(faults)
        client.say(TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\nNOOP\r\n")
        self.assertEqual(client.heard(), b"")
        self.assertEqual([codes(client.wait(5)) for _ in range(3)], [[250, 250], [354], [250, 250]])

    def test_delayAndGone(self) -> None:
        """A client that disconnects during the delay leaves no timer behind."""
        faults = Faults()
        faults.on("noop", "message").delay(5)
        client = facing(faults)
        client.say(b"NOOP\r\n")
        client.vanish()
        other = facing(faults)
        other.say(TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n")
        other.vanish()
        self.assertEqual((client.clock.getDelayedCalls(), other.clock.getDelayedCalls()), ([], []))

    def test_delayTooLong(self) -> None:
        """A delay counts as processing time, and has the same timeout."""
        faults = Faults()
        faults.on("message").delay(500)
        client = facing(faults)
        client.talk(TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n")
        self.assertEqual(codes(client.wait(300)), [451])
        self.assertEqual(client.codes(b"MAIL FROM:<a@b>\r\n"), [250])

    def test_message(self) -> None:
        """A refused message does not reach the handler. The next one does, by DATA and by BDAT."""
        faults = Faults()
        faults.on("message").every(2).reply("452 4.3.1 full")
        inbox = Inbox()
        client = facing(faults, inbox)
        self.assertEqual([client.send_message().code for _ in range(4)], [250, 452, 250, 452])
        chunks = TRANSACTION + b"BDAT 3\r\nabcBDAT 2 LAST\r\nde"
        self.assertEqual(client.codes(chunks + chunks), [250, 250, 250, 250, 250, 250, 250, 452])
        self.assertEqual(len(inbox.envelopes), 3)

    def test_messageLost(self) -> None:
        """A server that replies 250 and has lost the message."""
        faults = Faults()
        faults.on("message").first(1).reply("250 2.0.0 taken, as if")
        inbox = Inbox()
        client = facing(faults, inbox)
        self.assertEqual((client.send_message().code, len(inbox.envelopes)), (250, 0))
        self.assertEqual((client.send_message().code, len(inbox.envelopes)), (250, 1))

    def test_accepted(self) -> None:
        """A message that is accepted, but whose reply is lost: senders send it twice (RFC 1047)."""
        faults = Faults()
        faults.on("accepted", to="b@*", mail_from="a@*", size=10).first(1).drop()
        inbox = Inbox()
        client = facing(faults, inbox)
        client.talk(TRANSACTION + b"DATA\r\n")
        self.assertEqual(client.talk(MESSAGE + b".\r\n"), b"")
        self.assertTrue(client.closed)
        self.assertEqual(len(inbox.envelopes), 1)

    def test_acceptedOnlyIfTaken(self) -> None:
        """A message that the handler refuses does not count as accepted."""
        faults = Faults()
        faults.on("accepted").drop()
        client = facing(faults, handler(DATA=lambda *all: "550 5.7.1 no"))
        self.assertEqual(client.send_message().code, 550)

    def test_endings(self) -> None:
        """Drop and reset: earlier replies are sent, none after it, and the handler is notified once."""
        for effect, aborted in (("drop", False), ("reset", True)):
            for stage, octets in (
                ("noop", b"RSET\r\nNOOP\r\nNOOP\r\n"),
                ("message", TRANSACTION + b"DATA\r\n.\r\nNOOP\r\n"),
            ):
                for delay in (0, 5):
                    ends: list[Any] = []
                    faults = Faults()
                    rule = getattr(faults.on(stage), effect)()
                    if delay:
                        rule.delay(delay)
                    client = facing(faults, handler(DISCONNECT=lambda *all, ends=ends: ends.append(all[-1])))
                    client.say(octets)
                    client.wait(delay)
                    self.assertTrue(client.closed, (effect, stage, delay))
                    self.assertEqual(client.transport.aborted, aborted)
                    self.assertEqual(len(ends), 1)
                    self.assertEqual(client.clock.getDelayedCalls(), [])
                    self.assertEqual(client.factory.connections, set())
                    if not aborted:
                        self.assertIn(codes(client.transport.taken)[-1], (250, 354))

    def test_connect(self) -> None:
        """A connection can be dropped or refused before the greeting, or get a wrong greeting."""
        faults = Faults()
        faults.on("connect").first(1).drop()
        faults.on("connect").first(1).reply("421 4.3.2 not now")
        faults.on("greeting").first(1).reply("554 5.3.2 never")
        faults.on("greeting").first(1).reply("450 4.3.2 hm")
        faults.on("greeting").first(1).garbage(b"SSH-2.0-x\r\n")
        factory = SMTPFactory(faults=faults, hostname="mx.test", reactor=Clock())
        said = [(client.welcome[:8], client.closed) for client in (Client(factory=factory) for _ in range(6))]
        expected = [b"", b"421 4.3.", b"554 5.3.", b"450 4.3.", b"SSH-2.0-", b"220 mx.t"]
        self.assertEqual(said, list(zip(expected, [True, True, False, True, False, False], strict=True)))

    def test_turnedAway(self) -> None:
        """After a greeting of 554, all commands except QUIT get 503 (RFC 5321 3.1)."""
        faults = Faults()
        faults.on("greeting").reply("554 5.3.2 never")
        client = Client(faults=faults)
        self.assertEqual(client.codes(GREETING + b"NOOP\r\nQUIT\r\n"), [503, 503, 221])

    def test_halfClose(self) -> None:
        """The client reads the end of the stream. Its further data is discarded, for a limited time."""
        faults = Faults()
        faults.on("noop").half_close()
        transcripts = Transcripts()
        client = facing(faults, transcript=transcripts)
        self.assertEqual(client.codes(b"RSET\r\nNOOP\r\nRSET\r\nQUIT\r\n"), [250])
        self.assertFalse(client.closed)
        self.assertEqual(client.talk(b"RSET\r\n" * 100), b"")
        self.assertEqual(client.wait(301), b"")
        self.assertTrue(client.closed)
        self.assertEqual(transcripts[-1].lines[-3:-1], ["C: NOOP", "F: half-close (noop)"])

    def test_stopReading(self) -> None:
        """The server neither reads nor replies until the hook timeout, or until it stops."""
        faults = Faults()
        faults.on("noop").stop_reading()
        client = facing(faults)
        self.assertEqual(client.codes(b"RSET\r\nNOOP\r\n"), [250])
        client.say(b"RSET\r\n" * 1000)
        self.assertFalse(client.reading)
        self.assertEqual(client.undelivered, 6000)
        self.assertEqual(client.wait(299), b"")
        self.assertFalse(client.closed)
        self.assertEqual(client.wait(2), b"")
        self.assertTrue(client.closed)
        other = facing(faults)
        other.say(b"NOOP\r\n")
        drained = other.factory.drain()
        other.settle()
        self.successResultOf(drained)

    def test_garbage(self) -> None:
        """Octets that are not a reply are sent instead of it. Then the session continues."""
        faults = Faults()
        faults.on("noop").garbage(b"\xff\xfe\r\n")
        faults.on("bdat").garbage(b"!\r\n")
        faults.on("vrfy").garbage()
        client = facing(faults)
        self.assertEqual(client.talk(b"NOOP\r\nRSET\r\n"), b"\xff\xfe\r\n250 2.0.0 OK\r\n")
        self.assertEqual(client.talk(TRANSACTION + b"BDAT 4\r\nNOOPRSET\r\n")[-17:], b"!\r\n250 2.0.0 OK\r\n")
        first, second = client.talk(b"VRFY a@b\r\n"), client.talk(b"VRFY a@b\r\n")
        self.assertEqual((len(first), first == second), (66, False))

    def test_slow(self) -> None:
        """A reply is sent slowly. Input that arrives meanwhile waits, and is then processed at full speed."""
        faults = Faults()
        faults.on("noop").first(1).slow(4)
        client = facing(faults)
        reply = client.talk(b"NOOP\r\nNOOP\r\n")
        for _ in range(13):
            self.assertLess(len(reply), 14)
            reply += client.wait(0.25)
        self.assertEqual(reply, b"250 2.0.0 OK\r\n" * 2)

    def test_slowVariants(self) -> None:
        """Together with a reply, an error or a delay; with a reply that closes; for the reply to a message."""

        def fails(*all: Any) -> str:
            raise ZeroDivisionError

        for build, octets, expected in (
            (lambda rule: rule.slow(10).reply(LATER), b"NOOP\r\n", [451]),
            (lambda rule: rule.slow(10).delay(3), b"NOOP\r\n", [250]),
            (lambda rule: rule.slow(10).reply("421 4.3.2 bye"), b"NOOP\r\nNOOP\r\n", [421]),
            (lambda rule: rule.slow(10), b"VRFY a@b\r\nNOOP\r\n", [451, 250]),
            (lambda rule: rule.slow(10), b"QUIT\r\nNOOP\r\n", [221]),
            (lambda rule: rule.slow(10), b"EHLO x\r\n", [250]),
            (lambda rule: rule.slow(10), TRANSACTION + b"DATA\r\n.\r\nNOOP\r\n", [250, 250, 354, 250, 250]),
            (lambda rule: rule.slow(1000), b"NOOP\r\n", [250]),
        ):
            faults = Faults()
            client = Client(handler(VRFY=fails), faults=faults)
            client.talk(GREETING)
            build(faults.on("noop", "vrfy", "quit", "ehlo", "message").first(1))
            said = client.talk(octets) + client.wait(60)
            self.assertEqual(codes(said), expected, octets)
            self.assertEqual(client.closed, expected[-1] in (221, 421))
            self.flushLoggedErrors(ZeroDivisionError)

    def test_slowAndGone(self) -> None:
        """A client that disconnects meanwhile leaves no timer. Neither does a server that stops."""
        for end in (lambda client: client.vanish(), lambda client: client.factory.abort()):
            faults = Faults()
            faults.on("quit").slow(1)
            client = facing(faults)
            client.say(b"QUIT\r\n")
            client.wait(3)
            end(client)
            client.settle()
            self.assertTrue(client.closed)
            self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_waitingHook(self) -> None:
        """A hook that waits after a delay is cancelled when the client disconnects."""
        hook = Waiting()
        faults = Faults()
        faults.on("noop").delay(2)
        client = facing(faults, handler(NOOP=hook))
        client.say(b"NOOP\r\n")
        client.wait(2)
        self.assertEqual(len(hook.waiting), 1)
        client.vanish()
        self.assertEqual(hook.cancelled, 1)

    def test_noTracebacks(self) -> None:
        """Every effect at every stage, with and without pipelining, leaves no traceback, timer or connection."""
        effects = ["reply", "drop", "reset", "half_close", "stop_reading", "garbage", "delay", "slow"]
        session = b"HELO a\r\nEHLO a\r\nNOOP\r\n" + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n"
        session += TRANSACTION + b"BDAT 2 LAST\r\nabVRFY a@b\r\nHELP\r\nEXPN\r\nRSET\r\nQUIT\r\n"
        for stage in STAGES:
            for effect in effects:
                for cuts in ((), range(1, len(session))):
                    faults = Faults()
                    method = getattr(faults.on(stage).share(0.5), effect)
                    method(*{"reply": [LATER], "delay": [7], "slow": [1000]}.get(effect, []))
                    client = Client(faults=faults, hook_timeout=100, timeout=100)
                    client.say(session, cuts)
                    client.wait(400, step=5)
                    self.assertTrue(client.closed, (stage, effect))
                    self.assertEqual(client.clock.getDelayedCalls(), [], (stage, effect))
                    self.assertEqual(client.factory.connections, set())
        self.assertEqual([event for event in self.events if "log_failure" in event], [])


class LMTPTests(SynchronousTestCase):
    """LMTP, where each recipient has a reply."""

    def test_oneRecipient(self) -> None:
        """A rule with recipients applies to these. The message is delivered to the others."""
        for way in ("one", "each"):
            faults = Faults()
            faults.on("message", to="c@*").reply("452 4.2.2 full")
            seen = []

            def take(server: Any, session: Any, envelope: Envelope, way: str = way, seen: list[Any] = seen) -> Any:
                seen.append(list(envelope.rcpt_tos))
                return "250 2.0.0 kept" if way == "one" else [f"250 2.0.0 {path}" for path in envelope.rcpt_tos]

            client = lmtp(handler(DATA=take), faults=faults)
            said = send_lmtp(client, *BCD)
            self.assertEqual([line[:3] for line in said], ["250", "452", "250"])
            if way == "each":
                self.assertEqual(said[2], "250 2.0.0 d@x")
            self.assertEqual(seen, [["b@x", "d@x"]])
            self.assertEqual([line[:3] for line in send_lmtp(client, b"b@x")], ["250"])

    def test_all(self) -> None:
        """If a rule applies to all of them, the handler gets nothing. A rule without recipients applies to all, too."""
        for matches in ({"to": "*@x"}, {}):
            faults = Faults()
            faults.on("message", **matches).reply("452 4.2.2 full")
            inbox = Inbox()
            client = lmtp(inbox, faults=faults)
            self.assertEqual([line[:3] for line in send_lmtp(client, *BCD)], ["452"] * 3)
            self.assertEqual(inbox.envelopes, [])
            self.assertEqual(client.codes(b"NOOP\r\n"), [250])

    def test_counted(self) -> None:
        """Schedules count recipients if a rule has recipients."""
        faults = Faults()
        faults.on("message", to="*").nth(2).reply("452 4.2.2 full")
        client = lmtp(Inbox(), faults=faults)
        self.assertEqual([line[:3] for line in send_lmtp(client, *BCD)], ["250", "452", "250"])
        self.assertEqual([line[:3] for line in send_lmtp(client, *BCD)], ["250", "250", "250"])

    def test_failing(self) -> None:
        """A refusal of a hook applies to the remaining recipients."""
        faults = Faults()
        faults.on("message", to="c@*").reply("452 4.2.2 full")
        client = lmtp(handler(DATA=lambda *all: "550 5.7.1 no"), faults=faults)
        self.assertEqual([line[:3] for line in send_lmtp(client, *BCD)], ["550", "452", "550"])

    def test_sameTwice(self) -> None:
        """A rule applies twice or once to a recipient that is named twice."""
        faults = Faults()
        faults.on("message", to="b@*").first(1).reply("452 4.2.2 full")
        inbox = Inbox()
        client = lmtp(inbox, faults=faults)
        self.assertEqual([line[:3] for line in send_lmtp(client, b"b@x", b"b@x", b"c@x")], ["452", "250", "250"])
        self.assertEqual(inbox.envelopes[0].rcpt_tos, ["b@x", "c@x"])

    def test_otherEffects(self) -> None:
        """Effects without a reply apply to the message as a whole. No recipient gets two replies, and no reply is due
        after it."""
        for effect, arguments in (("garbage", (b"!\r\n",)), ("slow", (1000,)), ("delay", (1,))):
            for matches in ({"to": "c@*"}, {}):
                faults = Faults()
                getattr(faults.on("message", **matches), effect)(*arguments)
                client = lmtp(Inbox(), faults=faults)
                client.talk(b"MAIL FROM:<a@b>\r\n" + recipients(*BCD) + b"DATA\r\n")
                said = client.talk(MESSAGE + b".\r\n") + client.wait(10)
                self.assertEqual(
                    said if effect == "garbage" else codes(said), b"!\r\n" if effect == "garbage" else [250] * 3
                )
                self.assertEqual(client.codes(b"NOOP\r\n"), [250])

    def test_lhlo(self) -> None:
        """LHLO is a stage, too."""
        faults = Faults()
        faults.on("lhlo", helo="a").reply(LATER)
        self.assertEqual(Client(faults=faults, protocol=LMTP).codes(b"LHLO a\r\nLHLO b\r\n"), [451, 250])


class TCPTests(TCPTestCase):
    """Effects on real clients."""

    async def begin(self, build: Any) -> None:
        self.faults = Faults()
        build(self.faults)
        await self.serve(faults=self.faults)

    async def test_smtplib(self) -> None:
        """smtplib fails twice, and then succeeds."""
        await self.begin(lambda faults: faults.on("rcpt", to="*@example.com").first(2).reply(LATER))

        def send(connection: socket.socket) -> list[int]:
            tried = []
            for _ in range(5):
                with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
                    try:
                        client.sendmail("a@example.com", "b@example.com", "Subject: x\r\n\r\nx")
                    except smtplib.SMTPRecipientsRefused as refused:
                        tried.append(refused.recipients["b@example.com"][0])
                    else:
                        return [*tried, 250]
            return tried

        self.assertEqual(await self.client(send), [451, 451, 250])

    async def test_drop(self) -> None:
        """With a drop, the client sees the end of the stream after the replies that were due."""
        await self.begin(lambda faults: faults.on("noop").drop())

        def act(connection: socket.socket) -> bytes:
            connection.sendall(b"RSET\r\nNOOP\r\n")
            return read_all(connection)

        self.assertEqual(codes(await self.client(act)), [220, 250])

    async def test_reset(self) -> None:
        """With a reset, the client sees an error."""
        await self.begin(lambda faults: faults.on("noop").reset())

        def act(connection: socket.socket) -> None:
            read_replies(connection, 1)
            connection.sendall(b"NOOP\r\n")
            read_all(connection)

        with self.assertRaises(ConnectionResetError):
            await self.client(act)

    async def test_connect(self) -> None:
        """A connection that is dropped before the greeting."""
        await self.begin(lambda faults: faults.on("connect").drop())
        self.assertEqual(await self.client(read_all), b"")

    async def test_halfClose(self) -> None:
        """The client reads the end of the stream, and can still send."""
        await self.begin(lambda faults: faults.on("noop").half_close())

        def act(connection: socket.socket) -> bytes:
            connection.sendall(b"RSET\r\nNOOP\r\n")
            said = read_all(connection)
            for _ in range(100):
                connection.sendall(b"RSET\r\n" * 1000)
            return said

        self.assertEqual(codes(await self.client(act)), [220, 250])
        await self.eventually(lambda: not self.factory.connections, "the connection is gone")

    async def test_stopReading(self) -> None:
        """The client's data fills the buffers until it can send no more."""
        await self.begin(lambda faults: faults.on("noop").stop_reading())

        def act(connection: socket.socket) -> str:
            connection.sendall(b"NOOP\r\n")
            connection.settimeout(0.5)
            for _ in range(1000):
                try:
                    connection.sendall(b"x" * 2**20)
                except TimeoutError:
                    return "stuck"
            return "all was read"

        self.assertEqual(await self.client(act), "stuck")

    async def test_slow(self) -> None:
        """A reply that is sent slowly arrives completely."""
        await self.begin(lambda faults: faults.on("quit").slow(200))

        def act(connection: socket.socket) -> bytes:
            connection.sendall(b"QUIT\r\n")
            return read_all(connection)

        self.assertEqual(codes(await self.client(act)), [220, 221])


class TLSTests(TLSTestCase):
    """Faults with TLS."""

    async def test_certificate(self) -> None:
        """A certificate for another name fails the handshake, with STARTTLS and with implicit TLS."""
        wrong = Certificates(write(self.folder / "wrong.pem", combined(issue("elsewhere.example"))))
        for implicit in (False, True):
            faults = Faults()
            faults.on("connect" if implicit else "starttls").first(1).certificate(wrong)
            port = await self.serve(faults=faults, implicit_tls=implicit)

            def connect(port: int = port, implicit: bool = implicit) -> None:
                if implicit:
                    with smtplib.SMTP_SSL("localhost", port, timeout=60, context=trusting()) as client:
                        client.noop()
                else:
                    client = secured(port)
                    client.close()

            with self.assertRaisesRegex(ssl.SSLCertVerificationError, "elsewhere|Hostname mismatch"):
                await self.run_client(connect)
            await self.run_client(connect)
            self.assertEqual(faults.fired[0].effect, "another certificate")

    async def test_insideTLS(self) -> None:
        """Drop, half-close and slow replies within TLS."""
        faults = Faults()
        faults.on("noop").drop()
        faults.on("rset").half_close()
        faults.on("vrfy").slow(100)
        port = await self.serve(faults=faults)

        def act(line: str) -> str:
            client = secured(port)
            try:
                return client.ask(line)
            finally:
                client.close()

        self.assertEqual(await self.run_client(act, "NOOP"), "")
        self.assertEqual(await self.run_client(act, "RSET"), "")
        self.assertIn("252", await self.run_client(act, "VRFY a@b"))


class WordsTests(SynchronousTestCase):
    """Rules as text."""

    def rule(self, spec: str) -> str:
        faults = Faults()
        add_fault(faults, spec)
        (rule,) = faults
        return f"{rule}: {rule.effect}"

    def test_words(self) -> None:
        """Stages, matches, schedules and effects, each in its syntax."""
        for spec, expected in {
            "rcpt reply=451 4.7.1 later on": "rcpt: 451 4.7.1 later on",
            "RCPT to=*@example.com first=2 REPLY=451 later": "rcpt to=*@example.com, first 2: 451 later",
            "rcpt\tdrop": "rcpt: drop",
            "mail,rcpt mail-from=a@* nth=3 drop": "mail rcpt mail_from=a@*, number 3: drop",
            "mail mail_from= reset": "mail mail_from=: reset",
            "data helo=x peer=10.0.0.0/8 half-close": "data helo=x peer=10.0.0.0/8: half-close",
            "message size=1000 every=3 garbage": "message size=1000, every 3: garbage",
            "any share=0.25 stop_reading": "any, share 0.25: stop reading",
            "mail rate=10/60 reply=421 slow down": "mail, beyond 10 in 60 s: 421 slow down",
            "mail rate=10 drop": "mail, beyond 10 in 1 s: drop",
            "starttls certificate=expired": "starttls: expired certificate",
            "quit slow=2.5 delay=3": "quit: after 3 s, at 2.5 octets a second",
        }.items():
            self.assertEqual(self.rule(spec), expected)

    def test_wrong(self) -> None:
        """Invalid rules are refused with an explanation."""
        for spec, words in {
            "": "a rule needs a stage",
            "reply=451 x": "a rule needs a stage",
            "rctp drop": "did you mean rcpt?",
            "rcpt": "the rule has no effect",
            "rcpt first=2": "the rule has no effect",
            "rcpt frist=2 drop": "did you mean first?",
            "rcpt first=two drop": "a number was expected, not 'two'",
            "rcpt first= drop": "first needs a value",
            "rcpt first drop": "first needs a value",
            "rcpt helo drop": "helo needs a value",
            "rcpt to= drop": "to needs a value",
            "rcpt mail-from drop": "mail-from needs a value",
            "rcpt to=*@a.test to=*@b.test drop": "to is given twice",
            "rcpt rate=3/ drop": "a number was expected, not ''",
            "rcpt drop=1": "drop takes no value",
            "rcpt drop reset": "a rule has one effect",
            "rcpt delay=nan": "a number was expected",
            "rcpt share=2 drop": "from 0 to 1",
            "rcpt reply=hello": "is not a status",
            "rcpt reply=354 go on": "final reply",
            "rcpt reply=": "is not a status",
            "rcpt {} drop": "'{}' is not a part",
            "rcpt certificate=x.pem": "x.pem",
            "rcpt certificate=expired": "certificate requires the stage",
            "starttls certificate=/none/x.pem": "x.pem",
        }.items():
            with self.assertRaises(Exception) as caught:
                self.rule(spec)
            self.assertIn(words, str(caught.exception), spec)


class CommandLineTests(CommandLineTestCase):
    """``--fault``."""

    def test_faults(self) -> None:
        """They are applied, and are in the transcript."""
        process = self.smtpd(
            LOOPBACK,
            "--handler=sink",
            "--transcript=said.jsonl",
            "--fault=rcpt to=*@b.example first=1 reply=451 4.7.1 Try again later",
            "--fault=noop drop",
        )
        client = self.connect(process.port())
        client.reply()
        for command in "EHLO c.example", "MAIL FROM:<a@a.example>":
            client.say(command)
        self.assertEqual(client.say("RCPT TO:<b@b.example>"), "451 4.7.1 Try again later\r\n")
        self.assertTrue(client.say("RCPT TO:<b@b.example>").startswith("250"))
        self.assertEqual(client.say("NOOP"), "")
        lines = [json.loads(line) for line in Path(self.folder, "said.jsonl").read_text().splitlines()]
        self.assertEqual(
            [(line["rule"], line["effect"]) for line in lines if line["kind"] == "fault"],
            [("rcpt to=*@b.example, first 1", "451 4.7.1 Try again later"), ("noop", "drop")],
        )

    def test_environment(self) -> None:
        """In the environment, semicolons separate them."""
        process = self.smtpd(LOOPBACK, TXSMTPD_FAULT="noop reply=459 one; rset reply=458 two;")
        client = self.connect(process.port())
        client.reply()
        self.assertEqual((client.say("NOOP"), client.say("RSET")), ("459 one\r\n", "458 two\r\n"))

    def test_seed(self) -> None:
        """--fault-seed determines random faults."""
        said = []
        for seed in "1", "1", "2":
            process = self.smtpd(LOOPBACK, "--fault=noop share=0.5 reply=459 one", f"--fault-seed={seed}")
            client = self.connect(process.port())
            client.reply()
            said.append([client.say("NOOP") for _ in range(40)])
        self.assertEqual(said[0], said[1])
        self.assertNotEqual(said[0], said[2])

    def test_refused(self) -> None:
        """An invalid rule is one line and exit status 64."""
        self.assertOneLine(self.smtpd("--fault=rctp drop"), 64, "--fault=rctp drop: ", "did you mean rcpt?")
        self.assertOneLine(self.smtpd(TXSMTPD_FAULT="rcpt"), 64, "TXSMTPD_FAULT=rcpt: ", "the rule has no effect")


class OccasionTests(SynchronousTestCase):
    """The argument of a rule's custom condition."""

    def test_occasion(self) -> None:
        """It has the stage, the session, the envelope, and the address and size if known."""
        seen: list[Occasion] = []
        faults = Faults()
        faults.on("any", "message", "accepted", when=lambda occasion: seen.append(occasion)).drop()
        client = facing(faults, Inbox())
        client.send_message()
        self.assertEqual(
            [(each.stage, each.address, each.size) for each in seen],
            [
                ("ehlo", None, None),
                ("mail", "a@example.com", None),
                ("rcpt", "b@example.com", None),
                ("data", None, None),
                ("message", None, len(MESSAGE)),
                ("accepted", None, len(MESSAGE)),
            ],
        )
        self.assertIs(seen[0].session, client.server.session)
        self.assertEqual(seen[-1].envelope.rcpt_tos, ["b@example.com"])
