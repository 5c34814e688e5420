"""How much memory messages may take together, in one process.

A message has a :class:`Share` of the :class:`Memory`. It adds what has come, and is told whether more may come now. A
quarter of the limit is a reserve for one message at a time, so that messages which have all begun cannot wait for each
other for ever. What somebody has in hand when told to wait is counted, and may be beyond the limit. Nothing here knows
messages, clients or time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path

RESERVE = 4  # the limit is divided by this
PART_OF_THE_MACHINE = 4  # likewise
FALLBACK = 2**29  # octets of memory, where the machine does not tell

CGROUP = Path("/sys/fs/cgroup")
LIMITS_OF_CGROUPS = ("memory.max", "memory.high")


class Memory:
    """The memory for messages. Several factories may have one in common.

    :param limit: bytes for all messages together. None: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = sys.maxsize if limit is None else limit  #: bytes
        self.used = 0  #: bytes, now
        self.refused = 0  #: messages that there was no room for
        self.room = self.limit - self.limit // RESERVE  #: bytes that anybody may use
        self._reserve_of: Share | None = None
        self._reserve_from = 0  # what that share had before it drew on the reserve
        self._waiting: dict[Share, Callable[[], object]] = {}
        self._numbers = count()
        self._waking = False

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    def share(self) -> Share:
        """The share of a message that begins."""
        return Share(self, next(self._numbers))

    def _may_go_on(self, share: Share) -> bool:
        if self.used <= self.room:
            return True
        if self._reserve_of is None:
            self._reserve_of = share
            self._reserve_from = share.octets
        # What others had in hand when they were told to wait is not taken from the reserve.
        return self._reserve_of is share and share.octets - self._reserve_from <= self.limit - self.room

    def _wake(self) -> None:
        """Let those go on that there is room for now: the messages first that began first."""
        if self._waking:  # whoever was woken has given something back: the loop below sees it
            return
        self._waking = True
        try:
            while self._waiting:
                share = min(self._waiting, key=lambda each: each.number)
                if not self._may_go_on(share):
                    break
                self._waiting.pop(share)()
        finally:
            self._waking = False


class Share:
    """What one message takes of a :class:`Memory`."""

    __slots__ = ("_memory", "number", "octets")

    def __init__(self, memory: Memory, number: int) -> None:
        self._memory = memory
        self.number = number  #: a lower one has begun earlier
        self.octets = 0  #: bytes

    def add(self, octets: int) -> bool:
        """More of the message is in memory.

        :return: whether still more may come now; if not, :meth:`wait`.
        """
        memory = self._memory
        self.octets += octets
        memory.used += octets
        return memory.used <= memory.room or memory._may_go_on(self)

    def wait(self, on_room: Callable[[], object]) -> None:
        """Have a function called, once, when more may come."""
        self._memory._waiting[self] = on_room

    def stop_waiting(self) -> None:
        """What was to be called is not called any more."""
        self._memory._waiting.pop(self, None)

    def count_refusal(self) -> None:
        """There was no room for the message."""
        self._memory.refused += 1

    def release(self) -> None:
        """The message is in memory no more. Once is enough."""
        memory, octets = self._memory, self.octets
        memory.used -= octets
        self.octets = 0
        if memory._reserve_of is self:
            memory._reserve_of = None
        if memory._waiting:
            memory._waiting.pop(self, None)
            memory._wake()


def default_limit() -> int:
    """A quarter of the memory of the machine, or of the process's control group if that has less; in bytes."""
    return memory_of_machine() // PART_OF_THE_MACHINE


@cache
def memory_of_machine() -> int:
    """Bytes of memory that this process can have at most."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):  # not on Windows
        found = [FALLBACK]
    return min(found + _limits_of_cgroups(_own_cgroup()))


def _own_cgroup() -> Path:
    """The folder of the control group (version 2) that this process is in."""
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii", "replace").splitlines()
    except OSError:
        return CGROUP
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return CGROUP.joinpath(*paths[:1])


def _limits_of_cgroups(folder: Path) -> list[int]:
    """The limits of a control group and of those that it is in."""
    found = []
    for each in (folder, *folder.parents):
        if CGROUP not in (each, *each.parents):
            break
        for name in LIMITS_OF_CGROUPS:
            try:
                text = (each / name).read_text("ascii").strip()
            except (OSError, ValueError):
                continue
            if text.isdecimal() and int(text):
                found.append(int(text))
    return found
