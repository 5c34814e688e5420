"""A maildir on disk: blocking file operations that raise OSError. Does not depend on mail formats, SMTP or Twisted.

A file is written in ``tmp``, synced, and moved to ``new``. Then the folder ``new`` is synced, and the file counts as
delivered. Programs that read ``new`` never see a partial message, and delivered files survive a power failure.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
import threading
import time
from collections.abc import Iterable
from typing import Any

FOLDERS = ("tmp", "new", "cur")
STALE = 36 * 3600  # seconds; older files in tmp are left over from servers that were killed
ATTEMPTS = 10  # attempts to find an unused file name

_counter = itertools.count(1)


class Draft:
    """A file that is being delivered."""

    __slots__ = ("fd", "name", "path")

    def __init__(self, name: str, fd: int, path: str) -> None:
        self.name = name
        self.fd: int | None = fd  #: None once closed
        self.path: str | None = path  #: where the file is now; None once it is delivered or removed


class Maildir:
    """A folder with the folders ``tmp``, ``new`` and ``cur``, which are created if missing.

    Several threads may deliver at once.

    :param path: the folder; its parent must exist.
    :param durable: whether delivered files survive a power failure. False is faster and enough for tests.
    :param system: performs the file operations, instead of :mod:`os`.
    :raises ValueError: if the path is empty.
    :raises FileNotFoundError: if the parent does not exist.
    :raises NotADirectoryError: if the path is not a folder.
    :raises PermissionError: if the server cannot write to the folder, or if everybody can. In a folder that everybody
        can write to, anyone could create links.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True, system: Any = os) -> None:
        if not os.fspath(path):
            raise ValueError("the maildir must have a name")
        self.path = os.path.abspath(path)  # a daemon may change its working directory
        self.durable = durable
        self._os = system
        self._tmp, self._new, _ = folders = [os.path.join(self.path, folder) for folder in FOLDERS]
        self._host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
        self._tickets = itertools.count(1)
        self._synced = 0
        self._syncing = threading.Lock()
        created = [self._make(folder) for folder in (self.path, *folders)]
        if durable and any(created):
            self._sync_folder(self.path)
            # Without read permission on the parent, it cannot be synced.
            with contextlib.suppress(PermissionError):
                self._sync_folder(os.path.dirname(self.path))
        self._remove_stale()

    # Delivering files

    def new_name(self) -> str:
        """Return a file name that is unique among all processes and hosts."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        return f"{seconds}.M{nanoseconds // 1000}P{os.getpid()}Q{next(_counter)}R{os.urandom(8).hex()}.{self._host}"

    def deliver(self, pieces: Iterable[bytes], name: str | None = None) -> str:
        """Write a file and deliver it.

        :param pieces: the content of the file.
        :param name: a name from :meth:`new_name`. Default: a new one.
        :return: the name of the file in ``new``.
        :raises OSError: if it could not be delivered. No file is left behind.
        """
        draft = self.open(name)
        try:
            for piece in pieces:
                self.write(draft, piece)
            self.commit(draft)
        except BaseException:
            self.abort(draft)
            raise
        return draft.name

    def open(self, name: str | None = None) -> Draft:
        """Start a file. The caller must call :meth:`commit` or :meth:`abort` later."""
        name = name or self.new_name()
        for _ in range(ATTEMPTS):
            path = f"{self._tmp}/{name}"
            try:
                return Draft(name, self._os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), path)
            except FileExistsError:
                name = self.new_name()
        raise FileExistsError(errno.EEXIST, "no unused file name was found", self._tmp)

    def write(self, draft: Draft, octets: bytes) -> None:
        """Append to a draft."""
        rest = memoryview(octets)
        while rest:
            rest = rest[self._os.write(draft.fd, rest) :]

    def commit(self, draft: Draft) -> None:
        """Deliver the file. When this returns, the file is in ``new``.

        :raises OSError: if it could not be delivered. The caller must then call :meth:`abort`.
        """
        assert draft.path is not None
        if self.durable:
            # Do not retry after an error: the system may have dropped the data, although the next fsync succeeds.
            self._os.fsync(draft.fd)
        self._close(draft)
        target = f"{self._new}/{draft.name}"
        self._os.rename(draft.path, target)
        draft.path = target
        if self.durable:
            self._sync_new()
        draft.path = None

    def abort(self, draft: Draft) -> None:
        """Remove a file that was not delivered. Do nothing if it was."""
        with contextlib.suppress(OSError):
            self._close(draft)
        if draft.path is not None:
            # If only the last sync failed, the file is in new. Remove it there: the client will send it again.
            with contextlib.suppress(OSError):
                self._os.unlink(draft.path)
            draft.path = None

    def _close(self, draft: Draft) -> None:
        fd, draft.fd = draft.fd, None
        if fd is not None:
            self._os.close(fd)

    def _sync_new(self) -> None:
        """Sync the folder ``new``. One sync serves all threads whose files are already there."""
        ticket = next(self._tickets)
        with self._syncing:
            if ticket < self._synced:
                return
            covered = next(self._tickets)  # threads with a lower ticket have already renamed their files
            self._sync_folder(self._new)
            self._synced = covered

    def _sync_folder(self, path: str) -> None:
        # Open the folder each time, because it may have been replaced.
        fd = self._os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._os.fsync(fd)
        finally:
            self._os.close(fd)

    # The folders

    def _make(self, path: str) -> bool:
        """Create a folder if it is missing, and check that it can be used.

        :return: whether it was created.
        """
        try:
            self._os.mkdir(path, 0o700)
            created = True
        except FileExistsError:
            created = False
        except FileNotFoundError:
            where = os.path.dirname(path)
            raise FileNotFoundError(errno.ENOENT, "the folder for the maildir does not exist", where) from None
        status = self._os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "a maildir must be a folder", path)
        if status.st_mode & stat.S_IWOTH:
            raise PermissionError(errno.EPERM, "a maildir must not be writable by others (chmod o-w)", path)
        if not self._os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write to the maildir", path)
        return created

    def _remove_stale(self) -> None:
        """Remove files that killed servers left in tmp."""
        long_ago = time.time() - STALE
        with contextlib.suppress(OSError), os.scandir(self._tmp) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < long_ago:
                        os.unlink(entry.path)
