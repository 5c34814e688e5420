"""Options of the inbox: its address, who may read it, and how much mail it keeps. They need ``--handler=inbox``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.python.usage import UsageError

from txsmtpd.service.checkers import make_checker, portal_of
from txsmtpd.service.endpoints import make_endpoint
from txsmtpd.service.handlers import HandlerParser, parse_spec
from txsmtpd.service.monitoring import local_endpoint
from txsmtpd.service.options.table import Chosen, Given, Group, Option, refusing
from txsmtpd.service.options.values import count, octets, seconds

DEFAULT_WEB = "tcp:8025:interface=127.0.0.1"


def path(text: str) -> str:
    """Parse a URL path. Return it without a trailing slash; the root is empty."""
    found = "/" + text.strip("/")
    words = found.split("/")[1:]
    if not all(re.fullmatch("[A-Za-z0-9._~-]*", word) for word in words) or {".", "..", "in"} & set(words):
        raise ValueError("must be a path such as /mail")
    return found.rstrip("/")


def host(text: str) -> str:
    """Parse a host name of this server."""
    from txsmtpd.inbox.web.gate import make_host

    return make_host(text)


def origin(text: str) -> str:
    """Parse the origin of a web page."""
    from txsmtpd.inbox.web.gate import make_origin

    return make_origin(text)


def relay(text: str) -> Any:
    """Parse a next server in the syntax of the proxy handler."""
    from txsmtpd.handlers import Proxy

    _, arguments = parse_spec(f"relay:{text}")
    if len(arguments) < 2 and not text.startswith("/"):
        raise ValueError("must be HOST:PORT, such as smtp.example.com:587")
    return Proxy.from_cli(HandlerParser(), *arguments).upstream


OPTIONS = (
    Option(
        name="web",
        metavar="ENDPOINT",
        help="Endpoint of the inbox: a port of 127.0.0.1, or an endpoint.",
        default=DEFAULT_WEB,
    ),
    Option(name="web-path", metavar="PATH", help="The path of the inbox, such as /mail.", default="/", read=path),
    Option(
        name="web-auth",
        metavar="CHECKER",
        many=True,
        help="Password checker for the inbox, such as file:/path. See --help-auth.",
    ),
    Option(
        name="web-host",
        metavar="NAME",
        many=True,
        help="An additional host name of the inbox, such as mail.example.com.",
        read=host,
    ),
    Option(
        name="web-cors",
        metavar="ORIGIN",
        many=True,
        help="An origin whose pages may use the API, such as http://localhost:3000.",
        read=origin,
    ),
    Option(
        name="web-frame",
        metavar="ORIGIN",
        many=True,
        help="An origin whose pages may show the inbox in a frame.",
        read=origin,
    ),
    Option(
        name="web-relay",
        metavar="HOST:PORT[:OPTION...]",
        help="Relay for released messages; the options are those of the proxy handler.",
        read=relay,
    ),
    Option(
        name="keep",
        metavar="N",
        help="Maximum number of messages in the inbox; 0 for no limit.",
        default="100000",
        read=count,
    ),
    Option(
        name="keep-size",
        metavar="OCTETS",
        help="Maximum size of all messages together; 0 for no limit.",
        default="1GiB",
        read=octets,
    ),
    Option(
        name="keep-age", metavar="TIME", help="Maximum age of messages; 0 for no limit.", default="7d", read=seconds
    ),
)


def read(chosen: Chosen) -> None:
    """Reject these options if the handler is not an inbox."""
    handler = chosen.one("handler")
    if handler is not None and handler.text.partition(":")[0] == "inbox":
        return
    for option in OPTIONS:
        for given in chosen.all(option.name) if option.many else [chosen.one(option.name)]:
            if given is not None:
                raise UsageError(f"{given.where}: requires --handler=inbox")


def finish(chosen: Chosen) -> None:
    """Make the settings of the site, and enable what it shows besides mail: sessions, and faults that it can change."""
    chosen["inbox"] = None
    handler: Any = chosen["handler"]
    if not getattr(handler, "has_inbox", False):
        return
    from txsmtpd.faults.rules import Faults
    from txsmtpd.inbox.handler import accept_anyone
    from txsmtpd.inbox.sessions import make_transcripts
    from txsmtpd.inbox.store import Retention

    kept = Retention()
    handler.store.retention = Retention(
        chosen.value("keep", kept.messages), chosen.value("keep-size", kept.octets), chosen.value("keep-age", kept.age)
    )
    journal = chosen["transcript"]
    chosen["transcript"] = make_transcripts(handler.store, journal and journal.tell)
    if chosen["faults"] is None:
        chosen["faults"] = Faults(chosen.value("fault-seed", "0"))
    # Show what an application sends, even if some servers would reject it.
    for name in ("enable_SMTPUTF8", "bare_newlines", "lenient_addresses"):
        chosen.settings.setdefault(name, True)
    if "portal" not in chosen.settings:
        # Programs that log in before they send should work without an account.
        chosen.settings.update(authenticator=accept_anyone, auth_require_tls=False)
    given = chosen.one("web") or Given("--web", DEFAULT_WEB)
    with refusing(given):
        endpoint = make_endpoint(local_endpoint(given.text))
    chosen["inbox"] = str(given), endpoint, _site(chosen)


def _site(chosen: Chosen) -> Any:
    from txsmtpd.inbox.web.site import WebSettings

    checkers = []
    for given in chosen.all("web-auth"):
        # Error messages must not quote the rest of the text, which may contain passwords.
        with refusing(given._replace(text=given.text.partition(":")[0])):
            checkers.append(make_checker(given.text))
    relay = chosen.one("web-relay")
    settings = WebSettings(
        path=chosen.value("web-path", ""),
        hosts=frozenset(_values(chosen, "web-host", host)),
        cors=frozenset(_values(chosen, "web-cors", origin)),
        frames=tuple(_values(chosen, "web-frame", origin)),
        portal=portal_of(checkers) if checkers else None,
        relay=chosen.value("web-relay"),
        relay_name="" if relay is None else ":".join(relay.text.split(":")[:2]),
        faults=chosen["faults"],
        transcripts=chosen["transcript"],
    )
    settings.size_limit = chosen.settings.get("data_size_limit", settings.size_limit)
    return settings


def _values(chosen: Chosen, option: str, read: Callable[[str], str]) -> list[str]:
    found = []
    for given in chosen.all(option):
        with refusing(given):
            found.append(read(given.text))
    return found


GROUP = Group(title="Inbox", options=OPTIONS, read=read, finish=finish)
