"""Trace header fields, which a server adds to the top of a message (RFC 5321 4.4, RFC 3848, RFC 6531 4.3).

They are octets with LF line ends, to be put before the message. Many values come from the client, so they are encoded
such that they cannot end their field. The message itself is read only to remove forgeries of these fields.
"""

from __future__ import annotations

import re
import time
from email.policy import compat32
from email.utils import formatdate
from functools import lru_cache

from txsmtpd.mime.policy import Verbatim
from txsmtpd.session import Envelope, Session

FOLD_ABOVE = 78  # RFC 5322 2.1.1: no line should be longer, none may be longer than 998
LONGEST_NAME = 255  # RFC 5321 4.5.3.1.2
ENCODED_WORD = "=?"  # the start of one (RFC 2047 2)

_NO_HOST = re.compile(r"[^A-Za-z0-9.:_\[\]-]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_OURS = (b"return-path", b"x-peer", b"x-mailfrom", b"x-rcptto")
TELLING = 64  # octets at the beginning of a line that suffice to recognize a forgery
# A CR alone counts as a line end, as in Python's email package.
_LINE = rb"[^\r\n]*(?:\r\n?|\n|\Z)"
_FOLDED = rb"(?:[ \t]" + _LINE + rb")*"
_FORGERY = re.compile(rb"(?<![^\r\n])(?:" + b"|".join(_OURS) + rb")[ \t]*:" + _LINE + _FOLDED, re.IGNORECASE)
_PERHAPS = re.compile(rb"(?:" + b"|".join(_OURS) + rb")[ \t]*\Z", re.IGNORECASE)
_REST_OF_FIELD = re.compile(_LINE + _FOLDED)
_FOLDED_LINES = re.compile(_FOLDED)


def trace_header(
    hostname: str,
    session: Session,
    envelope: Envelope,
    identifier: str,
    *,
    lmtp: bool = False,
    now: float | None = None,
) -> bytes:
    """Return all fields to put before a message: Return-Path, Received, X-Peer, X-MailFrom, X-RcptTo.

    X-RcptTo lists all recipients of the transaction, including blind copies.

    :param hostname: the server's name.
    :param identifier: the message's identifier in Received, to find it in logs.
    :param lmtp: whether the client used LMTP.
    :param now: seconds since the epoch. Default: the current time.
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
    return f"Return-Path: <{_path(envelope.mail_from or '')}>\n".encode()


def received(
    hostname: str,
    session: Session,
    envelope: Envelope,
    identifier: str,
    *,
    lmtp: bool = False,
    now: float | None = None,
) -> bytes:
    """Received: the client, the server, the protocol and the time. It names the recipient only if there is just one, so
    that blind copies stay blind (RFC 5321 7.2)."""
    recipients = envelope.rcpt_tos
    client = _host(session.host_name) if session.host_name else "unknown"
    address = _address_literal(session.peer)
    how = transmission_type(session, envelope, lmtp=lmtp)
    forward_path = f"\n\tfor <{_path(recipients[0])}>" if len(recipients) == 1 else ""
    return (
        f"Received: from {client}{f' ({address})' if address else ''}\n"
        f"\tby {_host(hostname)} with {how} id {identifier}{forward_path};\n"
        f"\t{_date(int(time.time() if now is None else now))}\n"
    ).encode()


def transmission_type(session: Session, envelope: Envelope, *, lmtp: bool = False) -> str:
    """Return the protocol keyword of RFC 3848 and RFC 6531 4.3: ``ESMTPS``, ``UTF8SMTPSA``, ``LMTP``, ..."""
    if not (session.extended_smtp or lmtp):
        return "SMTP"
    prefix = "UTF8" if envelope.smtp_utf8 else "" if lmtp else "E"
    protocol = "LMTP" if lmtp else "SMTP"
    return f"{prefix}{protocol}{'S' if session.ssl else ''}{'A' if session.authenticated else ''}"


def x_fields(session: Session, envelope: Envelope) -> tuple[tuple[str, str], ...]:
    """Return the names and values of X-Peer, X-MailFrom and X-RcptTo, each value in one line."""
    return (
        ("X-Peer", _printable(str(session.peer))),
        ("X-MailFrom", _printable(envelope.mail_from or "")),
        ("X-RcptTo", _printable(", ".join(envelope.rcpt_tos))),
    )


def peer_and_paths(session: Session, envelope: Envelope) -> bytes:
    """Return X-Peer, X-MailFrom and X-RcptTo as octets. Many recipients get one line each.

    A value that is not ASCII, or that looks like an encoded word, is encoded (RFC 2047), so that decoding it yields
    exactly what the client sent; Python's email package cannot read plain UTF-8.
    """
    return "".join(_field(name, value) for name, value in x_fields(session, envelope)).encode()


def _field(name: str, value: str) -> str:
    if ENCODED_WORD in value or not value.isascii():
        return Verbatim(name, value).fold(policy=compat32)
    if len(value) > FOLD_ABOVE:
        value = value.replace(", ", ",\n ")
    return f"{name}: {value}\n"


class ForgeryFilter:
    """Removes the client's fields that look like trace header fields. It is fed with the message in pieces.

    It buffers no more than the beginning of a line.

    :param newline: the line end of the header.
    """

    def __init__(self, newline: bytes = b"\n") -> None:
        self._newline = newline
        self._cr = b""  # the CR at the end of the last piece, if an LF may follow
        self._begun = False
        self._over = False  # whether the header is over
        self._forged = False  # whether the field at the end of the last piece is a forgery
        self._in_line = False  # whether the last piece ended within a line that was already returned or dropped
        self._line = b""  # the beginning of a line that was neither returned nor dropped yet

    def feed(self, piece: bytes) -> bytes:
        """Return what may be written of the next piece."""
        if self._over:
            return piece
        text = self._line + self._cr + piece
        self._line = self._cr = b""
        newline = self._newline
        if newline == b"\r\n" and text.endswith(b"\r"):
            text, self._cr = text[:-1], b"\r"
        if not text:
            return b""
        if not self._begun:
            self._begun = True
            if text.startswith((b" ", b"\t")):
                # A folded line without a field before it would continue ours. It is not a header but the body.
                self._over = True
                cr, self._cr = self._cr, b""
                return newline + text + cr
        starts_with_empty_line = text.startswith(newline) and not self._in_line
        end = -1 if starts_with_empty_line else text.find(newline + newline)
        if end >= 0 or starts_with_empty_line:
            self._over = True
            end = end + len(newline) if end >= 0 else 0
            cr, self._cr = self._cr, b""
            return self._cleaned(text[:end]) + text[end:] + cr
        last = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        begins_line = last > 0 or not self._in_line
        if begins_line and (len(text) - last < TELLING or _PERHAPS.match(text, last)):
            text, self._line = text[:last], text[last:]
        return self._cleaned(text)

    def close(self) -> bytes:
        """Return what may be written at the end of the message."""
        line, self._line = self._line, b""
        cr, self._cr = self._cr, b""
        return (self._cleaned(line) if b":" in line or line.startswith((b" ", b"\t")) else line) + cr

    def _cleaned(self, header: bytes) -> bytes:
        """Return a piece of the header without forgeries."""
        if not header:
            return b""
        rest = (_REST_OF_FIELD if self._in_line else _FOLDED_LINES).match(header)
        assert rest is not None
        kept = [b"" if self._forged else rest[0]]
        fields = header[rest.end() :]
        if fields:
            position = 0
            lowered = fields.lower()
            if any(name in lowered for name in _OURS):
                for forgery in _FORGERY.finditer(fields):
                    kept.append(fields[position : forgery.start()])
                    position = forgery.end()
            kept.append(fields[position:])
            self._forged = position == len(fields)
        self._in_line = not header.endswith((b"\n", b"\r"))
        return b"".join(kept)


def without_forgeries(message: bytes, newline: bytes = b"\n") -> bytes:
    """Return the message to put after a trace header: without the client's fields that look like ours.

    :param message: a whole message.
    :param newline: its line end.
    """
    forgeries = ForgeryFilter(newline)
    return forgeries.feed(message) + forgeries.close()


def _path(path: str) -> str:
    """Return a path in angle brackets. Text that looks like an encoded word is written as an equivalent quoted-string,
    because mail programs may decode it although none is allowed there (RFC 2047 5)."""
    path = _printable(path)
    if ENCODED_WORD not in path:
        return path
    local, at, domain = path.rpartition("@")
    if not local.startswith('"'):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}{at}{domain}".replace(ENCODED_WORD, "=\\?")


def _printable(text: str) -> str:
    return text if text.isprintable() else _UNPRINTABLE.sub("?", text)


@lru_cache(maxsize=256)
def _host(name: str) -> str:
    # No space, parenthesis or semicolon: they would end the clause, and the client could add another.
    return _NO_HOST.sub("?", name[:LONGEST_NAME])


def _address_literal(peer: object) -> str | None:
    """Return the client's address as an address literal (RFC 5321 4.1.3), or None if it has none."""
    if not (isinstance(peer, tuple | list) and peer and isinstance(peer[0], str) and peer[0]):
        return None
    address = peer[0].partition("%")[0]  # RFC 5321 has no IPv6 zones
    return f"[{'IPv6:' if ':' in address else ''}{_host(address)}]"


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, localtime=True)
