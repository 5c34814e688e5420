"""The generic cell rate algorithm (GCRA) over many keys, in a table of bounded size. Pure; time is an argument.

For each key there is one number: the time at which it will have paid for all that it was allowed. A key whose time is
past says nothing and may be forgotten. The rule is that of a leaky bucket, without a timer and without a list of
events: it has no window at whose edge twice as much would pass.
"""

from __future__ import annotations

from collections import OrderedDict

from txsmtpd.limits.rate import Rate, Retry

TABLE_SIZE = 100_000  # keys; some 25 MB if all are in use
ROUNDING = 1e-9  # seconds: who waits as long as told is let in


class Buckets:
    """A rate, applied to each key by itself.

    :param rate: what each key may do.
    :param size: how many keys are remembered. When there are more, the one that was admitted longest ago is forgotten,
        and may do all its burst again.
    """

    def __init__(self, rate: Rate, size: int = TABLE_SIZE) -> None:
        self.rate = rate
        self.size = size
        self.forgotten = 0  #: keys that were forgotten although they still had to wait
        self._interval = rate.period / rate.number
        self._window = rate.burst * self._interval
        self._paid: OrderedDict[str, float] = OrderedDict()  # in the order of the last admission

    def __len__(self) -> int:
        return len(self._paid)

    def admit(self, key: str, now: float) -> Retry | None:
        """Whether the key may do it once more.

        :param now: the time in seconds, which never goes back.
        :return: None for yes; a key that is refused is charged nothing.
        """
        table = self._paid
        before = table.get(key)
        paid = (before if before is not None and before > now else now) + self._interval
        excess = paid - now - self._window
        if excess > ROUNDING:
            return Retry(excess)
        table[key] = paid
        if before is None:
            self._make_room(now)
        else:
            table.move_to_end(key)
        return None

    def _make_room(self, now: float) -> None:
        table = self._paid
        # Two for each that comes: the table shrinks again after a flood, and no single decision takes long.
        for _ in range(2):
            key = next(iter(table))
            if table[key] > now:
                break
            del table[key]
        if len(table) > self.size:
            table.popitem(last=False)
            self.forgotten += 1
