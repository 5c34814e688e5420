"""The budget of a client that sends data, and delays that grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits.pace import growing_delay, heard_at

TIMEOUT = 300.0
RATE = 500.0


def ended_at(pieces: list[tuple[float, int]]) -> float | None:
    """The time at which a client that sends these pieces, each after a pause, is disconnected. None: never."""
    heard = now = 0.0
    for pause, octets in pieces:
        now += pause
        if now - heard >= TIMEOUT:
            return now
        heard = heard_at(heard, now, octets, RATE)
    return None


class BudgetTests(SynchronousTestCase):
    """A minimum data rate."""

    def test_slow(self) -> None:
        """A client that sends an octet before each timeout is disconnected soon after its budget is used up."""
        ended = ended_at([(299.0, 1)] * 10)
        self.assertEqual(ended, 598.0)

    def test_trickle(self) -> None:
        """One octet a second lasts hardly longer than the timeout."""
        ended = ended_at([(1.0, 1)] * 1000)
        assert ended is not None
        self.assertLess(ended, 302)

    def test_fast_enough(self) -> None:
        """A client at the minimum rate may continue forever."""
        self.assertIsNone(ended_at([(10.0, 5000)] * 10_000))

    def test_burst_is_not_saved(self) -> None:
        """The budget never exceeds the timeout: a fast client may be silent no longer than that."""
        self.assertEqual(ended_at([(1.0, 10**9), (299.0, 0), (1.0, 0)]), 301.0)

    @given(st.lists(st.tuples(st.floats(0, 200), st.integers(0, 10_000)), max_size=100))
    def test_bound(self, pieces: list[tuple[float, int]]) -> None:
        """A session lasts no longer than the timeout, the last pause, and the time that its octets add."""
        ended = ended_at(pieces)
        if ended is not None:
            earned = sum(octets for _, octets in pieces) / RATE
            self.assertLessEqual(ended, TIMEOUT + earned + 200 + 1e-6)


class DelayTests(SynchronousTestCase):
    """Growing delays."""

    @given(st.integers(-5, 10**9), st.floats(0, 10), st.floats(0, 100))
    def test_bounds(self, count: int, first: float, longest: float) -> None:
        """A delay never exceeds the maximum, and never decreases when the count increases."""
        delay = growing_delay(count, first, longest)
        self.assertLessEqual(delay, max(first, longest))
        self.assertLessEqual(delay, growing_delay(count + 1, first, longest))
