"""Prints two lines on a terminal: the server's addresses, and a command to try it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IListeningPort

from txsmtpd.service.listening import address_text


class Listens(Protocol):
    """A service that listens."""

    port: IListeningPort | None


class Welcome(Service):
    """Writes the lines when the server listens.

    :param listeners: the services that listen. The first one is for SMTP.
    :param handler: the handler, as given on the command line.
    :param write: called with the lines.
    """

    def __init__(
        self, listeners: Sequence[Listens], handler: str, write: Callable[[str], object], reactor: Any = None
    ) -> None:
        self._listeners = listeners
        self._handler = handler
        self._write = write
        self._reactor = reactor

    def startService(self) -> None:
        super().startService()
        if self._reactor is None:
            from twisted.internet import reactor

            self._reactor = reactor
        self._reactor.callWhenRunning(self._say)

    def _say(self) -> None:
        hosts = [listener.port.getHost() for listener in self._listeners if listener.port is not None]
        if hosts:
            self._write("".join(f"{line}\n" for line in lines_for(hosts, self._handler)))


def lines_for(hosts: Sequence[Any], handler: str) -> list[str]:
    """Return the lines for the addresses that the server listens on."""
    where = ", ".join(map(address_text, hosts))
    lines = [f"txsmtpd listens on {where} (--handler={handler}). Ctrl-C stops it; --help lists the options."]
    first = hosts[0]
    port = getattr(first, "port", None)
    if port is not None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first.host, first.host)
        message = r'"Subject: hello\n\nHello!\n"'
        send = f'smtplib.SMTP("{host}", {port}).sendmail("a@example.com", "b@example.com", {message})'
        lines.append(f"Try it from another terminal: python3 -c 'import smtplib; {send}'")
    return lines
