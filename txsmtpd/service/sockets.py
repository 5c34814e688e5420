"""Removes stale Unix sockets of dead servers, which would prevent the next server from listening."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.internet.error import CannotListenError

MOMENT = 0.1  # seconds; a server that has made its socket listens much sooner


def in_place_of_the_dead(listen: Callable[[], None], sleep: Callable[[float], object] = time.sleep) -> None:
    """Listen; where a Unix socket is in the way that nobody listens on, remove it and try again.

    :param sleep: waits so many seconds.
    :raises CannotListenError: as *listen* does; also if a server lives behind the socket, or nobody can tell.
    """
    try:
        listen()
    except CannotListenError as error:
        path = error.port
        if not isinstance(path, bytes) or path.startswith(b"\0"):  # no Unix socket, or one without a file
            raise
        # Two servers that start at once must not take each other's new socket for the old one.
        with _alone_in(os.path.dirname(path) or b"."):
            if not _is_dead(path):
                raise
            sleep(MOMENT)  # one that was made just now may not be listened on yet
            if not _is_dead(path):
                raise
            os.unlink(path)
            listen()


@contextmanager
def _alone_in(folder: bytes) -> Iterator[None]:
    import fcntl  # which Windows has not, as it has no such sockets

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # no such folder, or none of ours: there is nothing to remove either
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_dead(path: bytes) -> bool:
    """Whether this is a socket that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False
