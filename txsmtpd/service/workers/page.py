"""Memory that all processes share: how many connections each has, for each listener, and who accepted one last.

Every process writes its own row only, and reads all others, so no lock is needed. The master clears the row of one
that is gone. A number may be old by the time it is read; only a courtesy or a limit follows from it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

SIZE = 8  # octets of a number


class Page:
    """The numbers.

    :param rows: how many processes there may be at a time.
    :param columns: how many listeners there are.
    :param descriptor: of the memory; None: make it.
    """

    def __init__(self, rows: int, columns: int, descriptor: int | None = None) -> None:
        self.rows = rows
        self.columns = max(1, columns)
        self._width = self.columns + 1  # the last one tells when the process has accepted a connection
        length = rows * self._width * SIZE
        if descriptor is None:
            descriptor = os.memfd_create("txsmtpd workers")
            os.ftruncate(descriptor, length)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, length)
        self._numbers = memoryview(self._memory).cast("Q")

    def put(self, row: int, column: int, number: int) -> None:
        """Write a number."""
        self._numbers[row * self._width + column] = number

    def clear(self, row: int) -> None:
        """A process is gone, or is about to begin."""
        for column in range(self._width):
            self.put(row, column, 0)

    def row(self, row: int) -> int:
        """The connections of a process."""
        start = row * self._width
        return sum(self._numbers[start : start + self.columns])

    def column(self, column: int, without: int | None = None) -> int:
        """The connections of a listener.

        :param without: a row that does not count.
        """
        total = sum(self._numbers[column :: self._width])
        return total if without is None else total - self._numbers[without * self._width + column]

    def accepted(self, row: int) -> None:
        """A process has accepted a connection: it is the last one to have done so."""
        self.put(row, self.columns, max(self._numbers[self.columns :: self._width]) + 1)

    def comes_after(self, row: int, others: Iterable[int]) -> bool:
        """Whether another process should get the next connection: one that has fewer, or as many and got its last one
        earlier."""
        mine = self._rank(row)
        return any(self._rank(other) < mine for other in others)

    def _rank(self, row: int) -> tuple[int, int]:
        return self.row(row), self._numbers[row * self._width + self.columns]

    def close(self) -> None:
        """Forget the memory."""
        self._numbers.release()
        self._memory.close()
        os.close(self.descriptor)
