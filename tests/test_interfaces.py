"""verifyHandler: valid handlers, and its errors."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

from twisted.cred.portal import Portal
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.exceptions import Invalid

from txsmtpd import SMTP, SMTPFactory, syntax, verifyHandler
from txsmtpd.controller import UnthreadedController
from txsmtpd.handlers import Mailbox, Sink
from txsmtpd.interfaces import HOOKS, InvalidHandler
from txsmtpd.testing import MailCatcher


class Complete:
    """A handler with every hook."""

    async def handle_CONNECT(self, server: Any, session: Any, envelope: Any) -> None: ...
    async def handle_DISCONNECT(self, server: Any, session: Any, envelope: Any, cause: Any) -> None: ...
    async def handle_HELO(self, server: Any, session: Any, envelope: Any, hostname: Any) -> None: ...
    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: Any, responses: Any) -> None: ...
    async def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: Any) -> None: ...
    async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> None: ...
    async def handle_RSET(self, server: Any, session: Any, envelope: Any) -> None: ...
    async def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: Any) -> None: ...
    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: Any, mail_options: Any) -> None: ...
    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: Any, rcpt_options: Any) -> None: ...
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> None: ...
    async def handle_AUTH(self, server: Any, session: Any, envelope: Any, args: Any) -> None: ...
    async def handle_STARTTLS(self, server: Any, session: Any, envelope: Any) -> None: ...
    async def handle_PROXY(self, server: Any, session: Any, envelope: Any, proxy_data: Any) -> None: ...
    async def handle_QUARANTINE(self, server: Any, session: Any, envelope: Any, reason: Any) -> None: ...
    async def handle_exception(self, error: Any) -> None: ...
    def process_message(self, peer: Any, mail_from: Any, rcpt_tos: Any, data: Any) -> None: ...


class VerifyHandlerTests(SynchronousTestCase):
    """verifyHandler."""

    def problem(self, handler: object) -> str:
        """Return the error about the handler."""
        return str(self.assertRaises(InvalidHandler, verifyHandler, handler))

    def test_complete(self) -> None:
        """A handler with every hook is valid, and so is one with none."""
        self.assertTrue(verifyHandler(Complete()))
        self.assertTrue(verifyHandler(object()))
        self.assertEqual({name for name in dir(Complete) if not name.startswith("__")}, set(HOOKS))

    def test_misspelt(self) -> None:
        """The error for a misspelt hook suggests the intended one."""
        for wrong, right in (
            ("handle_RCTP", "handle_RCPT"),
            ("handle_rcpt", "handle_RCPT"),
            ("handle_DATE", "handle_DATA"),
            ("handle_Exception", "handle_exception"),
        ):
            problem = self.problem(type("Handler", (), {wrong: Complete.handle_RCPT})())
            self.assertIn(wrong, problem)
            self.assertIn(right, problem)

    def test_parameters(self) -> None:
        """The error for a hook with too few or too many parameters shows the right ones."""

        class Few:
            async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: Any) -> None: ...

        class Many:
            def handle_DATA(self, server: Any, session: Any, envelope: Any, more: Any) -> None: ...

        self.assertIn("handle_RCPT(server, session, envelope, address, rcpt_options)", self.problem(Few()))
        self.assertIn("handle_DATA(server, session, envelope)", self.problem(Many()))

    def test_ownNames(self) -> None:
        """Parameters may have any names, and additional ones may have defaults."""

        class Handler:
            def handle_RCPT(self, a: Any, b: Any, c: Any, d: Any, e: Any, f: int = 1) -> None: ...
            def handle_DATA(self, *arguments: Any) -> None: ...

        self.assertTrue(verifyHandler(Handler()))

    def test_ehlo(self) -> None:
        """handle_EHLO may have either of two forms, and no other."""

        class Old:
            def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: Any) -> None: ...

        class Neither:
            def handle_EHLO(self, server: Any, session: Any, envelope: Any) -> None: ...

        self.assertTrue(verifyHandler(Old()))
        self.assertIn("handle_EHLO", self.problem(Neither()))

    def test_noMethod(self) -> None:
        """A hook that is not callable is an error."""

        class Handler:
            handle_DATA = "250 OK"

        self.assertIn("handle_DATA", self.problem(Handler()))

    def test_invalid(self) -> None:
        """The exception is a subclass of zope.interface's."""
        self.assertTrue(issubclass(InvalidHandler, Invalid))

    def test_handleMessage(self) -> None:
        """handle_message of subclasses of the built-in handlers does not count as a misspelt hook."""

        class Handler:
            def handle_message(self, message: Any) -> None: ...

        self.assertTrue(verifyHandler(Handler()))


class Whole:
    """A valid handler."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 OK"


def having(**attributes: Any) -> Any:
    """A handler with these attributes in addition to handle_DATA."""
    return type("Handler", (Whole,), attributes)()


def a_hook(self: Any, *arguments: Any) -> str:
    return "250 OK"


class FactoryTests(SynchronousTestCase):
    """The checks of a handler when a factory is created."""

    def refused(self, handler: Any, **options: Any) -> str:
        return str(self.assertRaises(TypeError, SMTPFactory, handler, **options))

    def test_right(self) -> None:
        """Handlers with hooks, with other methods, and declared as discarding are accepted."""
        for handler in (
            None,
            Complete(),
            Whole(),
            Sink(),
            having(handle_bounce=a_hook, handle_quota=a_hook, handler=a_hook, data=a_hook),
            having(auth_PLAIN=a_hook),
            type("Old", (), {"process_message": lambda self, peer, mail_from, rcpt_tos, data: None})(),
            SimpleNamespace(handle_RCPT=lambda server, session, envelope, address, options: "250 OK"),
            Mailbox(self.mktemp()),
            type("Changed", (Mailbox,), {"handle_DATA": a_hook})(self.mktemp()),
            MailCatcher(),
        ):
            SMTPFactory(handler)

    def test_misspelt(self) -> None:
        """A misspelt hook is a TypeError that suggests the intended one."""
        for wrong, right in {
            "handle_RCTP": "handle_RCPT",
            "handle_rcpt": "handle_RCPT",
            "handle_DATE": "handle_DATA",
            "handle_Exception": "handle_exception",
            "handle_RESET": "handle_RSET",
            "handleRCPT": "handle_RCPT",
            "hanlde_MAIL": "handle_MAIL",
            "handel_CONNECT": "handle_CONNECT",
            "open_mesage": "open_message",
            "proces_message": "process_message",
        }.items():
            self.assertIn(
                f"{wrong} of the handler Handler is not a hook; did you mean {right}?",
                self.refused(having(**{wrong: a_hook})),
            )

    def test_unknown(self) -> None:
        """A hook for an unknown command is a TypeError, unless a custom protocol may call it."""
        self.assertIn("there is no such command", self.refused(having(handle_PING=a_hook)))

        class WithPing(SMTP):
            @syntax("PING")
            async def smtp_PING(self, arg: Any) -> Any:
                return await self.call_hook("PING")

        SMTPFactory(having(handle_PING=a_hook, handle_GREYLIST=a_hook), protocol=WithPing)

    def test_parameters(self) -> None:
        """Wrong parameters are a TypeError with the right ones."""
        problem = self.refused(having(handle_RCPT=lambda self, server, address: "250 OK"))
        self.assertEqual(
            problem,
            "handle_RCPT(server, address) of the handler Handler must be"
            " handle_RCPT(server, session, envelope, address, rcpt_options)",
        )
        problem = self.refused(having(handle_DATA=lambda server, session, envelope: "250 OK"))
        self.assertEqual(
            problem,
            "handle_DATA(session, envelope) of the handler Handler must be handle_DATA(server, session, envelope);"
            " is self missing, its first parameter?",
        )
        self.assertIn(
            "not callable", self.refused(having(handle_RCPT="250 OK")).replace("is not a method but", "not callable")
        )

    def test_noHook(self) -> None:
        """An object without hooks is refused, because it would discard all mail. Sink() does that deliberately."""
        for handler in (object(), SimpleNamespace(), type("Handler", (), {"handle_message": a_hook})()):
            self.assertIn("txsmtpd.handlers.Sink()", self.refused(handler))

    def test_ofTwistedMail(self) -> None:
        """What a server of twisted.mail is given is refused with what to write instead; so is a class without hooks."""

        class Delivery:
            def validateTo(self, user: Any) -> Any: ...

        for handler, words in (
            (Delivery(), "the handler Delivery has no hook, such as handle_DATA; handle_RCPT replaces validateTo"),
            (Portal(None), "the handler Portal has no hook, such as handle_DATA; pass the portal as the option portal"),
            (Delivery, "the handler Delivery has no hook, such as handle_DATA; the handler must be an object, not its"),
        ):
            self.assertIn(words, self.refused(handler))

    def test_noHandler(self) -> None:
        """An object that cannot be a handler is a TypeError that says what can."""
        for handler in (lambda *a: None, self.test_noHook, len, 5, {}, [], "txsmtpd.handlers.Sink", b"", {1}, (2,)):
            self.assertIn("must be an object with hooks", self.refused(handler))

    def test_lenient(self) -> None:
        """With strict_handler=False, as in controllers, these errors are warnings."""
        for make in (
            lambda handler: SMTPFactory(handler, strict_handler=False),
            lambda handler: UnthreadedController(handler, loop=object()),
        ):
            for handler, words in ((having(handle_RCTP=a_hook), "did you mean handle_RCPT?"), (object(), "Sink()")):
                with warnings.catch_warnings(record=True) as warned:
                    warnings.simplefilter("always")
                    make(handler)
                self.assertIn(words, " ".join(str(each.message) for each in warned))
