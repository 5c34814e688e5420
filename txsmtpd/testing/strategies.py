"""Hypothesis strategies for SMTP sessions: commands, messages, mistakes, and arbitrary octets.

For property tests of handlers and servers. Only this module needs hypothesis. The number of replies is that of a server
without limits and delays for errors::

    @given(sessions(), cuts())
    def test_anySession(self, session, cuts):
        client = MemorySession(SMTPFactory(MyHandler(), error_limit=None, error_delay=0, junk_command_limit=None))
        replies = read_replies(client.welcome + client.talk(session.octets, cuts))
        finals = [reply for reply in replies if reply.code // 100 != 3]
        self.assertEqual(len(finals), session.replies)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as some
from hypothesis.strategies import SearchStrategy

LINES = (
    b"NOOP",
    b"NOOP x",
    b"RSET",
    b"EHLO again",
    b"HELO again",
    b"VRFY a@b",
    b"VRFY",
    b"HELP",
    b"HELP MAIL",
    b"EXPN x",
    b"FOO",
    b"",
    b"NOOP \x00",
    b"MAIL FROM:<a@b> FOO=1",
    b"MAIL FROM:<a b>",
    b"RCPT TO:<>",
    b"MAIL FROM:<no@b>",
    b"DATA now",
    b"EHLO",
    b"NOOP " + b"x" * 600,
    b"\xff",
    b"RCPT TO:<no@b>",
    b"MAIL FROM:<a@b> BODY=9",
)
"""Commands, valid and invalid, that have one reply each and no message after them."""

ADDRESSES = (b"c@d", b"no@d", b"<e@f>", b"<Postmaster>")
"""Recipients, with and without angle brackets; one begins with ``no``, so that handlers may refuse it."""

BODY_LINES = (b"text", b"", b"..", b"...x", b"QUIT", b"\0", b"a\nb", b"\r", b"\n.", b"x" * 99)
"""Lines of messages, with their dots doubled; some are malformed."""

WORDS = (
    b"EHLO x",
    b"MAIL FROM:",
    b"RCPT TO:",
    b"<a@b>",
    b"<>",
    b"DATA",
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b".",
    b"\r\n.\r\n",
    b"QUIT",
    b"RSET",
    b"NOOP",
    b" ",
    b"SIZE=1",
    b"BDAT 5",
    b"BDAT 3 LAST\r\nabc",
    b"GET /",
    b"x: y",
    b"\0",
    b"\xff",
    b"\x16",
    b"\x80",
    b"HELP",
    b"VRFY a",
    b'"',
    b"\\",
    b"x" * 300,
    b"X" * 2000,
)
"""Octets that look like SMTP."""

_OPENING = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"


@dataclass(frozen=True)
class Block:
    """Octets that a client sends together, and the number of final replies (2yz, 4yz or 5yz) to them."""

    octets: bytes
    replies: int


def lines() -> SearchStrategy[Block]:
    """Single lines with CRLF."""
    return some.sampled_from(LINES).map(lambda line: Block(line + b"\r\n", 1))


def bare_lines() -> SearchStrategy[Block]:
    """Single lines with LF alone."""
    return some.sampled_from(LINES).map(lambda line: Block(line + b"\n", 1))


def recipients() -> SearchStrategy[list[bytes]]:
    """The recipients of a message, if it has any."""
    return some.lists(some.sampled_from(ADDRESSES), max_size=3)


def body_lines() -> SearchStrategy[list[bytes]]:
    """The lines of a message, as they are sent."""
    return some.lists(some.sampled_from(BODY_LINES))


def messages() -> SearchStrategy[Block]:
    """Messages sent with DATA, each in its own transaction."""
    return some.builds(_message, recipients(), body_lines())


def chunked_messages() -> SearchStrategy[Block]:
    """Messages sent with BDAT, each in its own transaction."""
    return some.builds(_chunked, some.lists(some.binary(max_size=40), max_size=3))


def blocks(max_size: int = 12) -> SearchStrategy[list[Block]]:
    """All of these, in any order, for the inside of a session."""
    return some.lists(some.one_of(lines(), bare_lines(), messages(), chunked_messages()), max_size=max_size)


def sessions(max_size: int = 12) -> SearchStrategy[Block]:
    """Whole sessions: EHLO, blocks, and usually QUIT. The greeting counts as a reply."""
    return some.builds(_session, blocks(max_size), some.booleans())


def cuts() -> SearchStrategy[list[int]]:
    """Positions at which the octets of a session are cut into segments."""
    return some.lists(some.integers(1, 3000), max_size=12)


def octets() -> SearchStrategy[bytes]:
    """Arbitrary octets, or octets similar to SMTP, at the beginning or within a message."""
    nearly = some.lists(some.sampled_from(WORDS), max_size=40).map(b"".join)
    return some.one_of(
        some.binary(max_size=300), nearly, nearly.map(_OPENING.__add__), nearly.map(_OPENING[:8].__add__)
    )


def _message(paths: Sequence[bytes], body: Sequence[bytes]) -> Block:
    paths = [*paths, b"last@d"]
    commands = b"RSET\r\nMAIL FROM:<a@b>\r\n" + b"".join(b"RCPT TO:%b\r\n" % each for each in paths)
    data = b"DATA\r\n" + b"".join(line + b"\r\n" for line in body) + b".\r\n"
    return Block(commands + data, 2 + len(paths) + 1)


def _chunked(chunks: Sequence[bytes]) -> Block:
    commands = b"RSET\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
    data = b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in chunks) + b"BDAT 0 LAST\r\n"
    return Block(commands + data, 3 + len(chunks) + 1)


def _session(inside: Sequence[Block], farewell: bool) -> Block:
    octets = b"EHLO client.test\r\n" + b"".join(block.octets for block in inside) + b"QUIT\r\n" * farewell
    return Block(octets, 2 + sum(block.replies for block in inside) + farewell)
