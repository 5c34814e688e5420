"""Read a chunk of known size, and the argument that tells it (RFC 3030 2). Octets only."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from txsmtpd.reply import Refused, Reply

_ARGUMENT = re.compile(rb" *(?P<size>[0-9]{1,20})(?P<last> +LAST)?[ \t]*", re.IGNORECASE)
MALFORMED = Reply(421, "4.5.4", "Invalid chunk size, closing connection")


class Chunk(NamedTuple):
    """What BDAT announces."""

    size: int  #: octets that follow the command
    last: bool  #: whether they are the message's last


def parse_bdat(arg: bytes) -> Chunk:
    """The argument of BDAT: octets, since it is needed even where the command is refused for what else is wrong.

    :raises Refused: 421, since nobody can know how many octets follow a command that is malformed.
    """
    found = _ARGUMENT.fullmatch(arg)
    if found is None:
        raise Refused(MALFORMED)
    return Chunk(int(found["size"]), found["last"] is not None)


class ChunkReader:
    """Takes the octets of one chunk and passes them on.

    :param size: how many there are; more than 0.
    :param write: called with each run of them.
    """

    __slots__ = ("_left", "_write")

    def __init__(self, size: int, write: Callable[[bytes], object]) -> None:
        self._left = size
        self._write = write

    def feed(self, data: bytes, start: int = 0) -> int:
        """Take what has come, from *start* on.

        :return: where in *data* the octets behind the chunk begin, or -1 if more of it is to come.
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
