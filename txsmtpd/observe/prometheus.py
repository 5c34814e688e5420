"""Counters in the form of Prometheus, made by the package ``prometheus-client`` (the extra ``metrics``).

Its own counters are not used, which take a lock for each addition: a collector reads ours when somebody asks.
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
    """A collector of Prometheus over our counters.

    :param snapshot: gives the values now: :meth:`~txsmtpd.observe.counters.Counters.snapshot`.
    :param families: what they mean.
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
    """A registry with our counters and those of the process: memory, processor time, descriptors."""
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(snapshot))
    registry.register(ProcessCollector(registry=None))
    return registry


def rendered(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics of a registry, as text or as OpenMetrics.

    :param accept: the header field Accept of who asks.
    :return: the text and its content type.
    """
    try:
        render, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        render, content_type = generate_latest, PLAIN_TEXT
    return render(registry), content_type
