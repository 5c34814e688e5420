"""Rates in text form."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits import KINDS, Limits, Rate
from txsmtpd.limits.rate import parse_rate_of


class RateTests(SynchronousTestCase):
    """N/PERIOD[,burst=N]."""

    def test_forms(self) -> None:
        """A period is a unit, with any of its usual names, or a number of units."""
        for text, rate in [
            ("100/min,burst=20", Rate(100, 60, 20)),
            ("5/s", Rate(5, 1, 5)),
            ("1/sec", Rate(1, 1, 1)),
            ("20/10min", Rate(20, 600, 20)),
            ("1000/hour", Rate(1000, 3600, 1000)),
            ("1000/H, burst=1".replace(" ", ""), Rate(1000, 3600, 1)),
            (" 7/day ", Rate(7, 86400, 7)),
        ]:
            self.assertEqual(Rate.parse(text), rate, text)

    def test_malformed(self) -> None:
        """Invalid rates are refused, with the valid form."""
        for text in [
            "",
            "100",
            "100/",
            "/min",
            "100/min,",
            "100/min,burst=",
            "-1/min",
            "1.5/min",
            "1/fortnight",
            "1/min,b=1",
        ]:
            error = self.assertRaises(ValueError, Rate.parse, text)
            self.assertIn("write N/PERIOD[,burst=N]", str(error))
            self.assertIn(repr(text), str(error))

    def test_nothing(self) -> None:
        """A rate of zero is refused, because it would reject everything."""
        for text in "0/min", "5/0min", "5/min,burst=0":
            self.assertIn("must be more than 0", str(self.assertRaises(ValueError, Rate.parse, text)))

    def test_kind(self) -> None:
        """The kind must be a known one. A misspelt kind gets the most similar one."""
        self.assertEqual(parse_rate_of("messages:1/s", KINDS), ("messages", Rate(1, 1, 1)))
        self.assertIn("did you mean messages?", str(self.assertRaises(ValueError, parse_rate_of, "message:1/s", KINDS)))
        self.assertIn("there are connections", str(self.assertRaises(ValueError, parse_rate_of, "xyz:1/s", KINDS)))
        self.assertIn("write KIND:N/PERIOD", str(self.assertRaises(ValueError, parse_rate_of, "1/s", KINDS)))
        self.assertRaises(ValueError, Limits, {"mail": "1/s"})
