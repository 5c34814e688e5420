"""The tables of functions in ``docs/architecture.rst``, compared with the functions that are called."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import txsmtpd
from tests.support import GREETING, MESSAGE, TRANSACTION, Client
from txsmtpd.auth import AuthResult
from txsmtpd.handlers import Mailbox
from txsmtpd.tls.authority import authority

PACKAGE = Path(txsmtpd.__file__).parent
PAGE = Path(__file__).parent.parent.parent / "docs" / "architecture.rst"

Walk = list[tuple[str, str]]  # modules and functions


def tables_of(title: str) -> list[Walk]:
    """The tables below a title of the section "Control flow"."""
    section = PAGE.read_text().partition("\nControl flow\n")[2].partition("\nDecisions\n")[0]
    text = section.partition(f"\n{title}\n~~~")[2].partition("\n~~~")[0]
    found: list[Walk] = []
    for line in text.splitlines():
        if line.startswith("Module "):
            found.append([])
        elif row := re.match(r"``([a-z_/]+)`` +((?:``\w+``(?:, )?)+)", line):
            found[-1] += [(row[1], name) for name in re.findall(r"``(\w+)``", row[2])]
    return found


def functions_called(work: Callable[[], object]) -> Walk:
    """The package's functions that are called, and the coroutines that are continued, in order. The constructor of a
    class has the name of the class."""
    called: Walk = []

    def note(frame: Any, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            names = frame.f_code.co_qualname.split(".")
            name = names[-2] if names[-1] == "__init__" else names[-1]
            called.append((path.relative_to(PACKAGE).with_suffix("").as_posix(), name))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return called


class WalkTests(SynchronousTestCase):
    """The walks on the page agree with the code, for a command, a message, TLS, a login and the end of a connection."""

    def client(self, **options: Any) -> Client:
        return Client(Mailbox(self.mktemp(), durable=False), **options)

    def check(self, walk: Walk, work: Callable[[], object]) -> None:
        """The functions of the table are called in this order."""
        self.assertNotEqual(walk, [])
        called = functions_called(work)
        rest = iter(called)
        for step in walk:
            self.assertIn(step, rest, f"not in this place: {step}; called were {called}")

    def test_connection(self) -> None:
        """A new connection, to its greeting."""
        (walk,) = tables_of("A new connection")
        self.check(walk, self.client)

    def test_command(self) -> None:
        """A command, from the data to the reply."""
        (walk,) = tables_of("A command")
        client = self.client()
        client.talk(GREETING)
        self.check(walk, lambda: client.ask(b"MAIL FROM:<a@example.com>"))

    def test_message(self) -> None:
        """A message, from DATA to the maildir."""
        command, data, end = tables_of("A message")
        client = self.client()
        client.talk(GREETING + TRANSACTION)
        self.check(command, lambda: client.ask(b"DATA"))
        self.check(data, lambda: client.talk(MESSAGE))
        self.check(end, lambda: client.ask(b"."))

    def test_startTLS(self) -> None:
        """STARTTLS, from the command to the end of the handshake."""
        (walk,) = tables_of("STARTTLS")
        client = self.client(tls_context=authority().issue())
        self.check(walk, lambda: client.start_tls(authority().client_options()))

    def test_auth(self) -> None:
        """A login with two challenges."""
        command, response, decision = tables_of("AUTH")
        client = self.client(authenticator=lambda *arguments: AuthResult(success=True), auth_require_tls=False)
        client.talk(GREETING)
        self.check(command, lambda: client.ask(b"AUTH LOGIN"))
        self.check(response, lambda: client.ask(b"YQ=="))
        self.check(response + decision, lambda: client.ask(b"YQ=="))

    def test_end(self) -> None:
        """The four ways in which a connection ends, and what follows each of them."""
        *ways, lost = tables_of("The end of a connection")
        ends: list[Callable[[Client], object]] = [
            lambda client: client.half_close(),
            lambda client: client.ask(b"QUIT"),
            lambda client: client.wait(301, step=301),
            lambda client: client.server.factory.drain(),
        ]
        for walk, end in zip(ways, ends, strict=True):
            client = self.client()

            def ended(client: Client = client, end: Callable[[Client], object] = end) -> None:
                end(client)
                client.settle()

            self.check(walk + lost, ended)
