"""Finds the hook that blocks the reactor. If the reactor is late, a thread examines the stack of the reactor's thread.

Nothing is measured while hooks run, so this costs nothing for a message. The thread wakes up a few times a second.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from txsmtpd.log import events
from txsmtpd.observe.lag import ReactorLag

LOOK = 0.2  # seconds between looks
LATE = 0.1  # seconds by which the reactor must be late before the thread examines the stack
QUIET = 60.0  # seconds between two warnings about the same hook
HOOKS = ("handle_", "filter_")
PACKAGES = ("txsmtpd", "twisted")
LOOPS = ("mainLoop", "run_forever")  # functions of Twisted and asyncio that run the loop


@dataclass(frozen=True)
class Culprit:
    """The function that blocks: its name, such as ``Handler.handle_DATA``, and its place in the source."""

    name: str
    place: str


def culprit_of(frame: FrameType | None) -> tuple[FrameType, Culprit] | None:
    """Return the hook that runs in a thread, with its frame.

    A hook is a function with the name of one. If there is none, it is what the server has called, or the innermost
    function of the server, such as one of a built-in handler.

    :param frame: the innermost frame of the thread.
    :return: None if the thread runs nothing of the server, for example if it waits for events.
    """
    hook = called = server = None
    while frame is not None and frame.f_code.co_name not in LOOPS:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code.co_name.startswith(HOOKS):
            hook = frame
        if package == "txsmtpd" and server is None:
            server = frame
        if package not in PACKAGES and server is None:
            called = frame
        frame = frame.f_back
    found = hook or (server and (called or server))
    if found is None:
        return None
    code = found.f_code
    return found, Culprit(code.co_qualname, f"{os.path.basename(code.co_filename)}, line {found.f_lineno}")


class BlockingWatch:
    """Logs which hook has blocked the reactor, as soon as the reactor continues.

    :param lag: measures the reactor's lag.
    :param log: the log (:class:`~txsmtpd.log.session.Sink`).
    :param seconds: returns monotonic time.
    :param frames: returns the innermost frame of each thread, by the thread's number.
    """

    def __init__(
        self,
        lag: ReactorLag,
        log: Any,
        seconds: Callable[[], float] = time.monotonic,
        frames: Callable[[], Mapping[int, FrameType]] = sys._current_frames,
    ) -> None:
        self._lag = lag
        self._log = log
        self._seconds = seconds
        self._frames = frames
        self._watched = 0  # the number of the reactor's thread
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: FrameType | None = None  # the frame of the last look
        self._culprit: Culprit | None = None  # the function that was seen twice
        self._warned: dict[str, float] = {}  # the time of the last warning, by the name of the function

    def start(self) -> None:
        """Watch the current thread."""
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="txsmtpd watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK):
            self.look()

    def look(self) -> None:
        """Examine the stack, if the reactor is late. A call counts as blocking if it is seen twice. On an overloaded
        machine, the calls differ."""
        if self._seconds() - self._lag.due < LATE:
            self._seen = None
            return
        found = culprit_of(self._frames().get(self._watched))
        if found is None:
            self._seen = None
            return
        frame, culprit = found
        if frame is self._seen:
            self._culprit = culprit
        self._seen = frame

    def resumed(self, late: float) -> None:
        """Log what has blocked the reactor, if that was seen. Called when the reactor continues.

        :param late: the reactor's lag in seconds.
        """
        culprit, self._culprit = self._culprit, None
        if culprit is None:
            return
        now = self._seconds()
        if now - self._warned.get(culprit.name, -QUIET) >= QUIET:
            self._warned[culprit.name] = now
            fields = {"hook": culprit.name, "seconds": round(late, 1), "place": culprit.place}
            self._log.emit(events.BLOCKED, None, fields)
