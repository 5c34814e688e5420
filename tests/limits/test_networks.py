"""The network under which a client is counted."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits.networks import networks_of


class NetworksTests(SynchronousTestCase):
    """Prefixes."""

    def test_default(self) -> None:
        """An IPv4 address is its own network. The addresses of an IPv6 /64 are one."""
        network_of = networks_of()
        self.assertEqual(network_of("192.0.2.7"), "192.0.2.7")
        self.assertEqual(network_of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64")
        self.assertEqual(network_of("2001:db8:1:2::1"), network_of("2001:db8:1:2:ffff::"))
        self.assertNotEqual(network_of("2001:db8:1:2::1"), network_of("2001:db8:1:3::1"))

    def test_mapped(self) -> None:
        """An IPv4 client of an IPv6 listener counts as the IPv4 client, however its address is written."""
        network_of = networks_of()
        for host in "::ffff:192.0.2.7", "::FFFF:c000:207", "0:0:0:0:0:ffff:192.0.2.7":
            self.assertEqual(network_of(host), "192.0.2.7")

    def test_scope(self) -> None:
        """A link-local address may have a scope, which is not part of the network."""
        self.assertEqual(networks_of((32, 128))("fe80::1%eth0"), "fe80::1")

    def test_none(self) -> None:
        """Text that is not an address has no network."""
        for host in None, "", 7, "example.org", "192.0.2", "192.0.2.7.8", ":", "a\0b", "\u0661.1.1.1", b"192.0.2.7":
            self.assertIsNone(networks_of()(host), repr(host))

    def test_prefixes(self) -> None:
        """Invalid prefix lengths are refused."""
        for prefixes in (0, 64), (33, 64), (32, 0), (32, 129):
            self.assertRaises(ValueError, networks_of, prefixes)

    @given(
        address=st.ip_addresses(v=4) | st.ip_addresses(v=6),
        prefixes=st.tuples(st.integers(1, 32), st.integers(1, 128)),
    )
    def test_as_ipaddress(self, address: object, prefixes: tuple[int, int]) -> None:
        """The network is the same as that of ``ipaddress``."""
        found = ip_address(str(address))
        mapped = found.ipv4_mapped if found.version == 6 else None
        found = mapped or found
        expected = ip_network((str(found), prefixes[found.version == 6]), strict=False)
        network = networks_of(prefixes)(str(address))
        self.assertEqual(ip_network(network or ""), expected)
