"""What a server writes above a message that it takes: trace header fields (RFC 5321 4.4, RFC 3848, RFC 6531 4.3).

Octets with LF line ends, ready to be put before the message. Much of what stands in them the client chose, so nothing
it chose gets out of its field. Nothing here reads the message itself, except to free it from forgeries of these fields.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache

from txsmtpd.session import Envelope, Session

FOLD_ABOVE = 78  # RFC 5322 2.1.1: no line should be longer, none may be longer than 998
LONGEST_NAME = 255  # RFC 5321 4.5.3.1.2

_NO_HOST = re.compile(r"[^A-Za-z0-9.:_\[\]-]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_OURS = (b"return-path", b"x-peer", b"x-mailfrom", b"x-rcptto")
# A field with its folded lines. A CR on its own counts as a line end, since Python's email package takes it for one.
_FORGERY = re.compile(
    rb"(?<![^\r\n])(?:" + b"|".join(_OURS) + rb")[ \t]*:[^\r\n]*(?:(?:\r\n?|\n)[ \t][^\r\n]*)*(?:\r\n?|\n|\Z)",
    re.IGNORECASE,
)


def trace_header(
    hostname: str,
    session: Session,
    envelope: Envelope,
    identifier: str,
    *,
    lmtp: bool = False,
    now: float | None = None,
) -> bytes:
    """All fields that stand above a message: Return-Path, Received, X-Peer, X-MailFrom, X-RcptTo.

    X-RcptTo names every recipient of the transaction, blind copies too.

    :param hostname: the server's name.
    :param identifier: names the message in Received, so that it can be found by what logs say.
    :param lmtp: whether the client spoke LMTP.
    :param now: seconds since the epoch. Default: the present.
    """
    return b"".join(
        (
            return_path(envelope),
            received(hostname, session, envelope, identifier, lmtp=lmtp, now=now),
            peer_and_paths(session, envelope),
        )
    )


def return_path(envelope: Envelope) -> bytes:
    """Return-Path: the reverse-path; ``<>`` for a bounce."""
    return f"Return-Path: <{_printable(envelope.mail_from or '')}>\n".encode()


def received(
    hostname: str,
    session: Session,
    envelope: Envelope,
    identifier: str,
    *,
    lmtp: bool = False,
    now: float | None = None,
) -> bytes:
    """Received: from whom, by whom, how, when. Blind copies stay blind (RFC 5321 7.2): for whom, only if for one."""
    recipients = envelope.rcpt_tos
    client = _host(session.host_name) if session.host_name else "unknown"
    address = _address_literal(session.peer)
    how = transmission_type(session, envelope, lmtp=lmtp)
    forward_path = f"\n\tfor <{_printable(recipients[0])}>" if len(recipients) == 1 else ""
    return (
        f"Received: from {client}{f' ({address})' if address else ''}\n"
        f"\tby {_host(hostname)} with {how} id {identifier}{forward_path};\n"
        f"\t{_date(int(time.time() if now is None else now))}\n"
    ).encode()


def transmission_type(session: Session, envelope: Envelope, *, lmtp: bool = False) -> str:
    """How the message came, in the words of RFC 3848 and RFC 6531 4.3: ``ESMTPS``, ``UTF8SMTPSA``, ``LMTP``, ..."""
    if not (session.extended_smtp or lmtp):
        return "SMTP"
    prefix = "UTF8" if envelope.smtp_utf8 else "" if lmtp else "E"
    protocol = "LMTP" if lmtp else "SMTP"
    return f"{prefix}{protocol}{'S' if session.ssl else ''}{'A' if session.authenticated else ''}"


def x_fields(session: Session, envelope: Envelope) -> tuple[tuple[str, str], ...]:
    """Name and value of X-Peer, X-MailFrom and X-RcptTo, each value in one line."""
    return (
        ("X-Peer", _printable(str(session.peer))),
        ("X-MailFrom", _printable(envelope.mail_from or "")),
        ("X-RcptTo", _printable(", ".join(envelope.rcpt_tos))),
    )


def peer_and_paths(session: Session, envelope: Envelope) -> bytes:
    """X-Peer, X-MailFrom and X-RcptTo as octets; many recipients stand in a line each."""
    (peer_name, peer), (sender_name, sender), (recipients_name, recipients) = x_fields(session, envelope)
    if len(recipients) > FOLD_ABOVE:
        recipients = ",\n ".join(_printable(path) for path in envelope.rcpt_tos)
    return f"{peer_name}: {peer}\n{sender_name}: {sender}\n{recipients_name}: {recipients}\n".encode()


def without_forgeries(message: bytes) -> bytes:
    """The message as it may stand below a trace header: without fields of the client's that pass for ours.

    :param message: a message with LF line ends, or as much of it as has the whole header.
    """
    end = message.find(b"\n\n") + 1
    header = message[:end] if end else message
    lowered = header.lower()
    if any(name in lowered for name in _OURS) and not message.startswith(b"\n"):
        message = _FORGERY.sub(b"", header) + (message[end:] if end else b"")
    # A folded line with no field above it would continue ours. It is no header, so it is the body.
    return b"\n" + message if message.startswith((b" ", b"\t")) else message


def _printable(text: str) -> str:
    return text if text.isprintable() else _UNPRINTABLE.sub("?", text)


@lru_cache(maxsize=256)
def _host(name: str) -> str:
    # No blank, parenthesis or semicolon: they would end the clause, and begin one of the client's making.
    return _NO_HOST.sub("?", name[:LONGEST_NAME])


def _address_literal(peer: object) -> str | None:
    """The client's address as RFC 5321 4.1.3 writes it, or None if it has none."""
    if not (isinstance(peer, tuple | list) and peer and isinstance(peer[0], str) and peer[0]):
        return None
    address = peer[0].partition("%")[0]  # RFC 5321 has no IPv6 zones
    return f"[{'IPv6:' if ':' in address else ''}{_host(address)}]"


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, localtime=True)
