"""Sets of networks, to test if a client is in one of them. Addresses only, no names."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

Network = str | IPv4Network | IPv6Network | IPv4Address | IPv6Address

UNIX = "unix"  # stands for all Unix sockets of this host
FORM = "write 192.0.2.1, 192.0.2.0/24, 2001:db8::/32 or unix"


class Networks:
    """Tells whether a client is in one of the networks.

    :param option: the name of the option, for error messages.
    :param networks: addresses and networks, as strings or objects of :mod:`ipaddress`; and ``"unix"`` for clients on
        Unix sockets.
    :raises TypeError: if it is not a list of them.
    :raises ValueError: if a string is not a network.

    >>> ("192.0.2.7", 4321) in Networks("proxy_from", ["192.0.2.0/24", "unix"])
    True
    """

    def __init__(self, option: str, networks: Iterable[Network]) -> None:
        if isinstance(networks, str) or not isinstance(networks, Iterable):
            raise TypeError(f"{option} must be a list of networks, not {networks!r}")
        found = [_network(option, each) for each in networks]
        self._networks = tuple(each for each in found if each is not None)
        self._unix = None in found

    def __contains__(self, peer: object) -> bool:
        """:param peer: the client, as in :attr:`Session.peer <txsmtpd.session.Session.peer>`."""
        if peer == "":
            return self._unix
        if not isinstance(peer, tuple):  # a hook may have set session.peer to another object
            return False
        try:
            address: IPv4Address | IPv6Address = ip_address(peer[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in network for network in self._networks)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __repr__(self) -> str:
        return f"<Networks {' '.join([*map(str, self._networks), *([UNIX] if self._unix else [])])}>"


def _network(option: str, network: Network) -> IPv4Network | IPv6Network | None:
    """Return the network, or None for Unix sockets."""
    if network == UNIX:
        return None
    if not isinstance(network, Network):
        raise TypeError(f"{option} must contain networks, as strings or ipaddress objects, not {network!r}")
    try:
        whole = ip_interface(network).network
    except ValueError:
        raise ValueError(f"{option} must contain networks; {network!r} is not one; {FORM}") from None
    try:
        return _unmapped(ip_network(network))
    except ValueError:
        raise ValueError(
            f"{option} must contain networks; {network} is an address in one; did you mean {whole}?"
        ) from None


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Convert an IPv4-mapped IPv6 network to IPv4, as is done for the addresses of clients."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None else IPv4Network((mapped, network.prefixlen - 96))
