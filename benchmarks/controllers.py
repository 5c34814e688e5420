"""What a Controller costs apart from messages: start and stop, and memory that remains after connections have ended.

python benchmarks/controllers.py [CYCLES]
"""

from __future__ import annotations

import gc
import socket
import statistics
import sys
import time
import tracemalloc

from txsmtpd.controller import Controller
from txsmtpd.handlers import Sink


def start_and_stop(cycles: int) -> None:
    """Print the time of a start and stop: elapsed time and processor time."""
    clock, processor = [], []
    for _ in range(cycles):
        began, used = time.perf_counter(), time.process_time()
        with Controller(Sink(), hostname="127.0.0.1", port=0):
            pass
        clock.append((time.perf_counter() - began) * 1000)
        processor.append((time.process_time() - used) * 1000)
    print(
        f"start and stop: {statistics.median(clock):.1f} ms, {statistics.median(processor):.1f} ms of the processor,"
        f" at most {max(clock):.1f} ms, {cycles} cycles"
    )


def talk(controller: Controller) -> None:
    """One connection: a greeting, and the end."""
    with socket.create_connection((controller.hostname, controller.port)) as client, client.makefile("rb") as replies:
        replies.readline()
        client.sendall(b"HELO c.test\r\nQUIT\r\n")
        replies.read()


def connections_gone(number: int) -> None:
    """Print the memory that remains after connections have ended, per connection."""
    with Controller(Sink(), hostname="127.0.0.1", port=0) as controller:
        for _ in range(100):
            talk(controller)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(number):
            talk(controller)
        gc.collect()
        left = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    print(f"left of a connection that is gone: {left / number:.1f} octets, {number} connections")


if __name__ == "__main__":
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    start_and_stop(cycles)
    connections_gone(cycles * 10)
