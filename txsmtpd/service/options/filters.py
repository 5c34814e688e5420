"""Options of filters, which check mail before the handler gets it."""

from __future__ import annotations

from txsmtpd.interfaces import IFactoryMaker
from txsmtpd.service.filters import make_filter
from txsmtpd.service.options.table import Chosen, Group, Option, refusing
from txsmtpd.service.topics import describe_filters

OPTIONS = (
    Option(
        name="filter",
        metavar="NAME[:ARGS]",
        many=True,
        help="Filter that checks mail before the handler, such as rspamd or milter:unix:/run/opendkim.sock."
        " Filters run in order. See --help-filters.",
    ),
    Option(name="help-filters", help="List the filters and exit.", action=lambda: print(describe_filters())),
)


def finish(chosen: Chosen) -> None:
    """Make the filters."""
    chosen["filters"] = []
    for given in chosen.all("filter"):
        with refusing(given):
            if IFactoryMaker.providedBy(chosen["handler"]):
                raise ValueError("servers of the smtpd module do not support filters")
            chosen["filters"].append(make_filter(given.text))


GROUP = Group(title="Filters", options=OPTIONS, finish=finish)
