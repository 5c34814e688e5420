"""Sessions as the store keeps them: what was said, as JSON lines, once a session has ended.

The transcripts are those of :mod:`txsmtpd.observe.transcript`, with credentials masked. Also a session that delivered
nothing is kept, with the reply that refused it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from txsmtpd.inbox.store import SessionRecord, Store
from txsmtpd.observe.transcript import Closed, Record, Replied, Transcript, Transcripts

LARGEST = 2**18  # octets of what is kept of one session
SESSIONS = 1000  # that are kept in memory while they go on
OCTETS = 2**24

log = Logger(namespace="txsmtpd.inbox")


class SessionLog:
    """Stores each session when it ends. What :class:`~txsmtpd.observe.transcript.Transcripts` tell.

    :param store: where.
    :param tell: who else is told.
    """

    def __init__(self, store: Store, tell: Callable[[Transcript, Record], object] | None = None) -> None:
        self._store = store
        self._tell = tell

    def __call__(self, transcript: Transcript, record: Record) -> None:
        if self._tell is not None:
            self._tell(transcript, record)
        if isinstance(record, Closed):
            done = Deferred.fromCoroutine(self._store.put_session(record_of(transcript, ended=True)))
            done.addErrback(lambda failure: log.error("a session was not stored: {error}", error=str(failure.value)))


def make_transcripts(store: Store, tell: Callable[[Transcript, Record], object] | None = None) -> Transcripts:
    """The transcripts of a server whose sessions go into a store."""
    return Transcripts(SESSIONS, OCTETS, SessionLog(store, tell))


def record_of(transcript: Transcript, ended: bool | None = None) -> SessionRecord:
    """A session as it is now.

    :param ended: whether it has ended; None: look.
    """
    records = transcript.records
    ended = transcript.closed if ended is None else ended
    lasted = records[-1].at if records else 0.0
    return SessionRecord(
        id=transcript.session,
        began=transcript.began,
        ended=transcript.began + lasted if ended else None,
        peer=transcript.peer,
        outcome=_outcome(records),
        records=_lines(records, transcript.forgotten),
    )


def _outcome(records: Iterable[Record]) -> str:
    """The last reply that refused something, or ``""``."""
    refused = ""
    for record in records:
        if isinstance(record, Replied) and record.reply[:1] in ("4", "5"):
            refused = record.reply
    return refused[:500]


def _lines(records: Iterable[Record], forgotten: int) -> str:
    lines: list[str] = []
    if forgotten:
        lines.append(json.dumps({"at": 0, "kind": "gap", "mark": "*", "text": f"{forgotten} records are gone"}))
    size = 0
    left_out = 0
    for record in records:
        line = json.dumps(as_json(record), ensure_ascii=False)
        size += len(line) + 1
        if size > LARGEST and not isinstance(record, Closed):
            left_out += 1
            continue
        if left_out and isinstance(record, Closed):
            lines.append(json.dumps({"at": 0, "kind": "gap", "mark": "*", "text": f"{left_out} records are left out"}))
        lines.append(line)
    return "\n".join(lines)


def as_json(record: Record) -> dict[str, Any]:
    """A record of a transcript: when, what kind, the mark that stands before it, and its text."""
    return {"at": round(record.at, 6), "kind": record.kind, "mark": record.mark, "text": record.text}


def records_of(session: SessionRecord) -> list[dict[str, Any]]:
    """What was said in a session, as :func:`as_json` has it."""
    return [json.loads(line) for line in session.records.split("\n") if line]


async def find_session(store: Store, session_id: str, transcripts: Transcripts | None) -> SessionRecord | None:
    """A session that goes on, or one that has ended and is stored."""
    transcript = None if transcripts is None else transcripts.of(session_id)
    stored = await store.session(session_id)
    if stored is None and transcript is not None:
        return record_of(transcript)
    return stored
