"""A conversation for the pages' examples: in memory, without a reactor."""

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from txsmtpd import SMTP, SMTPFactory

# The examples show failures on purpose; their log would be taken for trouble with the pages.
globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False, discardBuffer=True)


def talk(server: SMTPFactory | SMTP, *lines: str, peer: IAddress | None = None) -> None:
    """Connect to the server, send the lines one by one, and print what client (C) and server (S) say."""
    protocol = server.buildProtocol(peer) if isinstance(server, SMTPFactory) else server
    if protocol.settings.reactor is None:
        object.__setattr__(protocol.settings, "reactor", Clock())
    assert IReactorTime.providedBy(protocol.settings.reactor)
    transport = StringTransport(peerAddress=peer)
    protocol.makeConnection(transport)
    _print_replies(transport)
    for line in lines:
        print(f"C: {line}".rstrip())
        protocol.dataReceived(line.encode() + b"\r\n")
        _print_replies(transport)
    if transport.disconnecting:
        print("(closed)")
    protocol.connectionLost(Failure(ConnectionDone()))


def _print_replies(transport: StringTransport) -> None:
    for line in transport.value().decode().splitlines():
        print(f"S: {line}".rstrip())
    transport.clear()
