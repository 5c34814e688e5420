"""Options for monitoring and load balancers: metrics, health checks, and the drain delay."""

from __future__ import annotations

from twisted.python.usage import UsageError

from txsmtpd.service.endpoints import make_endpoint
from txsmtpd.service.monitoring import local_endpoint
from txsmtpd.service.options.table import Chosen, Group, Option, need_extra, refusing
from txsmtpd.service.options.values import seconds

OPTIONS = (
    Option(
        name="metrics",
        metavar="ENDPOINT",
        help="Endpoint of /metrics, /livez and /readyz: a port of 127.0.0.1, or an endpoint.",
    ),
    Option(
        name="drain-delay",
        metavar="TIME",
        help="Time after SIGTERM in which the server is not ready, but still listens. Requires --metrics.",
        default="0s",
        read=seconds,
    ),
)


def read(chosen: Chosen) -> None:
    """Make the endpoint."""
    chosen["drain_delay"] = chosen.value("drain-delay", 0.0)
    chosen["monitoring"] = None
    given = chosen.one("metrics")
    chosen["is_counting"] = given is not None
    if chosen["worker"] is not None:  # the master serves the pages, and waits for the delay before it stops the worker
        chosen["drain_delay"] = 0.0
        return
    if given is None:
        if chosen["drain_delay"]:
            raise UsageError("--drain-delay: requires --metrics, which serves /readyz")
        return
    with refusing(given):
        need_extra("metrics", "prometheus_client")
        chosen["monitoring"] = str(given), make_endpoint(local_endpoint(given.text))


GROUP = Group(title="Monitoring", options=OPTIONS, read=read)
