"""The network that a client is counted under.

A customer typically has a single IPv4 address, but a /64 of IPv6 addresses, so counting single IPv6 addresses is
useless.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

PREFIXES = (32, 64)  # prefix lengths for IPv4 and IPv6
_MAPPED = bytes(10) + b"\xff\xff"  # prefix of IPv4-mapped IPv6 addresses (RFC 4291 2.5.5.2)


def networks_of(prefixes: tuple[int, int] = PREFIXES) -> Callable[[Any], str | None]:
    """Make a function that returns the network of a client.

    :param prefixes: the prefix lengths of networks, for IPv4 and IPv6.
    :return: a function that takes a host and returns its network as text, or None if the host is not an IP address,
        such as the peer of a Unix socket. IPv4-mapped IPv6 addresses count as IPv4.
    :raises ValueError: for an invalid prefix length.

    >>> network_of = networks_of((24, 64))
    >>> network_of("192.0.2.7"), network_of("::ffff:192.0.2.7"), network_of("2001:db8::1"), network_of(None)
    ('192.0.2.0/24', '192.0.2.0/24', '2001:db8::/64', None)
    """
    short, long = prefixes
    if not (0 < short <= 32 and 0 < long <= 128):
        raise ValueError(f"the prefix lengths must be 1 to 32 for IPv4 and 1 to 128 for IPv6, not {prefixes!r}")
    mask4 = _mask(32, short)
    mask6 = _mask(128, long)

    def network_of(host: Any) -> str | None:
        if not isinstance(host, str):
            return None
        try:
            if ":" not in host:
                return _text4(socket.inet_pton(socket.AF_INET, host))
            octets = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except (OSError, ValueError):  # ValueError: a NUL, or not ASCII
            return None
        if octets.startswith(_MAPPED):
            return _text4(octets[12:])
        return _text(socket.AF_INET6, octets, mask6, long)

    def _text4(octets: bytes) -> str:
        return _text(socket.AF_INET, octets, mask4, short)

    return network_of


def _text(family: int, octets: bytes, mask: int, prefix: int) -> str:
    size = len(octets)
    if prefix == size * 8:
        return socket.inet_ntop(family, octets)
    network = int.from_bytes(octets, "big") & mask
    return f"{socket.inet_ntop(family, network.to_bytes(size, 'big'))}/{prefix}"


def _mask(bits: int, prefix: int) -> int:
    return (1 << bits) - (1 << (bits - prefix))
