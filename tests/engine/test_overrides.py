"""What a subclass of the protocol may call and override, and the exceptions otherwise."""

from __future__ import annotations

import gc
import weakref
from typing import Any
from warnings import catch_warnings, simplefilter

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support import GREETING, TRANSACTION, Client, handler
from txsmtpd import LMTP, SMTP, SMTPFactory, syntax
from txsmtpd.engine.overrides import NEVER_CALLED, NOT_ASYNC


def subclass(base: type[SMTP] = SMTP, *mixins: type, **members: Any) -> type[SMTP]:
    """A class with these members, as in a user's module."""
    return type("Own", (*mixins, base), {"__module__": "users", **members})


class OverrideTests(SynchronousTestCase):
    """Subclasses that would not have the intended effect."""

    def test_neverCalled(self) -> None:
        """A method that the server would never call, as aiosmtpd's does, is a TypeError that names the replacement."""
        for name, instead in NEVER_CALLED.items():
            error = self.assertRaises(TypeError, subclass, **{name: lambda self: None})
            self.assertIn(f"Own.{name} would never be called", str(error))
            self.assertIn(instead, str(error))

    def test_private(self) -> None:
        """A name that the server uses itself is a TypeError, whether it is a method or an attribute of instances."""
        for name in ("_greet", "_reset_session", "_connection", "_dispatcher", "_message", "_apply_parameters"):
            error = self.assertRaises(TypeError, subclass, **{name: lambda self: None})
            self.assertIn(name, str(error))

    def test_missing(self) -> None:
        """Names that only aiosmtpd's protocol has are free for subclasses. Without ``__getattr__``, which would cost
        each message a tenth, their exceptions are made by descriptors."""
        self.assertFalse(hasattr(SMTP, "__getattr__"))
        own: Any = subclass(_reader="own")(handler())
        self.assertEqual(own._reader, "own")
        own._writer = 1
        self.assertEqual((own._writer, hasattr(own, "_loop")), (1, False))

    def test_plain(self) -> None:
        """Methods that the server calls without awaiting the result must be plain: ``async def push`` would send
        nothing."""

        async def override(self: Any, *arguments: Any) -> None: ...

        for name in NOT_ASYNC:
            error = self.assertRaises(TypeError, subclass, **{name: override})
            self.assertIn("without async", str(error))

    def test_startTLS(self) -> None:
        """A STARTTLS that starts TLS with asyncio is removed, with a warning. Any other one is kept."""

        async def by_asyncio(self: Any, arg: Any) -> None:
            await self.push("220 Ready")
            await self.loop.start_tls(self.transport, self, self.tls_context, server_side=True)

        async def other(self: Any, arg: Any) -> str:
            return "454 4.7.0 Not today"

        with catch_warnings(record=True) as caught:
            simplefilter("always")
            left_out = subclass(smtp_STARTTLS=by_asyncio)
        (warning,) = caught
        self.assertIn("Own.smtp_STARTTLS calls loop.start_tls()", str(warning.message))
        self.assertEqual(warning.filename, __file__)
        self.assertIs(left_out.smtp_STARTTLS, SMTP.smtp_STARTTLS)
        self.assertIs(subclass(smtp_STARTTLS=other).smtp_STARTTLS, other)

    def test_everywhere(self) -> None:
        """The same is true for LMTP, for subclasses of subclasses, and for mixins."""
        mixin = type("Mixin", (), {"__module__": "users", "data_received": lambda self, data: None})
        self.assertRaises(TypeError, subclass, SMTP, mixin)
        self.assertRaises(TypeError, subclass, LMTP, data_received=lambda self, data: None)
        self.assertRaises(TypeError, subclass, subclass(), data_received=lambda self, data: None)

    def test_ownNames(self) -> None:
        """A subclass may use all other names, including names that the engine uses for its own parts."""

        class Own(SMTP):
            closing = "today"
            lost = None

            def greet(self) -> str:
                return "hello"

            def send(self, text: str) -> str:
                return self.greet() + text

            def answer(self) -> int:
                return 42

            close = hold = release = ask = final = forget = answer

            @syntax("ANSWER")
            def smtp_ANSWER(self, arg: str | None) -> str:
                self.paused = self.closing
                return f"250 2.0.0 {self.send(' world')}, {self.answer()}"

        client = Client(protocol=Own)
        self.assertEqual(client.codes(GREETING + TRANSACTION + b"ANSWER\r\nDATA\r\na\r\n.\r\n"), [250] * 4 + [354, 250])
        self.assertEqual(client.codes(b"QUIT\r\n"), [221])

    def test_documented(self) -> None:
        """Documented methods can be overridden, and are called."""
        called = []

        class Own(SMTP):
            def _create_session(self) -> Any:
                called.append("session")
                return super()._create_session()

            def _create_envelope(self) -> Any:
                called.append("envelope")
                return super()._create_envelope()

            def lineReceived(self, line: bytes) -> None:
                called.append(line.decode())
                super().lineReceived(line)

            def begin_transaction(self, reverse_path: str, mail_options: list[str]) -> Any:
                called.append("begin")
                return super().begin_transaction(reverse_path, mail_options)

            def reset_transaction(self) -> None:
                called.append("reset")
                super().reset_transaction()

            def push(self, status: Any) -> Any:
                called.append("push")
                return super().push(status)

            def smtp_NOOP(self, arg: str | None) -> Any:  # type: ignore[override]
                self.push("250 2.0.0 OK")

        client = Client(protocol=Own)
        client.talk(b"HELO a\r\nMAIL FROM:<a@b>\r\nNOOP\r\n")
        self.assertEqual(
            called,
            ["session", "envelope", "HELO a", "reset", "envelope", "MAIL FROM:<a@b>", "begin", "NOOP", "push"],
        )

    def test_instance(self) -> None:
        """An attribute of an instance that the server uses itself is a TypeError when the connection is made."""

        class Own(SMTP):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self._connection = "to a database"

        self.assertRaises(TypeError, Client, protocol=Own)


class EndTests(SynchronousTestCase):
    """Objects after the end of a connection."""

    def test_freed(self) -> None:
        """A protocol is freed at the end of its connection, without the garbage collector."""
        factory = SMTPFactory(handler(), hostname="mx.test", reactor=Clock())
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for octets in (b"", GREETING + TRANSACTION, GREETING + TRANSACTION + b"DATA\r\nhalf", b"QUIT\r\n"):
            client = Client(factory=factory)
            client.talk(octets)
            client.vanish()
            server = weakref.ref(client.server)
            client.transport.protocol = client.transport.producer = None  # as transports of Twisted do
            del client
            self.assertIsNone(server(), octets)
