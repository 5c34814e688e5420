"""Counters, and their export to Prometheus."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.observe.counters import BUCKETS, FAMILIES, Counters
from txsmtpd.observe.prometheus import SnapshotCollector, rendered

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def registry_of(counters: Counters) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(counters.snapshot))
    return registry


def samples(counters: Counters, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The values that a Prometheus with this Accept reads, by name and labels."""
    text, content_type = rendered(registry_of(counters), accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


class CountersTests(SynchronousTestCase):
    """Adding, reading, and the sum of several processes."""

    def test_snapshot(self) -> None:
        """A snapshot has the counts in JSON types, and does not change afterwards."""
        counters = Counters()
        counters["refusals_total"]["RCPT", "hook"] += 2
        counters.observe("data_seconds", 0.2)
        before = counters.snapshot()
        counters["refusals_total"]["RCPT", "hook"] += 1
        counters.observe("data_seconds", 0.2)
        self.assertEqual(before["refusals_total"], [(["RCPT", "hook"], 2)])
        self.assertEqual(before["data_seconds"], [([], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0.2])])
        json.dumps(before)

    def test_unknown(self) -> None:
        """An unknown family cannot be counted."""
        with self.assertRaises(KeyError):
            Counters()["refusals"]["RCPT", "hook"] += 1

    @given(st.lists(st.lists(st.floats(0, 1000), max_size=20), max_size=5))
    def test_sum(self, processes: list[list[float]]) -> None:
        """The counts of several processes can be added, even after they were sent as JSON."""
        total = Counters()
        for times in processes:
            counters = Counters()
            for seconds in times:
                counters.observe("session_seconds", seconds)
                counters["messages_total"]["tcp:25", "accepted"] += 1
            total.add(json.loads(json.dumps(counters.snapshot())))
        everything = [seconds for times in processes for seconds in times]
        self.assertEqual(total["messages_total"]["tcp:25", "accepted"], len(everything))
        *buckets, seconds = total["session_seconds"][()]
        self.assertAlmostEqual(seconds, sum(everything))
        below = [sum(each <= bound for each in everything) for bound in BUCKETS]
        self.assertEqual([sum(buckets[: place + 1]) for place in range(len(BUCKETS))], below)

    def test_foreign(self) -> None:
        """A family that is unknown in this process is ignored."""
        counters = Counters()
        counters.add({"later_total": [([], 1)]})
        self.assertNotIn("later_total", counters)


class PrometheusTests(SynchronousTestCase):
    """The output can be parsed in both formats."""

    def test_both_formats(self) -> None:
        """Each family is exported with its values, as text and as OpenMetrics."""
        counters = Counters()
        for family in FAMILIES:
            labels = tuple(f"some {label}" for label in family.labels)
            if family.kind == "histogram":
                counters.observe(family.name, 0.05, *labels)
            else:
                counters[family.name][labels] += 3
        for accept in "", OPENMETRICS, "text/plain;version=0.0.4;q=0.3", "*/*":
            found = samples(counters, accept)
            for family in FAMILIES:
                labels: tuple[tuple[str, str], ...] = tuple(sorted((label, f"some {label}") for label in family.labels))
                name = f"txsmtpd_{family.name}"
                if family.kind != "histogram":
                    self.assertEqual(found[name, labels], 3)
                    continue
                self.assertEqual(found[f"{name}_count", labels], 1)
                self.assertEqual(found[f"{name}_sum", labels], 0.05)
                for bound, expected in [("0.025", 0), ("0.1", 1), ("+Inf", 1)]:
                    self.assertEqual(found[f"{name}_bucket", tuple(sorted([*labels, ("le", bound)]))], expected)

    def test_malformed_accept(self) -> None:
        """Any value of Accept gets a response."""
        for accept in "application/openmetrics-text; version=abc", "text/plain; version=", ";;;", "a" * 1000:
            text, content_type = rendered(registry_of(Counters()), accept)
            self.assertIn(b"txsmtpd_messages_total", text)
            self.assertIn("text", content_type)

    def test_program_with_a_registry(self) -> None:
        """A program with its own metrics registers those of the server with them, once."""
        registry = registry_of(Counters())
        self.assertRaises(ValueError, registry.register, SnapshotCollector(Counters().snapshot))
