"""The client for what smtp-source cannot do: pipelining, TLS, and many connections held open.

It has one process, one thread and one epoll. Each session is a generator that yields when it must wait for its socket.
The client uses little processor time, so that only the server limits the rate. It prints each result as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator

Wait = Generator[int, None, None]

MAIL = b"MAIL FROM:<sender@example.com>\r\n"
RCPT = b"RCPT TO:<recipient@example.com>\r\n"
GROUP = MAIL + RCPT + b"DATA\r\n"
END = b"\r\n.\r\n"


def message(size: int) -> bytes:
    """A header and lines of 80 octets, *size* octets with the CRLF before the final dot."""
    head = b"From: <sender@example.com>\r\nTo: <recipient@example.com>\r\nSubject: speed\r\n\r\n"
    line = b"x" * 78 + b"\r\n"
    body = line * (size // len(line) + 1)
    return (head + body)[: size - 2].rstrip(b"\r\n") + b"\r\n"


class Session:
    """One connection and its dialogue."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.tls = tls

    def say(self, *pieces: bytes) -> Wait:
        """Send the octets."""
        for piece in pieces:
            left = memoryview(piece)
            while left:
                try:
                    left = left[self.socket.send(left) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    yield select.EPOLLOUT
                except ssl.SSLWantReadError:
                    yield select.EPOLLIN

    def hear(self, *codes: bytes) -> Wait:
        """Receive one reply for each code, with exactly these codes."""
        heard = b""
        while True:
            try:
                octets = self.socket.recv(65536)
            except (BlockingIOError, ssl.SSLWantReadError):
                yield select.EPOLLIN
                continue
            heard += octets
            if heard[-1:] == b"\n":
                last = [line[:3] for line in heard.split(b"\r\n")[:-1] if line[3:4] != b"-"]
                if len(last) >= len(codes):
                    break
            if not octets:
                break
        if heard[-1:] != b"\n" or last != list(codes):
            raise SystemExit(f"expected {codes}, got {heard!r}")

    def start(self) -> Wait:
        """Receive the greeting, send EHLO, and start TLS if requested."""
        yield from self.hear(b"220")
        yield from self.say(b"EHLO client.example.com\r\n")
        yield from self.hear(b"250")
        if self.tls is None:
            return
        yield from self.say(b"STARTTLS\r\n")
        yield from self.hear(b"220")
        self.socket = self.tls.wrap_socket(self.socket, server_hostname="localhost", do_handshake_on_connect=False)
        while True:
            try:
                self.socket.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield select.EPOLLIN
            except ssl.SSLWantWriteError:
                yield select.EPOLLOUT
        yield from self.say(b"EHLO client.example.com\r\n")
        yield from self.hear(b"250")

    def begin(self, pipelined: bool) -> Wait:
        """Start a transaction, up to DATA."""
        if pipelined:
            yield from self.say(GROUP)
            yield from self.hear(b"250", b"250", b"354")
            return
        for command, code in ((MAIL, b"250"), (RCPT, b"250"), (b"DATA\r\n", b"354")):
            yield from self.say(command)
            yield from self.hear(code)

    def quit(self) -> Wait:
        yield from self.say(b"QUIT\r\n")
        yield from self.hear(b"221")
        self.socket.close()


class Load:
    """Sessions that share a number of messages."""

    def __init__(self, told: argparse.Namespace) -> None:
        self.told = told
        self.left: int = told.messages
        self.content = message(told.size)
        self.tls = None
        if told.tls:
            self.tls = ssl.create_default_context(cafile=told.tls)
        self.waiting: list[Session] = []

    def take(self) -> bool:
        """Take one of the messages. Return False if none is left."""
        self.left -= 1
        return self.left >= 0

    def messages(self, session: Session) -> Wait:
        """Send messages one after another on one connection."""
        yield from session.start()
        while self.take():
            yield from self.message(session)
        yield from session.quit()

    def message(self, session: Session) -> Wait:
        """One message."""
        yield from session.begin(pipelined=not self.told.tls)
        # Send a small message at once: the server would read two segments separately.
        if len(self.content) < 65536:
            yield from session.say(self.content + b".\r\n")
        else:
            yield from session.say(self.content, b".\r\n")
        yield from session.hear(b"250")

    def handshake(self, session: Session) -> Wait:
        """Connect, start the session, and disconnect."""
        yield from session.start()
        yield from session.quit()

    def hold(self, session: Session) -> Wait:
        """Start a transaction, and keep it open."""
        yield from session.start()
        yield from session.say(MAIL)
        yield from session.hear(b"250")
        self.waiting.append(session)

    def half(self, session: Session) -> Wait:
        """Send a message without its end."""
        yield from session.start()
        yield from session.begin(pipelined=False)
        yield from session.say(self.content)
        self.waiting.append(session)

    def end(self, session: Session) -> Wait:
        yield from session.say(b".\r\n")
        yield from session.hear(b"250")
        yield from session.quit()


def run(talks: Iterator[tuple[Session, Wait]], at_once: int) -> None:
    """Run all sessions, at most *at_once* at the same time."""
    poll = select.epoll()
    under_way: dict[int, tuple[Session, Wait]] = {}
    masks: dict[int, int] = {}

    def begin() -> None:
        for session, talk in talks:
            mask = next(talk, 0)
            if not mask:  # it never had to wait
                continue
            fd = session.socket.fileno()
            under_way[fd] = session, talk
            masks[fd] = mask
            poll.register(fd, mask)
            return

    for _ in range(at_once):
        begin()
    while under_way:
        for fd, _ in poll.poll():
            session, talk = under_way[fd]
            mask = next(talk, 0)
            if not mask:
                del under_way[fd]
                if session.socket.fileno() == fd:
                    poll.unregister(fd)
                begin()
            elif mask != masks[fd]:
                masks[fd] = mask
                poll.modify(fd, mask)


def run_paced(load: Load, sessions: list[Session], rate: float) -> None:
    """Send messages over these connections in turn, at a fixed rate that does not depend on the server."""
    poll = select.epoll()
    under_way: dict[int, tuple[Session, Wait]] = {}
    idle = deque(sessions)
    for each in sessions:
        poll.register(each.socket.fileno(), 0)
    start = time.perf_counter()
    sent = 0

    def go_on(session: Session, talk: Wait) -> None:
        fd = session.socket.fileno()
        mask = next(talk, 0)
        poll.modify(fd, mask)
        if mask:
            under_way[fd] = session, talk
        else:
            under_way.pop(fd, None)
            idle.append(session)

    while under_way or load.left > 0:
        while idle and load.left > 0 and sent <= (time.perf_counter() - start) * rate:
            session = idle.popleft()
            sent += 1
            load.take()
            go_on(session, load.message(session))
        until_next = max(0.0, sent / rate - (time.perf_counter() - start))
        for fd, _ in poll.poll(until_next if idle and load.left > 0 else None):
            go_on(*under_way[fd])


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["pipelined", "paced", "tls", "tls-handshake", "idle", "many"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=1000.0, help="messages a second (paced)")
    parser.add_argument("--tls", help="the certificate to trust")
    told = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = Load(told)

    def connect(talk: Callable[[Session], Wait], count: int) -> Iterator[tuple[Session, Wait]]:
        for _ in range(count):
            session = Session(told.port, load.tls)
            yield session, talk(session)

    start = time.perf_counter()
    if told.kind == "idle":
        for count in (told.sessions // 5, told.sessions):
            run(connect(load.hold, count - len(load.waiting)), 100)
            tell(held=count)
            sys.stdin.readline()
    elif told.kind == "paced":
        sessions: list[Session] = []

        def begin(session: Session) -> Wait:
            yield from session.start()
            sessions.append(session)

        run(connect(begin, told.sessions), told.sessions)
        run_paced(load, sessions, told.rate)
        run(((session, session.quit()) for session in sessions), told.sessions)
    elif told.kind == "many":
        run(connect(load.half, told.sessions), told.sessions)
        run(((session, load.end(session)) for session in load.waiting), told.sessions)
    elif told.kind == "tls-handshake":
        run(connect(load.handshake, told.messages), told.sessions)
    else:
        run(connect(load.messages, told.sessions), told.sessions)
    tell(seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
