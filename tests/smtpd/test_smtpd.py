"""Servers of the old smtpd module: their replies, overrides, and arguments. In memory."""

from __future__ import annotations

import io
import sys
import warnings
from contextlib import redirect_stdout
from operator import setitem
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support import Client, LoggingTestCase, answers
from txsmtpd import smtpd
from txsmtpd.testing import PretendedTLS
from txsmtpd.testing.strategies import cuts, octets, sessions

if sys.version_info < (3, 12):  # later versions do not have the module smtpd
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import asyncore
        import smtpd as old
        import socket

MAIL = b"MAIL FROM:<a@example.com>\r\n"
RCPT = b"RCPT TO:<b@example.com>\r\n"
HEAD = b"EHLO client.test\r\n" + MAIL + RCPT + b"DATA\r\n"
MESSAGE = b"Subject: test\r\n\r\n..dotted\r\nHello\r\n.\r\n"


class Keeper(smtpd.SMTPServer):
    """Keeps its messages."""

    result: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.got: list[Any] = []

    def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
        self.got.append((peer, mailfrom, rcpttos, data, kwargs))
        return self.result


def serve(server: type[smtpd.SMTPServer] = Keeper, channel: type | None = None, **options: Any) -> Any:
    """A server that does not listen.

    :param channel: its class of channels. Default: the usual one.
    """
    if channel is not None:
        server = type(server.__name__, (server,), {"channel_class": channel})
    options.setdefault("hostname", "mx.test")
    return server(None, ("relay.test", 25), reactor=Clock(), **options)


def said(octets: bytes, server: Any = None) -> list[str]:
    """The lines that a server replies to these octets, without its greeting."""
    server = server or serve()
    return Client(factory=server.factory).talk(octets).decode().splitlines()


# Dialogues: the octets before a line, the line, and the last line of the reply.
HELO, EHLO = b"HELO c\r\n", b"EHLO c\r\n"
EXTENDED = " [SP <mail-parameters>]"
DIALOGUE: list[tuple[bytes, str, str]] = [
    (b"", "HELO", "501 Syntax: HELO hostname"),
    (b"", "EHLO", "501 Syntax: EHLO hostname"),
    (b"", "NOOP", "250 OK"),
    (b"", "NOOP x", "501 Syntax: NOOP"),
    (b"", "MAIL FROM:<a@example.com>", "503 Error: send HELO first"),
    (b"", "RCPT TO:<a@example.com>", "503 Error: send HELO first"),
    (b"", "DATA", "503 Error: send HELO first"),
    (b"", "RSET", "250 OK"),
    (b"", "RSET x", "501 Syntax: RSET"),
    (b"", "EXPN all", "502 EXPN not implemented"),
    (b"", "VRFY", "501 Syntax: VRFY <address>"),
    (b"", "VRFY a@b", "252 Cannot VRFY user, but will accept message and attempt delivery"),
    (b"", "VRFY <a@b>", "252 Cannot VRFY user, but will accept message and attempt delivery"),
    (b"", "VRFY somebody", "252 Cannot VRFY user, but will accept message and attempt delivery"),
    (b"", "", "500 Error: bad syntax"),
    (b"", "FOO bar", '500 Error: command "FOO" not recognized'),
    (b"", "foo", '500 Error: command "FOO" not recognized'),
    (b"", " x", '500 Error: command "" not recognized'),
    (b"", "AUTH PLAIN AGEAYg==", '500 Error: command "AUTH" not recognized'),
    (b"", "STARTTLS", '500 Error: command "STARTTLS" not recognized'),
    (b"", "BDAT 5 LAST", '500 Error: command "BDAT" not recognized'),
    (b"", "NOOP " + "x" * 600, "500 Error: line too long"),
    (b"", "HELP", "250 Supported commands: EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY"),
    (b"", "HELP foo", "501 Supported commands: EHLO HELO MAIL RCPT DATA RSET NOOP QUIT VRFY"),
    *(
        (b"", f"HELP {verb.lower()}", f"250 Syntax: {syntax}")
        for verb, syntax in {
            "EHLO": "EHLO hostname",
            "HELO": "HELO hostname",
            "MAIL": "MAIL FROM: <address>",
            "RCPT": "RCPT TO: <address>",
            "DATA": "DATA",
            "RSET": "RSET",
            "NOOP": "NOOP",
            "QUIT": "QUIT",
            "VRFY": "VRFY <address>",
        }.items()
    ),
    (b"", "QUIT", "221 Bye"),
    (b"", "QUIT now", "221 Bye"),
    (HELO, "HELO again", "503 Duplicate HELO/EHLO"),
    (HELO, "EHLO again", "503 Duplicate HELO/EHLO"),
    (EHLO, "HELO again", "503 Duplicate HELO/EHLO"),
    (HELO, "MAIL", "501 Syntax: MAIL FROM: <address>"),
    (HELO, "MAIL FROM:", "501 Syntax: MAIL FROM: <address>"),
    (HELO, "MAIL TO:<a@b>", "501 Syntax: MAIL FROM: <address>"),
    (HELO, "MAIL FROM:<a@b> SIZE=5", "501 Syntax: MAIL FROM: <address>"),
    (HELO, "MAIL FROM:<a@b>", "250 OK"),
    (HELO, "mail from: a@b", "250 OK"),
    (HELO, "MAIL FROM:<>", "250 OK"),
    (HELO, "MAIL FROM:<root>", "250 OK"),
    (HELO, "MAIL FROM:root", "250 OK"),
    (HELO, 'MAIL FROM:"a b"@c', "250 OK"),
    (HELO, "MAIL FROM:<@x.y:a@b>", "250 OK"),
    (HELO, "MAIL FROM:<a@[192.0.2.1]>", "250 OK"),
    (HELO, "HELP MAIL", "250 Syntax: MAIL FROM: <address>"),
    (EHLO, "HELP MAIL", f"250 Syntax: MAIL FROM: <address>{EXTENDED}"),
    (EHLO, "HELP RCPT", f"250 Syntax: RCPT TO: <address>{EXTENDED}"),
    (EHLO, "MAIL", f"501 Syntax: MAIL FROM: <address>{EXTENDED}"),
    (EHLO, "MAIL FROM:<a@b>, c", f"501 Syntax: MAIL FROM: <address>{EXTENDED}"),
    (EHLO, "MAIL FROM:<a@b> SIZE=5", "250 OK"),
    (EHLO, "MAIL FROM:<root> SIZE=5", "250 OK"),
    (EHLO, "MAIL FROM:<a@b> size=5 body=8bitmime", "250 OK"),
    (EHLO, "MAIL FROM:<a@b> BODY=7BIT", "250 OK"),
    (EHLO, "MAIL FROM:<a@b> BODY=9BIT", "501 Error: BODY can only be one of 7BIT, 8BITMIME"),
    (EHLO, "MAIL FROM:<a@b> BODY=BINARYMIME", "501 Error: BODY can only be one of 7BIT, 8BITMIME"),
    (EHLO, "MAIL FROM:<a@b> SIZE=x", f"501 Syntax: MAIL FROM: <address>{EXTENDED}"),
    (EHLO, "MAIL FROM:<a@b> SIZE=33554433", "552 Error: message size exceeds fixed maximum message size"),
    (EHLO, "MAIL FROM:<a@b> SMTPUTF8", "555 MAIL FROM parameters not recognized or not implemented"),
    (EHLO, "MAIL FROM:<a@b> FOO=1", "555 MAIL FROM parameters not recognized or not implemented"),
    (EHLO, "MAIL FROM:<a@b> =5", f"501 Syntax: MAIL FROM: <address>{EXTENDED}"),
    (EHLO, "RCPT TO:<a@b>", "503 Error: need MAIL command"),
    (EHLO, "DATA", "503 Error: need RCPT command"),
    (EHLO + MAIL, "MAIL FROM:<a@b>", "503 Error: nested MAIL command"),
    (EHLO + MAIL, "MAIL", f"501 Syntax: MAIL FROM: <address>{EXTENDED}"),
    (EHLO + b"MAIL FROM:<>\r\n", "MAIL FROM:<a@b>", "503 Error: nested MAIL command"),
    (EHLO + MAIL, "DATA", "503 Error: need RCPT command"),
    (EHLO + MAIL, "RCPT", f"501 Syntax: RCPT TO: <address>{EXTENDED}"),
    (EHLO + MAIL, "RCPT FROM:<a@b>", f"501 Syntax: RCPT TO: <address>{EXTENDED}"),
    (HELO + MAIL, "RCPT TO:", "501 Syntax: RCPT TO: <address>"),
    (EHLO + MAIL, "RCPT TO:<a@b> NOTIFY=NEVER", "555 RCPT TO parameters not recognized or not implemented"),
    (EHLO + MAIL, "RCPT TO:<postmaster>", "250 OK"),
    (EHLO + MAIL, "RCPT TO:<you>", "250 OK"),
    (EHLO + MAIL, "RCPT TO: a@b", "250 OK"),
    (EHLO + MAIL + RCPT, "DATA x", "501 Syntax: DATA"),
    (EHLO + MAIL + RCPT, "DATA", "354 End data with <CR><LF>.<CR><LF>"),
    (EHLO + MAIL + b"RSET\r\n", "MAIL FROM:<a@b>", "250 OK"),
    (EHLO + MAIL + b"RSET\r\n", "HELO c", "503 Duplicate HELO/EHLO"),
    (HEAD, "Hello\r\n.", "250 OK"),
    (HEAD, "Hello\r\n.\r\nMAIL FROM:<a@b>", "250 OK"),
]


def old_said(octets: bytes) -> list[str]:
    """The lines that a server of the standard module replies to these octets, without its greeting."""
    channels: dict[int, Any] = {}

    class Server(old.SMTPServer):
        def process_message(self, *args: Any, **kwargs: Any) -> None: ...

    server = Server(("127.0.0.1", 0), None, map=channels)
    client = socket.create_connection(server.socket.getsockname())
    try:
        client.sendall(octets)
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        answer, more = b"", b"greeting"
        while more:
            asyncore.loop(timeout=5, count=1, map=channels)
            try:
                more = client.recv(65536)
                answer += more
            except BlockingIOError:
                continue
    finally:
        client.close()
        asyncore.close_all(map=channels)
    name = socket.getfqdn()
    return answer.decode().replace(name, "mx.test").splitlines()[1:]


class DialogueTests(LoggingTestCase):
    """The replies of a server, word for word."""

    def test_greeting(self) -> None:
        """The greeting has the server's name, and the version, which a program may set, or the ident."""
        self.assertEqual(Client(factory=serve().factory).welcome, b"220 mx.test Python SMTP proxy version 0.3\r\n")
        self.patch(smtpd, "__version__", "Mine")
        self.assertEqual(Client(factory=serve().factory).welcome, b"220 mx.test Mine\r\n")
        self.assertEqual(Client(factory=serve(ident="ours").factory).welcome, b"220 mx.test ours\r\n")

    def test_ehlo(self) -> None:
        """EHLO offers the extensions of the old module, and no others."""
        for options, expected in (
            ({}, ["SIZE 33554432", "8BITMIME"]),
            ({"data_size_limit": 5}, ["SIZE 5", "8BITMIME"]),
            ({"data_size_limit": None}, ["8BITMIME"]),
            ({"decode_data": True}, ["SIZE 33554432"]),
            ({"enable_SMTPUTF8": True}, ["SIZE 33554432", "8BITMIME", "SMTPUTF8"]),
        ):
            lines = ["250-mx.test", *(f"250-{each}" for each in expected), "250 HELP"]
            self.assertEqual(said(EHLO, serve(**options)), lines)
        self.assertEqual(said(HELO), ["250 mx.test"])

    def test_table(self) -> None:
        """Each command has the reply of the old module."""
        for before, line, expected in DIALOGUE:
            self.assertEqual(said(before + line.encode() + b"\r\n")[-1], expected, f"{line} after {before!r}")

    if sys.version_info < (3, 12):  # later versions do not have the module smtpd

        def test_asTheOldModule(self) -> None:
            """The module of Python 3.11 has the same replies. (Later versions have no such module.)"""
            for before, line, _ in DIALOGUE:
                self.assertEqual(
                    said(before + line.encode() + b"\r\n"), old_said(before + line.encode() + b"\r\n"), line
                )

    def test_utf8(self) -> None:
        """SMTPUTF8 is a parameter without a value. Without it, addresses are ASCII."""
        server = serve(enable_SMTPUTF8=True)
        for line, expected in (
            ("MAIL FROM:<a@b> SMTPUTF8=1", "501 Error: SMTPUTF8 takes no arguments"),
            ("MAIL FROM:<\u00e4@b> SMTPUTF8", "250 OK"),
            ("MAIL FROM:<\u00e4@b>", "550 5.6.7 A UTF-8 address requires the SMTPUTF8 parameter"),
        ):
            self.assertEqual(said(EHLO + line.encode() + b"\r\n", server)[-1], expected)

    def test_addresses(self) -> None:
        """Invalid addresses are refused. The old module accepted them, or failed."""
        for path in ("<a@b", "<a@>", "<@>", "<a..b@c>", "<a@-b>"):
            expected = f"501 Syntax: MAIL FROM: <address>{EXTENDED}"
            self.assertEqual(said(EHLO + f"MAIL FROM:{path}\r\n".encode())[-1], expected, path)
        self.assertEqual(said(EHLO + MAIL + b"RCPT TO:<>\r\n")[-1], f"501 Syntax: RCPT TO: <address>{EXTENDED}")
        self.assertEqual(said(b"VRFY @\r\n")[-1], "502 Could not VRFY @")

    def test_both(self) -> None:
        """decode_data and enable_SMTPUTF8 exclude each other."""
        error = self.assertRaises(ValueError, serve, decode_data=True, enable_SMTPUTF8=True)
        self.assertIn("cannot be set to True at the same time", str(error))

    def test_unknownOption(self) -> None:
        """A misspelt option is a TypeError when the server is created."""
        self.assertRaises(TypeError, serve, decode_date=True)

    def test_tooMuch(self) -> None:
        """A message that is too large is read to its end, and commands follow it."""
        server = serve(data_size_limit=10)
        lines = said(HEAD + b"x" * 11 + b"\r\nNOOP\r\n.\r\nNOOP\r\nMAIL FROM:<a@b>\r\n", server)
        self.assertEqual(lines[-3:], ["552 Error: Too much mail data", "250 OK", "250 OK"])
        self.assertEqual(server.got, [])

    def test_limits(self) -> None:
        """The limits are those of every server here: errors, recipients, idle time."""
        server = serve(error_limit=2, recipient_limit=1)
        self.assertEqual(said(b"FOO\r\nFOO\r\nNOOP\r\n", server)[-1], "421 4.7.0 Too many errors, closing connection")
        self.assertEqual(said(b"MAIL\r\nMAIL\r\nNOOP\r\n", server)[-1], "421 4.7.0 Too many errors, closing connection")
        self.assertEqual(said(EHLO + MAIL + RCPT + RCPT, server)[-1], "452 4.5.3 Too many recipients")
        client = Client(factory=serve().factory)
        self.assertEqual(client.wait(300, step=1)[:4], b"421 ")
        self.assertTrue(client.closed)

    def test_segments(self) -> None:
        """The replies do not depend on how the octets are split."""
        octets = HEAD + MESSAGE + b"NOOP x\r\nQUIT\r\n"
        for cut in range(1, len(octets)):
            server = serve()
            client = Client(factory=server.factory)
            client.say(octets, [cut])
            self.assertEqual(client.transport.taken.decode().splitlines()[1:], said(octets))
            self.assertEqual(len(server.got), 1)

    @settings(deadline=None, max_examples=150)
    @given(some.one_of(octets(), sessions().map(lambda session: session.octets)), cuts())
    def test_anything(self, octets: bytes, cuts: list[int]) -> None:
        """Any input, split anywhere, gets the same complete replies, and leaves no traceback."""
        outcomes = []
        for where in ([], cuts):
            server = serve(error_limit=None, junk_command_limit=None)
            client = Client(factory=server.factory)
            client.say(octets, [cut for cut in where if cut < len(octets)])
            answers(client.heard())
            outcomes.append((client.transport.taken, client.closed, server.got))
            if not client.closed:
                client.vanish()
        self.assertEqual(*outcomes)
        self.assertEqual([event for event in self.events if "log_failure" in event], [])

    def test_smuggling(self) -> None:
        """The end of a message is CRLF dot CRLF and nothing else. A message with other line ends is refused."""
        for end in (b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r"):
            server = serve()
            lines = said(HEAD + b"Hello" + end + MAIL + b"\r\n.\r\n", server)
            self.assertEqual([line[:3] for line in lines[-2:]], ["354", "550"])
            self.assertEqual(server.got, [])


class MessageTests(LoggingTestCase):
    """The arguments of process_message, and the effect of its result."""

    def test_arguments(self) -> None:
        """Peer, sender, recipients and the message, without dot-stuffing. LF separates lines, and the last line has
        none."""
        server = serve()
        said(HEAD + MESSAGE, server)
        ((peer, mailfrom, rcpttos, data, kwargs),) = server.got
        self.assertEqual(peer, ("192.0.2.7", 4321))
        self.assertEqual((mailfrom, rcpttos), ("a@example.com", ["b@example.com"]))
        self.assertEqual(data, b"Subject: test\n\n.dotted\nHello")
        self.assertEqual(kwargs, {"mail_options": [], "rcpt_options": []})

    def test_options(self) -> None:
        """The parameters of MAIL are in upper case. The null reverse-path is <>."""
        server = serve()
        said(EHLO + b"MAIL FROM:<> body=8bitmime size=5\r\n" + RCPT + b"DATA\r\n.\r\n", server)
        ((_, mailfrom, _, data, kwargs),) = server.got
        self.assertEqual((mailfrom, data), ("<>", b""))
        self.assertEqual(kwargs["mail_options"], ["BODY=8BITMIME", "SIZE=5"])

    def test_text(self) -> None:
        """With decode_data, the message is str, and there are no keyword arguments. A message that is not UTF-8 is
        refused."""
        server = serve(decode_data=True)
        lines = said(HEAD + b"gr\xc3\xbcn\r\n.\r\n" + MAIL + RCPT + b"DATA\r\n\xff\r\n.\r\n", server)
        self.assertEqual([(each[3], each[4]) for each in server.got], [("gr\u00fcn", {})])
        self.assertEqual(lines[-1], "554 5.6.1 The message must be UTF-8")

    def test_signatures(self) -> None:
        """A method gets the keyword arguments that it accepts. An old method without any gets none."""
        got: list[Any] = []

        class Oldest(smtpd.SMTPServer):
            def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any) -> None:  # type: ignore[override]
                got.append(data)

        class Naming(smtpd.SMTPServer):
            def process_message(  # type: ignore[override]
                self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, mail_options: Any = None
            ) -> None:
                got.append(mail_options)

        for server in Oldest, Naming:
            self.assertEqual(said(HEAD + b"Hello\r\n.\r\n", serve(server))[-1], "250 OK")
        self.assertEqual(got, [b"Hello", []])

    def test_results(self) -> None:
        """None means 250. A string is the reply."""
        server = serve()
        for result, expected in (
            (None, "250 OK"),
            ("", "250 OK"),
            ("250 2.0.0 Queued", "250 2.0.0 Queued"),
            ("550 No thanks", "550 No thanks"),
        ):
            server.result = result
            self.assertEqual(said(HEAD + MESSAGE, server)[-1], expected)

    def test_nonsense(self) -> None:
        """An invalid result gets 451, and is logged. Nothing of it is sent."""
        server = serve()
        for result in ("Queued", 250, True, "354 go on", object()):
            server.result = result
            self.assertEqual(said(HEAD + MESSAGE + b"NOOP\r\n", server)[-2:][0][:3], "451")
        self.assertIn("returned 'Queued', not a reply", self.logged("error")[0])

    def test_raising(self) -> None:
        """An exception gets 451 and is logged, and the server continues."""

        class Failing(smtpd.SMTPServer):
            def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> None:
                raise RuntimeError("the disk is on fire")

        for server, error in ((Failing, RuntimeError), (smtpd.SMTPServer, NotImplementedError)):
            lines = said(HEAD + MESSAGE + MAIL, serve(server))
            self.assertEqual([line[:3] for line in lines[-2:]], ["451", "250"])
            self.assertNotIn("fire", lines[-2])
            self.assertEqual([event["log_failure"].type for event in self.events if "log_failure" in event], [error])
            self.events.clear()
            self.assertEqual(len(self.flushLoggedErrors(error)), 1)

    def test_exit(self) -> None:
        """An exception that would end a program does not end one with its own reactor: the client gets 451, and the log
        has the exception."""

        class Exiting(smtpd.SMTPServer):
            def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> None:
                sys.exit("enough")

        self.assertEqual(said(HEAD + MESSAGE + b"QUIT\r\n", serve(Exiting))[-2:][0][:3], "451")
        self.assertIn("SystemExit was raised in the code of the server", self.logged("error")[0])

    def test_later(self) -> None:
        """A coroutine or a Deferred is awaited, while other clients are served."""
        results: list[Deferred[Any]] = []

        class Slow(smtpd.SMTPServer):
            async def process_message(self, peer: Any, mailfrom: Any, rcpttos: Any, data: Any, **kwargs: Any) -> Any:
                results.append(Deferred())
                return await results[-1]

        server = serve(Slow)
        client = Client(factory=server.factory)
        client.talk(HEAD)
        self.assertEqual(client.talk(MESSAGE), b"")
        self.assertEqual(said(b"NOOP\r\n", server), ["250 OK"])
        results[0].callback("250 At last")
        self.assertEqual(client.heard(), b"250 At last\r\n")

    def test_after(self) -> None:
        """The list of recipients belongs to its message: the next message does not change it."""
        server = serve()
        said(HEAD + MESSAGE + MAIL + b"RCPT TO:<c@example.com>\r\nDATA\r\n" + MESSAGE, server)
        self.assertEqual([each[2] for each in server.got], [["b@example.com"], ["c@example.com"]])


class DebuggingTests(SynchronousTestCase):
    """DebuggingServer."""

    def printed(self, server: type[Any], **options: Any) -> str:
        screen = io.StringIO()
        with redirect_stdout(screen):
            if issubclass(server, smtpd.SMTPServer):
                said(b"EHLO c\r\nMAIL FROM:<a@b> SIZE=5\r\n" + RCPT + b"DATA\r\n" + MESSAGE, serve(server, **options))
        return screen.getvalue()

    def test_bytes(self) -> None:
        """Lines are printed as bytes, with the client's address at the end of the header."""
        lines = [
            "---------- MESSAGE FOLLOWS ----------",
            "mail options: ['SIZE=5']",
            "b'Subject: test'",
            "b'X-Peer: 192.0.2.7'",
            "b''",
            "b'.dotted'",
            "b'Hello'",
            "------------ END MESSAGE ------------",
            "",
        ]
        self.assertEqual(self.printed(smtpd.DebuggingServer), "\n".join(lines))

    def test_text(self) -> None:
        """With decode_data, lines are printed as text."""
        expected = "Subject: test\nX-Peer: 192.0.2.7\n\n.dotted\nHello\n"
        self.assertIn(expected, self.printed(smtpd.DebuggingServer, decode_data=True))

    def test_control(self) -> None:
        """Control characters for terminals are escaped."""
        server = serve(smtpd.DebuggingServer, decode_data=True)
        screen = io.StringIO()
        with redirect_stdout(screen):
            said(HEAD + b"\x1b[2Jgone\r\n.\r\n", server)
        self.assertIn("\\x1b[2Jgone", screen.getvalue())

    if sys.version_info < (3, 12):  # later versions do not have the module smtpd

        def test_asTheOldModule(self) -> None:
            """The module of Python 3.11 prints the same. (Later versions have no such module.)"""
            for decode in (False, True):
                for data in (b"Subject: t\n\n.\nHello", b"no header", b"", b"\nbody", b"a: b\nc: \xc3\xa4\n\n\n"):
                    keywords = {} if decode else {"mail_options": ["SIZE=5"], "rcpt_options": ["X=1"]}
                    screens = []
                    for server_class in (smtpd.DebuggingServer, old.DebuggingServer):
                        screen = io.StringIO()
                        server = object.__new__(server_class)
                        with redirect_stdout(screen):
                            server.process_message(
                                ("192.0.2.7", 1), "a@b", ["c@d"], data.decode() if decode else data, **keywords
                            )
                        screens.append(screen.getvalue())
                    self.assertEqual(*screens)


class ChannelTests(LoggingTestCase):
    """Overrides in channels."""

    def test_attributes(self) -> None:
        """A channel has its server, its client, and the input so far in attributes with the old names."""
        seen: list[Any] = []

        class Looking(smtpd.SMTPChannel):
            def smtp_LOOK(self, arg: str | None) -> None:
                seen.append((self.seen_greeting, self.extended_smtp, self.mailfrom, list(self.rcpttos)))
                seen.append((self.smtp_state, self.received_data, self.received_lines, self.num_bytes))
                self.push("250 OK")

        server = serve(channel=Looking)
        client = Client(factory=server.factory)
        client.talk(b"LOOK\r\n")
        self.assertEqual(seen, [("", False, None, []), (0, "", [], 0)])
        seen.clear()
        client.talk(HEAD + b"abc\r\n.\r\nMAIL FROM:<>\r\n" + RCPT + b"LOOK\r\n")
        self.assertEqual(seen, [("client.test", True, "<>", ["b@example.com"]), (0, b"abc", [], 0)])
        channel = client.server.channel
        self.assertIs(channel.smtp_server, server)
        self.assertEqual(channel.addr, ("192.0.2.7", 4321))
        self.assertEqual(channel.peer, channel.conn.getpeername())
        self.assertEqual(channel.fqdn, "mx.test")
        self.assertEqual(channel.data_size_limit, 33554432)
        self.assertEqual(channel.max_command_size_limit, channel.command_size_limits["MAIL"])
        client.talk(b"DATA\r\nabc\r\nd")
        self.assertEqual((channel.smtp_state, channel.num_bytes), (channel.DATA, 6))
        self.assertRaises(TypeError, setitem, channel.command_size_limits, "MAIL", 5)

    def test_oldestNames(self) -> None:
        """The old private names of the attributes work, with a warning."""
        channel = Client(factory=serve().factory).server.channel
        channel._SMTPChannel__greeting = "me"
        self.assertEqual(channel._SMTPChannel__greeting, "me")
        self.assertEqual(channel.seen_greeting, "me")
        warned = self.flushWarnings()
        self.assertEqual(
            [each["message"] for each in warned], ["__greeting of an SMTPChannel is now called seen_greeting"] * 2
        )

    def test_override(self) -> None:
        """An overridden command may refuse, and otherwise call the inherited method."""

        class Picky(smtpd.SMTPChannel):
            def smtp_RCPT(self, arg: str | None) -> None:
                if arg and "spam" in arg:
                    self.push("550 not here")
                    return
                smtpd.SMTPChannel.smtp_RCPT(self, arg)

        server = serve(channel=Picky)
        lines = said(EHLO + MAIL + b"RCPT TO:<spam@b>\r\n" + RCPT + b"DATA\r\n" + MESSAGE, server)
        self.assertEqual(lines[-4:-2], ["550 not here", "250 OK"])
        self.assertEqual(server.got[0][2], ["b@example.com"])

    def test_wholeOverrides(self) -> None:
        """Commands that are completely rewritten, including their changes of the state, work."""

        class Anew(smtpd.SMTPChannel):
            def smtp_EHLO(self, arg: str | None) -> None:
                self._set_rset_state()
                self.seen_greeting = arg or ""
                self.extended_smtp = True
                self.push(f"250-{self.fqdn} greets you")
                self.push("250 X-OURS")

            def smtp_MAIL(self, arg: str | None) -> None:
                self.mailfrom = "anybody"
                self.push("250 whatever you say")

            def smtp_RCPT(self, arg: str | None) -> None:
                self.rcpttos.append(arg or "")
                self.push("250 fine")

            def smtp_DATA(self, arg: str | None) -> None:
                self.smtp_state = self.DATA
                self.set_terminator(b"\r\n.\r\n")
                self.push("354 go on")

        server = serve(channel=Anew)
        lines = said(b"EHLO c\r\nMAIL\r\nRCPT x\r\nDATA\r\nHello\r\n.\r\nQUIT\r\n", server)
        self.assertEqual(
            lines,
            [
                "250-mx.test greets you",
                "250 X-OURS",
                "250 whatever you say",
                "250 fine",
                "354 go on",
                "250 OK",
                "221 Bye",
            ],
        )
        self.assertEqual([each[1:4] for each in server.got], [("anybody", ["x"], b"Hello")])

    def test_newCommands(self) -> None:
        """A method is a command, None removes one. It may be a coroutine function, and may return its reply."""

        class More(smtpd.SMTPChannel):
            smtp_VRFY: ClassVar[Any] = None

            async def smtp_PING(self, arg: str | None) -> str:
                return f"250 Pong {arg}"

        server = serve(channel=More)
        self.assertEqual(
            said(b"PING 1\r\nVRFY a\r\n", server), ["250 Pong 1", '500 Error: command "VRFY" not recognized']
        )

    def test_patched(self) -> None:
        """A method that is replaced later is used."""
        server = serve()
        client = Client(factory=server.factory)
        self.patch(smtpd.SMTPChannel, "smtp_NOOP", lambda channel, arg: channel.push("250 patched"))
        self.assertEqual(client.talk(b"NOOP\r\n"), b"250 patched\r\n")

    def test_silent(self) -> None:
        """A command without a reply gets 451, so that the client does not wait forever, and the log reports it."""

        class Silent(smtpd.SMTPChannel):
            def smtp_NOOP(self, arg: str | None) -> None: ...

        lines = said(b"NOOP\r\nRSET\r\n", serve(channel=Silent))
        self.assertEqual([line[:3] for line in lines], ["451", "250"])
        self.assertIn("the command NOOP", self.logged("error")[0])

    def test_injection(self) -> None:
        """Input from a client cannot become a separate reply."""

        class Echo(smtpd.SMTPChannel):
            def smtp_ECHO(self, arg: str | None) -> None:
                self.push("250 one\r\n250 two\x00")

        self.assertEqual(said(b"ECHO\r\n", serve(channel=Echo)), ["250-one", "250 two?"])

    def test_neverCalled(self) -> None:
        """Overriding methods of asyncore and asynchat that are never called is refused, since they may be checks."""

        def define() -> None:
            class Auth(smtpd.SMTPChannel):
                def found_terminator(self) -> None: ...

        error = self.assertRaises(TypeError, define)
        self.assertIn("Auth.found_terminator would never be called", str(error))
        self.assertIn("authenticator=", str(error))

    def test_noConnection(self) -> None:
        """A channel needs the connection that its server got, not a socket."""
        error = self.assertRaises(TypeError, smtpd.SMTPChannel, serve(), object(), ("192.0.2.7", 1))
        self.assertIn("conn must be the argument of handle_accepted() or the result of accept()", str(error))

    def test_commandSize(self) -> None:
        """The class may have another limit for the size of a command."""

        class Short(smtpd.SMTPChannel):
            command_size_limit: ClassVar[int] = 20

        lines = said(b"NOOP " + b"x" * 16 + b"\r\nHELO " + b"x" * 15 + b"\r\n", serve(channel=Short))
        self.assertEqual(lines, ["500 Error: line too long", "250 mx.test"])

    def test_closing(self) -> None:
        """A channel may close its connection, after its reply or immediately, and is notified of its end."""
        closed: list[Any] = []

        class Closing(smtpd.SMTPChannel):
            def smtp_BYE(self, arg: str | None) -> None:
                self.push("221 so long")
                self.close_when_done()

            def smtp_GONE(self, arg: str | None) -> None:
                self.close()

            def handle_close(self) -> None:
                closed.append(self.peer)
                super().handle_close()

        for line, expected in ((b"BYE", b"221 so long\r\n"), (b"GONE", b"")):
            client = Client(factory=serve(channel=Closing).factory)
            self.assertEqual(client.talk(line + b"\r\nNOOP\r\n"), expected)
            self.assertTrue(client.closed)
        self.assertEqual(closed, [("192.0.2.7", 4321)] * 2)

    def test_debugStream(self) -> None:
        """DEBUGSTREAM gets the dialogue, without passwords."""
        stream = io.StringIO()
        self.patch(smtpd, "DEBUGSTREAM", stream)
        said(HEAD + MESSAGE + b"AUTH PLAIN c2VjcmV0\r\nc2VjcmV0\r\n")
        for text in (
            "Peer: ('192.0.2.7', 4321)",
            "Data: 'EHLO client.test'\n",
            "===> MAIL FROM:<a@example.com>\n",
            "sender: a@example.com\n",
            "Hello",
        ):
            self.assertIn(text, stream.getvalue())
        self.assertNotIn("c2VjcmV0", stream.getvalue())

    def test_ownSizeLimit(self) -> None:
        """A channel may have its own limit, from its constructor or set later. It is offered and enforced."""

        class Small(smtpd.SMTPChannel):
            def __init__(self, server: Any, conn: Any, addr: Any, *options: Any) -> None:
                super().__init__(server, conn, addr, 50)

            def smtp_NOOP(self, arg: Any) -> None:
                self.data_size_limit = 100
                super().smtp_NOOP(arg)

        replies = said(HEAD + b"x" * 70 + b"\r\n.\r\n", serve(channel=Small))
        self.assertIn("250-SIZE 50", replies)
        self.assertEqual(replies[-1], "552 Error: Too much mail data")
        self.assertEqual(said(b"NOOP\r\n" + HEAD + b"x" * 70 + b"\r\n.\r\n", serve(channel=Small))[-1], "250 OK")


class ServerTests(LoggingTestCase):
    """Overrides in servers."""

    def test_handleAccepted(self) -> None:
        """handle_accepted creates the channel. A connection without a channel is closed."""
        made: list[Any] = []

        class Choosy(Keeper):
            def handle_accepted(self, conn: Any, addr: Any) -> None:
                if addr[0] == "192.0.2.7":
                    made.append(smtpd.SMTPChannel(self, conn, addr))

        server = serve(Choosy)
        self.assertEqual(said(b"NOOP\r\n", server), ["250 OK"])
        self.assertEqual(len(made), 1)
        from twisted.internet.address import IPv4Address

        client = Client(factory=server.factory, peer=IPv4Address("TCP", "198.51.100.1", 1))
        self.assertEqual((client.welcome, client.closed), (b"", True))

    def test_handleAccept(self) -> None:
        """So does handle_accept in older servers."""

        class Oldest(Keeper):
            def handle_accept(self) -> None:
                pair = self.accept()
                assert pair is not None
                conn, addr = pair
                smtpd.SMTPChannel(self, conn, addr)

        self.assertEqual(said(b"NOOP\r\n", serve(Oldest)), ["250 OK"])
        self.assertIsNone(serve(Oldest).accept())

    def test_channelFails(self) -> None:
        """If a channel cannot be created, the connection closes with 451, and the error is logged."""

        class Failing(smtpd.SMTPChannel):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                raise RuntimeError("no channel")

        client = Client(factory=serve(channel=Failing).factory)
        self.assertEqual(client.welcome.splitlines()[-1][:3], b"451")
        self.assertTrue(client.closed)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_behindProxy(self) -> None:
        """Behind a trusted proxy, the client is the one in the PROXY header."""
        server = serve(proxy_from=["192.0.2.0/24"])
        client = Client(factory=server.factory)
        self.assertEqual(client.welcome, b"")
        client.talk(b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 25\r\n" + HEAD + MESSAGE)
        self.assertEqual(server.got[0][0], ("203.0.113.9", 5000))
        self.assertEqual(client.server.channel.addr, ("203.0.113.9", 5000))

    def test_tls(self) -> None:
        """With a certificate, STARTTLS is offered, and earlier input is discarded."""
        server = serve(tls_context=PretendedTLS())
        client = Client(factory=server.factory)
        self.assertIn(b"250-STARTTLS\r\n", client.talk(EHLO))
        client.start_tls()
        self.assertEqual(client.talk(MAIL), b"503 Error: send HELO first\r\n")
        self.assertNotIn(b"STARTTLS", client.talk(EHLO))
        self.assertTrue(client.server.channel.session.ssl)
        self.assertEqual(client.send().code, 250)

    def test_implicitTLS(self) -> None:
        """Implicit TLS is possible."""
        client = Client(factory=serve(tls_context=PretendedTLS(), implicit_tls=True).factory)
        self.assertEqual(client.welcome[:4], b"220 ")
        self.assertTrue(client.server.channel.session.ssl)
        self.assertEqual(client.talk(b"NOOP\r\n"), b"250 OK\r\n")

    def test_auth(self) -> None:
        """With an authenticator, AUTH is offered. If it is required, an override of MAIL still requires it."""

        class Careless(smtpd.SMTPChannel):
            def smtp_MAIL(self, arg: str | None) -> None:
                self.mailfrom = "anybody"
                self.push("250 OK")

        def authenticator(*arguments: Any) -> bool:
            return bool(arguments[-1].password == b"secret")

        server = serve(
            channel=Careless,
            authenticator=authenticator,
            auth_required=True,
            auth_require_tls=False,
            auth_failure_delay=0,
        )
        self.flushWarnings()
        client = Client(factory=server.factory)
        self.assertIn(b"250-AUTH LOGIN PLAIN\r\n", client.talk(EHLO))
        self.assertEqual(client.codes(b"MAIL FROM:<a@b>\r\n"), [530])
        self.assertEqual(client.codes(b"AUTH PLAIN AHUAc2VjcmV0\r\nMAIL FROM:<a@b>\r\n"), [235, 250])

    def test_names(self) -> None:
        """The module has its old names."""
        for name in (
            *("SMTPServer", "SMTPChannel", "DebuggingServer", "Devnull", "DEBUGSTREAM", "NEWLINE", "EMPTYSTRING"),
            *("COMMASPACE", "DATA_SIZE_DEFAULT", "__version__", "program"),
        ):
            self.assertTrue(hasattr(smtpd, name), name)
        self.assertEqual((smtpd.NEWLINE, smtpd.COMMASPACE, smtpd.EMPTYSTRING), ("\n", ", ", ""))
        self.assertEqual(smtpd.DATA_SIZE_DEFAULT, 33554432)
