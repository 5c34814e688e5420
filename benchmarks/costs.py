"""What the log, metrics and limits cost a message, in processor time of the protocol alone.

``python benchmarks/costs.py [--rounds 40]``

Sessions run in memory: no reactor, no sockets, so that a percent can be seen at all. Each round runs every variant
once, in turn, and each variant is compared with the plain server of the same round; shown are the medians. A message
of a real server costs about 2.5 times the plain figure, so that the percentages of a real server are smaller.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from txsmtpd import SMTPFactory
from txsmtpd.handlers import Sink
from txsmtpd.observe.metrics import Metrics
from txsmtpd.service.command_log import CommandLog

MESSAGES = 500  # of a session
MESSAGE = (
    b"MAIL FROM:<a@example.com>\r\n",
    b"RCPT TO:<b@example.com>\r\n",
    b"DATA\r\n",
    b"Subject: test\r\n\r\n" + b"x" * 1000 + b"\r\n.\r\n",
)
CLIENT = IPv4Address("TCP", "192.0.2.7", 4711)  # one that has limits
RATES = {"connections": "1000000/s", "messages": "1000000/s", "recipients": "1000000/s"}
SLOW = {"session_timeout": 3600.0, "error_delay": 1.0}


def logged(**options: Any) -> SMTPFactory:
    """A server that writes a log as the command line does."""
    log = CommandLog.open(os.devnull, **options)
    return SMTPFactory(Sink(), log=log.lines, log_messages=True)


VARIANTS: dict[str, Callable[[], SMTPFactory]] = {
    "plain": lambda: SMTPFactory(Sink()),
    "plain again": lambda: SMTPFactory(Sink()),
    "log": logged,
    "log in JSON": lambda: logged(as_json=True),
    "metrics": lambda: SMTPFactory(Sink(), metrics=Metrics("tcp:25")),
    "limits of connections": lambda: SMTPFactory(
        Sink(), connection_limit=1000, connection_limit_per_network=50, **SLOW
    ),
    "rates of messages and recipients": lambda: SMTPFactory(Sink(), rates=RATES),
}


def seconds(factory: SMTPFactory) -> float:
    """Processor seconds of one message, in a session of many."""
    protocol: Any = factory.buildProtocol(CLIENT)
    transport = StringTransport(peerAddress=CLIENT)
    transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]  # tells the protocol
    protocol.makeConnection(transport)
    protocol.dataReceived(b"EHLO client.test\r\n")
    transport.clear()
    begin = time.process_time()
    for _ in range(MESSAGES):
        for octets in MESSAGE:
            protocol.dataReceived(octets)
    used = time.process_time() - begin
    replies = transport.value().count(b"\r\n")
    if replies != MESSAGES * len(MESSAGE):
        raise SystemExit(f"{replies} replies: {transport.value()[-200:]!r}")
    protocol.dataReceived(b"QUIT\r\n")
    protocol.connectionLost(Failure(ConnectionDone()))
    return used / MESSAGES


def main() -> None:
    parser = argparse.ArgumentParser(description="What the log, metrics and limits cost a message.")
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    factories = {name: make() for name, make in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in factories}
    gc.disable()
    for number in range(rounds + 2):
        order = random.sample(sorted(factories), len(factories))
        for name in order:
            used = seconds(factories[name])
            if number >= 2:  # the first ones warm up
                times[name].append(used)
        gc.collect()
    plain = times["plain"]
    for name, values in times.items():
        more = statistics.median(value / base - 1 for value, base in zip(values, plain, strict=True))
        least = min(values) / min(plain) - 1
        print(f"{name:34} {statistics.median(values) * 1e6:6.2f} us  {more:+6.1%} (of the fastest: {least:+.1%})")


if __name__ == "__main__":
    main()
