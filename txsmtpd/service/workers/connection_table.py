"""Shared memory with the number of connections of each process, for each listener, and the order in which they accept.

Each process writes only to its own row, and reads all rows, so no lock is needed. The master clears the row of a
process that has ended. A number may be out of date when it is read; that suffices for balancing and for limits.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

SIZE = 8  # bytes of a number


class ConnectionTable:
    """The table of these numbers.

    :param rows: the highest number of processes at one time.
    :param columns: the number of listeners.
    :param descriptor: of the shared memory. Default: create it.
    """

    def __init__(self, rows: int, columns: int, descriptor: int | None = None) -> None:
        self.rows = rows
        self.columns = max(1, columns)
        self._width = self.columns + 1  # the last column has the number of the last accept, counted over all processes
        length = rows * self._width * SIZE
        if descriptor is None:
            descriptor = os.memfd_create("txsmtpd workers")
            os.ftruncate(descriptor, length)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, length)
        self._numbers = memoryview(self._memory).cast("Q")

    def put(self, row: int, column: int, number: int) -> None:
        """Set one number."""
        self._numbers[row * self._width + column] = number

    def clear(self, row: int) -> None:
        """Set a row to zero, when its process has ended or is about to start."""
        for column in range(self._width):
            self.put(row, column, 0)

    def row(self, row: int) -> int:
        """Return the number of connections of one process."""
        start = row * self._width
        return sum(self._numbers[start : start + self.columns])

    def column(self, column: int, without: int | None = None) -> int:
        """Return the number of connections of one listener.

        :param without: a row to leave out.
        """
        total = sum(self._numbers[column :: self._width])
        return total if without is None else total - self._numbers[without * self._width + column]

    def accepted(self, row: int) -> None:
        """Record that this process is the last one to have accepted a connection."""
        self.put(row, self.columns, max(self._numbers[self.columns :: self._width]) + 1)

    def comes_after(self, row: int, others: Iterable[int]) -> bool:
        """Return True if another process should accept the next connection: one with fewer connections, or with as many
        and an earlier last accept."""
        mine = self._rank(row)
        return any(self._rank(other) < mine for other in others)

    def _rank(self, row: int) -> tuple[int, int]:
        return self.row(row), self._numbers[row * self._width + self.columns]

    def close(self) -> None:
        """Unmap the memory and close its descriptor."""
        self._numbers.release()
        self._memory.close()
        os.close(self.descriptor)
