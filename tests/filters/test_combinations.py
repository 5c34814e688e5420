"""Filters together with other changes of a session: XCLIENT, STARTTLS, AUTH, chunks, LMTP, asyncio."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.filters.support import Keeper, MilterInMemory, StreamingKeeper
from tests.support import GREETING, MESSAGE, TRANSACTION, Client, codes
from txsmtpd import LMTP, SMTPFactory
from txsmtpd.auth import AuthResult, LoginPassword
from txsmtpd.extensions.forwarded import XClient
from txsmtpd.filters.milter import Milter
from txsmtpd.tls.authority import Authority


class MilterSessionTests(SynchronousTestCase):
    """What a milter gets if the session is not the first one of its connection."""

    def connect(self, handler: Any = None, **options: Any) -> Client:
        """A client of a server behind a milter."""
        self.milter = MilterInMemory()
        clock = Clock()
        filters = [Milter(self.milter, reactor=clock)]
        self.handler = handler or Keeper()
        factory = SMTPFactory(self.handler, filters=filters, hostname="mx.example.com", reactor=clock, **options)
        client = Client(factory=factory)
        client.clock = clock
        return client

    def told(self, stage: bytes) -> dict[bytes, bytes]:
        """The macros that were sent last for a stage."""
        words = [data[1:].split(b"\0") for data in self.milter.data_of(b"D") if data[:1] == stage][-1]
        return dict(zip(words[::2], words[1::2], strict=False))

    def test_xclient(self) -> None:
        """XCLIENT starts a new session with the milter, for the client that it names."""
        client = self.connect(extensions=[XClient(["192.0.2.0/24"])])
        client.talk(GREETING)
        self.assertEqual(codes(client.talk(b"XCLIENT ADDR=198.51.100.9 PORT=99 HELO=other.test\r\n")), [220])
        client.talk(TRANSACTION)
        self.assertEqual(self.milter.commands, "OCHQ" + "OCHMR")
        self.assertEqual(self.milter.data_of(b"C")[1], b"[198.51.100.9]\0004\x00\x63198.51.100.9\0")
        self.assertEqual(self.milter.data_of(b"H"), [b"client.test\0", b"other.test\0"])

    def test_names(self) -> None:
        """The client's name is the one of XCLIENT, or its address in brackets, or unknown."""
        for said, expected in (
            (b"ADDR=198.51.100.9 NAME=c.example", b"c.example\0004\0\x00198.51.100.9\0"),
            (b"ADDR=IPV6:2001:db8::9", b"[2001:db8::9]\0006\0\x002001:db8::9\0"),
            (b"ADDR=[UNAVAILABLE] NAME=[UNAVAILABLE]", b"unknown\0U"),
        ):
            client = self.connect(extensions=[XClient(["192.0.2.0/24"])])
            client.talk(GREETING)
            self.assertEqual(codes(client.talk(b"XCLIENT " + said + b"\r\n")), [220])
            self.assertEqual(self.milter.data_of(b"C")[1], expected)

    def test_starttls(self) -> None:
        """After STARTTLS, the milter gets the new greeting and the data about TLS."""
        authority = Authority()
        client = self.connect(tls_context=authority.issue("mx.example.com"))
        client.talk(GREETING)
        client.start_tls(authority.client_options("mx.example.com"))
        client.talk(GREETING + TRANSACTION)
        self.assertEqual(self.milter.commands, "OCHHMR")
        self.assertTrue(self.told(b"H")[b"{tls_version}"].startswith(b"TLSv1"))

    def test_starttlsInTransaction(self) -> None:
        """STARTTLS in a transaction aborts the message."""
        authority = Authority()
        client = self.connect(tls_context=authority.issue("mx.example.com"))
        client.talk(GREETING + TRANSACTION)
        client.start_tls(authority.client_options("mx.example.com"))
        self.assertEqual(self.milter.commands, "OCHMRA")

    def test_auth(self) -> None:
        """The milter gets the user name and the mechanism."""

        def authenticator(*arguments: Any) -> AuthResult:
            assert isinstance(arguments[-1], LoginPassword)
            return AuthResult(success=True, auth_data=arguments[-1])

        client = self.connect(authenticator=authenticator, auth_require_tls=False)
        client.talk(GREETING + b"AUTH PLAIN AHVzZXIAcGFzcw==\r\n" + TRANSACTION)
        macros = self.told(b"M")
        self.assertEqual((macros[b"{auth_type}"], macros[b"{auth_authen}"]), (b"PLAIN", b"user"))

    def test_chunks(self) -> None:
        """BDAT: the milter gets DATA at the first chunk, and one body."""
        client = self.connect()
        client.talk(GREETING + TRANSACTION + b"BDAT 14\r\nSubject: a\r\n\r\nBDAT 3\r\none")
        self.assertEqual(self.milter.commands, "OCHMRT")
        self.assertEqual(codes(client.talk(b"BDAT 5 LAST\r\ntwo\r\n")), [250])
        self.assertEqual(self.milter.data_of(b"B"), [b"onetwo\r\n"])
        self.assertEqual(self.handler.content, [b"Subject: a\r\n\r\nonetwo\r\n"])

    def test_refusedChunk(self) -> None:
        """A last chunk that the server refuses aborts the message, although the milter has not seen any of it."""
        client = self.connect(data_size_limit=10)
        client.talk(GREETING + TRANSACTION + b"BDAT 11 LAST\r\n" + b"x" * 11)
        self.assertEqual(self.milter.commands, "OCH" + "MRA")

    def test_lmtp(self) -> None:
        """LMTP: LHLO is a greeting, and the reply of a milter applies to each recipient."""
        client = self.connect(protocol=LMTP)
        self.milter.answers[b"E"] = b"\0\0\0\x1dy" + b"554 5.7.1 no thanks, really\0"
        client.talk(b"LHLO c.test\r\n" + TRANSACTION + b"RCPT TO:<c@example.com>\r\nDATA\r\n")
        self.assertEqual(codes(client.talk(MESSAGE + b".\r\n")), [554, 554])
        self.assertEqual(self.milter.data_of(b"H"), [b"c.test\0"])

    def test_pipelined(self) -> None:
        """All together, split anywhere: the milter gets everything in order."""
        client = self.connect()
        client.say(GREETING + (TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n") * 3 + b"QUIT\r\n", range(1, 600, 7))
        self.assertEqual(codes(client.heard())[-1], 221)
        self.assertEqual(self.milter.commands, "OCH" + "MRTLNBEA" * 3 + "Q")

    def test_wholeAndDecoded(self) -> None:
        """A handler that requires str gets the changed message as str."""

        class AddsBody:
            def filter_message(self, server: Any, session: Any, envelope: Any, message: Any) -> None:
                message.replace_body("\u00e4\r\n".encode())

        handler = Keeper()
        options = {"decode_data": True, "enable_SMTPUTF8": True}
        client = Client(handler, filters=[AddsBody()], **options)
        client.talk(GREETING)
        client.send_message()
        self.assertEqual(handler.content, ["Subject: test\r\n\r\n\u00e4\r\n"])
        self.assertEqual(handler.envelopes[0].original_content, "Subject: test\r\n\r\n\u00e4\r\n".encode())

    def test_ownFilterInAsyncio(self) -> None:
        """With the option asyncio, coroutine functions of filters run in asyncio, as hooks do. Those of a milter do
        not."""

        class Own:
            async def filter_RCPT(self, *arguments: Any) -> None: ...
            def filter_MAIL(self, *arguments: Any) -> None: ...

        own = Own()
        milter = Milter("unix:/nowhere")
        settings = SMTPFactory(StreamingKeeper(), filters=[own, milter], asyncio=True).settings
        first, second = settings.filters.links
        self.assertNotEqual(first.hooks["RCPT"], own.filter_RCPT)
        self.assertEqual(first.hooks["MAIL"], own.filter_MAIL)
        self.assertEqual(second.hooks["MAIL"], milter.filter_MAIL)

    def test_slowHandler(self) -> None:
        """A handler that waits behind a milter is cancelled when its client disconnects, and the milter's connection is
        closed."""
        waiting: Deferred[Any] = Deferred()

        class Waits:
            def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
                return waiting

        client = self.connect(Waits())
        client.talk(GREETING + TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n")
        client.vanish()
        self.assertTrue(waiting.called)
        self.assertTrue(self.milter.transports[0].gone)
        self.flushLoggedErrors()
