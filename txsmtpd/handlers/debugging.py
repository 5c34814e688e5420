"""Debugging: shows each message to a person. Nothing is stored."""

from __future__ import annotations

import re
import sys
from typing import Any, Self, TextIO

from txsmtpd.session import Envelope, Session

# What would move the cursor, change the colours or do worse on a terminal. Tabs are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class Debugging:
    """Print each message.

    :param stream: where to. Default: standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make it on the command line, from nothing, ``stdout`` or ``stderr``."""
        if len(args) > 1 or (args and args[0] not in ("stdout", "stderr")):
            parser.error(f"{cls.__name__} takes stdout or stderr, not {':'.join(args)!r}")
        return cls(sys.stderr if args == ("stderr",) else sys.stdout)

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        lines = ["---------- MESSAGE FOLLOWS ----------"]
        if envelope.mail_options:
            lines.append(f"mail options: {envelope.mail_options}")
        if any(envelope.rcpt_options):
            lines.append(f"rcpt options: {envelope.rcpt_options}")
        if len(lines) > 1:
            lines.append("")
        lines += _message_lines(envelope.content, f"X-Peer: {session.peer!r}")
        lines += ["------------ END MESSAGE ------------", ""]
        self.stream.write(_for_stream(self.stream, "\n".join(lines)))
        self.stream.flush()
        return "250 2.0.0 OK"


def _message_lines(content: bytes | str | None, last_field: str) -> list[str]:
    """The lines of a message, with one more field at the end of its header."""
    octets = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content or b""
    lines = [_CONTROL.sub(_escaped, line.decode("utf-8", "replace")) for line in octets.splitlines()]
    if "" in lines:
        lines.insert(lines.index(""), last_field)
    return lines


def _escaped(control: re.Match[str]) -> str:
    return f"\\x{ord(control[0]):02x}"


def _for_stream(stream: TextIO, text: str) -> str:
    """The text with what the stream cannot encode escaped: nobody's mail is refused for our terminal."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
