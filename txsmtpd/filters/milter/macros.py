"""The macros that are sent to milters: their names as in Sendmail and Postfix, by stage, and their values.

Macros without a value are not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from txsmtpd.wire.grammar import local_part
from txsmtpd.wire.milter import Stage

# The macros that Postfix sends, and those of Sendmail that milters also request.
DEFAULTS: Mapping[Stage, tuple[str, ...]] = {
    Stage.CONNECT: ("j", "{daemon_name}", "{daemon_addr}", "v", "_"),
    Stage.HELO: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
    Stage.MAIL: (
        "i",
        "{auth_type}",
        "{auth_authen}",
        "{auth_author}",
        "{mail_addr}",
        "{mail_host}",
        "{mail_mailer}",
    ),
    Stage.RCPT: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
    Stage.DATA: ("i",),
    Stage.END_OF_HEADERS: ("i",),
    Stage.END_OF_MESSAGE: ("i",),
}
SOFTWARE = "txsmtpd"
MAILER = "smtp"


@dataclass(frozen=True, slots=True)
class Known:
    """The data for the values of macros."""

    server: Any
    session: Any
    message_id: str = ""  #: the server's id of the message
    sender: str | None = None
    recipient: str | None = None

    @property
    def client(self) -> tuple[str | None, int]:
        """Return the address and port of the client. The address is ``""`` for a Unix socket, and None if unknown."""
        peer = self.session.peer
        return (str(peer[0]) or None, int(peer[1])) if isinstance(peer, tuple | list) else ("", 0)

    @property
    def client_name(self) -> str:
        """Return the client's name if known from XCLIENT, otherwise its address in brackets: there is no DNS lookup."""
        name = getattr(self.session.xclient, "name", None)
        host = self.client[0]
        return name or (f"[{host}]" if host else "unknown" if host is None else "localhost")

    @property
    def own(self) -> tuple[str, int]:
        """Return the address and port that the client connected to."""
        address = self.server.transport.getHost()
        return str(getattr(address, "host", "") or ""), int(getattr(address, "port", 0) or 0)


def _host_of(address: str | None) -> str | None:
    return None if address is None else address[len(local_part(address)) + 1 :]


def _name(certificate: Any, which: str) -> str | None:
    name = getattr(certificate, which, None)
    return None if name is None else name.rfc4514_string()


def _client_and_address(known: Known) -> str:
    host = known.client[0]
    return f"{known.client_name} [{host}]" if host else known.client_name


def _tls(which: str) -> Callable[[Known], Any]:
    return lambda known: getattr(known.session.ssl, which, None)


def _of_certificate(which: str) -> Callable[[Known], Any]:
    return lambda known: _name(getattr(known.session.ssl, "peer_certificate", None), which)


def _login(known: Known) -> str | None:
    login = known.session.login_data if known.session.authenticated else None
    return login.decode("utf-8", "replace") if isinstance(login, bytes) else None if login is None else str(login)


VALUES: Mapping[str, Callable[[Known], Any]] = {
    "j": lambda known: known.server.hostname or None,
    "_": _client_and_address,
    "i": lambda known: known.message_id or None,
    "v": lambda known: SOFTWARE,
    "{daemon_name}": lambda known: known.server.hostname or None,
    "{daemon_addr}": lambda known: known.own[0] or None,
    "{daemon_port}": lambda known: known.own[1] or None,
    "{if_addr}": lambda known: known.own[0] or None,
    "{client_addr}": lambda known: known.client[0] or None,
    "{client_name}": lambda known: known.client_name,
    "{client_ptr}": lambda known: known.client_name,
    "{client_port}": lambda known: known.client[1] or None,
    "{client_resolve}": lambda known: "FAIL",
    "{tls_version}": _tls("protocol"),
    "{cipher}": _tls("cipher"),
    "{cert_subject}": _of_certificate("subject"),
    "{cert_issuer}": _of_certificate("issuer"),
    "{auth_type}": lambda known: known.session.auth_mechanism if known.session.authenticated else None,
    "{auth_authen}": _login,
    "{auth_author}": _login,
    "{mail_addr}": lambda known: known.sender,
    "{mail_host}": lambda known: _host_of(known.sender),
    "{mail_mailer}": lambda known: MAILER,
    "{rcpt_addr}": lambda known: known.recipient,
    "{rcpt_host}": lambda known: _host_of(known.recipient),
    "{rcpt_mailer}": lambda known: MAILER,
}


def values_of(names: Iterable[str], known: Known, more: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the name and value of each macro that has one.

    :param more: the application's values, which take precedence.
    """
    found = []
    for name in names:
        bare = name.strip("{}")
        value = more.get(bare)
        if value is None:
            value_of = VALUES.get(name) or VALUES.get(bare if len(bare) == 1 else f"{{{bare}}}")
            value = None if value_of is None else value_of(known)
        if value is not None:
            found.append((name, str(value)))
    return found
