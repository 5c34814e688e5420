"""Readers read octets that are not lines, such as a message. The readers themselves are in :mod:`txsmtpd.wire`."""

from __future__ import annotations

from io import IncrementalNewlineDecoder
from typing import Protocol

from txsmtpd.engine.observer import Observer
from txsmtpd.wire.data import DataReader

END_OF_DATA = b".\r\n"


class Reader(Protocol):
    """Reads octets that are not lines, until it finds their end."""

    def feed(self, data: bytes, start: int) -> int:
        """Read the octets from the position *start*.

        :return: the position after the end; -1 if the end is not in the data.
        """


class CountedReader:
    """Wraps the reader of a message. At the end, it calls :meth:`Observer.data_read`.

    :param reader: the reader.
    :param observer: the observer.
    """

    __slots__ = ("_newlines", "_observer", "_octets", "reader")

    def __init__(self, reader: Reader, observer: Observer) -> None:
        self.reader = reader
        self._observer = observer
        self._octets = 0
        self._newlines = IncrementalNewlineDecoder(None, translate=False)

    def feed(self, data: bytes, start: int) -> int:
        end = self.reader.feed(data, start)
        stop = end if end >= 0 else len(data)
        self._octets += stop - start
        self._newlines.decode(str(data[start:stop], "latin-1"), end >= 0)
        return end

    @property
    def _bare(self) -> bool:
        return self._newlines.newlines not in (None, "\r\n")

    def finish(self) -> None:
        """The reader has found the end."""
        dot = len(END_OF_DATA) if isinstance(self.reader, DataReader) else 0
        self._observer.data_read(self._octets - dot, True, self._bare)

    def stop(self) -> None:
        """The reader is removed before the end."""
        self._observer.data_read(self._octets, False, self._bare)
