"""The generic cell rate algorithm, and the limit of its table."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits import Limits, Rate, Retry
from txsmtpd.limits.buckets import Buckets

rates = st.builds(Rate, st.integers(1, 1000), st.sampled_from([1.0, 60.0, 3600.0]), st.integers(1, 50))
arrivals = st.lists(
    st.tuples(st.sampled_from("abc"), st.floats(0, 30) | st.just(0.0) | st.just(0.001)), min_size=1, max_size=200
)


class BucketsTests(SynchronousTestCase):
    """Which attempts are admitted."""

    @given(rate=rates, arrivals=arrivals, start=st.sampled_from([0.0, 1e6]))
    def test_never_more(self, rate: Rate, arrivals: list[tuple[str, float]], start: float) -> None:
        """In any time t, each key is admitted at most rate * t + burst times, whatever the order of the keys is."""
        buckets = Buckets(rate)
        admitted = defaultdict(list)
        now = start
        for key, pause in arrivals:
            now += pause
            if buckets.admit(key, now) is None:
                admitted[key].append(now)
        for times in admitted.values():
            for first, since in enumerate(times):
                for last in range(first, len(times)):
                    most = (times[last] - since) * rate.number / rate.period + rate.burst
                    self.assertLessEqual(last - first + 1, most + 1e-3)

    @given(rate=rates, arrivals=arrivals)
    def test_retry(self, rate: Rate, arrivals: list[tuple[str, float]]) -> None:
        """A client that waits for the given time is admitted. A refusal is not counted."""
        buckets = Buckets(rate)
        now = 0.0
        for key, pause in arrivals:
            now += pause
            answer = buckets.admit(key, now)
            if answer is not None:
                self.assertEqual(buckets.admit(key, now), answer)
                now += answer.seconds
                self.assertIsNone(buckets.admit(key, now))

    def test_burst(self) -> None:
        """The burst is admitted at once, and then one in each interval."""
        buckets = Buckets(Rate(60, 60, 3))
        self.assertEqual([buckets.admit("a", 0) for _ in range(4)][:3], [None] * 3)
        refused = buckets.admit("a", 0)
        assert isinstance(refused, Retry)
        self.assertAlmostEqual(refused.seconds, 1, places=6)
        self.assertIsNone(buckets.admit("a", 1))
        self.assertIsNotNone(buckets.admit("a", 1))

    def test_keys(self) -> None:
        """The keys are independent."""
        buckets = Buckets(Rate(1, 60, 1))
        self.assertIsNone(buckets.admit("a", 0))
        self.assertIsNone(buckets.admit("b", 0))
        self.assertIsNotNone(buckets.admit("a", 0))

    def test_bound(self) -> None:
        """A flood of addresses does not increase the table beyond its limit. Forgotten keys are counted."""
        buckets = Buckets(Rate(1, 60, 1), size=1000)
        for number in range(100_000):
            self.assertIsNone(buckets.admit(str(number), number / 1e6))
            assert len(buckets) <= 1000
        self.assertEqual(buckets.forgotten, 99_000)

    def test_recent_are_kept(self) -> None:
        """In a full table, the key that was admitted longest ago is forgotten."""
        buckets = Buckets(Rate(2, 60, 2), size=2)
        for key in "aba":
            buckets.admit(key, 0)
        buckets.admit("c", 0)
        self.assertIsNotNone(buckets.admit("a", 0))
        self.assertEqual([buckets.admit("b", 0) for _ in range(3)][:2], [None, None])

    def test_shrinks(self) -> None:
        """Keys that need not wait are removed when others are added, and do not count as forgotten."""
        buckets = Buckets(Rate(1, 1, 1))
        for number in range(1000):
            buckets.admit(str(number), 0)
        for number in range(1000):
            buckets.admit("a", 10 + 2 * number)
            buckets.admit(f"b{number}", 10 + 2 * number)
        self.assertLess(len(buckets), 10)
        self.assertEqual(buckets.forgotten, 0)


class LimitsTests(SynchronousTestCase):
    """All limits of a process."""

    def test_kinds(self) -> None:
        """Each kind has its own rate, or none."""
        now = 0.0
        limits = Limits({"messages": "1/min", "recipients": "2/min"}, clock=lambda: now)
        self.assertIsNone(limits.admit("messages", "a"))
        self.assertIsNotNone(limits.admit("messages", "a"))
        self.assertIsNone(limits.admit("recipients", "a"))
        self.assertEqual([limits.admit("connections", "a") for _ in range(100)], [None] * 100)
        self.assertIsNone(limits.admit("auth", "a"))
        self.assertEqual(limits.auth_failed("a", "name"), 1)
        now = 60.0
        self.assertIsNone(limits.admit("messages", "a"))

    def test_forgotten(self) -> None:
        """The forgotten keys of all tables are one number."""
        limits = Limits({"messages": "1/min"}, "1/min", table_size=1, clock=lambda: 0.0)
        limits.admit("messages", "a")
        limits.admit("messages", "b")
        self.assertEqual(limits.forgotten, 1)
