"""Shared memory with the number of connections of each client network, over all processes: a count-min sketch.

A shared dictionary would need locks. Instead, each process has a row of small numbers that only it writes, and a hash
maps each network to two places in a row. The result for a network is the smaller of the two sums over all rows. It is
never too low. It is too high only if other networks share both places, which is rare even with thousands of networks.
"""

from __future__ import annotations

import mmap
import os
from hashlib import blake2b

WIDTH = 2**14  # places in a row, for each of two hashes
SIZE = 2  # bytes of a number
HIGHEST = 2**16 - 1


class Sketch:
    """The table of these numbers.

    :param rows: the highest number of processes at one time.
    :param descriptor: of the shared memory. Default: create it.
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
        """Add to the number of connections from a network to one process."""
        for place in _places(key):
            at = row * 2 * WIDTH + place
            self._numbers[at] = min(max(self._numbers[at] + number, 0), HIGHEST)

    def elsewhere(self, row: int, key: str) -> int:
        """Return the number of connections from a network to all other processes."""
        numbers = self._numbers
        others = [other * 2 * WIDTH for other in range(self.rows) if other != row]
        return min(sum(numbers[start + place] for start in others) for place in _places(key))

    def clear(self, row: int) -> None:
        """Set a row to zero, when its process has ended or is about to start."""
        start = row * 2 * WIDTH
        self._numbers[start : start + 2 * WIDTH] = memoryview(bytes(2 * WIDTH * SIZE)).cast("H")

    def close(self) -> None:
        """Unmap the memory and close its descriptor."""
        self._numbers.release()
        self._memory.close()
        os.close(self.descriptor)


def _places(key: str) -> tuple[int, int]:
    digest = int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big")
    return digest % WIDTH, WIDTH + (digest >> 32) % WIDTH
