"""Options that limit the rates of all clients of one network, or of one login, over all listeners."""

from __future__ import annotations

import re

from txsmtpd.limits.limiter import KINDS, Limits
from txsmtpd.limits.rate import Rate, parse_rate_of
from txsmtpd.limits.shared import SharedLimits, connect, connection_options
from txsmtpd.service.options.table import Chosen, Given, Group, Option, check_setting, need_extra, refusing
from txsmtpd.service.options.values import NO_LIMIT, or_none
from txsmtpd.settings import AUTH_FAILURES


def prefixes(value: str) -> tuple[int, int]:
    """Parse the prefix lengths of IPv4 and IPv6 networks: ``24,48``."""
    found = re.fullmatch(r"([0-9]{1,3}),([0-9]{1,3})", value)
    if found is None:
        raise ValueError("must be the prefix lengths for IPv4 and IPv6, such as 32,64")
    return int(found[1]), int(found[2])


OPTIONS = (
    Option(
        name="rate",
        metavar="KIND:N/PERIOD",
        many=True,
        help=f"Rate limit for each network: a KIND of {', '.join(KINDS)}, such as messages:100/min,burst=20.",
    ),
    Option(
        name="auth-failures-per-network",
        metavar="N/PERIOD",
        help="Rate limit of distinct user names that fail to authenticate from one network.",
        default=AUTH_FAILURES,
        read=or_none(Rate.parse),
    ),
    Option(
        name="unlimited-network",
        metavar="NETWORK",
        many=True,
        help="A network that is exempt from limits for networks, such as 192.0.2.0/24 or unix; or none.",
        default="loopback and Unix sockets",
    ),
    Option(
        name="network-prefixes",
        metavar="N,N",
        help="Prefix lengths of an IPv4 and an IPv6 network.",
        setting="network_prefixes",
        read=prefixes,
    ),
    Option(
        name="limits-redis",
        metavar="URL",
        help="Redis server in which hosts share rate limits of users and failed logins: redis://HOST[:PORT][/DATABASE].",
    ),
)


def read(chosen: Chosen) -> None:
    """Make the limiter that all listeners share."""
    rates: dict[str, Rate] = {}
    for given in chosen.all("rate"):
        with refusing(given):
            kind, rate = parse_rate_of(given.text, KINDS)
            if kind in rates:
                raise ValueError(f"there are two rates of {kind}")
            rates[kind] = rate
    networks = chosen.all("unlimited-network")
    for given in networks:
        with refusing(given):
            if given.text.lower() in NO_LIMIT:
                if len(networks) > 1:
                    raise ValueError("none cannot be combined with other networks")
                networks = []
            else:
                check_setting("unlimited_networks", [given.text])
    if chosen.all("unlimited-network"):
        chosen.settings["unlimited_networks"] = [given.text for given in networks]
    failures = chosen.value("auth-failures-per-network", Rate.parse(AUTH_FAILURES))
    limits = Limits(rates, failures)
    redis = chosen.one("limits-redis")
    chosen["limiter"] = limits if redis is None else _shared(limits, redis)


def _shared(limits: Limits, given: Given) -> SharedLimits:
    # Error messages must not quote the rest of the URL, which may contain a password.
    with refusing(Given(given.where, given.text.partition(":")[0] + ":...")):
        connection_options(given.text)
        need_extra("redis", "txredisapi")
        if not limits.kinds:
            raise ValueError("requires --rate or --auth-failures-per-network, the limits that hosts share")
    from twisted.internet import reactor

    return SharedLimits(limits, lambda: connect(given.text), reactor)


GROUP = Group(title="Rates", options=OPTIONS, read=read)
