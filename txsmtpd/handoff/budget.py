"""Limits the memory of messages that the target has not confirmed yet: a number of messages, and of bytes.

A message takes a share before its first byte is read, and releases it once the target has answered. If its size was not
declared, the share grows while the message arrives. To prevent a deadlock of messages that all wait for memory, enough
for one message of the largest size is kept in reserve: the message that uses the reserve can always be read to its end.
Nothing here depends on messages or clients.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, succeed


class Share:
    """The part of a :class:`Budget` that one message has taken."""

    __slots__ = ("_budget", "_released", "from_reserve", "octets")

    def __init__(self, budget: Budget, octets: int) -> None:
        self._budget = budget
        self._released = False
        self.octets = octets  #: bytes that the message may use
        self.from_reserve = 0  #: how much of that comes from the reserve

    def grow(self, octets: int) -> Deferred[None]:
        """Take more bytes. The Deferred fires once they are available; it can be cancelled."""
        return self._budget._grow(self, octets)

    def release(self) -> None:
        """Return all of it to the budget. Further calls do nothing."""
        if not self._released:
            self._released = True
            self._budget._release(self)


class Budget:
    """Limits what is kept in memory.

    :param messages: the maximum number of messages at one time.
    :param octets: the maximum of all messages together, in bytes.
    :param largest: the maximum of one message, in bytes.
    :raises ValueError: if *octets* is less than twice *largest*, or a number is less than 1.
    """

    def __init__(self, messages: int, octets: int, largest: int) -> None:
        if messages < 1:
            raise ValueError(f"at least one message must be allowed at a time, not {messages}")
        if octets < 2 * largest or largest < 1:
            raise ValueError(
                f"{octets} octets for all messages together are too few: one message may have {largest}, and twice as"
                " many are needed"
            )
        self.messages = 0  #: currently taken
        self.octets = 0  #: bytes currently taken, without the reserve
        self._most_messages = messages
        self._shared = octets - largest
        self._reserve_of: Share | None = None
        self._growing: deque[tuple[Deferred[None], Share, int]] = deque()
        self._opening: deque[tuple[Deferred[Share], int]] = deque()

    def take(self, octets: int) -> Deferred[Share]:
        """Take a share for a message. The Deferred fires with it once there is room; it can be cancelled.

        :param octets: the minimum that it will need, in bytes.
        """
        octets = min(octets, self._shared)
        if not self._growing and not self._opening and self._has_room(octets):
            return succeed(self._share(octets))
        opened: Deferred[Share] = Deferred(lambda _: self._opening.remove(entry))
        entry = (opened, octets)
        self._opening.append(entry)
        return opened

    @property
    def waiting(self) -> int:
        """The number of waiting messages."""
        return len(self._growing) + len(self._opening)

    def _has_room(self, octets: int) -> bool:
        return self.messages < self._most_messages and self.octets + octets <= self._shared

    def _share(self, octets: int) -> Share:
        self.messages += 1
        self.octets += octets
        return Share(self, octets)

    def _grow(self, share: Share, octets: int) -> Deferred[None]:
        if self._grown(share, octets):
            return succeed(None)
        grown: Deferred[None] = Deferred(lambda _: self._growing.remove(entry))
        entry = (grown, share, octets)
        self._growing.append(entry)
        return grown

    def _grown(self, share: Share, octets: int) -> bool:
        if self.octets + octets <= self._shared:
            self.octets += octets
        elif self._reserve_of is None or self._reserve_of is share:
            self._reserve_of = share
            share.from_reserve += octets
        else:
            return False
        share.octets += octets
        return True

    def _release(self, share: Share) -> None:
        self.messages -= 1
        self.octets -= share.octets - share.from_reserve
        if self._reserve_of is share:
            self._reserve_of = None
        self._serve()

    def _serve(self) -> None:
        """Give free memory to waiting messages, first to those that have begun."""
        while self._growing:
            grown, share, octets = self._growing[0]
            if not self._grown(share, octets):
                return
            self._growing.popleft()
            grown.callback(None)
        while self._opening:
            opened, octets = self._opening[0]
            if not self._has_room(octets):
                return
            self._opening.popleft()
            opened.callback(self._share(octets))
