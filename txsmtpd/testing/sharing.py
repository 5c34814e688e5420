"""One catcher for several processes: a :class:`SharedCatcher` sends its mail to a :class:`Mirror` in another process.

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

from txsmtpd.testing.catcher import COUNT, HOST, OCTETS, MailCatcher, ServerInfo
from txsmtpd.testing.inbox import Inbox, Mail, Query, Store

PATIENCE = 10.0  # seconds to wait for the other process


class _MirrorProtocol(LineReceiver):
    """Sends each mail to a mirror, and answers its requests in order. A request is a number, and a text to find
    transcripts with, or null."""

    delimiter = b"\n"
    factory: Any

    def connectionMade(self) -> None:
        self.factory.mirrors.add(self)
        for mail in self.factory.catcher.messages:
            self.send(mail)

    def send(self, mail: Mail) -> None:
        self.sendLine(json.dumps(mail.to_json()).encode("ascii"))

    def lineReceived(self, line: bytes) -> None:
        number, text = json.loads(line)
        answer = None if text is None else self.factory.catcher.said(text)
        self.sendLine(json.dumps([number, answer]).encode("ascii"))

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.mirrors.discard(self)


class _MirrorFactory(Factory):
    protocol = _MirrorProtocol
    noisy = False

    def __init__(self, catcher: MailCatcher) -> None:
        self.catcher = catcher
        self.mirrors: set[_MirrorProtocol] = set()


class SharedCatcher(MailCatcher):
    """A catcher that other processes of this host may mirror. It listens on an additional port for them."""

    _mirror_port: IListeningPort | None = None

    def listen(self, port: int = 0, host: str = HOST) -> Self:
        super().listen(port, host)
        self._mirrors = _MirrorFactory(self)
        self._mirror_port = self._reactor.listenTCP(0, self._mirrors, interface=HOST)
        return self

    def caught(self, mail: Mail) -> None:
        super().caught(mail)
        for mirror in self._mirrors.mirrors:
            mirror.send(mail)

    def stop_listening(self) -> Any:
        if self._mirror_port is not None:
            for mirror in list(self._mirrors.mirrors):
                mirror.transport.abortConnection()  # type: ignore[union-attr]  # those in the set are connected
            self._mirror_port.stopListening()
        return super().stop_listening()

    @property
    def mirror_arguments(self) -> tuple[str, int, int]:
        """The arguments for a :class:`Mirror`."""
        assert self._mirror_port is not None
        found: Any = self._mirror_port.getHost()
        return (*self.address, found.port)


class Mirror(ServerInfo, Inbox):
    """The inbox of a catcher in another process.

    :param host: the catcher's host.
    :param port: its SMTP port.
    :param mirror_port: its port for mirrors.
    """

    def __init__(self, host: str, port: int, mirror_port: int) -> None:
        super().__init__(Store(COUNT, OCTETS), Query())
        self._address = host, port
        self._requests: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._socket = socket.create_connection((HOST, mirror_port), PATIENCE)
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
