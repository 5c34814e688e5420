"""PureProxy and MailmanProxy: the servers to which they relay mail, and that no mail is lost."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.service.test_commandline import CommandLineTestCase, Process
from tests.support import Client, LoggingTestCase
from tests.support.programs import once
from tests.support.relay import CLOSE, SILENT, Relayed, Script
from txsmtpd import smtpd
from txsmtpd.handlers import Proxy
from txsmtpd.handlers.upstream import Upstream
from txsmtpd.smtpd.proxies import MailmanMap

MESSAGE = b"Subject: test\r\nX-Peer: 203.0.113.1\r\n\r\n..dot\r\nHello\r\n"

# As Mailman writes the file, for both types of maps.
HASH = """
# AUTOMATICALLY GENERATED

# Aliases which are visible only in the @lists.example domain.
Ant@lists.example               lmtp:[127.0.0.1]:8024
ant-bounces@lists.example       lmtp:[127.0.0.1]:8024
ant-owner@lists.example         lmtp:[127.0.0.1]:8024

"""
REGEX = r"""
/^ant\.hill@lists\.example$/                  lmtp:[127.0.0.1]:8024
/^ant\.hill-bounces(\+.*)?@lists\.example$/   lmtp:[127.0.0.1]:8024
"""


class Passed(Relayed):
    """A client of an old-style server, whose remote server is scripted.

    :param server_class: the server's class.
    :param options: of the server.
    """

    def __init__(self, script: Script, server_class: Any = smtpd.PureProxy, **options: Any) -> None:
        def make(host: str, port: int, **of_the_proxy: Any) -> Any:
            proxy = Proxy(host, port, **of_the_proxy)
            return server_class(
                None, (host, port), proxy=proxy, reactor=script.clock, **{"hostname": "mx.test", **options}
            )

        super().__init__(script, make=make)

    def connect(self) -> Client:
        return Client(factory=self.proxy.factory)  # type: ignore[attr-defined]  # a server that holds a Proxy


class PureProxyTests(LoggingTestCase):
    """One remote server for all mail."""

    def test_message(self) -> None:
        """The message arrives with Received at the top and X-Peer at the end of its header, and is otherwise
        unchanged."""
        script = Script()
        passed = Passed(script)
        passed.ask("MAIL FROM:<a@client.test> BODY=8BITMIME SIZE=5")
        for path in ("b@upstream.test", "c@upstream.test"):
            self.assertEqual(passed.ask(f"RCPT TO:<{path}>"), "250 OK")
        self.assertEqual(passed.send_data(MESSAGE), "250 2.6.0 queued as 42")
        self.assertEqual(script.said("MAIL"), ["MAIL FROM:<a@client.test> BODY=8BITMIME"])
        self.assertEqual(script.said("RCPT"), ["RCPT TO:<b@upstream.test>", "RCPT TO:<c@upstream.test>"])
        (message,) = script.messages
        self.assertTrue(message.startswith(b"Received: from client.test ([192.0.2.7])"))
        self.assertTrue(message.endswith(b"Subject: test\r\nX-Peer: 192.0.2.7\r\n\r\n..dot\r\nHello\r\n"))

    def test_nullPath(self) -> None:
        """A bounce is relayed as a bounce."""
        script = Script()
        passed = Passed(script)
        passed.ask("MAIL FROM:<>")
        passed.ask("RCPT TO:<b@upstream.test>")
        passed.send_data()
        self.assertEqual(script.said("MAIL"), ["MAIL FROM:<>"])

    def test_forms(self) -> None:
        """Messages as str are relayed, too, and with UTF-8 addresses."""
        script = Script()
        self.assertEqual(Passed(script, decode_data=True).send("gr\u00fcn\r\n".encode())[:3], "250")
        self.assertIn("gr\u00fcn".encode(), script.messages[0])
        passed = Passed(script, enable_SMTPUTF8=True)
        passed.ask("MAIL FROM:<\u00e4@client.test> SMTPUTF8")
        passed.ask("RCPT TO:<\u00f6@upstream.test>")
        self.assertEqual(passed.send_data()[:3], "250")
        self.assertEqual(script.said("MAIL")[-1], "MAIL FROM:<\u00e4@client.test> SMTPUTF8 BODY=8BITMIME")

    def test_verdicts(self) -> None:
        """If the remote server refuses, the client gets the refusal. The old module always replied 250."""
        for script, expected in (
            (Script(down=True), "451 4.4.1"),
            (Script(CONNECT=b"554 go away\r\n"), "451 4.3.2"),
            (Script(MAIL=b"550 5.7.1 not you\r\n"), "550 5.7.1 not you"),
            (Script(RCPT=b"550 5.1.1 nobody\r\n"), "550 5.1.1 nobody"),
            (Script(RCPT=b"450 4.2.1 later\r\n"), "450 4.2.1 later"),
            (Script(DATA=b"451 4.3.0 not now\r\n"), "451 4.3.0 not now"),
            (Script(DOT=b"554 5.7.1 spam\r\n"), "554 5.7.1 spam"),
            (Script(DOT=CLOSE), "451 4.4.2"),
        ):
            passed = Passed(script)
            self.assertEqual(passed.send()[: len(expected)], expected)
            self.assertEqual(passed.ask("NOOP"), "250 OK")

    def test_someRefused(self) -> None:
        """If one recipient of two is refused, the other gets the message, and the client gets the refusal."""
        script = Script(RCPT=[b"250 2.1.5 fine\r\n", b"550 5.1.1 nobody\r\n"])
        passed = Passed(script)
        passed.begin("b@upstream.test", "c@upstream.test")
        self.assertEqual(passed.send_data(), "550 5.1.1 nobody")
        self.assertEqual(len(script.messages), 1)
        self.assertIn("the client gets one reply for different results", "".join(self.logged("info")))

    def test_others(self) -> None:
        """While one client waits for the remote server, others are served."""
        script = Script(MAIL=SILENT)
        passed = Passed(script)
        passed.begin("b@upstream.test")
        passed.ask("DATA")
        self.assertEqual(passed.hear(b"Hello\r\n.\r\n"), [])
        self.assertEqual(passed.connect().talk(b"NOOP\r\n"), b"250 OK\r\n")

    def test_filter(self) -> None:
        """A subclass that reads messages first may ignore the result, as in the old module: no mail is lost."""

        class Filter(smtpd.PureProxy):
            def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
                if b"spam" in data:
                    return "554 no spam"
                super().process_message(peer, mailfrom, rcpttos, b"X-Checked: yes\n" + data, **kwargs)
                return "250 checked" if b"checked" in data else None

        script = Script()
        passed = Passed(script, Filter)
        self.assertEqual(passed.send(b"spam\r\n"), "554 no spam")
        self.assertEqual(script.messages, [])
        self.assertEqual(passed.send(b"A: ham\r\n\r\n"), "250 2.6.0 queued as 42")
        self.assertIn(b"\r\nX-Checked: yes\r\nA: ham\r\n", script.messages[0])
        self.assertEqual(passed.send(b"checked\r\n"), "250 checked")
        for text in (b"ham\r\n", b"checked\r\n"):
            script.script["."] = b"550 5.7.1 no\r\n"
            self.assertEqual(passed.send(text), "550 5.7.1 no")

    def test_laterFilter(self) -> None:
        """So may one whose process_message is a coroutine, or relays later."""

        class Filter(smtpd.PureProxy):
            async def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> None:
                from twisted.internet.task import deferLater

                await deferLater(script.clock, 1, lambda: None)
                super().process_message(peer, mailfrom, rcpttos, data, **kwargs)

        script = Script(DOT=[b"550 5.7.1 no\r\n"])
        passed = Passed(script, Filter)
        self.assertEqual(passed.send(seconds=1), "550 5.7.1 no")
        self.assertEqual(passed.send(seconds=1), "250 2.6.0 queued as 42")

    def test_failingFilter(self) -> None:
        """If process_message raises after the start of a delivery, the delivery is cancelled, and the client gets
        451."""

        class Filter(smtpd.PureProxy):
            def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
                super().process_message(peer, mailfrom, rcpttos, data, **kwargs)
                raise RuntimeError("too late")

        class Later(smtpd.PureProxy):
            async def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
                super().process_message(peer, mailfrom, rcpttos, data, **kwargs)
                raise RuntimeError("too late")

        for server_class in Filter, Later:
            script = Script()
            self.assertEqual(Passed(script, server_class).send()[:3], "451")
            self.assertEqual(script.messages, [])
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            gc.collect()
            self.assertEqual(self.flushLoggedErrors(), [])

    def test_deliver(self) -> None:
        """A subclass may deliver in another way, and return refusals as smtplib does."""

        class Own(smtpd.PureProxy):
            def _deliver(self, mailfrom: Any, rcpttos: Any, data: Any) -> Any:  # type: ignore[override]
                got.append((mailfrom, rcpttos, data))
                return refused

        got: list[Any] = []
        refused: Any = None
        passed = Passed(Script(), Own)
        not_taken = "451 4.3.0 The next server did not accept the message, try again later"
        results: list[tuple[Any, str]] = [
            (None, "250 2.0.0 OK"),
            ({}, "250 2.0.0 OK"),
            ({"b@upstream.test": (550, b"5.1.1 nobody")}, "550 5.1.1 nobody"),
            ({"b@upstream.test": (-1, "ignore")}, not_taken),
            ({"b@upstream.test": (421, "bye")}, not_taken),
        ]
        for refused, expected in results:  # noqa: B007  # _deliver returns it
            self.assertEqual(passed.send(), expected)
        self.assertEqual(got[0][:2], ("a@client.test", ["b@upstream.test"]))

    def test_byItself(self) -> None:
        """A program may relay its own messages, and gets a Deferred of the reply."""
        script = Script()
        passed = Passed(script)
        verdict = passed.proxy.process_message(("192.0.2.7", 1), "a@b.test", ["b@c.test"], b"Subject: mine\n")  # type: ignore[attr-defined]
        passed.turn()
        self.assertEqual(self.successResultOf(verdict).code, 250)
        self.assertIn(b"Subject: mine\r\nX-Peer: 192.0.2.7\r\n", script.messages[0])

    def test_loop(self) -> None:
        """A message in a mail loop is refused."""
        script = Script()
        self.assertEqual(Passed(script).send(b"Received: from here\r\n" * 100 + b"\r\n")[:9], "554 5.4.6")
        self.assertEqual(script.messages, [])

    def test_close(self) -> None:
        """A closed server keeps no connection to the remote one."""
        script = Script()
        passed = Passed(script)
        passed.send()
        self.assertEqual(len(script.open), 1)
        closed = passed.proxy.close()  # type: ignore[attr-defined]
        self.assertEqual(passed.client.heard()[:4], b"421 ")
        passed.turn()
        self.assertEqual(script.open, [])
        self.successResultOf(closed)

    def test_nowhere(self) -> None:
        """A proxy needs a remote server."""
        error = self.assertRaises(ValueError, smtpd.PureProxy, None, None)
        self.assertEqual(str(error), "PureProxy needs a remoteaddr, or a proxy")


class MailmanProxyTests(LoggingTestCase):
    """Two servers: Mailman for the lists, and the remote server for other mail."""

    def passed(self, script: Script, mailman: Script, **options: Any) -> Passed:
        mailman.clock = script.clock
        options.setdefault("lists", {"ant@lists.example"})
        core = Upstream("mailman.test", 8024, lmtp=True, endpoint=mailman, reactor=script.clock)
        return Passed(script, smtpd.MailmanProxy, lmtp=core, **options)

    def test_parted(self) -> None:
        """Addresses of lists go to Mailman over LMTP, all others to the remote server."""
        script, mailman = Script(), Script()
        passed = self.passed(script, mailman)
        passed.begin("b@upstream.test", "Ant@Lists.example", "ant-bounces+b=c.test@lists.example", "bee@lists.example")
        mailman.script["."] = (b"250 2.0.0 posted\r\n", b"250 2.0.0 posted\r\n")
        self.assertEqual(passed.send_data()[:3], "250")
        self.assertEqual(script.said("RCPT"), ["RCPT TO:<b@upstream.test>", "RCPT TO:<bee@lists.example>"])
        lists = ["RCPT TO:<Ant@Lists.example>", "RCPT TO:<ant-bounces+b=c.test@lists.example>"]
        self.assertEqual((mailman.said("RCPT"), mailman.said("LHLO")), (lists, ["LHLO mx.test"]))
        self.assertEqual((len(script.messages), len(mailman.messages)), (1, 1))

    def test_onlyOne(self) -> None:
        """A server without a recipient of a message gets no command."""
        script, mailman = Script(), Script()
        passed = self.passed(script, mailman)
        passed.send()
        self.assertEqual(mailman.connections, 0)
        passed.begin("ant-join@lists.example")
        self.assertEqual(passed.send_data(), "250 2.6.0 queued as 42")
        self.assertEqual(len(script.messages), 1)

    def test_refused(self) -> None:
        """If either of them refuses, the client gets the refusal."""
        for script, mailman, expected in (
            (Script(), Script(DOT=b"550 5.1.1 no list\r\n"), "550 5.1.1 no list"),
            (Script(), Script(down=True), "451 4.4.1"),
            (Script(DOT=b"554 5.7.1 spam\r\n"), Script(), "554 5.7.1 spam"),
        ):
            passed = self.passed(script, mailman)
            passed.begin("b@upstream.test", "ant@lists.example")
            self.assertEqual(passed.send_data()[: len(expected)], expected)

    def test_close(self) -> None:
        """Closing it closes the connections to both."""
        script, mailman = Script(), Script()
        passed = self.passed(script, mailman)
        passed.begin("b@upstream.test", "ant@lists.example")
        passed.send_data()
        self.assertEqual((len(script.open), len(mailman.open)), (1, 1))
        passed.proxy.close()  # type: ignore[attr-defined]
        self.assertEqual(passed.client.heard()[:4], b"421 ")
        passed.turn()
        self.assertEqual((script.open, mailman.open), ([], []))

    def test_noFile(self) -> None:
        """A missing file of lists is an OSError when the server is created, and names the file."""
        error = self.assertRaises(OSError, smtpd.MailmanProxy, None, ("upstream.test", 25), lists="/nowhere/lists")
        self.assertIn("/nowhere/lists", str(error))

    def test_fileIsGone(self) -> None:
        """If the file is missing later, the client gets a temporary refusal."""
        path = self.mktemp()
        Path(path).write_text(HASH)
        script, mailman = Script(), Script()
        passed = self.passed(script, mailman, lists=path)
        os.unlink(path)
        self.assertEqual(passed.send()[:3], "451")
        self.assertEqual(script.messages + mailman.messages, [])
        self.assertEqual(len(self.flushLoggedErrors(FileNotFoundError)), 1)


class MailmanMapTests(SynchronousTestCase):
    """The file of lists that Mailman maintains."""

    def test_forms(self) -> None:
        """The file may be a table of addresses or of patterns."""
        path = Path(self.mktemp())
        path.write_text("    \n" + HASH)
        lists = MailmanMap(path)
        self.assertIn("ant@lists.example", lists)
        self.assertIn("ant-owner@lists.example", lists)
        self.assertNotIn("bee@lists.example", lists)
        self.assertNotIn("#", lists)
        path.write_text(REGEX)
        self.assertIn("ant.hill@lists.example", lists)
        self.assertIn("ant.hill-bounces@lists.example", lists)
        self.assertNotIn("ant@lists.example", lists)

    def test_replaced(self) -> None:
        """A replaced file is read again. An unchanged one is not."""
        path = Path(self.mktemp())
        path.write_text(HASH)
        lists = MailmanMap(path)
        before = lists._addresses
        self.assertNotIn("bee@lists.example", lists)
        self.assertIs(lists._addresses, before)
        new = Path(f"{path}.new")
        new.write_text(HASH + "bee@lists.example lmtp:[127.0.0.1]:8024\n")
        new.rename(path)
        self.assertIn("bee@lists.example", lists)


class ReactorTests(TestCase):
    """On a running reactor, over TCP."""

    async def test_passedOn(self) -> None:
        """A client's message passes through one old-style server to another, and both close."""
        import smtplib

        got: list[Any] = []

        class Last(smtpd.SMTPServer):
            def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> None:
                got.append((mailfrom, rcpttos, data))

        last = Last(("127.0.0.1", 0), None)
        first = smtpd.PureProxy(("localhost", 0), last.socket.getsockname())
        port = first.socket.getsockname()[1]

        def send() -> None:
            with smtplib.SMTP("localhost", port) as client:
                client.sendmail("a@example.com", ["b@example.com"], "Subject: test\n\nHello")

        await deferToThread(send)
        for server in first, last:
            closed = server.close()
            assert closed is not None
            await closed
        ((mailfrom, rcpttos, data),) = got
        self.assertEqual((mailfrom, rcpttos), ("a@example.com", ["b@example.com"]))
        self.assertTrue(data.endswith(b"\nSubject: test\nX-Peer: 127.0.0.1\n\nHello"))


class CommandLineTests(CommandLineTestCase):
    """``twist smtpd --handler=smtpd:PureProxy`` and ``smtpd:MailmanProxy``, in front of servers that print."""

    def printing(self, option: str) -> tuple[Process, int]:
        process = self.smtpd(f"--{option}=tcp:0:interface=127.0.0.1", "--handler=debugging")
        return process, process.port()

    def test_pureProxy(self) -> None:
        """A message is relayed to the remote server in the arguments."""
        behind, port = self.printing("listen")
        proxy = self.smtpd(f"--handler=smtpd:PureProxy:127.0.0.1:{port}", "--listen=tcp:0:interface=127.0.0.1")
        self.assertEqual(self.connect(proxy.port()).deliver(), "250 2.0.0 OK\r\n")
        behind.line_with("Subject: hello")
        behind.line_with("X-Peer: 127.0.0.1")

    def test_mailmanProxy(self) -> None:
        """A message to a list goes to the LMTP port."""
        behind, port = self.printing("listen-lmtp")
        Path(self.folder, "lists").write_text("b@b.example lmtp:[127.0.0.1]:8024\n")
        proxy = self.smtpd(
            f"--handler=smtpd:MailmanProxy:127.0.0.1:9:lists:127.0.0.1:{port}", "--listen=tcp:0:interface=127.0.0.1"
        )
        self.assertEqual(self.connect(proxy.port()).deliver(), "250 2.0.0 OK\r\n")
        behind.line_with("Subject: hello")

    def test_mistakes(self) -> None:
        """Errors are one line."""
        once()
        for handler, reason in (
            ("smtpd:MailmanProxy:h:25:nowhere", "nowhere"),
            ("smtpd:MailmanProxy:h:25:lists:h:x", "invalid port 'x'"),
            ("smtpd:MailmanProxy:h:25:lists:h:1:2", "too many arguments"),
            ("smtpd:PureProxy:bad host:25", "host must be a name"),
        ):
            process = self.smtpd(f"--handler={handler}")
            self.assertEqual(process.wait(), 64, handler)
            self.assertEqual(len(process.errors), 1, process.errors)
            self.assertIn(reason, process.errors[0])
