"""The measures of effort themselves."""

from __future__ import annotations

import re
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.support.effort import calls_of, grows_faster_than_its_input, times_a_bare_server


class EffortTests(SynchronousTestCase):
    """How much work something is."""

    def test_growth(self) -> None:
        """Time that grows with the square of the input is told from time that grows with the input, in C as well."""
        self.assertEqual(grows_faster_than_its_input(lambda text: text.count("a"), "ab".__mul__, 20_000), "")
        square = re.compile("a*b")  # tried again at each "a"
        self.assertIn("8 times the input takes ", grows_faster_than_its_input(square.search, "a".__mul__, 500))

    def test_calls(self) -> None:
        """Calls of functions are counted, those of functions that are called as well."""
        self.assertEqual(calls_of(lambda: [self._calls_one() for _ in range(3)]) // 3, 2)

    def _calls_one(self) -> None:
        self._does_nothing()

    def _does_nothing(self) -> None:
        pass

    def test_server(self) -> None:
        """What waits for a time to pass is much slower than a server that starts and stops."""
        self.assertGreater(times_a_bare_server(lambda: time.sleep(0.02)), 2)
