"""Shared by all tests: a client in memory, parsers of replies, and a collector of log events."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd import SMTPFactory
from txsmtpd.faults.replies import reply_lines
from txsmtpd.testing.memory import HIGH_WATER, PEER, MemorySession

__all__ = ["HIGH_WATER", "PEER"]

GREETING = b"EHLO client.test\r\n"
TRANSACTION = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
MESSAGE = b"Subject: test\r\n\r\nHello\r\n"


@dataclass(frozen=True)
class Answer:
    """One complete reply, as a client gets it."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as one string."""
        return "\n".join(self.lines)

    @property
    def status(self) -> str | None:
        """The enhanced status code of the last line, if it has one."""
        found = re.match(r"[245]\.\d{1,3}\.\d{1,3}(?= |$)", self.lines[-1])
        return found[0] if found else None


def answers(octets: bytes) -> list[Answer]:
    """The replies in the octets.

    :raises AssertionError: if the octets are not a sequence of complete replies (RFC 5321 4.2).
    """
    return [Answer(code, lines) for code, lines in reply_lines(octets)]


def codes(octets: bytes) -> list[int]:
    """The reply codes of the replies that the octets are made of."""
    return [answer.code for answer in answers(octets)]


def handler(**hooks: Any) -> Any:
    """A handler with these hooks: ``handler(RCPT=function)`` has a ``handle_RCPT``, without ``self``. Without any,
    None."""
    if not hooks:
        return None
    return SimpleNamespace(
        **{name if name == "process_message" else f"handle_{name}": hook for name, hook in hooks.items()}
    )


class Client(MemorySession):
    """A session in memory, with replies as sent on the wire.

    :param handler: the server's handler.
    :param peer: the client's address.
    :param factory: the server's factory, for several clients of one server. Default: one with *options*.
    """

    def __init__(
        self, handler: object = None, *, peer: IAddress = PEER, factory: SMTPFactory | None = None, **options: Any
    ) -> None:
        super().__init__(handler if factory is None else factory, peer=peer, **options)

    def ask(self, line: bytes) -> Answer:
        """Send one line. Return its one reply."""
        found = answers(self.talk(line + b"\r\n"))
        if len(found) != 1:
            raise AssertionError(f"{line!r} got {len(found)} replies: {found!r}")
        return found[0]

    def send_message(self, message: bytes = MESSAGE) -> Answer:
        """Send a message in its own transaction. Return the reply to it."""
        *before, last = answers(self.talk(TRANSACTION + b"DATA\r\n"))
        if last.code != 354:
            raise AssertionError(f"DATA got {last!r} after {before!r}")
        return self.ask(message + b".")


def conversation(
    octets: bytes, cuts: Iterable[int] = (), handler: object = None, wait: float = 0, **options: Any
) -> tuple[bytes, bool]:
    """Send the octets in segments, and advance the clock.

    :return: the server's output, and whether it has closed the connection.
    """
    client = Client(handler, **options)
    client.say(octets, cuts)
    client.wait(wait, step=1)
    said = client.transport.taken
    closed = client.closed
    if not closed:
        client.vanish(ConnectionDone())
    return said, closed


class Waiting:
    """A hook that waits until the test fires it.

    :param result: its result.
    :param obedient: whether it ends when it is cancelled.
    """

    def __init__(self, result: object = "250 2.0.0 OK", obedient: bool = True) -> None:
        self.result = result
        self.obedient = obedient
        self.calls: list[tuple[Any, ...]] = []
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0

    async def __call__(self, *arguments: Any) -> object:
        self.calls.append(arguments)
        while True:
            waits: Deferred[Any] = Deferred(self._cancel)
            self.waiting.append(waits)
            try:
                return await waits
            except Exception:
                if self.obedient:
                    raise

    def _cancel(self, waits: Deferred[Any]) -> None:
        self.cancelled += 1
        self.waiting.remove(waits)

    def fire(self) -> None:
        """Let the call that has waited longest continue."""
        self.waiting.pop(0).callback(self.result)


def in_three_forms(result: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    """A hook with this result: a coroutine function, a function that returns a Deferred, and a plain function."""

    async def coroutine(*arguments: Any) -> object:
        return result

    def deferred(*arguments: Any) -> Deferred[object]:
        later: Deferred[object] = Deferred()
        later.callback(result)
        return later

    def plain(*arguments: Any) -> object:
        return result

    yield from [("async", coroutine), ("Deferred", deferred), ("plain", plain)]


class LoggingTestCase(SynchronousTestCase):
    """A test case that collects the server's log events in ``self.events``."""

    def setUp(self) -> None:
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self._collect)
        self.addCleanup(globalLogPublisher.removeObserver, self._collect)

    def _collect(self, event: Any) -> None:
        if str(event.get("log_namespace", "")).startswith("txsmtpd"):
            self.events.append(event)

    def logged(self, level: str | None = None) -> list[str]:
        """The lines of the log, of one level or all."""
        return [formatEvent(event) for event in self.events if level in (None, event["log_level"].name)]

    def errors_logged(self) -> int:
        """The number of errors without a traceback in the log."""
        return sum(event["log_level"].name == "error" and "log_failure" not in event for event in self.events)
