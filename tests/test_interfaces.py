"""verifyHandler: what it accepts, and how it tells what is wrong."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.exceptions import Invalid

from txsmtpd import verifyHandler
from txsmtpd.interfaces import HOOKS, InvalidHandler


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
    async def handle_exception(self, error: Any) -> None: ...
    def process_message(self, peer: Any, mail_from: Any, rcpt_tos: Any, data: Any) -> None: ...


class VerifyHandlerTests(SynchronousTestCase):
    """verifyHandler."""

    def problem(self, handler: object) -> str:
        """What is wrong with the handler."""
        return str(self.assertRaises(InvalidHandler, verifyHandler, handler))

    def test_complete(self) -> None:
        """A handler with every hook is right, and so is one with none."""
        self.assertTrue(verifyHandler(Complete()))
        self.assertTrue(verifyHandler(object()))
        self.assertEqual({name for name in dir(Complete) if not name.startswith("__")}, set(HOOKS))

    def test_misspelt(self) -> None:
        """A misspelt hook is named, with the one that is meant."""
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
        """A hook with too few or too many parameters is named, with what it must take."""

        class Few:
            async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: Any) -> None: ...

        class Many:
            def handle_DATA(self, server: Any, session: Any, envelope: Any, more: Any) -> None: ...

        self.assertIn("handle_RCPT(server, session, envelope, address, rcpt_options)", self.problem(Few()))
        self.assertIn("handle_DATA(server, session, envelope)", self.problem(Many()))

    def test_ownNames(self) -> None:
        """Parameters may have any names, and defaults beyond those that are needed."""

        class Handler:
            def handle_RCPT(self, a: Any, b: Any, c: Any, d: Any, e: Any, f: int = 1) -> None: ...
            def handle_DATA(self, *arguments: Any) -> None: ...

        self.assertTrue(verifyHandler(Handler()))

    def test_ehlo(self) -> None:
        """handle_EHLO may have either form, and no third."""

        class Old:
            def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: Any) -> None: ...

        class Neither:
            def handle_EHLO(self, server: Any, session: Any, envelope: Any) -> None: ...

        self.assertTrue(verifyHandler(Old()))
        self.assertIn("handle_EHLO", self.problem(Neither()))

    def test_noMethod(self) -> None:
        """A hook that cannot be called is named."""

        class Handler:
            handle_DATA = "250 OK"

        self.assertIn("handle_DATA", self.problem(Handler()))

    def test_invalid(self) -> None:
        """The exception is one of zope.interface's."""
        self.assertTrue(issubclass(InvalidHandler, Invalid))

    def test_handleMessage(self) -> None:
        """handle_message, which subclasses of the built-in handlers have, is not taken for a misspelt hook."""

        class Handler:
            def handle_message(self, message: Any) -> None: ...

        self.assertTrue(verifyHandler(Handler()))
