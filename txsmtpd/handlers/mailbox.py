"""Mailbox: stores each message in a maildir. It replies 250 when the message is on the disk, so that a power failure
does not lose it.

A message is stored as received, with LF line ends, after a trace header. It is parsed only for subclasses that override
:meth:`Mailbox.prepare_message` or :meth:`Mailbox.handle_message`. Threads wait for the disk. The file operations are in
:mod:`txsmtpd.handlers.maildir`.
"""

from __future__ import annotations

import email.message
import errno
import mailbox
import os
import time
from collections.abc import Iterable, Iterator
from email.generator import BytesGenerator
from functools import cached_property, partial
from io import BytesIO
from typing import Any, Self
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, execute
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool
from zope.interface import alsoProvides

from txsmtpd.bridges.asyncio_bridge import to_awaitable
from txsmtpd.bridges.loop_reactor import daemon_thread
from txsmtpd.bridges.reactors import current_reactor
from txsmtpd.handlers import trace_header
from txsmtpd.handlers.delivery import Delivery, with_lf
from txsmtpd.handlers.maildir import Maildir
from txsmtpd.handlers.message import Message
from txsmtpd.handlers.off_thread import reactor_with_threads
from txsmtpd.interfaces import IStreamingHandler
from txsmtpd.log.trouble import Trouble
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope, Session
from txsmtpd.wire.grammar import own_host_name

NO_ROOM = Reply(452, "4.3.1", "Insufficient storage, try again later")
TOO_DEEP = Reply(554, "5.6.0", "The parts of the message are nested too deeply")
NOT_STORED = Reply(451, "4.3.0", "The message could not be stored, try again later")

THREADS = 8  # maximum number of threads that wait for the disk
PIECE = 2**18  # bytes converted and written at a time, so that a large message does not delay others
LONGEST_LINE = 998  # RFC 5322 2.1.1

log = Logger()

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Mailbox(Message):
    """Store each message in a maildir.

    A subclass may override :meth:`prepare_message` or :meth:`handle_message`. Messages are then parsed, and stored in
    the form that Python's :mod:`email` generates.

    If the connection is lost while a message is being stored, the client sends it again, and it may be stored twice.

    :param mail_dir: the folder. It is created if it is missing; its parent must exist.
    :param message_class: as for :class:`~txsmtpd.handlers.message.Message`; for subclasses only.
    :param durable: whether to wait until the message is on the disk before replying 250. False is faster, and enough
        for tests: no threads are used, and a power failure may lose accepted messages.
    :param reactor: the reactor that threads report to (IReactorFromThreads, IReactorCore). Default: the one that is
        running when a message arrives.
    :param maildir: where to store messages, instead of *mail_dir*.
    :raises ValueError: if *mail_dir* is empty.
    :raises OSError: if *mail_dir* cannot be used: FileNotFoundError, NotADirectoryError, PermissionError.
    """

    _stores_octets = True
    _streams = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._stores_octets = (
            cls.prepare_message is Mailbox.prepare_message and cls.handle_message is Mailbox.handle_message
        )
        cls._streams = cls._stores_octets and cls.handle_DATA is Mailbox.handle_DATA

    def __init__(
        self,
        mail_dir: str | os.PathLike[str],
        message_class: type[email.message.Message] | None = None,
        *,
        durable: bool = True,
        reactor: Any = None,
        maildir: Maildir | None = None,
    ) -> None:
        super().__init__(message_class)
        self.mail_dir = mail_dir
        self._maildir = maildir or Maildir(mail_dir, durable=durable)
        self._reactor = reactor
        self._pools: WeakKeyDictionary[Any, ThreadPool] = WeakKeyDictionary()  # by reactor
        self._triggers: dict[Any, Any] = {}  # triggers that stop the pools when the reactor stops, by reactor
        self._trouble = Trouble()  # why messages were not stored
        if self._streams:
            # Subclasses that override these methods get whole messages.
            alsoProvides(self, IStreamingHandler)

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Create the handler for the command line. The argument is the folder."""
        if len(args) > 1:
            parser.error(
                f"{cls.__name__} takes one folder, not {len(args)} arguments; write a colon in its name as \\:"
            )
        if not args or not args[0]:
            parser.error(f"{cls.__name__} needs the folder of the Maildir, as in mailbox:DIR")
        try:
            return cls(args[0])
        except OSError as error:
            parser.error(f"{error.filename or args[0]}: {error.strerror or error}")
            raise

    def open_message(self, server: Any, session: Session, envelope: Envelope) -> Delivery:
        """Start storing a message; see :class:`~txsmtpd.interfaces.IStreamingHandler`."""
        name = self._maildir.new_name()
        lmtp = getattr(server, "lmtp", False) is True
        header = trace_header.trace_header(_hostname(server), session, envelope, _identifier(name), lmtp=lmtp)
        binary = envelope.body == "BINARYMIME"
        return Delivery(self._maildir, name, header, self._in_thread, self._stored, self._refusal, binary)

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Any:
        name = self._maildir.new_name()
        identifier = _identifier(name)
        lmtp = getattr(server, "lmtp", False) is True
        if self._stores_octets:
            header = trace_header.trace_header(_hostname(server), session, envelope, identifier, lmtp=lmtp)
            binary = envelope.body == "BINARYMIME"
            return await self._store_in_thread(_pieces(header, envelope.content, binary), name)
        message = await self._prepared(server, session, envelope)
        received = trace_header.received(_hostname(server), session, envelope, identifier, lmtp=lmtp)
        _put_on_top(message, trace_header.return_path(envelope) + received)
        if type(self).handle_message is Mailbox.handle_message and reactor_with_threads(server) is not None:
            return await self._in_thread(self.handle_message, message)
        status = self.handle_message(message)
        return "250 2.0.0 OK" if status is None else status

    def handle_message(self, message: Any) -> Any:
        """Store the message. Blocks until the message is stored.

        :raises Refused: if the message cannot be stored. 554: its parts are nested too deeply.
        """
        try:
            name = self._maildir.deliver([_flattened(message)])
        except OSError as error:
            raise self._refusal(error) from error
        return self._stored(name)

    @cached_property
    def mailbox(self) -> mailbox.Maildir:
        """The maildir, to read stored messages."""
        return mailbox.Maildir(self._maildir.path, create=False)

    def reset(self) -> None:
        """Remove all messages."""
        self.mailbox.clear()

    # Threads

    async def _store_in_thread(self, pieces: Iterable[bytes], name: str) -> str:
        try:
            name = await to_awaitable(self._in_thread(self._maildir.deliver, pieces, name))
        except OSError as error:
            raise self._refusal(error) from error
        return self._stored(name)

    def _in_thread(self, function: Any, *arguments: Any) -> Deferred[Any]:
        if not self._maildir.durable:
            return execute(function, *arguments)
        reactor = current_reactor() if self._reactor is None else self._reactor
        pool = self._pools.get(reactor) or self._start_pool(reactor)
        return deferToThreadPool(reactor, pool, function, *arguments)

    def _start_pool(self, reactor: Any) -> ThreadPool:
        self._pools[reactor] = pool = ThreadPool(0, THREADS, "txsmtpd mailbox")
        pool.threadFactory = daemon_thread  # type: ignore[assignment]  # a class in Twisted
        pool.start()
        self._triggers[reactor] = reactor.addSystemEventTrigger("during", "shutdown", partial(self._stop_pool, reactor))
        return pool

    def close(self) -> None:
        """Finish pending writes and stop the threads. This also happens when the reactor stops. The next message starts
        new threads.
        """
        for reactor, trigger in list(self._triggers.items()):
            reactor.removeSystemEventTrigger(trigger)
            self._stop_pool(reactor)
        self._pools.clear()

    def _stop_pool(self, reactor: Any) -> None:
        # Keep the stopped pool: a new one would never be stopped, since the reactor has already shut down.
        self._triggers.pop(reactor, None)
        if reactor in self._pools:
            self._pools[reactor].stop()

    # Results. Failures are logged when they begin and end, not for each message.

    def _stored(self, name: str) -> str:
        if self._trouble.worked(time.monotonic()):
            log.info("mail is stored in the maildir {path} again", path=self._maildir.path)
        return f"250 2.0.0 OK, stored as {_identifier(name)}"

    def _refusal(self, error: OSError) -> Refused:
        trouble = error.strerror or str(error)
        if self._trouble.seen(trouble, time.monotonic()):
            log.error("cannot store mail in the maildir {path}: {trouble}", path=self._maildir.path, trouble=trouble)
        return Refused(NO_ROOM if error.errno in _FULL else NOT_STORED)


def _hostname(server: Any) -> str:
    """Return the server's host name, or this host's name if a test passes a fake server."""
    return server.hostname if isinstance(server.hostname, str) else own_host_name()


def _identifier(name: str) -> str:
    """Return the part of a file name that clients may see: the name without the host."""
    return ".".join(name.split(".", 2)[:2])


def _pieces(header: bytes, content: bytes | str | None, binary: bool) -> Iterator[bytes]:
    """Return an iterator over the contents of the file, in pieces.

    :raises TypeError: if the content is neither bytes nor str.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    if not isinstance(content, bytes | bytearray):
        raise TypeError(f"the content of a message is bytes or str, not {type(content).__name__}")
    if binary:
        return iter([header.replace(b"\n", b"\r\n"), trace_header.without_forgeries(bytes(content), b"\r\n")])
    return _with_header(header, bytes(content))


def _with_header(header: bytes, content: bytes) -> Iterator[bytes]:
    forgeries = trace_header.ForgeryFilter()
    pieces = _with_lf(content)
    yield header + forgeries.feed(next(pieces, b""))
    for piece in pieces:
        yield forgeries.feed(piece)
    yield forgeries.close()


def _with_lf(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = start + PIECE
        if content[end - 1 : end + 1] == b"\r\n":
            end += 1
        piece = content[start:end]
        yield with_lf(piece)
        start = end


def _put_on_top(message: email.message.Message, header: bytes) -> None:
    """Insert trace fields before all other fields, as RFC 5321 4.4 requires."""
    del message["Return-Path"]
    ours = email.message_from_bytes(header)
    # The public methods can insert at the top only by removing and adding each field, in quadratic time.
    message._headers[:0] = ours.raw_items()  # type: ignore[attr-defined]


def _flattened(message: email.message.Message) -> bytes:
    out = BytesIO()
    try:
        BytesGenerator(out, mangle_from_=False, maxheaderlen=LONGEST_LINE).flatten(message, linesep="\n")
    except RecursionError:
        raise Refused(TOO_DEEP) from None
    return out.getvalue()
