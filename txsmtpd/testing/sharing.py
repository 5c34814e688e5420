"""One catcher for several processes: a :class:`Tap` sends its mail to a :class:`Mirror` in another process.

Each query of a mirror first waits for all mail that the catcher has accepted so far, so mail sent before is found.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from typing import Any, Self

from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver

from txsmtpd.testing.catcher import COUNT, HOST, OCTETS, MailCatcher, Reachable
from txsmtpd.testing.inbox import Inbox, Mail, Query, Store

PATIENCE = 10.0  # seconds to wait for the other process


class _Teller(LineReceiver):
    """Sends each mail to a mirror, and answers its requests in order. A request is a number, and a text to find
    transcripts with, or null."""

    delimiter = b"\n"
    factory: Any

    def connectionMade(self) -> None:
        self.factory.tellers.add(self)
        for mail in self.factory.catcher.messages:
            self.tell(mail)

    def tell(self, mail: Mail) -> None:
        self.sendLine(json.dumps(mail.to_json()).encode("ascii"))

    def lineReceived(self, line: bytes) -> None:
        number, text = json.loads(line)
        answer = None if text is None else self.factory.catcher.said(text)
        self.sendLine(json.dumps([number, answer]).encode("ascii"))

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.tellers.discard(self)


class _Tellers(Factory):
    protocol = _Teller
    noisy = False

    def __init__(self, catcher: MailCatcher) -> None:
        self.catcher = catcher
        self.tellers: set[_Teller] = set()


class Tap(MailCatcher):
    """A catcher that other processes of this host may mirror. It listens on an additional port for them."""

    _tap: IListeningPort | None = None

    def listen(self, port: int = 0, host: str = HOST) -> Self:
        super().listen(port, host)
        self._tellers = _Tellers(self)
        self._tap = self._reactor.listenTCP(0, self._tellers, interface=HOST)
        return self

    def caught(self, mail: Mail) -> None:
        super().caught(mail)
        for teller in self._tellers.tellers:
            teller.tell(mail)

    def stop_listening(self) -> Any:
        if self._tap is not None:
            for teller in list(self._tellers.tellers):
                teller.transport.abortConnection()  # type: ignore[union-attr]
            self._tap.stopListening()
        return super().stop_listening()

    @property
    def whereabouts(self) -> tuple[str, int, int]:
        """The arguments for a :class:`Mirror`."""
        assert self._tap is not None
        found: Any = self._tap.getHost()
        return (*self.address, found.port)


class Mirror(Reachable, Inbox):
    """The inbox of a catcher in another process.

    :param host: the catcher's host.
    :param port: its SMTP port.
    :param tap: its port for mirrors.
    """

    def __init__(self, host: str, port: int, tap: int) -> None:
        super().__init__(Store(COUNT, OCTETS), Query())
        self._address = host, port
        self._requests: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._socket = socket.create_connection((HOST, tap), PATIENCE)
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, name="mirror of a catcher", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    def close(self) -> None:
        """Stop mirroring."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                told = json.loads(line)
                if isinstance(told, list):
                    number, answer = told
                    self._requests.pop(number).set_result(answer)
                else:
                    self._store.add(Mail.from_json(told))

    def said(self, text: str = "") -> list[str]:
        try:
            printed: list[str] = self._ask(text)
        except (OSError, RuntimeError):  # the other process is gone
            return []
        return printed

    def _catch_up(self) -> None:
        self._ask()

    def _ask(self, text: str | None = None) -> Any:
        number = next(self._numbers)
        answer = self._requests[number] = Future[Any]()
        self._socket.sendall(json.dumps([number, text]).encode("ascii") + b"\n")
        try:
            return answer.result(PATIENCE)
        except TookTooLong:
            raise RuntimeError("the process of the mail server does not respond; it may have ended") from None

    def _soon(self, reactor: Any, function: Any, *arguments: Any) -> None:
        reactor.callFromThread(function, *arguments)
