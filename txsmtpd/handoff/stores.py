"""Stores for large messages: a directory that consumers can read, and the ``store=`` option of the command line.

The object store is in :mod:`txsmtpd.handoff.s3`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from txsmtpd.bridges.reactors import call_in_pool
from txsmtpd.handlers.maildir import Draft, Maildir
from txsmtpd.handoff.arguments import need
from txsmtpd.handoff.interfaces import IMessageStore, IUpload

PART = 2**18  # bytes to write at a time


@implementer(IMessageStore)
class DirectoryStore:
    """Stores messages in a maildir, atomically and durably. Consumers delete messages when they are done.

    :param folder: the directory. Created if missing, but its parent must exist. On shared storage, all servers and
        consumers must use the same path.
    :param durable: False: do not wait for the disk, for tests.
    :raises OSError: if it cannot be used.
    """

    part = PART

    def __init__(self, folder: str | os.PathLike[str], *, durable: bool = True) -> None:
        self._maildir = Maildir(os.path.abspath(folder), durable=durable)

    def __str__(self) -> str:
        return f"file:{self._maildir.path}"

    def open(self, name: str, when: datetime) -> DirectoryUpload:
        return DirectoryUpload(self._maildir, f"{name}.eml")


@implementer(IUpload)
class DirectoryUpload:
    """Writes one message to the disk, in threads."""

    def __init__(self, maildir: Maildir, name: str) -> None:
        self._maildir = maildir
        self._name = name
        self._draft: Draft | None = None
        self._path: Path | None = None

    def write(self, octets: bytes) -> Deferred[None]:
        return call_in_pool(self._write, octets)

    def finish(self, octets: bytes) -> Deferred[str]:
        return call_in_pool(self._finish, octets)

    def abort(self) -> Deferred[None]:
        return call_in_pool(self._abort)

    # In a thread

    def _write(self, octets: bytes) -> None:
        if self._draft is None:
            self._draft = self._maildir.open(self._name)
        self._maildir.write(self._draft, octets)

    def _finish(self, octets: bytes) -> str:
        self._write(octets)
        assert self._draft is not None
        self._maildir.commit(self._draft)
        self._path = Path(self._maildir.path, "new", self._draft.name)
        return self._path.as_uri()

    def _abort(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
        elif self._draft is not None:
            self._maildir.abort(self._draft)


def make_store(parser: Any, where: str) -> Any:
    """Make the store for ``file:/FOLDER`` or ``s3://BUCKET[/PREFIX]``.

    :param parser: its ``parser.error(text)`` rejects the argument.
    """
    scheme, _, rest = where.partition(":")
    if scheme == "s3" and rest.startswith("//") and rest.strip("/"):
        need(parser, "boto3", "s3")
        from txsmtpd.handoff.s3 import S3Store

        bucket, _, prefix = rest[2:].partition("/")
        return S3Store(bucket, prefix)
    if scheme != "file" or not rest.startswith("/"):
        parser.error(f"store={where}: must be s3://BUCKET/PREFIX or file:/FOLDER")
    try:
        return DirectoryStore(rest)
    except OSError as error:
        parser.error(f"store={where}: {error.filename or rest}: {error.strerror or error}")
