"""What the log, metrics and limits cost a message, in processor time of the protocol alone.

``python benchmarks/costs.py [--rounds 40]``
``python benchmarks/costs.py --instructions``

Sessions run in memory, without a reactor and sockets, so that a difference of one percent is visible. Each round runs
every variant once, and compares it with the plain server of the same round. The medians are printed. A message costs a
real server about three times the plain figure, so the percentages of a real server are smaller.

Valgrind counts the instructions. Their number hardly depends on other load on the machine, but it does not include the
time that caches and the kernel take.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
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
FEW = 250  # the same, while valgrind counts
MESSAGE = (
    b"MAIL FROM:<a@example.com>\r\n",
    b"RCPT TO:<b@example.com>\r\n",
    b"DATA\r\n",
    b"Subject: test\r\n\r\n" + b"x" * 1000 + b"\r\n.\r\n",
)
CLIENT = IPv4Address("TCP", "192.0.2.7", 4711)  # one that has limits
RATES = {"connections": "1000000/s", "messages": "1000000/s", "recipients": "1000000/s"}
SLOW = {"session_timeout": 3600.0, "error_delay": 1.0}


class TwoHooks:
    """A handler of two coroutines."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 OK"


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
    "two hooks": lambda: SMTPFactory(TwoHooks()),
    "two hooks, metrics": lambda: SMTPFactory(TwoHooks(), metrics=Metrics("tcp:25")),
}


def base_of(name: str) -> str:
    """The variant that another one is compared with."""
    return "two hooks" if name.startswith("two hooks") else "plain"


def seconds(factory: SMTPFactory, messages: int = MESSAGES) -> float:
    """Processor seconds of one message, in a session of many."""
    protocol: Any = factory.buildProtocol(CLIENT)
    transport = StringTransport(peerAddress=CLIENT)
    transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]  # tells the protocol
    protocol.makeConnection(transport)
    protocol.dataReceived(b"EHLO client.test\r\n")
    transport.clear()
    begin = time.process_time()
    for _ in range(messages):
        for octets in MESSAGE:
            protocol.dataReceived(octets)
    used = time.process_time() - begin
    replies = transport.value().count(b"\r\n")
    if replies != messages * len(MESSAGE):
        raise SystemExit(f"{replies} replies: {transport.value()[-200:]!r}")
    protocol.dataReceived(b"QUIT\r\n")
    protocol.connectionLost(Failure(ConnectionDone()))
    return used / messages


def run_under_valgrind() -> None:
    """Run sessions of two lengths for each variant. Each begins when the parent process asks for it."""
    gc.disable()
    for name, make in VARIANTS.items():
        factory = make()
        seconds(factory, FEW)
        for messages in (FEW, 2 * FEW):
            print(name, flush=True)
            input()
            seconds(factory, messages)
            print("done", flush=True)


def count_instructions() -> dict[str, float]:
    """Return the instructions of one message, by variant: the difference between two sessions."""
    counts: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        valgrind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        child = subprocess.Popen(
            [*valgrind, sys.executable, __file__, "--under-valgrind"],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None and child.stdout is not None

        def control(*options: str) -> None:
            subprocess.run(["callgrind_control", *options, str(child.pid)], check=True, capture_output=True)

        for line in child.stdout:
            control("--instr=on")
            control("--zero")
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
            control("--dump")
            newest = max(Path(folder).iterdir(), key=lambda file: file.stat().st_mtime_ns)
            total = re.search(r"^(?:totals|summary): (\d+)", newest.read_text(), re.MULTILINE)
            assert total is not None
            counts.setdefault(line.strip(), []).append(int(total[1]))
            control("--instr=off")
        child.wait()
    return {name: (long - short) / FEW for name, (short, long) in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What the log, metrics and limits cost a message.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--instructions", action="store_true", help="count instructions; needs valgrind")
    parser.add_argument("--under-valgrind", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.under_valgrind:
        run_under_valgrind()
    elif asked.instructions:
        counts = count_instructions()
        for name, count in counts.items():
            more = count - counts[base_of(name)]
            print(f"{name:34} {count:8.0f}  {more:+7.0f}  {more / counts[base_of(name)]:+6.1%}")
    else:
        compare_times(asked.rounds)


def compare_times(rounds: int) -> None:
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
    for name, values in times.items():
        plain = times[base_of(name)]
        more = statistics.median(value / base - 1 for value, base in zip(values, plain, strict=True))
        least = min(values) / min(plain) - 1
        print(f"{name:34} {statistics.median(values) * 1e6:6.2f} us  {more:+6.1%} (of the fastest: {least:+.1%})")


if __name__ == "__main__":
    main()
