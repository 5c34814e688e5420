"""The generic cell rate algorithm (GCRA) for many keys, in a table of bounded size. No I/O; time is an argument.

For each key, one number is stored: the time at which its allowance will be full again. A key whose time has passed
needs no entry. The result is the same as with a leaky bucket, but without a timer or a list of events. Unlike a fixed
window, it never allows twice the rate at a window boundary.
"""

from __future__ import annotations

from collections import OrderedDict

from txsmtpd.limits.rate import Rate, Retry

TABLE_SIZE = 100_000  # keys; about 25 MB when full
ROUNDING = 1e-9  # seconds: a client that waits exactly as long as told is admitted


class Buckets:
    """A rate, applied to each key separately.

    :param rate: the rate for each key.
    :param size: the maximum number of keys. Beyond it, the key admitted longest ago is forgotten, and gets a full burst
        again.
    """

    def __init__(self, rate: Rate, size: int = TABLE_SIZE) -> None:
        self.rate = rate
        self.size = size
        self.forgotten = 0  #: keys that were forgotten too early because the table was full
        self._interval = rate.period / rate.number
        self._window = rate.burst * self._interval
        self._most = self._window + ROUNDING
        self._paid: OrderedDict[str, float] = OrderedDict()  # in the order of the last admission

    def __len__(self) -> int:
        return len(self._paid)

    def admit(self, key: str, now: float) -> Retry | None:
        """Decide whether the key is admitted.

        :param now: monotonic time in seconds.
        :return: None for yes. A rejected attempt is not counted.
        """
        table = self._paid
        before = table.get(key)
        paid = (now if before is None or before < now else before) + self._interval
        if paid - now > self._most:
            return Retry(paid - now - self._window)
        table[key] = paid
        if before is None:
            self._make_room(now)
        else:
            table.move_to_end(key)
        return None

    def _make_room(self, now: float) -> None:
        table = self._paid
        # Remove up to two old keys for each decision: the table shrinks after a flood, and no decision takes long.
        for _ in range(2):
            key = next(iter(table))
            if table[key] > now:
                break
            del table[key]
        if len(table) > self.size:
            table.popitem(last=False)
            self.forgotten += 1
