"""Run CPython 3.11's tests of the module smtpd, and of smtplib with it, with txsmtpd.smtpd in its place.

    python tests/foreign/as_smtpd.py test_smtpd RESULTS [TEST...]

Many of these tests pass input to a channel with a mock of its socket. Here, the input arrives over a transport in
memory. :func:`txsmtpd.smtpd.loop` replaces asyncore's loop. Replies are compared octet by octet. The result of each
test is written to the file RESULTS.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
import unittest
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport

import txsmtpd.smtpd as ours
from txsmtpd.smtpd.connection import ChannelDispatcher

PEER = "peer-address", "peer-port"


class MockedSocket(StringTransport):
    """Passes what a test queues to the channel, and the channel's output to the test."""

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", *PEER))  # type: ignore[arg-type]  # a port as the tests have it
        self.queued: list[bytes] = []
        self.last = b""
        self.output: list[bytes] = []

    def queue_recv(self, line: bytes) -> None:
        self.queued.append(line)

    def write(self, data: bytes) -> None:
        for line in data.splitlines(keepends=True):
            self.last = line
            self.output.append(line)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))


class SMTPChannel(ours.SMTPChannel):
    """A channel for a connection that a test has accepted itself."""

    _emptystring = ""
    _asks = 0  # the state of a subclass in which lines are not commands

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Any method may be overridden. Some methods of asyncore are called here."""

    def __init__(self, server: Any, conn: Any, *args: Any, **kwargs: Any) -> None:
        make = super().__init__
        if getattr(conn, "transport", None) is not None or not hasattr(conn, "makeConnection"):
            make(server, conn, *args, **kwargs)
            return
        self.socket = MockedSocket()
        self._made = conn
        server.connected_by = lambda conn: make(server, conn, *args, **kwargs)
        try:
            conn.makeConnection(self.socket)
        finally:
            del server.connected_by

    @property
    def smtp_state(self) -> int:
        return self._asks or super().smtp_state

    @smtp_state.setter
    def smtp_state(self, state: int) -> None:
        self._asks = state if state not in (self.COMMAND, self.DATA) else 0
        if not self._asks:
            ours.SMTPChannel.smtp_state.fset(self, state)  # type: ignore[attr-defined]  # the property below ours


def _handle_read(channel: SMTPChannel) -> None:
    channel._made.dataReceived(channel.socket.queued.pop(0) + b"\r\n")


def _found_terminator(channel: SMTPChannel) -> None:
    raise AssertionError("commands are read beneath the channel")


# Methods of asyncore and asynchat that the tests call. txsmtpd's class does not have them.
SMTPChannel.handle_read = _handle_read  # type: ignore[attr-defined]
SMTPChannel.found_terminator = _found_terminator  # type: ignore[attr-defined]


class Server(ours.SMTPServer):
    """A server that a test may ask for a connection that does not exist."""

    channel_class = SMTPChannel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, bare_newlines=True, **kwargs)  # the messages of the tests contain bare newlines

    def accept(self) -> Any:
        arrived = super().accept()
        if arrived is None:
            conn = self.factory.buildProtocol(IPv4Address("TCP", *PEER))  # type: ignore[arg-type]  # a port as the tests have it
            arrived = conn, "c"  # type: ignore[assignment]  # an address as mock sockets give it
        return arrived


class DebuggingServer(Server, ours.DebuggingServer):
    """Prints messages."""


class PureProxy(Server, ours.PureProxy):
    """Forwards messages."""


def _on_line(dispatcher: Any, line: bytes) -> Any:
    channel = dispatcher.server.channel
    if not getattr(channel, "_asks", 0):
        return on_line(dispatcher, line)
    dispatcher.pushed = False
    channel.received_lines = [line.decode("utf-8")]
    channel.found_terminator()
    return None


on_line = ChannelDispatcher.on_line
ChannelDispatcher.on_line = _on_line  # type: ignore[method-assign]  # sees each line first


class _Module(types.ModuleType):
    """The old module: attributes that are set on it are set on the new one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(ours, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(ours, name, value)


def install() -> None:
    smtpd: Any = _Module("smtpd")
    for each in (SMTPChannel, DebuggingServer, PureProxy):
        vars(smtpd)[each.__name__] = each
    vars(smtpd)["SMTPServer"] = Server
    asyncore: Any = types.ModuleType("asyncore")
    asyncore.socket_map = ours.socket_map
    asyncore.close_all = ours.close_all
    asyncore.poll = asyncore.poll2 = lambda timeout, servers: ours.loop(timeout, count=1)
    sys.modules |= {"smtpd": smtpd, "asyncore": asyncore}


class _Result(unittest.TextTestResult):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.outcomes[_name(test)] = "passed"

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.outcomes[_name(test)] = "failed"

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.outcomes[_name(test)] = "failed"

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[_name(test)] = "failed"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.outcomes[_name(test)] = "skipped"


def _name(test: unittest.TestCase) -> str:
    return "::".join(test.id().rsplit(".", 3)[-3:])


def main(module: str, results: str, *names: str) -> None:
    install()
    tests, loader = importlib.import_module(f"test.{module}"), unittest.defaultTestLoader
    found = loader.loadTestsFromNames(names, tests) if names else loader.loadTestsFromModule(tests)
    outcome = unittest.TextTestRunner(resultclass=_Result, verbosity=2).run(found)
    assert isinstance(outcome, _Result)
    Path(results).write_text(json.dumps(outcome.outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
