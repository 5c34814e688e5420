"""Hooks that block the reactor: which hook it was, and when it is logged."""

from __future__ import annotations

import io
import sys
from types import FrameType
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.support import Client
from txsmtpd.handlers import Debugging
from txsmtpd.interfaces import IMessageReceiver, IStreamingHandler
from txsmtpd.log import events
from txsmtpd.observe.blocking import BlockingWatch, culprit_of
from txsmtpd.observe.lag import ReactorLag

seen: list[FrameType] = []


def compute() -> None:
    """The function that a hook calls, and that takes long."""
    seen.append(sys._getframe())


class Hooks:
    """A handler that computes."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        compute()
        envelope.rcpt_tos.append(address)
        return "250 OK"


class Filters:
    """A filter that computes."""

    async def filter_MAIL(self, *arguments: Any) -> None:
        compute()


@implementer(IStreamingHandler, IMessageReceiver)
class Streams:
    """A handler that computes while a message arrives."""

    def open_message(self, *arguments: Any) -> Any:
        return self

    def write(self, data: bytes) -> None:
        compute()

    def registerProducer(self, *arguments: Any) -> None: ...

    unregisterProducer = finish = abort = registerProducer


class Screen(io.StringIO):
    """A stream that blocks."""

    def write(self, text: str) -> int:
        compute()
        return len(text)


class CulpritTests(SynchronousTestCase):
    """Who is named."""

    def culprit(self, **options: Any) -> str:
        """The one who runs while something is computed in this session."""
        seen.clear()
        client = Client(**options)
        client.talk(b"EHLO c.test\r\n")
        client.send_message()
        found = culprit_of(seen[0])
        assert found is not None
        return found[1].name

    def test_hooks(self) -> None:
        """A hook of a handler or of a filter, by its class, whatever it has called; also one that is built in."""
        self.assertEqual(self.culprit(handler=Hooks()), "Hooks.handle_RCPT")
        self.assertEqual(self.culprit(filters=[Filters()]), "Filters.filter_MAIL")
        self.assertEqual(self.culprit(handler=Debugging(Screen())), "Debugging.handle_DATA")

    def test_others(self) -> None:
        """What else the server has called: a method of a receiver, or an authenticator."""
        self.assertEqual(self.culprit(handler=Streams()), "Streams.write")
        seen.clear()
        client = Client(authenticator=lambda *arguments: compute(), auth_require_tls=False)
        client.talk(b"EHLO c.test\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n")
        found = culprit_of(seen[0])
        assert found is not None
        self.assertEqual(found[1].name, "CulpritTests.test_others.<locals>.<lambda>")
        self.assertRegex(found[1].place, r"^test_blocking\.py, line \d+$")

    def test_nobody(self) -> None:
        """A thread that runs no code of the server is not reported, such as one that waits for events."""
        seen.clear()
        compute()
        self.assertIsNone(culprit_of(seen[0]))

        def mainLoop() -> None:  # frames outside of it do not count, such as the caller of txsmtpd.run
            compute()

        class Running:
            async def handle_RSET(self, *arguments: Any) -> str:
                mainLoop()
                return "250 OK"

        Client(handler=Running()).talk(b"RSET\r\n")
        self.assertIsNone(culprit_of(seen[1]))
        self.assertIsNone(culprit_of(None))


class WatchTests(SynchronousTestCase):
    """When it is logged."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.frame: FrameType | None = None
        self.logged: list[dict[str, Any]] = []
        self.lag = ReactorLag(lambda late: self.watch.resumed(late), self.clock, 0.25, self.clock.seconds)
        self.watch = BlockingWatch(self.lag, self, self.clock.seconds, lambda: {0: self.frame} if self.frame else {})
        self.lag.start()

    def emit(self, event: Any, session: Any, fields: dict[str, Any]) -> None:
        self.assertEqual((event, session), (events.BLOCKED, None))
        self.logged.append(fields)

    def run_hook(self, *frames: FrameType | None, seconds: float = 1.0) -> None:
        """Let the reactor be busy for so long, with a look at each of these frames."""
        for number, frame in enumerate(frames):
            self.clock.rightNow += seconds / len(frames) if number else seconds / len(frames) + 0.25
            self.frame = frame
            self.watch.look()
        self.frame = None
        self.clock.advance(0)

    def hook(self) -> FrameType:
        """A frame of a hook."""
        seen.clear()
        Client(handler=Hooks()).talk(b"EHLO c.test\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n")
        assert seen[0].f_back is not None
        return seen[0].f_back

    def test_blocks(self) -> None:
        """A hook that runs for a second is named once, with where and how long; again after a minute."""
        frame = self.hook()
        self.run_hook(frame, frame, frame)
        self.run_hook(frame, frame)
        found = culprit_of(frame)
        assert found is not None
        place = found[1].place
        self.assertEqual(self.logged, [{"hook": "Hooks.handle_RCPT", "seconds": 1.0, "place": place}])
        self.run_hook(*[self.hook()] * 2, seconds=2.0)
        self.assertEqual(len(self.logged), 1)
        self.clock.advance(60)
        self.run_hook(*[self.hook()] * 2, seconds=2.0)
        self.assertEqual([each["seconds"] for each in self.logged], [1.0, 2.0])

    def test_overloaded(self) -> None:
        """Different calls while the reactor is late do not count as blocking: the machine is slow, or there are many
        calls. Neither does a call that was seen once."""
        self.run_hook(self.hook(), self.hook(), self.hook())
        self.run_hook(self.hook())
        same = self.hook()
        self.run_hook(same, None, same)
        self.assertEqual(self.logged, [])

    def test_inTime(self) -> None:
        """A reactor that is not late is not looked at."""
        frame = self.hook()
        for _ in range(3):
            self.frame = frame
            self.watch.look()
            self.clock.advance(0.25)
        self.assertEqual(self.logged, [])

    def test_thread(self) -> None:
        """The thread ends when it is stopped."""
        self.watch.start()
        thread = self.watch._thread
        self.watch.stop()
        assert thread is not None
        self.assertFalse(thread.is_alive())
