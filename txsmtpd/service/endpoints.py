"""Makes endpoints from text: Twisted's endpoint descriptions, and ``HOST:PORT``."""

from __future__ import annotations

import difflib
import re

from twisted.internet.interfaces import IStreamServerEndpoint

from txsmtpd.service.adopted import systemd_endpoint
from txsmtpd.service.exit_status import described

PREFIXES = ("tcp", "tcp6", "unix", "systemd", "fd", "haproxy", "ssl", "tls")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9.*-]*)):(?P<port>[0-9]{1,5})")

_TCP_HOST_AND_PORT = re.compile(r"tcp:(?P<rest>(?:localhost|[A-Za-z0-9.-]*\.[A-Za-z0-9.-]*|\*)?:[0-9]{1,5})")


def make_endpoint(description: str) -> IStreamServerEndpoint:
    """Return the endpoint of this description.

    :raises ValueError: if the description is invalid.
    """
    from twisted.internet import reactor
    from twisted.internet.endpoints import serverFromString

    description = description_of(description)
    if re.match(r"unix:(?:address=)?(?::|$)", description):
        raise ValueError(
            "a Unix socket needs a path, such as unix:/run/mail.sock"
        )  # Linux would choose an abstract address
    mode = re.match(r"unix:(?:.*:)?mode=([^:]*)", description)
    if mode is not None and not re.fullmatch("(?:0o?)?[0-7]{3}", mode[1]):
        raise ValueError("mode must be three octal digits, such as mode=660")
    if description.startswith("unix:") and ":lockfile=" not in description:
        # Do not use Twisted's lock file: it mistakes any process with the PID of a dead server for that server, and
        # once it is stale, Twisted removes even a live socket. The module `sockets` replaces stale sockets instead.
        description += ":lockfile=0"
    port = re.match(r"(?:tcp6?|ssl|tls):(?:port=)?(-?[0-9]+)(?::|$)", description)
    if port is not None and not 0 <= int(port[1]) <= 65535:
        raise ValueError(f"invalid port {port[1]}")
    if description.startswith("ssl:") and "privateKey=" not in description:
        raise ValueError("ssl: needs privateKey=FILE; for SMTP, use --listen-tls=tcp:PORT and --tls=CERT instead")
    if description.startswith("systemd:"):
        return systemd_endpoint(reactor, description)
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except Exception as error:
        detail = str(error) if type(error) is ValueError else described(error)
        raise ValueError(f"not an endpoint such as {_example(description)}: {detail}") from error
    return endpoint


def description_of(text: str) -> str:
    """Return Twisted's description of an endpoint. ``HOST:PORT`` becomes ``tcp:PORT:interface=HOST``.

    >>> description_of("localhost:1025")
    'tcp:1025:interface=localhost'
    >>> description_of("[::1]:25")
    'tcp:25:interface=\\\\:\\\\:1'
    >>> description_of("unix:/run/smtp.sock")
    'unix:/run/smtp.sock'

    :raises ValueError: for a port or a host alone, and for a prefix that may be a misspelt ``tcp``.
    """
    if re.fullmatch("[0-9]{1,5}", text):
        raise ValueError(
            f"not an endpoint; did you mean tcp:{text} (on all addresses) or localhost:{text} (on this machine only)?"
        )
    if turned := _TCP_HOST_AND_PORT.fullmatch(text):
        raise ValueError(f"not an endpoint; did you mean {turned['rest']}?")
    if re.fullmatch(r"localhost|[0-9]+(\.[0-9]+){3}", text):
        raise ValueError(f"not an endpoint; did you mean {text}:8025?")
    port = re.match(
        r"(?:tcp6?:(?:port=)?|(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+):)([^:=]*)(?::|$)", text, re.IGNORECASE
    )
    if port is not None and not re.fullmatch("-?[0-9]+", port[1], re.ASCII):
        raise ValueError(f"invalid port {port[1]!r}; it must be a number from 0 to 65535")
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or found["host"] in PREFIXES:
        return text
    host = found["six"] or found["host"]
    if not (host in ("", "*", "localhost") or "." in host or ":" in host):
        near = difflib.get_close_matches(host, [*PREFIXES, "localhost"], 1)
        meant = f"{near[0]}:{found['port']}" if near else f"tcp:{found['port']}:interface={host}"
        raise ValueError(f"not an endpoint; did you mean {meant}?")
    if host in ("", "*"):
        return f"tcp:{found['port']}"
    return f"tcp:{found['port']}:interface={host.replace(':', chr(92) + ':')}"


def _example(description: str) -> str:
    prefix, colon, rest = description.partition(":")
    near = difflib.get_close_matches(prefix, PREFIXES, 1, 0.5) if colon else []
    return f"{near[0]}:{rest}" if near and near[0] != prefix else "tcp:8025:interface=127.0.0.1 or localhost:8025"


def provides_tls(description: str) -> bool:
    """Return True if an endpoint with this description starts TLS, and not the server.

    >>> [provides_tls(each) for each in ("tcp:25", "ssl:465:privateKey=mx.pem", "haproxy:tls:/mx:tcp:465")]
    [False, True, True]
    """
    return re.match("(haproxy:)?(ssl|tls):", description) is not None
