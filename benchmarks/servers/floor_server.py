"""The floor: the minimum that a Twisted protocol must do for a correct client.

It sends fixed replies, chosen by the first octet of a line. It does not parse or check, and has no limits. It only
finds the end of the mail data, and joins the message. A segment must end with a complete command. With ``--direct``,
replies are written to the socket immediately instead of with ``transport.write``.
"""

from __future__ import annotations

import os
import time
from itertools import count
from typing import Any

import options
from certificate import tls_context
from twisted.internet import reactor
from twisted.internet.protocol import Protocol, ServerFactory

GREETING = b"220 localhost floor\r\n"
OK = b"250 OK\r\n"
DATA = b"354 go on\r\n"
ANSWERS = {
    ord("E"): b"250-localhost\r\n250-PIPELINING\r\n250 HELP\r\n",
    ord("M"): OK,
    ord("R"): OK,
    ord("D"): DATA,
    ord("H"): OK,
    ord("L"): OK,
    ord("Q"): b"221 Bye\r\n",
}


class Floor(Protocol):
    """Chooses the reply by the first octet of each line."""

    chunks: list[bytes] | None = None
    last = b""
    numbers = count()

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.say(GREETING)

    def say(self, answer: bytes) -> None:
        self.transport.write(answer)

    def dataReceived(self, data: bytes) -> None:
        if self.chunks is not None:
            self.content(data)
            return
        answers = []
        for line in data.split(b"\r\n")[:-1]:
            if line[0] == ord("S"):
                self.say(b"220 go\r\n")
                self.transport.startTLS(self.factory.context)
                return
            answers.append(ANSWERS[line[0]])
            if line[0] == ord("D"):
                self.chunks = []
        self.say(b"".join(answers))
        if line[0] == ord("Q"):
            self.transport.loseConnection()

    def content(self, data: bytes) -> None:
        chunks = self.chunks
        chunks.append(data)
        text = self.last + data
        if text.rfind(b"\r\n.") != len(text) - 5:
            self.last = data[-4:]
            return
        message = b"".join(chunks)
        if self.factory.maildir:
            self.deliver(message[:-3])
        self.chunks = None
        self.last = b""
        self.say(OK)

    def deliver(self, message: bytes) -> None:
        name = f"{time.time():.6f}.{next(self.numbers)}.localhost"
        folder = self.factory.maildir
        descriptor = os.open(f"{folder}/tmp/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, message)
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(f"{folder}/tmp/{name}", f"{folder}/new/{name}")


class Direct(Floor):
    """The same, but replies are written to the socket immediately."""

    def say(self, answer: bytes) -> None:
        self.transport.writeSomeData(answer)


class Factory(ServerFactory):
    """Makes a protocol for each connection."""

    noisy = False
    context: Any = None
    maildir: str | None = None


def main() -> None:
    told = options.read()
    factory = Factory()
    factory.protocol = Direct if told.direct else Floor
    if told.certificate:
        if told.direct:  # with TLS, the protocol cannot write to the socket itself
            options.unavailable()
        factory.context = tls_context(told.certificate, told.key)
    if told.maildir:
        factory.maildir = told.maildir
        for name in ("tmp", "new", "cur"):
            os.makedirs(f"{told.maildir}/{name}")
    reactor.listenTCP(told.port, factory, backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
