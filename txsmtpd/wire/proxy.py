"""Parse the PROXY header, in which a proxy names the client of a connection (the PROXY protocol, versions 1 and 2).
Both versions are in one file, since one reader handles both.

Octets only: trust and timeouts are handled elsewhere. "The spec" is HAProxy's ``doc/proxy-protocol.txt``; numbers in
comments are its sections.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar

V1_LIMIT = 107  # octets with the CRLF: the longest line that can be written (2.1)
V2_LIMIT = 16384  # octets: the size of HAProxy's buffer. The length field would allow 65,551 (2.2)
V1_SIGNATURE = b"PROXY"
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED = 16  # octets up to the addresses

_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]{1,45}")  # without a zone, which ipaddress would accept


class V2_CMD(IntEnum):
    """The purpose of the connection (2.2): for the proxy itself, or for a client."""

    LOCAL = 0
    PROXY = 1


class AF(IntEnum):
    """The family of the addresses (2.2)."""

    UNSPEC = 0
    INET = 1
    INET6 = 2
    UNIX = 3
    IP4 = 1
    IP6 = 2


class PROTO(IntEnum):
    """The transport protocol of the client (2.2)."""

    UNSPEC = 0
    STREAM = 1
    DGRAM = 2


ADDRESS_OCTETS = {AF.INET: 4, AF.INET6: 16, AF.UNIX: 108}
PORT_OCTETS = {AF.INET: 2, AF.INET6: 2, AF.UNIX: 0}


class MalformedTLV(RuntimeError):
    """The length of a TLV is not valid."""


class UnknownTypeTLV(KeyError):
    """A TLV has a type without a name."""


_NOTHING = object()


def _same(found: Any, name: str, expected: object, raises: bool) -> bool:
    if found is _NOTHING:
        if raises:
            raise KeyError(f"notfound:{name}")
        return False
    if found != expected:
        if raises:
            raise ValueError(f"mismatch:{name} actual={found!r} expect={expected!r}")
        return False
    return True


class ProxyTLV(dict[str, Any]):
    """The additional values (TLVs) in a version 2 header (2.2.1 to 2.2.7): bytes by the name of their type.

    Each is an attribute too, which is None if the value is missing. Types without a name are called ``xNN``, in
    hexadecimal. The parts of ``SSL`` are separate items: ``SSL_CLIENT`` and ``SSL_VERIFY`` are numbers, ``SSL_VERSION``
    and the others are bytes. ``SSL`` itself is True if all parts could be parsed.
    """

    __slots__ = ("tlv_loc",)

    PP2_TYPENAME: ClassVar[dict[int, str]] = {
        0x01: "ALPN",
        0x02: "AUTHORITY",
        0x03: "CRC32C",
        0x04: "NOOP",
        0x05: "UNIQUE_ID",
        0x20: "SSL",
        0x21: "SSL_VERSION",
        0x22: "SSL_CN",
        0x23: "SSL_CIPHER",
        0x24: "SSL_SIG_ALG",
        0x25: "SSL_KEY_ALG",
        0x30: "NETNS",
    }

    tlv_loc: dict[str, int]  #: the offset of each TLV, including its type and length, from the first TLV

    def __init__(self, *args: Any, _tlv_loc: dict[str, int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tlv_loc = _tlv_loc

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def same_attribs(self, _raises: bool = False, **kwargs: object) -> bool:
        """Return True if all these values are present and equal.

        :param _raises: raise KeyError or ValueError instead of returning False.
        """
        return all(_same(self.get(name, _NOTHING), name, value, _raises) for name, value in kwargs.items())

    @classmethod
    def parse(
        cls, data: bytes | bytearray, partial_ok: bool = True, strict: bool = False
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Parse TLVs.

        :param partial_ok: return the TLVs before the first malformed one instead of raising.
        :param strict: raise UnknownTypeTLV for a type without a name.
        :return: the values by name, and their offsets by name.
        :raises MalformedTLV: if the length of one is not valid.
        :raises UnknownTypeTLV: if *strict*.
        """
        values: dict[str, Any] = {}
        places: dict[str, int] = {}
        try:
            cls._read(bytes(data), 0, values, places, strict)
        except MalformedTLV:
            if not partial_ok:
                raise
        return values, places

    @classmethod
    def _read(cls, data: bytes, offset: int, values: dict[str, Any], places: dict[str, int], strict: bool) -> None:
        start = 0
        while start < len(data):
            name = cls.PP2_TYPENAME.get(data[start])
            if name is None:
                name = f"x{data[start]:02X}"
                if strict:
                    raise UnknownTypeTLV(name)
            end = start + 3 + int.from_bytes(data[start + 1 : start + 3], "big")
            value = data[start + 3 : end]
            if len(data) < max(end, start + 3):
                raise MalformedTLV(f"the TLV {name} is longer than the rest of the data")
            if name == "SSL" and name in places:
                raise MalformedTLV("there are two TLVs SSL, or one within another")
            places[name] = offset + start
            if name == "SSL":
                cls._read_ssl(value, offset + start + 3, values, places, strict)
            else:
                values[name] = value
            start = end

    @classmethod
    def _read_ssl(cls, value: bytes, offset: int, values: dict[str, Any], places: dict[str, int], strict: bool) -> None:
        values["SSL"] = False
        if len(value) < 5:
            raise MalformedTLV("the TLV SSL is too short")
        values["SSL_CLIENT"] = value[0]
        values["SSL_VERIFY"] = int.from_bytes(value[1:5], "big")
        cls._read(value[5:], offset + 5, values, places, strict)
        values["SSL"] = True

    @classmethod
    def from_raw(cls, raw: bytes | bytearray, strict: bool = False) -> ProxyTLV | None:
        """Parse all TLVs.

        :param strict: raise UnknownTypeTLV for a type without a name.
        :return: None if there are none.
        :raises MalformedTLV: if the length of one is not valid.
        :raises UnknownTypeTLV: if *strict*.
        """
        if not raw:
            return None
        values, places = cls.parse(raw, partial_ok=False, strict=strict)
        return cls(values, _tlv_loc=places)

    @classmethod
    def name_to_num(cls, name: str) -> int | None:
        """Return the number of the type with this name, or None."""
        return next((number for number, each in cls.PP2_TYPENAME.items() if each == name), None)


class ProxyData:
    """The contents of a PROXY header. It is true if the header is valid."""

    __slots__ = (
        "_tlv",
        "command",
        "dst_addr",
        "dst_port",
        "error",
        "family",
        "protocol",
        "rest",
        "src_addr",
        "src_port",
        "tlv_start",
        "version",
        "whole_raw",
    )

    version: int | None  #: 1 or 2; None if the data are not a PROXY header
    command: V2_CMD | None  #: the command of version 2
    family: AF | None
    protocol: PROTO | None
    src_addr: (
        IPv4Address | IPv6Address | bytes | None
    )  #: the client's address; for a Unix socket, the 108 octets of its path
    dst_addr: IPv4Address | IPv6Address | bytes | None  #: the address that the client has connected to
    src_port: int | None
    dst_port: int | None
    rest: bytes  #: the octets after the addresses; without addresses, those after the fixed part or ``UNKNOWN``
    whole_raw: bytearray  #: the header as received
    tlv_start: int | None  #: the offset of the TLVs in *whole_raw*, or None
    error: str  #: why the header is not valid

    def __init__(self, version: int | None = None) -> None:
        self.version = version
        self.command = self.family = self.protocol = None
        self.src_addr = self.dst_addr = self.src_port = self.dst_port = None
        self.rest = b""
        self.whole_raw = bytearray()
        self.tlv_start = None
        self.error = ""
        self._tlv: Any = _NOTHING

    @property
    def valid(self) -> bool:
        """True if the header is valid."""
        return not self.error and self.version is not None and self.protocol is not None

    def __bool__(self) -> bool:
        return self.valid

    @property
    def tlv(self) -> ProxyTLV | None:
        """The additional values in the header, or None if there are none or they are malformed."""
        if self._tlv is _NOTHING:
            try:
                self._tlv = ProxyTLV.from_raw(self.rest) if self.version == 2 else None
            except MalformedTLV:
                self._tlv = None
        tlv: ProxyTLV | None = self._tlv
        return tlv

    @property
    def client(self) -> tuple[str, int] | str | None:
        """The client in the form of :attr:`Session.peer <txsmtpd.session.Session.peer>`: ``(host, port)``, or ``""`` on
        a Unix socket. None if the header names no client, because the connection is the proxy's own (2.2, LOCAL) or of
        a kind that the header cannot describe."""
        if not self.valid or self.command is V2_CMD.LOCAL or self.protocol is PROTO.UNSPEC:
            return None
        if self.family is AF.UNIX:
            return ""
        if self.src_addr is None or self.src_port is None:
            return None
        mapped = getattr(self.src_addr, "ipv4_mapped", None)
        return str(mapped or self.src_addr), self.src_port

    def with_error(self, error_msg: str, log_prefix: bool = True) -> ProxyData:
        """Set the reason why the header is not valid, and return this object."""
        self.error = error_msg
        return self

    def same_attribs(self, _raises: bool = False, **kwargs: object) -> bool:
        """Return True if all these attributes are present and equal.

        :param _raises: raise KeyError or ValueError instead of returning False.
        """
        return all(_same(getattr(self, name, _NOTHING), name, value, _raises) for name, value in kwargs.items())

    def __repr__(self) -> str:
        told = {name: getattr(self, name) for name in ("command", "family", "protocol", "error")}
        shown = "".join(f" {name}={value!s}" for name, value in told.items() if value not in (None, ""))
        return f"<ProxyData version={self.version}{shown} {self.src_addr!s} {self.src_port} -> {self.dst_addr!s}>"


class ProxyReader:
    """Reads one header, and nothing after it. It may arrive in pieces."""

    __slots__ = ("_raw", "result")

    result: ProxyData | None  #: the parsed header; None until it is complete. Do not call feed after that.

    def __init__(self) -> None:
        self._raw = bytearray()
        self.result = None

    def feed(self, data: bytes, start: int = 0) -> int:
        """Process received data from *start* on.

        :return: the index in *data* after the end of the header, or -1 if it is incomplete. A malformed header ends
            where the error is detected.
        """
        place = start
        while place < len(data) and self.result is None:
            piece = data[place : self._end_of_piece(data, place)]
            self._raw += piece
            place += len(piece)
            self._look()
        return -1 if self.result is None else place

    def _end_of_piece(self, data: bytes, place: int) -> int:
        if not self._is_line():
            return place + self.wanted
        limit = place + V1_LIMIT - len(self._raw)
        end = data.find(b"\n", place, limit)
        return limit if end < 0 else end + 1

    @property
    def wanted(self) -> int:
        """Return how many octets may be read next without reading beyond the header."""
        raw = self._raw
        if self._is_line():
            return 1
        if len(raw) < len(V1_SIGNATURE):
            return len(V1_SIGNATURE) - len(raw)
        if len(raw) < V2_FIXED:
            return V2_FIXED - len(raw)
        return V2_FIXED + _length(raw) - len(raw)

    def _is_line(self) -> bool:
        """Return True for version 1, whose length is known only at the end of the line."""
        return self._raw.startswith(V1_SIGNATURE)

    def end(self) -> ProxyData:
        """Signal the end of input.

        :return: the result, which is not valid unless the header was complete.
        """
        if self.result is None:
            self._fail("the header is not complete" if self._raw else "there is no header", self._version())
        assert self.result is not None
        return self.result

    def _version(self) -> int | None:
        raw = bytes(self._raw)
        if len(raw) < len(V1_SIGNATURE):
            return None
        return 1 if raw.startswith(V1_SIGNATURE) else 2

    def _fail(self, why: str, version: int | None) -> None:
        self.result = ProxyData(version=version).with_error(why)
        self.result.whole_raw = self._raw

    def _look(self) -> None:
        """Check if the octets received so far are a header, or may be the beginning of one."""
        raw = self._raw
        known = bytes(raw[: len(V2_SIGNATURE)])
        if V2_SIGNATURE.startswith(known):
            if len(raw) >= V2_FIXED:
                self._look_at_v2()
        elif V1_SIGNATURE.startswith(known) or known.startswith(V1_SIGNATURE):
            self._look_at_v1()
        else:
            self._fail("there is no PROXY header", None)

    def _look_at_v1(self) -> None:
        raw = self._raw
        if raw.endswith(b"\n"):
            self.result = parse_v1(bytes(raw))
        elif len(raw) >= V1_LIMIT:
            self._fail(f"the header is longer than {V1_LIMIT} octets", 1)

    def _look_at_v2(self) -> None:
        raw = self._raw
        size = V2_FIXED + _length(raw)
        if raw[12] >> 4 != 2:
            self._fail(f"unknown version {raw[12] >> 4}", 2)
        elif size > V2_LIMIT:
            self._fail(f"the header is longer than {V2_LIMIT} octets", 2)
        elif len(raw) == size:
            self.result = parse_v2(bytes(raw))


def _length(fixed: bytearray) -> int:
    return int.from_bytes(fixed[14:V2_FIXED], "big")


def parse_v1(line: bytes) -> ProxyData:
    """Parse a header of version 1 (2.1).

    :param line: the whole header, including its LF.
    """
    data = ProxyData(version=1)
    data.whole_raw = bytearray(line)
    if not line.startswith(V1_SIGNATURE + b" "):
        return data.with_error("no space follows PROXY")
    if not line.endswith(b"\r\n"):
        return data.with_error("the header does not end with CR LF")
    kind, *words = line[len(V1_SIGNATURE) + 1 : -2].split(b" ")
    if kind == b"UNKNOWN":
        data.family, data.protocol = AF.UNSPEC, PROTO.UNSPEC
        data.rest = line[len(b"PROXY UNKNOWN") : -2]
        return data
    if kind not in (b"TCP4", b"TCP6"):
        return data.with_error("the protocol is not TCP4, TCP6 or UNKNOWN")
    if len(words) != 4:
        return data.with_error("there are not two addresses and two ports, separated by single spaces")
    make = IPv4Address if kind == b"TCP4" else IPv6Address
    try:
        data.src_addr, data.dst_addr = (make(_checked(word, _ADDRESS)) for word in words[:2])
    except ValueError:
        return data.with_error(f"an address is not an {make.__name__.removesuffix('Address')} address")
    try:
        data.src_port, data.dst_port = (_port(word) for word in words[2:])
    except ValueError:
        return data.with_error("a port is not a number from 0 to 65535")
    data.family, data.protocol = AF.INET if kind == b"TCP4" else AF.INET6, PROTO.STREAM
    return data


def _checked(word: bytes, form: re.Pattern[bytes]) -> str:
    if not form.fullmatch(word):
        raise ValueError
    return word.decode("ascii")


def _port(word: bytes) -> int:
    number = int(_checked(word, _PORT))
    if number > 65535:
        raise ValueError
    return number


def parse_v2(header: bytes) -> ProxyData:
    """Parse a header of version 2 (2.2).

    :param header: the whole header, with a valid signature and the right length.
    """
    data = ProxyData(version=2)
    data.whole_raw = bytearray(header)
    try:
        data.command = V2_CMD(header[12] & 15)
    except ValueError:
        return data.with_error(f"unknown command {header[12] & 15}")
    # With LOCAL, the data about the client are ignored, even if they are malformed (2.2).
    matters = data.command is not V2_CMD.LOCAL
    try:
        family, protocol = AF(header[13] >> 4), PROTO(header[13] & 15)
    except ValueError:
        if matters:
            return data.with_error(f"unknown address family and transport {header[13]:#04x}")
        family, protocol = AF.UNSPEC, PROTO.UNSPEC
    behind = V2_FIXED
    if family is not AF.UNSPEC and protocol is not PROTO.UNSPEC:
        behind += 2 * (ADDRESS_OCTETS[family] + PORT_OCTETS[family])
        if len(header) >= behind:
            _read_addresses(data, family, header[V2_FIXED:behind])
        elif matters:
            return data.with_error("the header is too short for its addresses")
        else:
            behind, family, protocol = V2_FIXED, AF.UNSPEC, PROTO.UNSPEC
    data.family, data.protocol = family, protocol
    data.rest = header[behind:]
    data.tlv_start = behind if data.rest else None
    if matters and family is not AF.UNSPEC and protocol is not PROTO.UNSPEC:
        try:
            ProxyTLV.from_raw(data.rest)
        except MalformedTLV as error:
            return data.with_error(str(error))
    if not _is_intact(data):
        return data.with_error("the checksum is wrong")
    return data


def _read_addresses(data: ProxyData, family: AF, octets: bytes) -> None:
    size = ADDRESS_OCTETS[family]
    source, destination, ports = octets[:size], octets[size : 2 * size], octets[2 * size :]
    if family is AF.UNIX:
        data.src_addr, data.dst_addr = source, destination
        return
    make = IPv4Address if family is AF.INET else IPv6Address
    data.src_addr, data.dst_addr = make(source), make(destination)
    data.src_port, data.dst_port = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")


def _is_intact(data: ProxyData) -> bool:
    """Return True unless there is a checksum and it is wrong (2.2.3)."""
    assert data.family is not None
    if data.family is AF.UNSPEC or data.protocol is PROTO.UNSPEC:
        # The octets may be addresses of an unknown family instead of TLVs.
        tlv = data.tlv
        values, places = (tlv, tlv.tlv_loc) if tlv is not None else ({}, {})
    else:
        values, places = ProxyTLV.parse(data.rest)
    told = values.get("CRC32C")
    if told is None:
        return True
    assert data.tlv_start is not None
    start = data.tlv_start + places["CRC32C"] + 3
    header = data.whole_raw
    zeroed = header[:start] + bytes(4) + header[start + 4 :]
    return len(told) == 4 and crc32c(zeroed) == int.from_bytes(told, "big")


def crc32c(octets: bytes | bytearray) -> int:
    """Return the CRC32c checksum (RFC 4960 appendix B).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table = _crc32c_table()
    checksum = 0xFFFFFFFF
    for octet in octets:
        checksum = table[(checksum ^ octet) & 255] ^ (checksum >> 8)
    return checksum ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)
