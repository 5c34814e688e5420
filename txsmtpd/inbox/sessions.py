"""Sessions in the store: the transcript of each session as JSON lines, stored when it ends.

The transcripts come from :mod:`txsmtpd.observe.transcript`, with credentials masked. Sessions that delivered nothing
are stored too, with the reply that rejected them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from txsmtpd.inbox.store import SessionRecord, Store
from txsmtpd.observe.transcript import Closed, Record, Replied, Transcript, Transcripts

LARGEST = 2**18  # bytes kept of one session
SESSIONS = 1000  # open sessions kept in memory
OCTETS = 2**24

log = Logger(namespace="txsmtpd.inbox")


class SessionLog:
    """Stores each session when it ends. Pass it to :class:`~txsmtpd.observe.transcript.Transcripts` as a callback.

    :param store: where to store sessions.
    :param tell: another callback for each record.
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
    """Make the transcripts of a server whose sessions are stored."""
    return Transcripts(SESSIONS, OCTETS, SessionLog(store, tell))


def record_of(transcript: Transcript, ended: bool | None = None) -> SessionRecord:
    """Return the current state of a session.

    :param ended: whether it has ended. None: as the transcript says.
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
    """Return the last negative reply, or ``""``."""
    refused = ""
    for record in records:
        if isinstance(record, Replied) and record.reply[:1] in ("4", "5"):
            refused = record.reply
    return refused[:500]


def _lines(records: Iterable[Record], forgotten: int) -> str:
    lines: list[str] = []
    if forgotten:
        lines.append(
            json.dumps({"at": 0, "kind": "gap", "mark": "*", "text": f"{forgotten} earlier records were discarded"})
        )
    size = 0
    left_out = 0
    for record in records:
        line = json.dumps(as_json(record), ensure_ascii=False)
        size += len(line) + 1
        if size > LARGEST and not isinstance(record, Closed):
            left_out += 1
            continue
        if left_out and isinstance(record, Closed):
            lines.append(json.dumps({"at": 0, "kind": "gap", "mark": "*", "text": f"{left_out} records are omitted"}))
        lines.append(line)
    return "\n".join(lines)


def as_json(record: Record) -> dict[str, Any]:
    """Return a transcript record for JSON: time, kind, its mark, and its text."""
    return {"at": round(record.at, 6), "kind": record.kind, "mark": record.mark, "text": record.text}


def records_of(session: SessionRecord) -> list[dict[str, Any]]:
    """Return the transcript of a session, in the format of :func:`as_json`."""
    return [json.loads(line) for line in session.records.split("\n") if line]


async def find_session(store: Store, session_id: str, transcripts: Transcripts | None) -> SessionRecord | None:
    """Find an open session, or a stored one that has ended."""
    transcript = None if transcripts is None else transcripts.of(session_id)
    stored = await store.session(session_id)
    if stored is None and transcript is not None:
        return record_of(transcript)
    return stored
