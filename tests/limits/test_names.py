"""Failed logins by distinct names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits import Rate, Retry
from txsmtpd.limits.names import Failures

THREE = Rate(3, 600, 3)


class FailuresTests(SynchronousTestCase):
    """Networks are limited by the number of names. Names are only delayed."""

    def test_one_name(self) -> None:
        """One name may fail any number of times: that is a client with an old password."""
        failures = Failures(THREE)
        for second in range(100):
            failures.failed("a", "fred", second)
            self.assertIsNone(failures.admit("a", second))

    def test_many_names(self) -> None:
        """A network that has failed with too many names must wait until the first of them expires."""
        failures = Failures(THREE)
        for second, name in enumerate(["fred", "anna", "fred", "bart"]):
            self.assertIsNone(failures.admit("a", second))
            failures.failed("a", name, second)
        self.assertEqual(failures.admit("a", 10), Retry(591.0))  # the login as anna failed in second 1
        self.assertIsNone(failures.admit("b", 10))
        self.assertIsNone(failures.admit("a", 601))

    def test_name_counts(self) -> None:
        """The failures of a name are counted over all networks, and expire after the period."""
        failures = Failures(THREE)
        self.assertEqual([failures.failed(network, "fred", 0) for network in "abc"], [1, 2, 3])
        self.assertEqual(failures.failed("d", "anna", 0), 1)
        self.assertEqual(failures.failed("a", "fred", 599), 4)
        self.assertEqual(failures.failed("a", "fred", 1300), 1)

    def test_bounds(self) -> None:
        """Neither many networks nor many names increase the tables beyond their limits."""
        failures = Failures(THREE, size=100)
        for number in range(10_000):
            failures.failed(str(number), f"name{number}", 0)
            failures.failed("0", f"name{number}", 0)
        self.assertLessEqual(len(failures), 100)
        self.assertLessEqual(len(failures._names), 100)
        self.assertGreater(failures.forgotten, 9000)
        self.assertLessEqual(max(map(len, failures._networks.values())), 3)

    def test_emptied(self) -> None:
        """A network whose names have all expired is removed like others, even if it was checked since."""
        failures = Failures(THREE)
        for name in "abc":
            failures.failed("192.0.2.1", name, 0)
        later = THREE.period + 1
        self.assertIsNone(failures.admit("192.0.2.1", later))  # this login succeeds
        self.assertEqual(failures.failed("192.0.2.2", "d", later), 1)
        self.assertEqual((len(failures), failures.forgotten), (1, 0))

    @given(
        st.lists(
            st.tuples(st.sampled_from("123"), st.sampled_from("abc"), st.sampled_from([0.0, 601.0]), st.booleans())
        ),
        st.integers(1, 4),
    )
    def test_anyOrder(self, steps: list[tuple[str, str, float, bool]], size: int) -> None:
        """In whatever order checks and failures arrive, both work, and the tables keep their limits."""
        failures = Failures(Rate(1, 600, 1), size=size)
        now = 0.0
        for network, name, pause, fails in steps:
            now += pause
            if failures.admit(network, now) is None and fails:
                self.assertGreaterEqual(failures.failed(network, name, now), 1)
            self.assertLessEqual(len(failures), size)

    def test_past_networks(self) -> None:
        """Networks whose failures have expired are removed, and do not count as forgotten."""
        failures = Failures(THREE)
        for number in range(1000):
            failures.failed(str(number), "fred", number * 1000)
        self.assertLessEqual(len(failures), 2)
        self.assertEqual(failures.forgotten, 0)

    @given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 400)), max_size=60))
    def test_never_more(self, tries: list[tuple[str, float]]) -> None:
        """In no period does a network fail with more distinct names than the limit."""
        failures = Failures(THREE)
        now = 0.0
        failed = []
        for name, pause in tries:
            now += pause
            if failures.admit("a", now) is None:
                failures.failed("a", name, now)
                failed.append((name, now))
        for _, since in failed:
            names = {name for name, when in failed if since <= when < since + THREE.period}
            self.assertLessEqual(len(names), 3)
