"""Limits the memory of all messages together, in one process.

Each message has a :class:`Share` of the :class:`Memory`. The caller adds the received bytes to the share, and learns
whether the message may receive more. A quarter of the limit is reserved for one message at a time. Otherwise there
could be a deadlock in which all messages wait. A message that must wait may exceed the limit by the data that has
already arrived. This module does not depend on messages, clients or time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

RESERVE = 4  # the reserve is the limit divided by this
PART_OF_THE_MACHINE = 4  # the default limit is the machine's memory divided by this
FALLBACK = 2**29  # bytes, if the machine's memory is unknown

CGROUP = Path("/sys/fs/cgroup")
LIMITS_OF_CGROUPS = ("memory.max", "memory.high")


class Memory:
    """The memory for messages. Several factories may share one.

    :param limit: bytes for all messages together. None: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = sys.maxsize if limit is None else limit  #: bytes
        self.used = 0  #: bytes currently used
        self.refused = 0  #: number of messages rejected for lack of memory
        self.room = self.limit - self.limit // RESERVE  #: bytes available without the reserve
        self._reserve_of: Share | None = None  # the share that uses the reserve
        self._reserve_from = 0  # the bytes that this share had when it started to use the reserve
        self._waiting: dict[Share, Callable[[], object]] = {}
        self._began = 0  # shares that were made
        self._waking = False

    @property
    def waiting(self) -> int:
        """The number of waiting messages."""
        return len(self._waiting)

    def share(self) -> Share:
        """Make the share of a new message."""
        number = self._began
        self._began = number + 1
        return Share(self, number)

    def _may_go_on(self, share: Share) -> bool:
        if self.used <= self.room:
            return True
        if self._reserve_of is None:
            self._reserve_of = share
            self._reserve_from = share.octets
        # `used` may exceed the limit, because of data that had arrived when messages were told to wait. So only the
        # bytes that this share has added since then are compared with the reserve.
        return self._reserve_of is share and share.octets - self._reserve_from <= self.limit - self.room

    def _wake(self) -> None:
        """Let waiting messages continue if there is room, oldest first."""
        if self._waking:  # a message that was woken has released memory, and the loop in the caller continues
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
    """The part of a :class:`Memory` that one message uses."""

    __slots__ = ("_memory", "number", "octets")

    def __init__(self, memory: Memory, number: int) -> None:
        self._memory = memory
        self.number = number  #: lower numbers began earlier
        self.octets = 0  #: bytes

    def add(self, octets: int) -> bool:
        """Count more bytes of the message.

        :return: whether the message may receive more now. If not, call :meth:`wait`.
        """
        memory = self._memory
        self.octets += octets
        memory.used += octets
        return memory.used <= memory.room or memory._may_go_on(self)

    def wait(self, on_room: Callable[[], object]) -> None:
        """Call a function, once, when the message may receive more."""
        self._memory._waiting[self] = on_room

    def stop_waiting(self) -> None:
        """Cancel :meth:`wait`."""
        self._memory._waiting.pop(self, None)

    def count_refusal(self) -> None:
        """Count a message that was rejected for lack of memory."""
        self._memory.refused += 1

    def release(self) -> None:
        """Release the memory of the message. Further calls do nothing."""
        memory, octets = self._memory, self.octets
        memory.used -= octets
        self.octets = 0
        if memory._reserve_of is self:
            memory._reserve_of = None
        if memory._waiting:
            memory._waiting.pop(self, None)
            memory._wake()


def default_limit() -> int:
    """Return a quarter of the memory of the machine, or of the process's control group if smaller, in bytes."""
    return memory_of_machine() // PART_OF_THE_MACHINE


@cache
def memory_of_machine() -> int:
    """Return the maximum memory of this process, in bytes."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):  # not on Windows
        found = [FALLBACK]
    return min(found + _limits_of_cgroups(_own_cgroup()))


def _own_cgroup() -> Path:
    """Return the folder of this process's control group (version 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii", "replace").splitlines()
    except OSError:
        return CGROUP
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return CGROUP.joinpath(*paths[:1])


def _limits_of_cgroups(folder: Path) -> list[int]:
    """Return the limits of a control group and its parents."""
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
