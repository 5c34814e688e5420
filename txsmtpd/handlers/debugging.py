"""Debugging: prints each message. Nothing is stored."""

from __future__ import annotations

import sys
from typing import Any, Self, TextIO

from txsmtpd.handlers.off_thread import OffThread
from txsmtpd.log.events import client_text
from txsmtpd.log.printable import printable, printable_lines
from txsmtpd.mime import parse_message
from txsmtpd.session import Envelope, Session

STREAMS = ("stdout", "stderr")
FIELDS = ("Date", "From", "To", "Cc", "Reply-To", "Subject", "Message-ID")
TEXT = 4000  # characters of text in a summary, at most
ATTACHMENTS = 20


class Debugging:
    """Print each message: its source, or a summary on a terminal.

    :param stream: where to print. Default: ``sys.stdout`` at the time of the message.
    :param raw: whether to print the source. Default: True unless the stream is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, raw: bool | None = None) -> None:
        self._stream = stream
        self._default = "stdout"
        self.raw = raw
        self._off_thread = OffThread()

    @property
    def stream(self) -> TextIO:
        """Where messages are printed."""
        if self._stream is not None:
            return self._stream
        stream: TextIO = getattr(sys, self._default)
        return stream

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make it on the command line, from ``stdout`` or ``stderr``, and ``raw`` or ``summary``; or nothing."""
        self = cls()
        for position, word in enumerate(args):
            if word in STREAMS and position == 0:
                self._default = word
            elif word in ("raw", "summary") and position == len(args) - 1:
                self.raw = word == "raw"
            else:
                parser.error(f"{cls.__name__} takes stdout or stderr, and raw or summary, not {':'.join(args)!r}")
        return self

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        stream = self.stream
        raw = not stream.isatty() if self.raw is None else self.raw
        describe = _source if raw else _summary
        text = await self._off_thread.run(server, envelope, describe, session, envelope)
        stream.write(_for_stream(stream, text))
        stream.flush()
        return "250 2.0.0 OK"


def _source(session: Session, envelope: Envelope) -> str:
    """Return the message as received, between two lines, with a field added to its header."""
    parameters = []
    if envelope.mail_options:
        parameters.append(f"mail options: {envelope.mail_options}")
    if any(envelope.rcpt_options):
        parameters.append(f"rcpt options: {envelope.rcpt_options}")
    above = "".join(f"{line}\n" for line in [*parameters, ""]) if parameters else ""
    text = printable_lines(_octets(envelope).replace(b"\r\n", b"\n").decode("utf-8", "replace"))
    if text and not text.endswith("\n"):
        text += "\n"
    peer = f"X-Peer: {session.peer!r}\n"
    text = peer + text if text.startswith("\n") else text.replace("\n\n", f"\n{peer}\n", 1)
    return f"---------- MESSAGE FOLLOWS ----------\n{above}{text}------------ END MESSAGE ------------\n"


def _summary(session: Session, envelope: Envelope) -> str:
    """Return a readable summary of a message."""
    octets = _octets(envelope)
    message = parse_message(octets)
    recipients = ", ".join(f"<{path}>" for path in envelope.rcpt_tos)
    client = client_text(session.peer)
    lines = [f"Envelope: from <{envelope.mail_from}> to {recipients}, {len(octets):,} octets, client {client}"]
    lines += [f"{name}: {value}" for name in FIELDS for value in message.headers.get_all(name)]
    lines = [printable(line[:1000]) for line in lines]
    text = message.text.strip("\n")
    lines += ["", printable_lines(text[:TEXT])] if text else []
    if len(text) > TEXT:
        lines.append(f"[{len(text) - TEXT:,} characters more]")
    attachments = message.attachments
    for each in attachments[:ATTACHMENTS]:
        name = printable(each.name or "without a name")
        lines.append(f"[Attachment: {name}, {printable(each.type)}, {len(each.content):,} octets]")
    if len(attachments) > ATTACHMENTS:
        lines.append(f"[{len(attachments) - ATTACHMENTS} attachments more]")
    rule = "-" * 72
    return "\n".join([rule, *lines, rule, ""])


def _octets(envelope: Envelope) -> bytes:
    content = envelope.content
    return content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content or b""


def _for_stream(stream: TextIO, text: str) -> str:
    """Escape the characters that the stream cannot encode, so that the terminal's encoding causes no errors."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
