"""Print a session, for examples and for a first look at a handler. It runs in memory: no ports, no waiting.

Tests that check replies use :class:`~txsmtpd.testing.memory.MemorySession` or :class:`~txsmtpd.testing.dialog.Dialog`.
"""

from __future__ import annotations

from twisted.internet.interfaces import IAddress

from txsmtpd.testing.memory import PEER, MemorySession


def talk(server: object = None, *lines: str, peer: IAddress = PEER) -> None:
    """Connect to a server in memory, send it lines one by one, and print both sides of the session.

    :param server: a handler, or a factory.
    :param lines: what the client (``C:``) sends, without line ends: commands, and the lines of messages as they are on
        the wire.
    :param peer: the client's address.
    :raises TypeError: if a line is not a string.

    >>> talk(None, "NOOP", "QUIT")  # doctest: +ELLIPSIS
    S: 220 ... ESMTP txsmtpd
    C: NOOP
    S: 250 2.0.0 OK
    C: QUIT
    S: 221 2.0.0 Goodbye
    (closed)
    """
    for line in lines:
        if not isinstance(line, str):
            raise TypeError(f"a line is a string without a line end, not {line!r}")
    session = MemorySession(server, peer=peer)
    _print_replies(session.welcome)
    for line in lines:
        print(f"C: {line}".rstrip())
        _print_replies(session.talk(line.encode() + b"\r\n"))
    if session.closed:
        print("(closed)")
    else:
        session.vanish()


def _print_replies(octets: bytes) -> None:
    for line in octets.decode().split("\r\n")[:-1]:
        print(f"S: {line}".rstrip())
