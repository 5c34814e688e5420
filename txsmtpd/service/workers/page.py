"""Memory that all processes share: how many connections each has, for each listener.

Every process writes its own row only, and reads all others, so no lock is needed. The master clears the row of one
that is gone. A number may be old by the time it is read; only a courtesy or a limit follows from it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

SIZE = 4  # octets of a number


class Page:
    """The numbers.

    :param rows: how many processes there may be at a time.
    :param columns: how many listeners there are.
    :param descriptor: of the memory; None: make it.
    """

    def __init__(self, rows: int, columns: int, descriptor: int | None = None) -> None:
        self.rows = rows
        self.columns = max(1, columns)
        length = rows * self.columns * SIZE
        if descriptor is None:
            descriptor = os.memfd_create("txsmtpd workers")
            os.ftruncate(descriptor, length)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, length)
        self._numbers = memoryview(self._memory).cast("I")

    def put(self, row: int, column: int, number: int) -> None:
        """Write a number."""
        self._numbers[row * self.columns + column] = number

    def clear(self, row: int) -> None:
        """A process is gone, or is about to begin."""
        for column in range(self.columns):
            self.put(row, column, 0)

    def row(self, row: int) -> int:
        """The connections of a process."""
        start = row * self.columns
        return sum(self._numbers[start : start + self.columns])

    def column(self, column: int, without: int | None = None) -> int:
        """The connections of a listener.

        :param without: a row that does not count.
        """
        total = sum(self._numbers[column :: self.columns])
        return total if without is None else total - self._numbers[without * self.columns + column]

    def fewest(self, rows: Iterable[int]) -> int | None:
        """The connections of that process of these which has the fewest; None if there are none."""
        return min(map(self.row, rows), default=None)

    def close(self) -> None:
        """Forget the memory."""
        self._numbers.release()
        self._memory.close()
        os.close(self.descriptor)
