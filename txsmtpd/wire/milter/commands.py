"""Packets, the commands of the server, and the negotiation at the start of a connection."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

VERSION = 6
OLDEST_VERSION = 2
MAX_CHUNK = 65535  # octets of the body in one packet, as in libmilter
MAX_PACKET = 2**20 + 1  # octets; libmilter sends no body larger than MAX_CHUNK, and a header field may be longer

LENGTH = struct.Struct("!I")
NEGOTIATION = struct.Struct("!III")


class MilterError(ValueError):
    """A filter has violated the protocol."""


class Actions(IntFlag):
    """Changes that a filter may make to a message."""

    ADD_HEADERS = 0x01
    CHANGE_BODY = 0x02
    ADD_RECIPIENTS = 0x04
    REMOVE_RECIPIENTS = 0x08
    CHANGE_HEADERS = 0x10
    QUARANTINE = 0x20
    CHANGE_SENDER = 0x40
    ADD_RECIPIENTS_WITH_PARAMETERS = 0x80
    CHOOSE_MACROS = 0x100


class Steps(IntFlag):
    """Commands that a filter does not want (NO) or does not answer (SILENT), and other options of the protocol."""

    NO_CONNECT = 0x01
    NO_HELO = 0x02
    NO_MAIL = 0x04
    NO_RCPT = 0x08
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_END_OF_HEADERS = 0x40
    SILENT_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    REJECTED_RCPT = 0x800
    SILENT_CONNECT = 0x1000
    SILENT_HELO = 0x2000
    SILENT_MAIL = 0x4000
    SILENT_RCPT = 0x8000
    SILENT_DATA = 0x10000
    SILENT_UNKNOWN = 0x20000
    SILENT_END_OF_HEADERS = 0x40000
    SILENT_BODY = 0x80000
    LEADING_SPACE = 0x100000


ALL_ACTIONS = Actions(0x1FF)
ALL_STEPS = Steps(0x1FFFFF)
OFFERED_STEPS = ALL_STEPS & ~Steps.REJECTED_RCPT  # filters see only recipients that the server has accepted
STEPS_OF_VERSION: Mapping[int, Steps] = {
    2: Steps(0x7F),
    3: Steps(0x17F),
    4: Steps(0x37F),
    5: Steps(0x37F),
    6: ALL_STEPS,
}
"""The steps in each version of the protocol. Commands whose step is not in the negotiated version must not be sent."""


class Stage(IntEnum):
    """The stages for which a filter can request macros."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    END_OF_MESSAGE = 5
    END_OF_HEADERS = 6


# Commands of the server

ABORT: Final = b"A"
BODY: Final = b"B"
CONNECT: Final = b"C"
MACROS: Final = b"D"
END_OF_MESSAGE: Final = b"E"
HELO: Final = b"H"
QUIT_AND_REUSE: Final = b"K"
HEADER: Final = b"L"
MAIL: Final = b"M"
END_OF_HEADERS: Final = b"N"
NEGOTIATE: Final = b"O"
QUIT: Final = b"Q"
RCPT: Final = b"R"
DATA: Final = b"T"
UNKNOWN: Final = b"U"


def packet(command: bytes, data: bytes = b"") -> bytes:
    """Return the octets of a packet."""
    return LENGTH.pack(1 + len(data)) + command + data


def negotiate(actions: Actions = ALL_ACTIONS, steps: Steps = OFFERED_STEPS, version: int = VERSION) -> bytes:
    """Offer a version, actions and steps, in the first packet of a connection."""
    return packet(NEGOTIATE, NEGOTIATION.pack(version, actions, steps))


def macros(command: bytes, values: Iterable[tuple[str, str]]) -> bytes:
    """Send macros, before the command that they belong to.

    :param command: that command.
    :param values: the name and value of each macro. Braces are added to names of more than one letter.
    """
    return packet(MACROS, command + b"".join(_string(_macro_name(name)) + _string(value) for name, value in values))


def connect(hostname: str, host: str | None, port: int = 0) -> bytes:
    """Report a new client.

    :param hostname: its name in the DNS, or its address in brackets.
    :param host: its IPv4 or IPv6 address, or the path of a Unix socket, which may be empty; None: unknown.
    """
    if host is None:
        return packet(CONNECT, _string(hostname) + b"U")
    family = b"6" if ":" in host else b"4" if host[:1].isdigit() else b"L"
    return packet(CONNECT, _string(hostname) + family + struct.pack("!H", port) + _string(host))


def helo(hostname: str) -> bytes:
    """Report HELO, EHLO or LHLO."""
    return packet(HELO, _string(hostname))


def mail(reverse_path: str, parameters: Iterable[str] = ()) -> bytes:
    """Report MAIL. The path has no angle brackets."""
    return packet(MAIL, b"".join(map(_string, (f"<{reverse_path}>", *parameters))))


def rcpt(forward_path: str, parameters: Iterable[str] = ()) -> bytes:
    """Report RCPT. The path has no angle brackets."""
    return packet(RCPT, b"".join(map(_string, (f"<{forward_path}>", *parameters))))


def header(name: bytes, value: bytes) -> bytes:
    """Send a header field.

    :param value: its lines may be separated by CRLF or LF. They are sent with LF.
    """
    return packet(HEADER, _octets(name) + _octets(value.replace(b"\r\n", b"\n")))


def body(chunk: bytes) -> bytes:
    """Send a part of the body, of at most `MAX_CHUNK` octets."""
    return packet(BODY, chunk)


def unknown(line: bytes) -> bytes:
    """Report an unknown command line."""
    return packet(UNKNOWN, _octets(line))


def _macro_name(name: str) -> str:
    return name if len(name) == 1 or name.startswith("{") else f"{{{name}}}"


def _string(text: str) -> bytes:
    return _octets(text.encode("utf-8", "surrogateescape"))


def _octets(octets: bytes) -> bytes:
    # A NUL would end the string, and the rest would be read as the next string.
    return octets.replace(b"\0", b"") + b"\0"


# Packets of the filter


class PacketReader:
    """Splits the octets from a filter into packets. Buffers at most one incomplete packet.

    :param limit: maximum size of a packet in octets.
    """

    def __init__(self, limit: int = MAX_PACKET) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Process received octets, and return the command and the data of each complete packet.

        :raises MilterError: if a packet is empty or too long. Do not use the reader after that.
        """
        buffer = self._buffer
        buffer += data
        found = []
        start = 0
        while len(buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, start)
            if not 0 < length <= self._limit:
                raise MilterError(f"a packet of {length} octets")
            end = start + LENGTH.size + length
            if len(buffer) < end:
                break
            begins = start + LENGTH.size
            found.append((bytes(buffer[begins : begins + 1]), bytes(buffer[begins + 1 : end])))
            start = end
        del buffer[:start]
        return found


@dataclass(frozen=True, slots=True)
class Negotiation:
    """The result of a negotiation."""

    version: int
    actions: Actions
    steps: Steps
    macros: Mapping[Stage, tuple[str, ...]] = field(default_factory=dict)
    """The names of the macros that the filter requests at a stage: one letter, or a name in braces. Stages without a
    request are missing."""


def parse_negotiation(
    data: bytes, offered: Actions = ALL_ACTIONS, offered_steps: Steps = OFFERED_STEPS, version: int = VERSION
) -> Negotiation:
    """Parse the filter's answer to :func:`negotiate`.

    Steps that were not offered are ignored, as in Postfix: some filters request all steps that they know.

    :raises MilterError: if it is malformed, or requests an action that was not offered.
    """
    if len(data) < NEGOTIATION.size:
        raise MilterError("a negotiation that is too short")
    theirs, actions, steps = NEGOTIATION.unpack_from(data)
    if not OLDEST_VERSION <= theirs <= version:
        raise MilterError(f"version {theirs} of the protocol")
    if actions & ~int(offered):
        raise MilterError(f"actions that were not offered: {actions & ~int(offered):#x}")
    return Negotiation(theirs, Actions(actions), Steps(steps) & offered_steps, _chosen_macros(data[NEGOTIATION.size :]))


def _chosen_macros(data: bytes) -> dict[Stage, tuple[str, ...]]:
    chosen = {}
    while data:
        if len(data) < LENGTH.size:
            raise MilterError("a truncated list of macros")
        (stage,) = LENGTH.unpack_from(data)
        names, nul, data = data[LENGTH.size :].partition(b"\0")
        if not nul:
            raise MilterError("an unterminated list of macros")
        if stage in Stage.__members__.values():  # ignore the stages of later versions
            chosen[Stage(stage)] = tuple(names.decode("ascii", "replace").replace(",", " ").split())
    return chosen
