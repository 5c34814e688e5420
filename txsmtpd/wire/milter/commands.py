"""Packets, the commands of the server, and the negotiation with which a connection begins."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

VERSION = 6
OLDEST_VERSION = 2
MAX_CHUNK = 65535  # octets of the body in one packet, as libmilter sends and takes them
MAX_PACKET = 2**20 + 1  # octets; libmilter sends no body larger than MAX_CHUNK, and a header field may be longer

LENGTH = struct.Struct("!I")
NEGOTIATION = struct.Struct("!III")


class MilterError(ValueError):
    """A filter has broken the protocol."""


class Actions(IntFlag):
    """What a filter may do to a message."""

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
    """Which commands a filter does not want (NO), which it does not answer (SILENT), and what else it agrees to."""

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
OFFERED_STEPS = ALL_STEPS & ~Steps.REJECTED_RCPT  # filters are told of recipients that the server has accepted
STEPS_OF_VERSION: Mapping[int, Steps] = {
    2: Steps(0x7F),
    3: Steps(0x17F),
    4: Steps(0x37F),
    5: Steps(0x37F),
    6: ALL_STEPS,
}
"""The steps that each version of the protocol knows. A command that a version has no step for must not be sent."""


class Stage(IntEnum):
    """The stages for which a filter can choose the macros that it wants."""

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
    """The octets of a packet."""
    return LENGTH.pack(1 + len(data)) + command + data


def negotiate(actions: Actions = ALL_ACTIONS, steps: Steps = OFFERED_STEPS, version: int = VERSION) -> bytes:
    """Offer a version, actions and steps; the first packet of a connection."""
    return packet(NEGOTIATE, NEGOTIATION.pack(version, actions, steps))


def macros(command: bytes, values: Iterable[tuple[str, str]]) -> bytes:
    """Tell the macros for the command that follows.

    :param values: name and value of each; a name of more than one letter is put into braces.
    """
    return packet(MACROS, command + b"".join(_string(_macro_name(name)) + _string(value) for name, value in values))


def connect(hostname: str, host: str | None, port: int = 0) -> bytes:
    """A client has connected.

    :param hostname: its name in the DNS, or its address in brackets.
    :param host: its IPv4 or IPv6 address, or the path of a Unix socket (which may be empty); None: unknown.
    """
    if host is None:
        return packet(CONNECT, _string(hostname) + b"U")
    family = b"6" if ":" in host else b"4" if host[:1].isdigit() else b"L"
    return packet(CONNECT, _string(hostname) + family + struct.pack("!H", port) + _string(host))


def helo(hostname: str) -> bytes:
    """HELO, EHLO or LHLO."""
    return packet(HELO, _string(hostname))


def mail(reverse_path: str, parameters: Iterable[str] = ()) -> bytes:
    """MAIL; the path without its angle brackets."""
    return packet(MAIL, b"".join(map(_string, (f"<{reverse_path}>", *parameters))))


def rcpt(forward_path: str, parameters: Iterable[str] = ()) -> bytes:
    """RCPT; the path without its angle brackets."""
    return packet(RCPT, b"".join(map(_string, (f"<{forward_path}>", *parameters))))


def header(name: bytes, value: bytes) -> bytes:
    """A header field.

    :param value: its lines separated by CRLF or LF. A filter is given them separated by LF.
    """
    return packet(HEADER, _octets(name) + _octets(value.replace(b"\r\n", b"\n")))


def body(chunk: bytes) -> bytes:
    """A part of the body, of at most `MAX_CHUNK` octets."""
    return packet(BODY, chunk)


def unknown(line: bytes) -> bytes:
    """A command line that the server does not know."""
    return packet(UNKNOWN, _octets(line))


def _macro_name(name: str) -> str:
    return name if len(name) == 1 or name.startswith("{") else f"{{{name}}}"


def _string(text: str) -> bytes:
    return _octets(text.encode("utf-8", "surrogateescape"))


def _octets(octets: bytes) -> bytes:
    # A NUL would end the string, and what follows would be read as the next one.
    return octets.replace(b"\0", b"") + b"\0"


# Packets of the filter


class PacketReader:
    """Cuts what a filter sends into packets. Holds at most one packet that is not complete.

    :param limit: octets that a packet may have.
    """

    def __init__(self, limit: int = MAX_PACKET) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Take octets; return command and data of each packet that is complete now.

        :raises MilterError: if a packet is empty or too long. The reader must not be used any more.
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
    """What a filter has agreed to."""

    version: int
    actions: Actions
    steps: Steps
    macros: Mapping[Stage, tuple[str, ...]] = field(default_factory=dict)
    """The names of the macros that it wants at a stage, where it has chosen them. One letter, or in braces."""


def parse_negotiation(
    data: bytes, offered: Actions = ALL_ACTIONS, offered_steps: Steps = OFFERED_STEPS, version: int = VERSION
) -> Negotiation:
    """Read the filter's answer to :func:`negotiate`.

    Steps that were not offered are left out, as Postfix does: some filters ask for all that they know.

    :raises MilterError: if it is malformed, or the filter wants to do what was not offered.
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
            raise MilterError("a list of macros that is cut off")
        (stage,) = LENGTH.unpack_from(data)
        names, nul, data = data[LENGTH.size :].partition(b"\0")
        if not nul:
            raise MilterError("a list of macros without its end")
        if stage in Stage.__members__.values():  # others are of versions that do not exist yet
            chosen[Stage(stage)] = tuple(names.decode("ascii", "replace").replace(",", " ").split())
    return chosen
