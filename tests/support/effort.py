"""Measures the work of functions in ways that do not depend on the load of the machine."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
import timeit
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

FACTOR = 8  # the ratio of the sizes of the two inputs
MOST = 3 * FACTOR  # the maximum ratio of the processor times; quadratic time has FACTOR ** 2
ATTEMPTS = 6


def calls_of(work: Callable[[], object]) -> int:
    """The number of calls of Python functions while the work is done. It is the same on every machine."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def processor_time(work: Callable[[T], object], given: T) -> float:
    """The processor time of the work in seconds, in this thread."""
    began = time.thread_time()
    work(given)
    return time.thread_time() - began


def grows_faster_than_its_input(work: Callable[[T], object], make: Callable[[int], T], size: int) -> str:
    """Compare the work for *size* with that for :data:`FACTOR` times as much.

    Both alternate, several times if necessary, and the fastest run of each counts: other work of the machine can make
    them slower, but never faster. Functions in C can be compared, too.

    :param make: returns an input of this size.
    :return: the growth, or nothing if it is about the factor, as it should be.
    """
    small, large = make(size), make(FACTOR * size)
    times: list[tuple[float, float]] = []
    for _ in range(ATTEMPTS):
        times.append((processor_time(work, small), processor_time(work, large)))
        less, more = (min(column) for column in zip(*times, strict=True))
        if more <= MOST * max(less, 1e-6):
            return ""
    return f"{FACTOR} times the input takes {more / less:.0f} times as long"


def times_a_bare_server(use: Callable[[], object]) -> float:
    """How many times as long something takes as starting and stopping a minimal asyncio server in a thread. They
    alternate, and the fastest run of each counts."""
    times = [(timeit.timeit(_bare_server, number=1), timeit.timeit(use, number=1)) for _ in range(30)]
    bare, used = (min(column) for column in zip(*times, strict=True))
    return used / bare


def _bare_server() -> None:
    listening = threading.Event()
    end: Callable[[], object] = int

    async def serve() -> None:
        nonlocal end
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        end = functools.partial(loop.call_soon_threadsafe, ended.set)
        listening.set()
        await ended.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    listening.wait()
    end()
    thread.join()
