"""The reader of PROXY headers, its results, and ``txsmtpd.proxy_protocol``, as units."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.proxy_protocol import (
    AF,
    PROTO,
    V2_CMD,
    V2_SIGNATURE,
    MalformedTLV,
    ProxyData,
    ProxyTLV,
    UnknownTypeTLV,
    get_proxy,
)
from txsmtpd.wire.networks import Networks
from txsmtpd.wire.proxy import V1_LIMIT, V2_LIMIT, ProxyReader, crc32c

BEHIND = b"EHLO client.test\r\n\r\nPROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n"


# What a proxy would write


def version1(source: Any, destination: Any, source_port: int, destination_port: int) -> bytes:
    return f"PROXY TCP{source.version} {source} {destination} {source_port} {destination_port}\r\n".encode()


def version2(
    command: int = 1, family: int = 0, protocol: int = 0, addresses: bytes = b"", tlvs: bytes = b"", version: int = 2
) -> bytes:
    tail = addresses + tlvs
    kinds = bytes([version << 4 | command, family << 4 | protocol])
    return V2_SIGNATURE + kinds + len(tail).to_bytes(2, "big") + tail


def addresses(source: Any, destination: Any, source_port: int, destination_port: int) -> bytes:
    ports = source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
    return bytes(source.packed + destination.packed + ports)


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def with_checksum(header: bytes) -> bytes:
    """The header with a checksum in a TLV at its end."""
    size = int.from_bytes(header[14:16], "big") + 7
    zeroed = header[:14] + size.to_bytes(2, "big") + header[16:] + tlv(3, bytes(4))
    return zeroed[:-4] + crc32c(zeroed).to_bytes(4, "big")


HERE, THERE = IPv4Address("192.0.2.7"), IPv4Address("198.51.100.25")
HERE6, THERE6 = IPv6Address("2001:db8::7"), IPv6Address("2001:db8::25")
V1 = version1(HERE, THERE, 4321, 25)
V2 = version2(1, 1, 1, addresses(HERE, THERE, 4321, 25))
TLS_PARTS = (
    tlv(0x21, b"TLSv1.3") + tlv(0x22, b"client") + tlv(0x23, b"AES") + tlv(0x24, b"SHA256") + tlv(0x25, b"RSA2048")
)
TLVS = (
    tlv(1, b"smtp") + tlv(2, b"mx.test") + tlv(4, b"\0\0") + tlv(5, b"id") + tlv(0x20, b"\x05\0\0\0\x02" + TLS_PARTS)
    + tlv(0x30, b"blue") + tlv(0xE0, b"own")
)  # fmt: skip
WHOLE = with_checksum(version2(1, 2, 1, addresses(HERE6, THERE6, 4321, 25), TLVS))
GOOD = [
    V1,
    version1(HERE6, THERE6, 0, 65535),
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
    V2,
    version2(0),
    version2(0, 1, 1, addresses(HERE, THERE, 4321, 25)),
    version2(1, 3, 1, b"/a".ljust(108, b"\0") + b"/b".ljust(108, b"\0")),
    WHOLE,
]


def read(segments: Iterable[bytes]) -> tuple[ProxyData | None, bytes]:
    """The result of a reader for the segments, and the octets after the header."""
    reader = ProxyReader()
    segments = list(segments)
    for number, segment in enumerate(segments):
        end = reader.feed(segment)
        if end >= 0:
            return reader.result, segment[end:] + b"".join(segments[number + 1 :])
    return reader.result, b""


def octets_of(header: bytes) -> Iterator[bytes]:
    return (header[i : i + 1] for i in range(len(header)))


def told(header: bytes) -> ProxyData:
    """The result for a complete header, with and without octets after it."""
    data, left = read([header + BEHIND])
    assert data is not None
    if data and left != BEHIND:
        raise AssertionError(f"the reader has left {left!r}")
    return data


class ReaderTests(SynchronousTestCase):
    """ProxyReader, with any segments."""

    def test_everySplit(self) -> None:
        """However a header is split, the result is the same, and octets after it are not read."""
        for header in GOOD:
            data, left = read(octets_of(header + BEHIND))
            assert data is not None
            self.assertTrue(data.valid, data)
            self.assertEqual((bytes(data.whole_raw), left), (header, BEHIND))
            for cut in range(len(header) + len(BEHIND)):
                again, left = read([(header + BEHIND)[:cut], (header + BEHIND)[cut:]])
                assert again is not None
                self.assertEqual((again.whole_raw, again.src_addr, left), (header, data.src_addr, BEHIND))

    def test_start(self) -> None:
        """Octets before *start* do not belong to the header. The end is an index into the whole data."""
        reader = ProxyReader()
        self.assertEqual(reader.feed(b"NOOP" + V1[:9], 4), -1)
        self.assertEqual(reader.feed(b"x" + V1[9:] + b"EHLO", 1), len(V1) - 9 + 1)
        assert reader.result is not None
        self.assertEqual(reader.result.src_addr, HERE)

    def test_unfinished(self) -> None:
        """A truncated header is not valid, wherever it ends. Until the end of input it is incomplete."""
        for header in GOOD:
            for end in range(len(header)):
                reader = ProxyReader()
                if end:
                    self.assertEqual(reader.feed(header[:end]), -1)
                self.assertIsNone(reader.result)
                self.assertFalse(reader.end())
                self.assertEqual(reader.end().error, "the header is not complete" if end else "there is no header")

    def test_noHeader(self) -> None:
        """Other input is detected at the first octet that no header has."""
        for octets, end in (
            (b"EHLO client.test\r\n", 5),
            (b"\r\n", -1),
            (b"\r\n.\r\n", 5),
            (b"PROXI", 5),
            (V2_SIGNATURE[:-1] + b"\r" + bytes(9), 16),
            (b"\x16\x03\x01\x02\0", 5),
        ):
            reader = ProxyReader()
            self.assertEqual(reader.feed(octets), end, octets)
            self.assertFalse(reader.end())
            if end > 0:
                self.assertIn(reader.end().version, (None, 2))

    def test_longLine(self) -> None:
        """A line is read up to 107 octets, and no further."""
        longest = b"PROXY UNKNOWN ".ljust(V1_LIMIT - 2, b"x") + b"\r\n"
        self.assertEqual(len(longest), V1_LIMIT)
        self.assertTrue(told(longest))
        for too_long in (longest[:-2] + b"x\r\n", b"PROXY " + b"x" * 10**6):
            for segments in ([too_long], list(octets_of(too_long[:200]))):
                data, left = read(segments)
                assert data is not None
                self.assertIn("longer than 107", data.error)
                self.assertEqual(len(data.whole_raw), V1_LIMIT)
                self.assertTrue(left)

    def test_longHeader(self) -> None:
        """A header of version 2 has a limit, too, and is refused when its length is known."""
        longest = version2(1, 0, 0, tlvs=bytes(V2_LIMIT - 16))
        self.assertTrue(told(longest))
        data, left = read([version2(1, 0, 0, tlvs=bytes(V2_LIMIT - 15))])
        assert data is not None
        self.assertIn("longer than 16384", data.error)
        self.assertEqual(len(left), V2_LIMIT - 15)

    def test_wanted(self) -> None:
        """Reading only the wanted octets takes few steps, and never reads too far."""
        for header in GOOD:
            reader, place = ProxyReader(), 0
            while reader.result is None:
                self.assertGreater(reader.wanted, 0)
                place += reader.wanted
                self.assertLessEqual(place, len(header))
                reader.feed(header[place - reader.wanted : place])
            self.assertEqual(place, len(header))

    @given(
        some.binary(max_size=300), some.sampled_from([b"", b"PROXY ", b"PROXY TCP4 1.1.1.1 ", V2_SIGNATURE, V2[:15]])
    )
    def test_anything(self, octets: bytes, begins: bytes) -> None:
        """Arbitrary octets are a header, a refusal, or incomplete. The result is the same in one piece and in many."""
        whole, octet_by_octet = read([begins + octets]), read(octets_of(begins + octets))
        self.assertEqual(repr(whole[0]), repr(octet_by_octet[0]))
        if whole[0]:
            self.assertEqual(whole[1], octet_by_octet[1])
        if whole[0] is not None:
            self.assertEqual(bool(whole[0]), not whole[0].error)
            repr(whole[0].tlv), whole[0].client


class Version1Tests(SynchronousTestCase):
    """Version 1."""

    def test_addresses(self) -> None:
        """TCP over IPv4 and IPv6: addresses and ports, as values."""
        data = told(V1)
        self.assertTrue(
            data.same_attribs(
                _raises=True,
                version=1,
                command=None,
                family=AF.INET,
                protocol=PROTO.STREAM,
                src_addr=HERE,
                dst_addr=THERE,
                src_port=4321,
                dst_port=25,
                rest=b"",
                whole_raw=V1,
                tlv=None,
                tlv_start=None,
                error="",
                valid=True,
                client=("192.0.2.7", 4321),
            )
        )
        data = told(version1(HERE6, THERE6, 0, 65535))
        self.assertEqual((data.family, data.src_addr, data.dst_addr), (AF.INET6, HERE6, THERE6))
        self.assertEqual((data.src_port, data.dst_port), (0, 65535))
        self.assertEqual(data.client, ("2001:db8::7", 0))

    def test_unknown(self) -> None:
        """UNKNOWN names no client, whatever follows it."""
        for rest in (b"", b" ", b" 1.1.1.1 2.2.2.2 3 4", b" \xff"):
            data = told(b"PROXY UNKNOWN" + rest + b"\r\n")
            self.assertTrue(data)
            self.assertEqual((data.family, data.protocol, data.rest), (AF.UNSPEC, PROTO.UNSPEC, rest))
            self.assertIsNone(data.client)
            self.assertIsNone(data.tlv)

    def test_malformed(self) -> None:
        """Slightly malformed headers are refused."""
        for line in (
            b"PROXY",
            b"PROXY ",
            b"PROXY\tTCP4 1.1.1.1 2.2.2.2 3 4",
            b"PROXYTCP4 1.1.1.1 2.2.2.2 3 4",
            b"PROXY  TCP4 1.1.1.1 2.2.2.2 3 4",
            b"PROXY TCP4",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4 ",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4 5",
            b"PROXY TCP4 1.1.1.1  2.2.2.2 3 4",
            b"PROXY tcp4 1.1.1.1 2.2.2.2 3 4",
            b"PROXY TCPx4 1.1.1.1 2.2.2.2 3 4",
            b"PROXY UDP4 1.1.1.1 2.2.2.2 3 4",
            b"PROXY TCP 1.1.1.1 2.2.2.2 3 4",
            b"PROXY TCP4 ::1 ::2 3 4",
            b"PROXY TCP6 1.1.1.1 2.2.2.2 3 4",
            b"PROXY TCP4 1.1.1.1 ::2 3 4",
            b"PROXY TCP4 1.1.1 2.2.2.2 3 4",
            b"PROXY TCP4 1.1.1.01 2.2.2.2 3 4",
            b"PROXY TCP4 1.1.1.256 2.2.2.2 3 4",
            b"PROXY TCP4 16843009 2.2.2.2 3 4",
            b"PROXY TCP4 localhost 2.2.2.2 3 4",
            b"PROXY TCP6 fe80::1%eth0 ::2 3 4",
            b"PROXY TCP6 ::1/64 ::2 3 4",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 -3 4",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 +3 4",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 03 4",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3_0 4",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3 65536",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3 \xd9\xa1",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\0",
            b"PROXY UNKNOWNS",
            b"PROXY unknown",
        ):
            data = told(line + b"\r\n")
            self.assertFalse(data, line)
            self.assertTrue(data.error and data.error.isascii(), line)
            self.assertEqual((data.version, data.client), (1, None))
        self.assertFalse(told(V1[:-2] + b"\n"))
        self.assertFalse(told(V1[:-2] + b"\r\r\n"))

    @given(some.ip_addresses(v=4) | some.ip_addresses(v=6), some.data())
    def test_roundTrip(self, source: Any, data: some.DataObject) -> None:
        """A written header is parsed to the same values."""
        destination = data.draw(some.ip_addresses(v=source.version))
        source_port, destination_port = data.draw(some.tuples(*[some.integers(0, 65535)] * 2))
        found = told(version1(source, destination, source_port, destination_port))
        self.assertEqual(
            (found.src_addr, found.dst_addr, found.src_port, found.dst_port),
            (source, destination, source_port, destination_port),
        )


class Version2Tests(SynchronousTestCase):
    """Version 2."""

    def test_addresses(self) -> None:
        """All families with all transports."""
        for protocol in (PROTO.STREAM, PROTO.DGRAM):
            for family, source, destination in ((AF.INET, HERE, THERE), (AF.INET6, HERE6, THERE6)):
                data = told(version2(1, family, protocol, addresses(source, destination, 4321, 25)))
                self.assertTrue(
                    data.same_attribs(
                        _raises=True,
                        version=2,
                        command=V2_CMD.PROXY,
                        family=family,
                        protocol=protocol,
                        src_addr=source,
                        dst_addr=destination,
                        src_port=4321,
                        dst_port=25,
                        rest=b"",
                        tlv=None,
                        tlv_start=None,
                        client=(str(source), 4321),
                    )
                )
            source, destination = b"/run/a".ljust(108, b"\0"), b"\0abstract".ljust(108, b"\0")
            data = told(version2(1, AF.UNIX, protocol, source + destination, tlv(4, b"")))
            self.assertEqual((data.src_addr, data.dst_addr, data.src_port), (source, destination, None))
            self.assertEqual((data.client, data.tlv_start), ("", 16 + 216))

    def test_mapped(self) -> None:
        """An IPv4 client of an IPv6 listener has its IPv4 address, as without a proxy."""
        mapped = IPv6Address("::ffff:192.0.2.7")
        self.assertEqual(told(version1(mapped, THERE6, 4321, 25)).client, ("192.0.2.7", 4321))
        self.assertEqual(told(version2(1, 2, 1, addresses(mapped, THERE6, 4321, 25))).client, ("192.0.2.7", 4321))

    def test_local(self) -> None:
        """The proxy's own connection names no client, even if it has addresses."""
        for header in (version2(0), version2(0, 1, 1, addresses(HERE, THERE, 1, 2)), version2(0, tlvs=tlv(4, b"xyz"))):
            data = told(header)
            self.assertTrue(data)
            self.assertEqual((data.command, data.client), (V2_CMD.LOCAL, None))

    def test_localIgnored(self) -> None:
        """With LOCAL, family, transport and addresses are ignored, even if they are invalid."""
        for header in (version2(0, 4, 1), version2(0, 15, 15), version2(0, 1, 3), version2(0, 1, 1, bytes(11))):
            data = told(header)
            self.assertTrue(data, data.error)
            self.assertEqual((data.family, data.protocol), (AF.UNSPEC, PROTO.UNSPEC))
            self.assertEqual((data.client, data.src_addr, data.rest), (None, None, header[16:]))

    def test_unspecified(self) -> None:
        """If family or transport is unspecified, the rest is kept unchanged."""
        for family, protocol in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0)):
            data = told(version2(1, family, protocol, b"\x01\0\x04smtp"))
            self.assertTrue(data, (family, protocol))
            self.assertEqual((data.family, data.protocol), (family, protocol))
            self.assertEqual((data.rest, data.tlv_start, data.client), (b"\x01\0\x04smtp", 16, None))
            self.assertEqual(data.tlv, {"ALPN": b"smtp"})

    def test_malformed(self) -> None:
        """Unknown versions, commands, families and transports, and truncated addresses."""
        for header, word in (
            (version2(version=1), "version 1"),
            (version2(version=3), "version 3"),
            (version2(2), "command 2"),
            (version2(15), "command 15"),
            (version2(1, 4, 1), "0x41"),
            (version2(1, 1, 3), "0x13"),
            (version2(1, 1, 1, bytes(11)), "too short"),
            (version2(1, 2, 1, bytes(35)), "too short"),
            (version2(1, 3, 1, bytes(215)), "too short"),
        ):
            data = told(header)
            self.assertFalse(data)
            self.assertIn(word, data.error)
            self.assertIsNone(data.client)

    def test_types(self) -> None:
        """TLVs have names, SSL has parts, and unknown types are kept."""
        data = told(WHOLE)
        self.assertTrue(data)
        found = data.tlv
        assert found is not None
        checksum = found.pop("CRC32C")
        self.assertEqual(checksum, bytes(data.whole_raw[-4:]))
        self.assertEqual(
            found,
            {
                "ALPN": b"smtp",
                "AUTHORITY": b"mx.test",
                "NOOP": b"\0\0",
                "UNIQUE_ID": b"id",
                "SSL": True,
                "SSL_CLIENT": 5,
                "SSL_VERIFY": 2,
                "SSL_VERSION": b"TLSv1.3",
                "SSL_CN": b"client",
                "SSL_CIPHER": b"AES",
                "SSL_SIG_ALG": b"SHA256",
                "SSL_KEY_ALG": b"RSA2048",
                "NETNS": b"blue",
                "xE0": b"own",
            },
        )
        self.assertEqual((found.ALPN, found.missing), (b"smtp", None))
        assert data.tlv_start is not None
        for name, place in found.tlv_loc.items():
            kind = data.whole_raw[data.tlv_start + place]
            self.assertEqual(ProxyTLV.name_to_num(name) or 0xE0, kind, name)
        self.assertIsNone(ProxyTLV.name_to_num("xE0"))

    def test_checksum(self) -> None:
        """A header with a checksum is valid only if no octet of it has changed."""
        self.assertTrue(told(WHOLE))
        self.assertTrue(told(with_checksum(version2(0))))
        for place in range(28, len(WHOLE)):
            data, _ = read([WHOLE[:place] + bytes([WHOLE[place] ^ 1]) + WHOLE[place + 1 :]])
            if data is not None and data.tlv is not None and data.tlv.CRC32C is not None:
                self.assertEqual(data.error, "the checksum is wrong", place)
        self.assertFalse(told(version2(1, 1, 1, addresses(HERE, THERE, 1, 2), tlv(3, b"abc"))))

    def test_malformedTypes(self) -> None:
        """TLVs with wrong lengths make the header malformed, except with LOCAL."""
        for tlvs in (
            b"\x01",
            b"\x01\0",
            b"\x01\0\x05smtp",
            tlv(0x20, b""),
            tlv(0x20, bytes(4)),
            tlv(0x20, bytes(5) + b"\x21\0\x09"),
            tlv(0x20, bytes(5) + tlv(0x20, bytes(5))),
        ):
            data = told(version2(1, 1, 1, addresses(HERE, THERE, 1, 2), tlvs))
            self.assertFalse(data)
            self.assertIn("TLV", data.error)
            self.assertEqual((data.rest, data.tlv), (tlvs, None))
            self.assertTrue(told(version2(0, 1, 1, addresses(HERE, THERE, 1, 2), tlvs)))
            self.assertRaises(MalformedTLV, ProxyTLV.from_raw, tlvs)
            values, places = ProxyTLV.parse(tlv(1, b"smtp") + tlvs)
            self.assertEqual(
                (values["ALPN"], values.get("SSL"), places["ALPN"]), (b"smtp", False if tlvs[0] == 0x20 else None, 0)
            )

    def test_deep(self) -> None:
        """SSL nested in SSL is refused without recursion."""
        nested = b""
        for _ in range(1500):
            nested = tlv(0x20, bytes(5) + nested)
        self.assertIsNone(told(version2(1, 1, 1, addresses(HERE, THERE, 1, 2), nested)).tlv)

    @given(
        some.ip_addresses(v=4) | some.ip_addresses(v=6),
        some.lists(
            some.tuples(some.integers(0, 255).filter(lambda kind: kind not in (3, 0x20)), some.binary(max_size=40))
        ),
        some.booleans(),
    )
    def test_roundTrip(self, source: Any, tlvs: list[tuple[int, bytes]], checked: bool) -> None:
        """A written header is parsed to the same values."""
        octets = b"".join(tlv(*each) for each in tlvs)
        header = version2(1, 1 if source.version == 4 else 2, 1, addresses(source, source, 1, 2), octets)
        data = told(with_checksum(header) if checked else header)
        self.assertTrue(data)
        self.assertEqual(data.src_addr, source)
        names = {ProxyTLV.PP2_TYPENAME.get(kind, f"x{kind:02X}"): value for kind, value in tlvs}
        found = dict(data.tlv or {})
        self.assertEqual(found.pop("CRC32C", None) is not None, checked)
        self.assertEqual(found, names)


class NamesTests(SynchronousTestCase):
    """The names in txsmtpd.proxy_protocol."""

    def test_enums(self) -> None:
        """Families have the names of the specification, and those of sockets."""
        self.assertEqual((AF.IP4, AF.IP6, AF["IP4"]), (AF.INET, AF.INET6, 1))

    def test_same(self) -> None:
        """``same_attribs`` compares, and raises an exception if requested."""
        data = told(WHOLE)
        found = data.tlv
        assert found is not None
        for each, right in ((data, {"src_addr": HERE6}), (found, {"ALPN": b"smtp", "SSL": True})):
            self.assertTrue(each.same_attribs(**right))
            self.assertFalse(each.same_attribs(**dict.fromkeys(right)))
            self.assertFalse(each.same_attribs(no_such=1))
            self.assertRaises(KeyError, each.same_attribs, _raises=True, no_such=1)
            self.assertRaises(ValueError, each.same_attribs, _raises=True, **dict.fromkeys(right))

    def test_made(self) -> None:
        """A ProxyData that a program creates is not valid until it has values."""
        data = ProxyData(version=1)
        self.assertFalse(data)
        data.protocol = PROTO.STREAM
        self.assertTrue(data)
        self.assertIs(data.with_error("no"), data)
        self.assertFalse(data.valid)
        self.assertEqual(data.error, "no")
        self.assertFalse(ProxyData())

    def test_strict(self) -> None:
        """Types without a name are an error with *strict*."""
        self.assertRaises(UnknownTypeTLV, ProxyTLV.from_raw, tlv(0xE0, b""), strict=True)
        self.assertRaises(UnknownTypeTLV, ProxyTLV.parse, tlv(0xE0, b""), strict=True)
        self.assertIsNone(ProxyTLV.from_raw(b""))

    def test_fromStream(self) -> None:
        """``get_proxy`` reads a header from a stream, and nothing after it."""

        async def of(octets: bytes) -> tuple[ProxyData, bytes]:
            stream = asyncio.StreamReader()
            stream.feed_data(octets)
            stream.feed_eof()
            return await get_proxy(stream), await stream.read()

        for header in GOOD:
            data, left = asyncio.run(of(header + BEHIND))
            self.assertTrue(data)
            self.assertEqual((bytes(data.whole_raw), left), (header, BEHIND))
        for cut, version in ((0, None), (3, None), (9, 1)):
            with self.assertLogs("mail.log", "WARNING") as logged:
                data, _ = asyncio.run(of(V1[:cut]))
            self.assertFalse(data)
            self.assertIn(data.error, logged.output[0])
            self.assertEqual(data.version, version)


class NetworksTests(SynchronousTestCase):
    """Networks."""

    def test_members(self) -> None:
        """Addresses, networks and Unix sockets; strings and objects."""
        found = Networks("proxy_from", ["10.0.0.0/8", ip_address("192.0.2.1"), "2001:db8::/32", "unix", "fe80::/10"])
        for peer in (("10.1.2.3", 1), ("192.0.2.1", 1), ("2001:db8::1", 1), "", ("fe80::1%eth0", 1)):
            self.assertIn(peer, found)
        for peer in (("11.1.2.3", 1), ("192.0.2.2", 1), ("::1", 1), ("localhost", 1)):
            self.assertNotIn(peer, found)
        self.assertNotIn("", Networks("proxy_from", ["0.0.0.0/0", "::/0"]))
        self.assertFalse(Networks("proxy_from", []))
        self.assertTrue(found)
        self.assertIn("10.0.0.0/8", repr(found))

    def test_wrong(self) -> None:
        """What is no network is told, with what would be one."""
        for networks, words in (
            (["localhost"], "write 192.0.2.1"),
            (["10.0.0.1/8"], "did you mean 10.0.0.0/8?"),
            ([""], "write 192.0.2.1"),
        ):
            error = self.assertRaises(ValueError, Networks, "proxy_from", networks)
            self.assertIn(words, str(error))
        for wrong in ("10.0.0.0/8", 5, [5], [b"10.0.0.0/8"]):
            self.assertIn("proxy_from", str(self.assertRaises(TypeError, Networks, "proxy_from", wrong)))
