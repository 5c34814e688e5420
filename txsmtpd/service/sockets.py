"""Removes the stale Unix socket of a dead server, which would prevent the next server from listening."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.internet.error import CannotListenError

MOMENT = 0.1  # seconds; a server that has bound its socket listens much sooner


def replace_stale_socket(listen: Callable[[], None], sleep: Callable[[float], object] = time.sleep) -> None:
    """Call *listen*. If a stale Unix socket prevents it from listening, remove the socket and call it again.

    :param listen: raises :class:`~twisted.internet.error.CannotListenError` with the path of the socket.
    :param sleep: waits for the given number of seconds.
    :raises CannotListenError: as *listen* does, if a server listens on the socket, or that cannot be determined.
    """
    try:
        listen()
    except CannotListenError as error:
        path = error.port
        if not isinstance(path, bytes) or path.startswith(b"\0"):  # not a Unix socket, or an abstract one
            raise
        # Lock the folder: two servers that start at once must not mistake each other's new socket for the stale one.
        with _locked(os.path.dirname(path) or b"."):
            if not _is_stale(path):
                raise
            sleep(MOMENT)  # its server may have bound it just now, and not listen yet
            if not _is_stale(path):
                raise
            os.unlink(path)
            listen()


@contextmanager
def _locked(folder: bytes) -> Iterator[None]:
    import fcntl  # not available on Windows, which has no such sockets

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # the folder is missing or not readable, so that there is nothing to remove
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_stale(path: bytes) -> bool:
    """Return True if this is a Unix socket on which no process listens."""
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
