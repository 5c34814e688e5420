"""Memory that all processes share: how many connections each network has, on all of them.

A table cannot be shared without locks, and the networks are not known beforehand. So each process has a row of small
numbers that it alone writes, and each network two places in it, found by a hash (a count-min sketch). The number of a
network is the smaller one of the sums over all rows. It is never too small; too large only where two other networks
happen to have both places, which with thousands of them is rare.
"""

from __future__ import annotations

import mmap
import os
from hashlib import blake2b

WIDTH = 2**14  # places in a row, for each of two hashes
SIZE = 2  # octets of a number
HIGHEST = 2**16 - 1


class Sketch:
    """The numbers.

    :param rows: how many processes there may be at a time.
    :param descriptor: of the memory; None: make it.
    """

    def __init__(self, rows: int, descriptor: int | None = None) -> None:
        self.rows = rows
        length = rows * 2 * WIDTH * SIZE
        if descriptor is None:
            descriptor = os.memfd_create("txsmtpd networks")
            os.ftruncate(descriptor, length)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, length)
        self._numbers = memoryview(self._memory).cast("H")

    def add(self, row: int, key: str, number: int) -> None:
        """Add to what a process has of a network."""
        for place in _places(key):
            at = row * 2 * WIDTH + place
            self._numbers[at] = min(max(self._numbers[at] + number, 0), HIGHEST)

    def elsewhere(self, row: int, key: str) -> int:
        """What all other processes have of a network."""
        numbers = self._numbers
        others = [other * 2 * WIDTH for other in range(self.rows) if other != row]
        return min(sum(numbers[start + place] for start in others) for place in _places(key))

    def clear(self, row: int) -> None:
        """A process is gone, or is about to begin."""
        start = row * 2 * WIDTH
        self._numbers[start : start + 2 * WIDTH] = memoryview(bytes(2 * WIDTH * SIZE)).cast("H")

    def close(self) -> None:
        """Forget the memory."""
        self._numbers.release()
        self._memory.close()
        os.close(self.descriptor)


def _places(key: str) -> tuple[int, int]:
    digest = int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big")
    return digest % WIDTH, WIDTH + (digest >> 32) % WIDTH
