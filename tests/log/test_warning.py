"""Python warnings name the line of the program."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support import Waiting, handler
from txsmtpd import SMTPFactory
from txsmtpd.controller import Controller
from txsmtpd.handlers import Sink
from txsmtpd.log.warning import warn_program
from txsmtpd.testing import MailCatcher


class WithoutResponses:
    """A handler with a deprecated hook."""

    async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:
        return "250 HELP"


class ProgramTests(SynchronousTestCase):
    """The line that a warning names."""

    def warned(self, function: Callable[[], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
        return [each.filename for each in caught]

    def test_line(self) -> None:
        """A warning about a handler or an option names the line that made the factory, the controller or the
        catcher, once."""
        for function in (
            lambda: SMTPFactory(object(), strict_handler=False),
            lambda: SMTPFactory(WithoutResponses()),
            lambda: SMTPFactory(handler(), auth_required=True, auth_require_tls=False),
            lambda: SMTPFactory(handler(PROXY=Waiting()), proxy_protocol_timeout=1),
            lambda: MailCatcher(auth_required=True),
            lambda: Controller(object()),
            lambda: Controller(WithoutResponses()),
            lambda: Controller(Sink(), authenticator=print),
            lambda: Controller(Sink(), server_kwargs={"timeout": 5}),
        ):
            with self.subTest(line=function.__code__.co_firstlineno):
                self.assertEqual(self.warned(function), [__file__])

    def test_started(self) -> None:
        """A controller that starts does not warn again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller = Controller(object(), port=0)

        def start() -> None:
            with controller:
                pass

        self.assertEqual(self.warned(start), [])

    def test_withoutProgram(self) -> None:
        """Without a line of the program there is no warning."""
        thread = threading.Thread(target=warn_program, args=("nobody",))

        def run() -> None:
            thread.start()
            thread.join()

        self.assertEqual(self.warned(run), [])
