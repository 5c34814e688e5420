"""Read a chunk of known size, and parse the argument of BDAT (RFC 3030 2). Octets only."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from txsmtpd.reply import Refused, Reply

_ARGUMENT = re.compile(rb" *(?P<size>[0-9]{1,20})(?P<last> +LAST)?[ \t]*", re.IGNORECASE)
MALFORMED = Reply(421, "4.5.4", "Invalid chunk size, closing connection")


class Chunk(NamedTuple):
    """The argument of BDAT."""

    size: int  #: octets that follow the command
    last: bool  #: True for the last chunk of the message


def parse_bdat(arg: bytes) -> Chunk:
    """Parse the argument of BDAT, before it is decoded: the size is needed even if the command is refused.

    :raises Refused: with 421, since the number of octets after a malformed command is unknown.
    """
    found = _ARGUMENT.fullmatch(arg)
    if found is None:
        raise Refused(MALFORMED)
    return Chunk(int(found["size"]), found["last"] is not None)


class ChunkReader:
    """Reads the octets of one chunk and passes them on.

    :param size: the size of the chunk; more than 0.
    :param write: called with each piece.
    """

    __slots__ = ("_left", "_write")

    def __init__(self, size: int, write: Callable[[bytes], object]) -> None:
        self._left = size
        self._write = write

    def feed(self, data: bytes, start: int = 0) -> int:
        """Process received data from *start* on.

        :return: the index in *data* after the end of the chunk, or -1 if the chunk is incomplete.
        """
        come = len(data) - start
        if come < self._left:
            self._left -= come
            self._write(data[start:] if start else data)
            return -1
        end = start + self._left
        self._left = 0
        self._write(data[start:end])
        return end
