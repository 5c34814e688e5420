"""The key under which a client is counted, and the connections of a network."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits import Limits, Retry
from txsmtpd.limits.admission import Admission, seconds_left
from txsmtpd.limits.networks import networks_of
from txsmtpd.limits.places import Places
from txsmtpd.session import Session

CLIENT = ("192.0.2.7", 4321)


class Known(Session):
    """A session of its own class: Python lays out the instances of a class according to the first ones."""


def session(peer: Any = CLIENT, login: Any = None) -> Session:
    made = Known()
    made.peer = peer
    if login is not None:
        made.authenticated, made.login_data = True, login
    return made


class Notes:
    """A limiter of an application."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def admit(self, kind: str, key: str) -> Retry:
        self.asked.append((kind, key))
        return Retry(1)

    def auth_failed(self, network: str, name: str) -> int:
        self.asked.append((network, name))
        return 7


class AdmissionTests(SynchronousTestCase):
    """The questions to the limiter."""

    def test_keys(self) -> None:
        """A client is counted by its network. The messages and recipients of an authenticated client are counted by its
        login."""
        notes = Notes()
        admission = Admission(notes)
        for kind in "connections", "messages", "recipients", "tls":
            self.assertEqual(admission.admit(kind, session()), Retry(1))
            admission.admit(kind, session(("2001:db8::1", 1), b"fr\xffed"))
        self.assertEqual([key for _, key in notes.asked[::2]], ["192.0.2.7"] * 4)
        login = "login:fr\ufffded"
        self.assertEqual([key for _, key in notes.asked[1::2]], ["2001:db8::/64", login, login, "2001:db8::/64"])

    def test_odd_login(self) -> None:
        """A client whose login is not a string is counted by its network."""
        notes = Notes()
        for login in object(), "", b"":
            Admission(notes).admit("messages", session(login=login))
        self.assertEqual({key for _, key in notes.asked}, {"192.0.2.7"})

    def test_unlimited(self) -> None:
        """By default, loopback and Unix sockets have no limits."""
        notes = Notes()
        for peer in ("127.0.0.5", 1), ("::1", 1), "", None, ("::ffff:127.0.0.1", 1):
            self.assertIsNone(Admission(notes).admit("messages", session(peer)), peer)
            self.assertIsNone(Admission(notes).admit("auth", session(peer)))
            self.assertEqual(Admission(notes).auth_failed(session(peer), "fred"), 1)
        self.assertEqual(notes.asked, [])
        nobody = Admission(notes, [])
        nobody.admit("messages", session(("127.0.0.1", 1)))
        self.assertEqual(notes.asked, [("messages", "127.0.0.1")])
        self.assertIsNone(Admission(notes, ["192.0.2.0/24"]).admit("messages", session()))

    def test_not_asked(self) -> None:
        """The limiter is not asked about kinds without a rate, and they are not counted."""
        admission = Admission(Limits({"messages": "1/min"}))
        self.assertEqual([admission.admit("recipients", session()) for _ in range(3)], [None] * 3)
        self.assertIsNone(admission.admit("messages", session()))
        self.assertIsInstance(admission.admit("messages", session()), Retry)
        self.assertIsNone(admission.admit("auth", session()))
        self.assertEqual({kind: count for kind, count in admission.admitted.items() if count}, {"messages": 1})

    def test_auth(self) -> None:
        """Failed logins are counted for the network."""
        admission = Admission(Limits(auth_failures="1/min"))
        self.assertIsNone(admission.admit("auth", session()))
        self.assertEqual(admission.auth_failed(session(), "fred"), 1)
        self.assertIsInstance(admission.admit("auth", session()), Retry)
        self.assertIsNone(admission.admit("auth", session(("192.0.2.8", 1))))

    def test_seconds(self) -> None:
        """The time to wait is in whole seconds, rounded up."""
        self.assertEqual([seconds_left(Retry(each)) for each in (0.001, 1, 1.001, 59.5)], [1, 1, 2, 60])


class PlacesTests(SynchronousTestCase):
    """Connections at the same time."""

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 15)), max_size=100))
    def test_bound(self, steps: list[tuple[bool, int]]) -> None:
        """No network has more connections than the limit, and nothing is kept of those that have ended."""
        places = Places(2, networks_of((24, 64)))
        open_: dict[int, str] = {}
        for comes, number in steps:
            if comes and number not in open_:
                network = f"10.0.{number % 3}"
                full = places.is_full(f"{network}.{number}")
                self.assertEqual(places.take(number, f"{network}.{number}"), not full)
                self.assertEqual(full, [*open_.values()].count(network) >= 2)
                if not full:
                    open_[number] = network
            elif not comes:
                places.leave(number)
                open_.pop(number, None)
        for number in range(16):
            places.leave(number)
        self.assertEqual((places.taken, places._of), ({}, {}))

    def test_unlimited(self) -> None:
        """A client without a network has no limit."""
        places = Places(0, networks_of())
        self.assertTrue(places.take(1, None))
        self.assertFalse(places.take(2, "192.0.2.7"))
        self.assertTrue(places.is_full("192.0.2.7"))
        self.assertFalse(places.is_full(None))
