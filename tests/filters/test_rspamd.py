"""rspamd: the real program, and the handling of its responses and of invalid ones."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from tests.filters.programs import ProgramTests, answers, free_port, send_data
from tests.filters.support import Keeper
from txsmtpd.filters import DISCARD
from txsmtpd.filters.header import Header
from txsmtpd.filters.message import FilteredMessage
from txsmtpd.filters.rspamd import Answer, Rspamd
from txsmtpd.filters.spool import Spool
from txsmtpd.reply import Refused
from txsmtpd.session import Envelope

# A minimal configuration, which starts in a second or two: one rule, no DNS, no compiled expressions.
CONFIGURATION = """
options {
    pidfile = "%(folder)s/pid"; control_socket = "%(folder)s/control"; tempdir = "%(folder)s";
    hs_cache_dir = "%(folder)s"; history_file = ""; url_tld = "%(folder)s/tld"; disable_hyperscan = true;
    filters = "dkim"; local_addrs = []; dns { nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }
}
logging { type = "console"; level = "error"; }
worker "normal" { bind_socket = "127.0.0.1:%(port)d"; count = 1; mime = true; }
modules { path = "/usr/share/rspamd/plugins/milter_headers.lua"; }
lua = "%(folder)s/rules.lua";
milter_headers { use = ["x-spam-status"]; skip_local = false; }
metric { name = "default"; actions { reject = 15; add_header = 6; greylist = 4; } }
"""
RULES = """
local function rule(name, score, word)
    rspamd_config:register_symbol({name = name, score = score, callback = function(task)
        local subject = task:get_header('Subject')
        local from, to = task:get_from('smtp'), task:get_recipients('smtp')
        local known = task:get_ip():to_string() == '127.0.0.1' and task:get_helo() == 'client.test'
        return known and from[1].addr == 'a@example.com' and to[2].addr == 'c@example.com' and subject == word
    end})
end
rule('TEST_ODD', 7.0, 'odd')
rule('TEST_GREY', 4.5, 'grey')
"""
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"


def send(client: Any, subject: str, body: bytes = b"Hello\r\n") -> tuple[int, bytes]:
    """Send a message. Return the reply."""
    for line in "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>":
        client.docmd(line)
    return send_data(client, f"From: a@example.com\r\nSubject: {subject}\r\n\r\n".encode() + body)


class RealTests(ProgramTests):
    """rspamd of Debian's package."""

    async def test_rspamd(self) -> None:
        """Mail is accepted, marked, deferred and refused. While rspamd is down, mail is deferred or accepted, as
        configured."""
        port = free_port()
        (self.folder / "tld").write_text("com\n")
        (self.folder / "rules.lua").write_text(RULES)
        (self.folder / "conf").write_text(CONFIGURATION % {"folder": self.folder, "port": port})
        arguments = "-c", f"{self.folder}/conf", "-f", "-u", "root", "-g", "root", "-i"
        await self.start("rspamd", "rspamd", *arguments, ready=lambda: answers(port))
        url = f"http://127.0.0.1:{port}"
        handler = Keeper()
        ours = await self.serve(handler, filters=[Rspamd(url)])
        replies = await self.client(
            ours,
            lambda client: [send(client, "fine"), send(client, "odd"), send(client, "grey"), send(client, "", GTUBE)],
        )
        self.assertEqual(replies[2:], [(451, b"4.7.1 Try again later"), (554, b"5.7.1 Gtube pattern")])
        self.assertEqual([code for code, _ in replies[:2]], [250, 250])
        fine, odd = handler.content
        self.assertIn(b"\r\nX-Spam-Status: No, score=0.00\r\n", fine)
        self.assertTrue(odd.endswith(b"\r\nX-Spam: Yes\r\n\r\nHello\r\n"))
        verdict = handler.envelopes[1].filters["rspamd"]
        self.assertEqual((verdict.score, verdict.symbols["TEST_ODD"]), (7.0, 7.0))
        self.assertIn(("X-Spam", "Yes"), verdict.headers)
        for process in self.processes:
            await self.end(process)
        self.assertEqual((await self.client(ours, lambda client: send(client, "fine")))[0], 451)
        accepting = await self.serve(handler, filters=[Rspamd(url, on_failure="accept")])
        self.assertEqual((await self.client(accepting, lambda client: send(client, "fine")))[0], 250)
        self.assertEqual(handler.envelopes[-1].filters["rspamd"].action, "failed")


class Scripted(Protocol):
    """An HTTP server with the responses that the test sets."""

    def connectionMade(self) -> None:
        self.received = b""
        self.factory.connections += 1  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        header, end, body = self.received.partition(b"\r\n\r\n")
        length = int(header.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0) if end else 0
        if end and len(body) >= length:
            self.factory.requests.append(self.received)  # type: ignore[union-attr]
            self.received = b""
            answer = self.factory.answers.pop(0)  # type: ignore[union-attr]
            if answer is None:
                self.transport.abortConnection()  # type: ignore[union-attr]
            else:
                self.transport.write(answer)  # type: ignore[union-attr]


def answer(document: Any, code: bytes = b"200 OK") -> bytes:
    """A response of a server that keeps the connection."""
    octets = document if isinstance(document, bytes) else json.dumps(document).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (code, len(octets), octets)


FINE = answer({"action": "no action", "score": 1})


class ScriptedTests(ProgramTests):
    """Responses that rspamd would not send, or not immediately."""

    async def listen(self, *said: bytes | None, **options: Any) -> Rspamd:
        self.scripted = factory = Factory.forProtocol(Scripted)
        factory.noisy = False
        factory.connections = 0
        factory.requests = []
        factory.answers = list(said)
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        filter = Rspamd(f"http://127.0.0.1:{port.getHost().port}/", **options)
        self.addCleanup(filter.close)
        self.handler = Keeper()
        self.port = await self.serve(self.handler, filters=[filter])
        return filter

    async def test_request(self) -> None:
        """All known data is sent with the message, and connections are reused."""
        await self.listen(FINE, FINE, password="secret")
        await self.client(self.port, lambda client: [send(client, "one"), send(client, "two")])
        self.assertEqual(self.scripted.connections, 1)
        header, _, body = self.scripted.requests[0].partition(b"\r\n\r\n")
        lines = header.split(b"\r\n")
        self.assertEqual(lines[0], b"POST /checkv2 HTTP/1.1")
        for line in (
            b"From: a@example.com",
            b"Rcpt: b@example.com",
            b"Rcpt: c@example.com",
            b"IP: 127.0.0.1",
            b"Helo: client.test",
            b"MTA-Name: mx.example.com",
            b"Password: secret",
        ):
            self.assertIn(line.lower(), [each.lower() for each in lines])
        self.assertEqual(body, b"From: a@example.com\r\nSubject: one\r\n\r\nHello\r\n")

    async def test_keptConnectionClosed(self) -> None:
        """An idle connection that was closed is replaced."""
        await self.listen(FINE, None, FINE)
        replies = await self.client(self.port, lambda client: [send(client, "one")[0], send(client, "two")[0]])
        self.assertEqual(replies, [250, 250])

    async def test_wrong(self) -> None:
        """After an error, invalid JSON, or JSON without an action, mail is deferred or accepted."""
        for wrong in (
            answer(b"", b"500 Internal Error"),
            answer(b"hello"),
            answer(b"[]"),
            answer({"action": 5}),
            answer({"error": "no"}),
            b"garbage\r\n\r\n",
            answer(b"x" * (2**22 + 1)),
            answer(b'{"action": "no action", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ):
            await self.listen(wrong, wrong)
            self.assertEqual((await self.client(self.port, lambda client: send(client, "one")))[0], 451, wrong[:60])
            self.assertEqual(self.handler.content, [])

    async def test_notUTF8(self) -> None:
        """Symbols may repeat octets of the message that are not UTF-8. That is no reason to keep mail waiting."""
        await self.listen(answer(b'{"action": "no action", "symbols": {"A": {"score": 1, "options": ["\xff"]}}}'))
        self.assertEqual((await self.client(self.port, lambda client: send(client, "one")))[0], 250)
        self.assertEqual(self.handler.envelopes[0].filters["rspamd"].symbols, {"A": 1.0})

    async def test_slow(self) -> None:
        """A response after the timeout is a failure. After five failures, rspamd is not called for a while."""
        filter = await self.listen(*[b""] * 9, timeout=0.05, on_failure="accept")
        replies = await self.client(self.port, lambda client: [send(client, "one")[0] for _ in range(8)])
        self.assertEqual(replies, [250] * 8)
        self.assertLessEqual(len(self.scripted.requests), 5)
        self.assertFalse(filter._breaker.allows(filter._reactor.seconds()))

    async def test_large(self) -> None:
        """A large message is sent from its file."""
        await self.listen(FINE)
        body = (b"x" * 998 + b"\r\n") * 3000
        self.assertEqual((await self.client(self.port, lambda client: send(client, "large", body)))[0], 250)
        self.assertTrue(self.scripted.requests[0].endswith(b"Subject: large\r\n\r\n" + body))

    async def test_notSerialised(self) -> None:
        """Clients do not wait for each other's responses."""
        await self.listen(*[b""] * 5)
        waiting = [self.client(self.port, lambda client: send(client, "one")) for _ in range(5)]
        while len(self.scripted.requests) < 5:
            await deferLater(reactor, 0.02)  # type: ignore[arg-type]
        self.factory.abort()
        for each in waiting:
            each.addErrback(lambda _: None)
            await each
        await deferToThread(lambda: None)


class AnswerTests(SynchronousTestCase):
    """The effects of a response."""

    def apply(self, **answer: Any) -> Any:
        """Apply the response to a message. Return the verdict."""
        envelope = Envelope()
        envelope.mail_from = "a@example.com"
        envelope.rcpt_tos = ["b@example.com"]
        header, _ = Header.parse(b"Subject: test\r\nX-Spam: No\r\nA: 1\r\nA: 2\r\nA: 3\r\n\r\n")

        def in_thread(function: Any, *arguments: Any) -> Deferred[Any]:
            return succeed(function(*arguments))

        self.message = FilteredMessage(envelope, header, b"\r\n", Spool(in_thread), lambda: Spool(in_thread))
        return Answer({"action": "no action", **answer}).apply(self.message)

    @property
    def lines(self) -> list[bytes]:
        return self.message.header.octets.splitlines()

    def test_actions(self) -> None:
        """Each action is a reply, a mark, or both."""
        for action, text in (
            ("reject", "554 5.7.1 Spam message rejected"),
            ("soft reject", "451 4.7.1 Try again later"),
            ("greylist", "451 4.7.1 Try again later"),
        ):
            refused = self.assertRaises(Refused, self.apply, action=action)
            self.assertEqual(str(refused.reply), text)
        refused = self.assertRaises(Refused, self.apply, action="reject", messages={"smtp_message": "no\r\n250 OK"})
        self.assertEqual(str(refused.reply), "554-5.7.1 no\n554 5.7.1 250 OK")
        self.assertIs(self.apply(action="discard"), DISCARD)
        self.apply(action="add header")
        self.assertEqual(self.lines[-1], b"X-Spam: Yes")
        self.assertNotIn(b"X-Spam: No", self.lines)
        self.apply(action="rewrite subject", subject="[spam] test")
        self.assertEqual(self.lines[0], b"Subject: [spam] test")
        self.apply(action="quarantine")
        self.assertEqual(self.message.quarantined, "rspamd")
        self.assertEqual(self.apply(action="something of one's own").action, "accept")

    def test_milter(self) -> None:
        """Headers and addresses are changed as in the milter block. The DKIM signature is added at the top."""
        self.apply(
            **{"dkim-signature": ["v=1;\r\n\ta=1", "v=1; a=2"]},
            milter={
                "remove_headers": {"A": [1, 3], "X-Spam": 0},
                "add_headers": {"X-Top": {"value": "1", "order": 0}, "X-Two": [{"value": "a\nb"}, "c"], "X-N": 3},
                "change_from": "<other@example.com>",
                "add_rcpt": ["c@example.com"],
                "del_rcpt": ["b@example.com"],
            },
        )
        self.assertEqual(
            self.message.header.octets,
            b"X-Top: 1\r\nDKIM-Signature: v=1; a=2\r\nDKIM-Signature: v=1;\r\n\ta=1\r\nSubject: test\r\nA: 2\r\n"
            b"X-Two: a\r\n\tb\r\nX-Two: c\r\nX-N: 3\r\n",
        )
        envelope = self.message.envelope
        self.assertEqual((envelope.mail_from, envelope.rcpt_tos), ("other@example.com", ["c@example.com"]))

    def test_rejectOtherwise(self) -> None:
        """The milter block may turn a rejection into a discard or a quarantine, or cancel the action."""
        self.assertIs(self.apply(action="reject", milter={"reject": "discard"}), DISCARD)
        self.apply(action="reject", milter={"reject": "quarantine"})
        self.assertEqual(self.message.quarantined, "rspamd")
        self.assertEqual(self.apply(action="reject", milter={"no_action": True}).action, "accept")

    def test_misfits(self) -> None:
        """Unexpected values are ignored, so that nothing unexpected is added to the header or the envelope."""
        before = b"Subject: test\r\nX-Spam: No\r\nA: 1\r\nA: 2\r\nA: 3\r\n"
        for milter in (
            {"add_headers": {"Bad: name\r\nX": "1", "X\n": "1", "": "1", "X": None, "Y": {"order": 1}}},
            {"remove_headers": {"A": "all", "B": [None, 7]}},
            {"add_rcpt": ["c@example.com> NOTIFY=NEVER", "a\r\nb", 5], "change_from": "two words@example.com"},
            {"add_rcpt": 5, "add_headers": [], "remove_headers": "x"},
            [],
        ):
            self.apply(milter=milter, symbols=[], score="high", messages=[])
            self.assertEqual(self.message.header.octets, before)
            self.assertEqual(self.message.envelope.rcpt_tos, ["b@example.com"])
            self.assertEqual(self.message.envelope.mail_from, "a@example.com")

    def test_extremes(self) -> None:
        """Numbers and characters that JSON can express, but Python or UTF-8 cannot, do no harm."""
        symbols = {"A": {"score": 10**400}, "B": {"score": 2}}
        verdict = self.apply(score=-(10**400), symbols=symbols)
        self.assertEqual((verdict.score, verdict.symbols), (None, {"B": 2.0}))
        self.apply(action="rewrite subject", subject="a\ud800b", **{"dkim-signature": "\udfff"})
        self.assertEqual(self.lines[:2], [b"DKIM-Signature: ?", b"Subject: a?b"])
        self.apply(milter={"add_headers": {"Y": {"value": "\ud800", "order": 10**50}}})
        self.assertEqual(self.lines[-1], b"Y: ?")
        self.apply(action="quarantine", messages={"smtp_message": "\ud800"})
        self.assertEqual(self.message.quarantined, "?")

    def test_url(self) -> None:
        """An invalid URL is refused when the filter is created."""
        for wrong in "", "127.0.0.1:11333", "ftp://a", "http://", "http://\u00fc.example":
            with self.assertRaisesRegex(ValueError, "is not a URL of rspamd; write http://127.0.0.1:11333"):
                Rspamd(wrong)
        self.assertEqual(Rspamd("http://a:1/checkv2").url, "http://a:1/checkv2")
