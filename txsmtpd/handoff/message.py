"""A message for another system: its bytes, and a dictionary with everything else.

The dictionary is the same for all targets; :mod:`txsmtpd.handoff.bindings` formats it for each. Its version is its
``type``: names are added, never changed. No I/O.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote

from txsmtpd.parameters import Recipient
from txsmtpd.session import Envelope, Session

TYPE = "org.txsmtpd.message.v1"
MESSAGE = "message/rfc822"
REFERENCE = "application/vnd.txsmtpd.reference+json"


@dataclass(frozen=True)
class HandoffMessage:
    """One message, as passed to a target.

    :ivar envelope: everything except the message, in JSON types; see :func:`envelope_of`.
    :ivar content: the message as bytes with CRLF line ends, with a Received field on top; or a reference to where it
        is stored, as JSON.
    :ivar content_type: ``message/rfc822``, or the media type of a reference.
    """

    envelope: dict[str, Any]
    content: bytes = field(repr=False)
    content_type: str = MESSAGE

    @property
    def id(self) -> str:
        """Identifies the message. If the client sends the message again, the id is different."""
        return str(self.envelope["id"])

    @property
    def fingerprint(self) -> str:
        """Identifies the content. The same if the client sends the message again, so consumers can deduplicate."""
        return str(self.envelope["fingerprint"])

    @property
    def rcpt_tos(self) -> list[str]:
        """The recipients' forward-paths."""
        return list(self.envelope["rcpt_tos"])

    @cached_property
    def envelope_json(self) -> str:
        """The envelope as JSON, in ASCII."""
        return json.dumps(self.envelope, separators=(",", ":"))


def new_id() -> str:
    """A UUID of version 7 (RFC 9562 5.7): unique, and sorted by time."""
    value = int(time.time() * 1000) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))


class Fingerprint:
    """SHA-256 over the reverse-path, each forward-path in order, and the message as its client sent it.

    The paths end with a line feed each, and an empty line follows them.
    """

    def __init__(self, mail_from: str, rcpt_tos: list[str]) -> None:
        paths = "".join(f"{path}\n" for path in (mail_from, *rcpt_tos))
        self._hash = hashlib.sha256(f"{paths}\n".encode("utf-8", "surrogateescape"))

    def update(self, octets: bytes) -> None:
        """Add bytes of the message."""
        self._hash.update(octets)

    def __str__(self) -> str:
        return self._hash.hexdigest()


def envelope_of(
    server: Any, session: Session, envelope: Envelope, identifier: str, *, now: float | None = None
) -> dict[str, Any]:
    """Return the dictionary of a message, without ``fingerprint`` and ``size``, which are known only at its end.

    ``id``, ``time`` (RFC 3339, UTC), ``source`` (``smtp://`` or ``lmtp://``, this server and its listener), ``type``,
    ``mail_from`` (``""`` for a bounce), ``rcpt_tos``, ``client`` (``address``, ``port``, ``name`` and ``tls``),
    ``login``, ``body``, ``smtputf8``, ``require_tls``, ``dsn``, ``session``, ``received_by``. Missing values are None.
    ``dsn`` has ``ret``, ``envid``, and ``recipients``, with ``notify`` and ``orcpt`` for each of *rcpt_tos*.

    :param now: seconds since the epoch. Default: the current time.
    """
    hostname = getattr(server, "hostname", None) or "localhost"
    scheme = "lmtp" if getattr(server, "lmtp", False) else "smtp"
    when = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    return {
        "id": identifier,
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "source": f"{scheme}://{hostname}/{_listener(server)}",
        "type": TYPE,
        "mail_from": envelope.mail_from or "",
        "rcpt_tos": list(envelope.rcpt_tos),
        "client": _client(session),
        "login": _login(session),
        "body": envelope.body,
        "smtputf8": bool(envelope.smtp_utf8),
        "require_tls": bool(envelope.require_tls),
        "dsn": _dsn(envelope),
        "session": session.id,
        "received_by": hostname,
    }


def recipient_of(session: Session, envelope: Envelope, address: str) -> dict[str, Any]:
    """Return the query about one recipient: ``mail_from``, ``rcpt_to``, ``client``, ``login`` and ``session``."""
    return {
        "mail_from": envelope.mail_from or "",
        "rcpt_to": address,
        "client": _client(session),
        "login": _login(session),
        "session": session.id,
    }


def declared_size(envelope: Envelope) -> int | None:
    """Return the size that MAIL declared (RFC 1870), or None."""
    for option in envelope.mail_options:
        keyword, _, value = option.partition("=")
        if keyword.upper() == "SIZE" and value.isdecimal():
            return int(value)
    return None


def _listener(server: Any) -> str:
    address = server.transport.getHost()
    if (host := getattr(address, "host", None)) is not None:
        return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
    name = getattr(address, "name", None) or b""
    return quote(name, safe="") if isinstance(name, bytes | str) else ""


def _client(session: Session) -> dict[str, Any]:
    peer = session.peer
    address, port = (peer[0], peer[1]) if isinstance(peer, tuple | list) and len(peer) > 1 else (None, None)
    tls = session.ssl
    return {
        "address": address,
        "port": port,
        "name": session.host_name,
        "tls": {"version": tls.protocol, "cipher": tls.cipher} if tls else None,
    }


def _login(session: Session) -> str | None:
    """Return the authenticated login, or None."""
    if not session.authenticated:
        return None
    login = session.login_data
    if isinstance(login, bytes | bytearray):
        return login.decode("utf-8", "replace")
    return None if login is None else str(login)


def _dsn(envelope: Envelope) -> dict[str, Any] | None:
    """Return the DSN parameters of RFC 3461, or None if there are none."""
    recipients = [_dsn_of(said) for said in envelope.recipients]
    if envelope.dsn_return is None and envelope.dsn_id is None and not any(map(any, map(dict.values, recipients))):
        return None
    return {
        "ret": envelope.dsn_return and envelope.dsn_return.value,
        "envid": envelope.dsn_id,
        "recipients": recipients,
    }


def _dsn_of(said: Recipient) -> dict[str, Any]:
    return {
        "notify": None if said.notify is None else sorted(each.value for each in said.notify),
        "orcpt": said.original and f"{said.original.type};{said.original.address}",
    }
