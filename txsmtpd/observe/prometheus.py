"""Exports counters to Prometheus, with the package ``prometheus-client`` (the extra ``metrics``).

Its own counters are not used, because they take a lock for each increment. A collector reads ours on each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from txsmtpd.observe.counters import BUCKETS, FAMILIES, Family, Snapshot

PREFIX = "txsmtpd_"
PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class SnapshotCollector(Collector):
    """A Prometheus collector for our counters.

    :param snapshot: returns the current values, like :meth:`~txsmtpd.observe.counters.Counters.snapshot`.
    :param families: their families.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], families: Iterable[Family] | Mapping[str, Family] = FAMILIES
    ) -> None:
        self._snapshot = snapshot
        self._families = list(families.values() if isinstance(families, Mapping) else families)

    def describe(self) -> Iterable[Metric]:
        return [_metric(family, []) for family in self._families]

    def collect(self) -> Iterable[Metric]:
        values = self._snapshot()
        return [_metric(family, values.get(family.name, [])) for family in self._families]


def _metric(family: Family, series: Iterable[tuple[list[str], Any]]) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, value in series:
            *buckets, total = value
            bounds = [*map(str, BUCKETS), "+Inf"]
            histogram.add_metric(labels, list(zip(bounds, accumulate(buckets), strict=True)), total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=family.labels)
    for labels, value in series:
        metric.add_metric(labels, value)
    return metric


def registry_of(snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """Make a registry with our counters and those of the process: memory, CPU time, file descriptors."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(snapshot))
    registry.register(ProcessCollector(registry=None))
    return registry


def rendered(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Format all metrics of a registry as text or OpenMetrics.

    :param accept: the request's Accept header.
    :return: the text and its content type.
    """
    try:
        render, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is not a number
        render, content_type = generate_latest, PLAIN_TEXT
    return render(registry), content_type
