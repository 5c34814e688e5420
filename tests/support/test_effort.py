"""Tests of the measures of work."""

from __future__ import annotations

import re
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.support.effort import calls_of, grows_faster_than_its_input, times_a_bare_server


class EffortTests(SynchronousTestCase):
    """The measures."""

    def test_growth(self) -> None:
        """Time that is quadratic in the input is distinguished from linear time, in C functions as well."""
        self.assertEqual(grows_faster_than_its_input(lambda text: text.count("a"), "ab".__mul__, 20_000), "")
        square = re.compile("a*b")  # matching starts again at each "a"
        self.assertIn("8 times the input takes ", grows_faster_than_its_input(square.search, "a".__mul__, 500))

    def test_calls(self) -> None:
        """Calls of functions are counted, including nested ones."""
        self.assertEqual(calls_of(lambda: [self._calls_one() for _ in range(3)]) // 3, 2)

    def _calls_one(self) -> None:
        self._does_nothing()

    def _does_nothing(self) -> None:
        pass

    def test_server(self) -> None:
        """Code that waits for a period of time is much slower than starting and stopping a server."""
        self.assertGreater(times_a_bare_server(lambda: time.sleep(0.02)), 2)
