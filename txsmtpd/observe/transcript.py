"""Transcripts of sessions: typed records with times, with credentials masked, in a bounded ring buffer.

A :class:`Transcript` is the conversation of one session; :class:`Transcripts` keep those of a factory::

    transcripts = Transcripts()
    factory = SMTPFactory(handler, transcript=transcripts)

An observer records each session (:mod:`txsmtpd.engine.observer`). A factory without transcripts has no observers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from txsmtpd.engine.masking import SECRET
from txsmtpd.engine.observer import Observer
from txsmtpd.observe.matching import reply_fits
from txsmtpd.session import TLSInfo
from txsmtpd.wire.proxy import ProxyData

RECORD = 150  # bytes that a record needs in addition to its text, approximately
LONGEST = 1000  # bytes to keep of a line

_REFUSED_LINES = {
    "long": "a line that is too long",
    "endless": "a line without end",
    "bare LF": "a line ended by LF alone",
    "TLS": "the start of TLS",
}


@dataclass(frozen=True, slots=True)
class Record:
    """An event in a session."""

    kind: ClassVar[str]  #: the kind of event, as one word
    mark: ClassVar[str] = "*"  #: the mark before its text, for the source of the event
    at: float  #: seconds since the session began

    @property
    def text(self) -> str:
        """A description of the event."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.mark} {self.text}".rstrip()


@dataclass(frozen=True, slots=True)
class Connected(Record):
    """A client has connected."""

    kind: ClassVar[str] = "connected"
    peer: str

    @property
    def text(self) -> str:
        return f"connected from {self.peer}"


@dataclass(frozen=True, slots=True)
class Said(Record):
    """The client has sent a line."""

    kind: ClassVar[str] = "client"
    mark: ClassVar[str] = "C:"
    line: str  #: credentials masked

    @property
    def text(self) -> str:
        return self.line


@dataclass(frozen=True, slots=True)
class Replied(Record):
    """The server has sent a reply, or a part of one."""

    kind: ClassVar[str] = "server"
    mark: ClassVar[str] = "S:"
    reply: str  #: its lines, separated by line feeds

    @property
    def text(self) -> str:
        return self.reply


@dataclass(frozen=True, slots=True)
class MailData(Record):
    """Message data has arrived: everything after DATA, or a chunk."""

    kind: ClassVar[str] = "data"
    mark: ClassVar[str] = "D:"
    octets: int  #: number of octets as received, with dot-stuffing, without the final line
    complete: bool  #: whether their end has arrived
    bare_newlines: bool = False  #: whether they contain bare CR or LF

    @property
    def text(self) -> str:
        bare = ", with CR or LF alone" if self.bare_newlines else ""
        return f"{self.octets} octets{bare}{'' if self.complete else ', and no end'}"


@dataclass(frozen=True, slots=True)
class TLSBegun(Record):
    """TLS was started."""

    kind: ClassVar[str] = "tls"
    protocol: str
    cipher: str

    @property
    def text(self) -> str:
        return f"{self.protocol} with {self.cipher}"


@dataclass(frozen=True, slots=True)
class Failed(Record):
    """An exception was raised. The log has its traceback."""

    kind: ClassVar[str] = "failure"
    what: str  #: the verb of a command, or the name of a hook
    error: str  #: the exception's type

    @property
    def text(self) -> str:
        return f"{self.what} failed: {self.error}"


@dataclass(frozen=True, slots=True)
class Faulted(Record):
    """A fault was injected."""

    kind: ClassVar[str] = "fault"
    mark: ClassVar[str] = "F:"
    rule: str  #: the rule
    effect: str  #: its effect

    @property
    def text(self) -> str:
        return f"{self.effect} ({self.rule})"


@dataclass(frozen=True, slots=True)
class Closed(Record):
    """The connection was closed."""

    kind: ClassVar[str] = "closed"
    cause: str  #: the type of the exception that describes why
    detail: str  #: its text

    @property
    def text(self) -> str:
        return f"closed: {self.cause}"


class Transcript:
    """The conversation of one session.

    It prints as a readable dialogue. It compares equal to a list of lines, where server lines need only be prefixes of
    the replies::

        self.assertEqual(transcript, ["S: 220", "C: EHLO a", "S: 250", "C: QUIT", "S: 221"])

    A server line matches a reply if any line of that reply begins with it; so ``"S: 250 SIZE"`` checks that the reply
    to EHLO contains SIZE.
    Lines that begin with ``*`` (connected, TLS, closed) are compared only if the list has such lines.

    :param session: the session's id.
    :param peer: the client's address, as text.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, session: str, peer: str = "") -> None:
        self.session = session
        self.peer = peer
        self.began = time.time()  #: seconds since the epoch
        self.forgotten = 0  #: the number of records dropped because the ring buffer was full
        self._records: deque[Record] = deque()
        self._is_kept = False

    @property
    def records(self) -> tuple[Record, ...]:
        """The events, in order."""
        return tuple(self._records)

    @property
    def lines(self) -> list[str]:
        """Return the records as lines: ``C:`` from the client, ``S:`` from the server, ``D:`` message data, ``F:`` an
        injected fault, ``*`` anything else."""
        return [str(record) for record in self.records]

    @property
    def closed(self) -> bool:
        """True if the connection was closed."""
        return bool(self._records) and isinstance(self._records[-1], Closed)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self._records)

    def __str__(self) -> str:
        shown = [f"session {self.session} with {self.peer}"]
        if self.forgotten:
            shown.append(f"{'...':>8} {self.forgotten} records before these are gone")
        for record in self.records:
            first, *others = record.text.split("\n")
            shown.append(f"{record.at:8.3f} {record.mark} {first}".rstrip())
            shown += [f"{'':8} {record.mark} {line}" for line in others]
        return "\n".join(shown)

    def __repr__(self) -> str:
        return repr(self.lines)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Transcript):
            return self is other
        if isinstance(other, list | tuple) and all(isinstance(line, str) for line in other):
            return not self.difference(other)
        return NotImplemented

    def difference(self, expected: Iterable[str]) -> str:
        """Describe where the transcript differs from the expected lines; ``""`` if it does not."""
        wanted = list(expected)
        with_notes = any(line.startswith("*") for line in wanted)
        seen = [record for record in self.records if with_notes or record.mark != "*"]
        for number, line in enumerate(wanted):
            if number >= len(seen):
                return f"line {number + 1}: expected {line!r}, but that was all"
            if not _fits(line, seen[number]):
                return f"line {number + 1}: expected {line!r}, but there was {str(seen[number])!r}"
        if len(seen) > len(wanted):
            return f"line {len(wanted) + 1}: {str(seen[len(wanted)])!r} was not expected"
        return ""

    def check(self, expected: Iterable[str]) -> None:
        """Compare with a list of lines.

        :raises AssertionError: if the transcript differs. The message says where, and has the whole transcript.
        """
        difference = self.difference(expected)
        if difference:
            raise AssertionError(f"{difference}\n{self}")


def _fits(line: str, record: Record) -> bool:
    mark, _, text = line.partition(" ")
    if mark != record.mark:
        return False
    if isinstance(record, Said):
        return text == record.line
    return reply_fits(text, record.text.split("\n"))


class Transcripts:
    """The transcripts of a factory's recent sessions, including open ones.

    :param sessions: how many to keep.
    :param octets: the maximum size of all together in bytes, approximately. Beyond it the oldest records are dropped.
    :param tell: called immediately for each new record, with its transcript and the record.
    :raises ValueError: if *sessions* is 0 and there is no *tell*.
    """

    def __init__(
        self,
        sessions: int = 100,
        octets: int = 2**20,
        tell: Callable[[Transcript, Record], object] | None = None,
    ) -> None:
        if sessions < 0 or octets < 0:
            raise ValueError("sessions and octets must be numbers of at least 0")
        if not sessions and tell is None:
            raise ValueError("sessions must be more than 0, or nothing is kept")
        self._limit = sessions
        self._octet_limit = octets
        self.tell = tell  #: called for each new record, with its transcript and the record; or None
        self._kept: deque[Transcript] = deque()
        self._octets = 0

    @property
    def sessions(self) -> tuple[Transcript, ...]:
        """The stored transcripts, oldest first."""
        return tuple(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Transcript]:
        return iter(self.sessions)

    def __getitem__(self, number: int) -> Transcript:
        return self._kept[number]

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.sessions)) or "no session"

    def __repr__(self) -> str:
        return f"<Transcripts of {len(self)} sessions>"

    def of(self, session: str) -> Transcript | None:
        """Return the transcript of the session with this id, or None."""
        return next((each for each in self.sessions if each.session == session), None)

    def clear(self) -> None:
        """Remove all transcripts. If a session is open, its later records are stored in the same transcript, which then
        lacks the earlier ones."""
        while self._kept:
            self._let_go()
        self._octets = 0

    # Called by the protocols

    def observe(self, server: Any) -> Recorder:
        """Start to record a new session. Called by the factory."""
        return Recorder(self, server)

    def begin(self, session: str, peer: str) -> Transcript:
        """Return a transcript for a new session. :meth:`add` stores it with its first record."""
        return Transcript(session, peer)

    def add(self, transcript: Transcript, record: Record) -> None:
        """Add a record to a session."""
        if self._limit:
            if not transcript._is_kept:
                self._keep(transcript)
            transcript._records.append(record)
            self._octets += _size(record)
            while self._octets > self._octet_limit:
                self._forget_oldest()
        if self.tell is not None:
            self.tell(transcript, record)

    def _keep(self, transcript: Transcript) -> None:
        # A new session; or an open one whose transcript was dropped after it had been idle for long.
        transcript.forgotten += len(transcript._records)
        transcript._records.clear()
        if len(self._kept) >= self._limit:
            self._octets -= sum(map(_size, self._let_go()))
        transcript._is_kept = True
        self._kept.append(transcript)

    def _let_go(self) -> Transcript:
        oldest = self._kept.popleft()
        oldest._is_kept = False
        return oldest

    def _forget_oldest(self) -> None:
        oldest = self._kept[0]
        self._octets -= _size(oldest._records.popleft())
        oldest.forgotten += 1
        if not oldest._records:
            self._let_go()


def _size(record: Record) -> int:
    return RECORD + len(record.text)


class Recorder(Observer):
    """Records one session.

    :param transcripts: where to record.
    :param server: the protocol of the session.
    """

    def __init__(self, transcripts: Transcripts, server: Any) -> None:
        self._transcripts = transcripts
        self._server = server
        self._transcript: Transcript | None = None
        self._began = 0.0

    def _note(self, kind: Callable[..., Record], *what: Any) -> None:
        kept = self._transcripts
        now = self._server._connection.clock.seconds()
        if self._transcript is None:
            session = self._server.session
            peer = peer_text(session.peer)
            self._began = now
            self._transcript = kept.begin(session.id, peer)
            kept.add(self._transcript, Connected(0.0, peer))
        kept.add(self._transcript, kind(now - self._began, *what))

    def line_received(self, line: bytes | None) -> None:
        self._note(Said, SECRET if line is None else text_of(line))

    def line_refused(self, why: str, begins: bytes | None) -> None:
        if why in _REFUSED_LINES:
            begun = SECRET if begins is None else text_of(begins)
            shown = f": {begun}" if begun else ""
            self._note(Said, f"({_REFUSED_LINES[why]}{shown})")

    def reply_sent(self, octets: bytes) -> None:
        shown = f"334 {SECRET}" if octets[:4] == b"334 " else text_of(octets.removesuffix(b"\r\n"))
        self._note(Replied, shown)

    def data_read(self, octets: int, complete: bool, bare_newlines: bool) -> None:
        self._note(MailData, octets, complete, bare_newlines)

    def proxy_header(self, data: ProxyData) -> None:
        client = "the proxy's own connection" if data.client is None else f"for {peer_text(data.client)}"
        self._note(Said, f"(PROXY header: {data.error or client})")

    def tls_started(self, tls: TLSInfo) -> None:
        self._note(TLSBegun, tls.protocol, tls.cipher)

    def failed(self, what: str, error: BaseException) -> None:
        self._note(Failed, what, type(error).__qualname__)

    def fault_injected(self, rule: str, effect: str) -> None:
        self._note(Faulted, rule, effect)

    def closed(self, cause: BaseException) -> None:
        self._note(Closed, type(cause).__name__, str(cause))


def text_of(octets: bytes) -> str:
    """Return bytes as readable text. Line ends separate lines; everything else that is unprintable is escaped."""
    text = octets[:LONGEST].decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    if len(octets) > LONGEST:
        text += "..."
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def peer_text(peer: Any) -> str:
    """Return the client's address as text."""
    if not isinstance(peer, tuple):
        return "a local client"
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
