"""Counters: plain numbers by name and labels, incremented where something happens, and read as a whole.

No output format and no server: :mod:`txsmtpd.observe.prometheus` exports them. The label values of a family come from a
fixed set, so that clients cannot create new series.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import twisted

from txsmtpd._version import __version__

BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)  # seconds
SUM = len(BUCKETS) + 1  # the index of the sum in the values of a histogram

Labels = tuple[str, ...]
Snapshot = dict[str, list[tuple[list[str], Any]]]
"""The values of each family by name, with their labels, in JSON types, so that it can be sent to another process. A
counter or gauge is a number; a histogram is a list: the count of each bucket, the count above all, and the sum."""


class Family(NamedTuple):
    """A metric family."""

    name: str  #: without the prefix ``txsmtpd_``
    kind: str  #: ``"counter"``, ``"gauge"`` or ``"histogram"`` (of seconds)
    labels: Labels
    help: str

    def zero(self) -> Any:
        """Return the initial value of a series."""
        return [0] * (len(BUCKETS) + 1) + [0.0] if self.kind == "histogram" else 0


FAMILIES = (
    Family("connections_open", "gauge", ("listener",), "Open connections."),
    Family(
        "connections_total",
        "counter",
        ("listener", "outcome"),
        "Connections, by outcome: accepted or refused, and why.",
    ),
    Family("disconnects_total", "counter", ("listener", "cause"), "Connections that have ended, by cause."),
    Family("commands_total", "counter", ("command", "code"), "Commands, by the first digit of the reply."),
    Family("refusals_total", "counter", ("stage", "by"), "Replies 4yz and 5yz, by stage and by the part that refused."),
    Family("messages_total", "counter", ("listener", "outcome"), "Messages, by outcome."),
    Family("message_octets_total", "counter", ("listener",), "Octets of accepted messages."),
    Family("recipients_total", "counter", ("outcome",), "Recipients, by the reply to RCPT."),
    Family("auth_total", "counter", ("mechanism", "outcome"), "AUTH commands, by the reply."),
    Family("tls_total", "counter", ("version",), "TLS sessions, by version."),
    Family("hook_seconds", "histogram", ("hook",), "Duration of the handler's hooks."),
    Family("data_seconds", "histogram", (), "Time from the reply 354 to the end of the message."),
    Family("session_seconds", "histogram", (), "Duration of connections."),
    Family("hook_failures_total", "counter", ("hook",), "Hooks that raised an exception."),
    Family("hook_timeouts_total", "counter", ("hook",), "Hooks that took longer than hook_timeout."),
    Family("handoff_total", "counter", ("target", "outcome"), "Messages handed to a broker or web hook."),
    Family(
        "handoff_seconds", "histogram", ("target",), "Duration of the hand-off of a message to a broker or web hook."
    ),
    Family("handoff_in_flight", "gauge", ("target",), "Messages that are being received or wait for a confirmation."),
    Family("handoff_ready", "gauge", ("target",), "Processes whose broker or web hook is available."),
    Family("reactor_lag_seconds", "histogram", (), "Delay of timed calls in the reactor."),
    Family("limiter_total", "counter", ("limit", "outcome"), "Decisions about rates and other limits of clients."),
    Family(
        "limiter_forgotten_total",
        "counter",
        (),
        "Networks and user names removed from full tables before their allowance was full again.",
    ),
    Family(
        "limiter_store_errors_total", "counter", (), "Decisions without the shared store of limits, because it failed."
    ),
    Family("message_memory_octets", "gauge", (), "Octets of messages in memory."),
    Family("message_memory_refused_total", "counter", (), "Messages refused for lack of memory."),
    Family("stress", "gauge", (), "1 while the server is in stress mode."),
    Family("workers", "gauge", ("state",), "Worker processes, by state; 0 with a single process."),
    Family("worker_restarts_total", "counter", (), "Workers that died and were replaced."),
    Family("build_info", "gauge", ("version", "twisted", "python"), "Versions of txsmtpd, Twisted and Python."),
)


class Counters(dict[str, "defaultdict[Labels, Any]"]):
    """The values of metric families: ``counters["refusals_total"]["RCPT", "hook"] += 1``.

    A family without labels has one series, ``()``.

    :param families: the families.
    """

    def __init__(self, families: Iterable[Family] = FAMILIES) -> None:
        super().__init__((family.name, defaultdict(family.zero)) for family in families)
        self.families = {family.name: family for family in families}
        #: called before the values are read, to update them
        self.before_reading: list[Callable[[], object]] = []
        if "build_info" in self:
            self["build_info"][__version__, twisted.__version__, platform.python_version()] = 1

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Add a duration to a histogram."""
        values = self[name][labels]
        values[bisect_left(BUCKETS, seconds)] += 1
        values[SUM] += seconds

    def snapshot(self) -> Snapshot:
        """Return the current values."""
        for update in self.before_reading:
            update()
        return {
            name: [([*labels], [*value] if isinstance(value, list) else value) for labels, value in series.items()]
            for name, series in self.items()
        }

    def add(self, snapshot: Mapping[str, Iterable[tuple[Iterable[str], Any]]]) -> None:
        """Add the values of another process. Unknown families are ignored."""
        for name, series in snapshot.items():
            values = self.get(name)
            if values is None:
                continue
            for labels, value in series:
                key = tuple(labels)
                if isinstance(value, list):
                    values[key] = [a + b for a, b in zip(values[key], value, strict=True)]
                else:
                    values[key] += value
