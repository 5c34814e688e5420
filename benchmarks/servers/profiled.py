"""Run a server in Python, and profile it between two signals.

SIGUSR1 starts the profile. SIGUSR2 stops it and writes it. Sampling reads the stack once a millisecond, which hardly
slows the server. It attributes the time of C code and of the kernel to the line that called it. Calls are counted with
cProfile.
"""

from __future__ import annotations

import cProfile
import json
import os
import runpy
import signal
import sys
from collections import Counter
from types import FrameType
from typing import Any

INTERVAL = 0.00097  # seconds of elapsed time, since the timer of processor time is a few times coarser


class Samples:
    """Functions and lines on the stack, counted."""

    def __init__(self) -> None:
        self.total = 0
        self.own: Counter[str] = Counter()
        self.with_callees: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()

    def enable(self) -> None:
        signal.signal(signal.SIGALRM, self.look)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)

    def disable(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def look(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.total += 1
        self.own[_name(frame)] += 1
        self.lines[f"{_name(frame)}:{frame.f_lineno}"] += 1
        seen = set()
        while frame is not None:
            seen.add(_name(frame))
            frame = frame.f_back
        self.with_callees.update(seen)

    def dump_stats(self, file: str) -> None:
        with open(file + ".part", "w") as out:
            json.dump([self.total, self.own, self.with_callees, self.lines], out)
        os.rename(file + ".part", file)


def _name(frame: FrameType) -> str:
    folder, _, file = frame.f_code.co_filename.rpartition("/")
    return f"{folder.rpartition('/')[2]}/{file} {frame.f_code.co_qualname}"


class Calls(cProfile.Profile):
    """cProfile, whose file appears only when it is complete."""

    def dump_stats(self, file: Any) -> None:
        super().dump_stats(file + ".part")
        os.rename(file + ".part", file)


def main() -> None:
    kind, file, script = sys.argv[1:4]
    sys.argv[:] = sys.argv[3:]
    sys.path[0] = os.path.dirname(script)
    profile: Samples | Calls = Samples() if kind == "samples" else Calls()

    def begin(number: int, frame: FrameType | None) -> None:
        profile.enable()

    def end(number: int, frame: FrameType | None) -> None:
        profile.disable()
        profile.dump_stats(file)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
