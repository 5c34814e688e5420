r"""Writes a session as a dialog file for :class:`~txsmtpd.testing.dialog.Dialog`: the client's lines, and the
beginnings of the replies.

Credentials are masked in a transcript, and a dialog file cannot express TLS. A dialog with either says so in a comment
and has to be completed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from txsmtpd.inbox.store import SessionRecord

_REPLY = re.compile(r"([2-5][0-9][0-9])[ -]?([245]\.[0-9]{1,3}\.[0-9]{1,3})?")
_BDAT = re.compile(r"BDAT ([0-9]{1,12})(?: LAST)?", re.IGNORECASE)


def dialog_of(session: SessionRecord, records: Iterable[dict[str, Any]], contents: Sequence[bytes]) -> str:
    """Return the dialog.

    :param records: the transcript, as :func:`~txsmtpd.inbox.sessions.records_of` returns it.
    :param contents: the messages of the session, in order.
    """
    lines = [f"# Session {session.id}"]
    messages = list(contents)
    chunks = b""  # the rest of the message, not yet sent in a BDAT chunk
    in_chunks = False
    for record in records:
        kind, text = record["kind"], str(record["text"])
        if kind == "client":
            in_chunks = _BDAT.match(text) is not None
            lines += _said(text)
        elif kind == "server":
            lines.append(f"S: {_begins(text)}")
        elif kind == "data":
            octets = int(text.split()[0])
            if in_chunks:
                if not chunks and messages:
                    chunks = messages.pop(0)
                lines += _chunk(chunks[:octets] if chunks else b"x" * octets)
                chunks = chunks[octets:]
            else:
                lines += _data(messages.pop(0) if messages else b"", octets)
        elif kind == "closed":
            lines.append("S.")
        elif kind in ("tls", "gap", "failure", "fault"):
            lines.append(f"# {_one_line(text)}")
    return "\n".join(lines) + "\n"


def _said(text: str) -> list[str]:
    note = ["# What follows was masked; put credentials in its place."] if "***" in text or "masked" in text else []
    return [*note, f"C: {_escaped(text.encode('utf-8', 'replace'))}"]


def _begins(reply: str) -> str:
    """Return the part of a reply that does not vary: its codes."""
    match = _REPLY.match(reply)
    if match is None:
        return _one_line(reply)
    return f"{match[1]} {match[2]}" if match[2] else match[1]


def _data(content: bytes, octets: int) -> list[str]:
    """Return the lines after DATA, dot-stuffed (RFC 5321 4.5.2)."""
    if not content:
        return [f"# {octets} octets that were not kept", "C: Subject: not kept", "C: ", "C: ."]
    lines = content.removesuffix(b"\r\n").split(b"\r\n")
    return [f"C: {_escaped(b'.' + line if line.startswith(b'.') else line)}" for line in lines] + ["C: ."]


def _chunk(octets: bytes) -> list[str]:
    return [f"C< {_escaped(line)}" for line in octets.splitlines(keepends=True)]


def _escaped(octets: bytes) -> str:
    r"""Return bytes as in a dialog file, with unprintable ones as ``\x..``."""
    text = octets.decode("latin-1")
    return "".join(c if " " <= c <= "~" and c != "\\" else c.encode("unicode_escape").decode("ascii") for c in text)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
