"""Options for where the server listens, and which proxies may tell it a client's address."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.python.usage import UsageError

from txsmtpd.service.endpoints import description_of, make_endpoint
from txsmtpd.service.handlers import default_listen
from txsmtpd.service.options.table import Chosen, Given, Group, Option, check_setting, refusing
from txsmtpd.service.options.values import some_seconds

DEFAULT_LISTEN = "tcp:8025:interface=127.0.0.1"

OPTIONS = (
    Option(
        name="listen",
        short="l",
        metavar="ENDPOINT",
        many=True,
        help="HOST:PORT such as localhost:1025, or a Twisted endpoint such as tcp:25.",
        default=DEFAULT_LISTEN,
    ),
    Option(
        name="listen-tls",
        metavar="ENDPOINT",
        many=True,
        help="An endpoint with implicit TLS, such as tcp:465. Requires --tls.",
    ),
    Option(
        name="listen-lmtp",
        metavar="ENDPOINT",
        many=True,
        help="An endpoint such as unix:/run/lmtp.sock:mode=660 that speaks LMTP.",
    ),
    Option(
        name="proxy-from",
        metavar="NETWORK",
        many=True,
        help="A network such as 192.0.2.0/24, or unix, whose connections must start with a PROXY header.",
    ),
    Option(
        name="proxy-protocol-timeout",
        metavar="TIME",
        help="Timeout of the PROXY header. Requires --proxy-from.",
        default="5s",
        read=some_seconds,
    ),
)


def read(chosen: Chosen) -> None:
    """Make the endpoints."""
    _read_proxies(chosen)
    for given in chosen.all("listen-tls"):
        _check_without_tls(given)
    for given in chosen.all("listen-lmtp"):
        _check_not_smtp(given)
    others = chosen.all("listen-tls") or chosen.all("listen-lmtp")
    handler = chosen.one("handler")
    default = default_listen("" if handler is None else handler.text) or DEFAULT_LISTEN
    make: Callable[[str], IStreamServerEndpoint] = make_endpoint
    if chosen["worker"] is not None:  # it inherits the sockets of its master in this order
        make = chosen["worker"].take_endpoint
    for kind, wanted in (
        ("endpoints", chosen.all("listen", None if others else default)),
        ("tls_endpoints", chosen.all("listen-tls")),
        ("lmtp_endpoints", chosen.all("listen-lmtp")),
    ):
        chosen[kind] = [(str(given), _endpoint(given, make)) for given in wanted]
    _check_adopted([*chosen["endpoints"], *chosen["tls_endpoints"], *chosen["lmtp_endpoints"]])


def _endpoint(given: Given, make: Callable[[str], IStreamServerEndpoint]) -> IStreamServerEndpoint:
    with refusing(given):
        return make(given.text)


def _check_adopted(endpoints: Iterable[tuple[str, IStreamServerEndpoint]]) -> None:
    """Reject a socket from systemd that two options name: each can have one listener."""
    users: dict[int, str] = {}
    for label, endpoint in endpoints:
        descriptor = getattr(endpoint, "fileno", None)
        if descriptor in users:
            raise UsageError(f"{label}: {users[descriptor]} listens on this socket already")
        if descriptor is not None:
            users[descriptor] = label


def _read_proxies(chosen: Chosen) -> None:
    proxies = chosen.all("proxy-from")
    timeout = chosen.one("proxy-protocol-timeout")
    if not proxies:
        if timeout is not None:
            raise UsageError(f"{timeout}: requires --proxy-from, which names the proxies")
        return
    if timeout is not None:
        chosen.settings["proxy_protocol_timeout"] = chosen.value("proxy-protocol-timeout")
    for given in proxies:
        with refusing(given):
            check_setting("proxy_from", [given.text])
    for given in (*chosen.all("listen"), *chosen.all("listen-tls"), *chosen.all("listen-lmtp")):
        already = re.match(r"(haproxy|ssl|tls):", given.text)
        if already is not None:
            raise UsageError(
                f"{given}: an endpoint {already[1]}: would take the PROXY header away from the server, which reads"
                f" it because of {proxies[0].where}; give one such as tcp:25"
            )
    chosen.settings["proxy_from"] = [given.text for given in proxies]


def _check_without_tls(given: Given) -> None:
    already = re.match(r"(?:haproxy:)?(ssl|tls):", given.text)
    if already is not None:
        raise UsageError(
            f"{given}: an endpoint {already[1]}: starts TLS itself, so --listen-tls would nest TLS in TLS;"
            " use one such as tcp:465"
        )


def _described(given: Given) -> str:
    with refusing(given):
        return description_of(given.text)


def _check_not_smtp(given: Given) -> None:
    if re.search(r"(?:^|:)tcp6?:(?:port=)?0*25(?::|$)", _described(given)):
        raise UsageError(f"{given}: port 25 must not be used for LMTP (RFC 2033); use another, such as tcp:24")


GROUP = Group(title="Listening", options=OPTIONS, read=read)
