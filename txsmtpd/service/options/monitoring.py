"""Options for load balancers and monitoring: metrics, health, and the time between not ready and not listening."""

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
        help="Serve /metrics, /livez and /readyz here: a port of 127.0.0.1, or an endpoint.",
    ),
    Option(
        name="drain-delay",
        metavar="TIME",
        help="How long it is not ready, but still listens, on SIGTERM. Needs --metrics.",
        default="0",
        read=seconds,
    ),
)


def read(chosen: Chosen) -> None:
    """Make the endpoint."""
    chosen["drain_delay"] = chosen.value("drain-delay", 0.0)
    chosen["monitoring"] = None
    asked = chosen.one("metrics")
    chosen["is_counting"] = asked is not None
    if chosen["worker"] is not None:  # whose master serves the pages
        return
    if asked is None:
        if chosen["drain_delay"]:
            raise UsageError("--drain-delay: nobody could see that the server is not ready; give --metrics")
        return
    with refusing(asked):
        need_extra("metrics", "prometheus_client")
        chosen["monitoring"] = str(asked), make_endpoint(local_endpoint(asked.text))


GROUP = Group(title="Monitoring", options=OPTIONS, read=read)
