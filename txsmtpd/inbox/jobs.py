"""The database operations that the threads of a :class:`~txsmtpd.inbox.sqlite.SQLiteStore` run.

Plain functions that take a connection as their last argument. Each runs in a transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from txsmtpd.inbox import schema
from txsmtpd.inbox.message import Arrival, Message, parse
from txsmtpd.inbox.schema import ROW, select, select_of_session
from txsmtpd.inbox.scope import EVERYTHING, Scope, named_in
from txsmtpd.inbox.search import Terms
from txsmtpd.inbox.store import TOLD, Page, SessionRecord, clean_tag, new_id

SESSIONS = 10_000  # kept at most
COUNTED = 10_000  # messages to count before an inexact count stops

Connection = sqlite3.Connection
Row = tuple[int, int, str, str | None]


# Run in the writer's thread


def insert(arrival: Arrival, headers: Sequence[str], connection: Connection) -> Message:
    """Parse a message and store it. The returned message has its number."""
    parsed = parse(arrival, new_id(), headers)
    message = parsed.message
    cursor = connection.execute(
        "INSERT INTO message (id, arrived, size, inline, attachments, session, facts) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            message.id,
            message.arrived,
            message.size,
            len(message.inline),
            len(message.attachments),
            message.envelope.session,
            json.dumps(message.to_json(), ensure_ascii=False).encode("utf-8", "replace").decode("utf-8"),
        ),
    )
    number = int(cursor.lastrowid or 0)
    connection.execute("INSERT INTO content VALUES (?, ?)", (number, arrival.content))
    row = (number, *(_storable(parsed.folded[name]) for name in schema.COLUMNS))
    connection.execute(schema.INSERT_FOLDED, row)
    connection.executemany(
        "INSERT OR IGNORE INTO key VALUES (?, ?, ?)",
        [(name, _storable(value), number) for name, value in message.filed],
    )
    tags = [tag for value in parsed.values("x-tags") for each in value.split(",") if (tag := clean_tag(each))]
    connection.executemany("INSERT OR IGNORE INTO tag VALUES (?, ?)", [(number, tag) for tag in tags])
    return replace(message, number=number, tags=tuple(sorted(set(tags))))


def index(most: int, connection: Connection) -> int:
    """Add up to *most* unindexed messages to the search index. Return how many remain."""
    (last,) = connection.execute(schema.INDEXED_TO, (most,)).fetchone()
    if last is None:
        return 0
    connection.execute(schema.INDEX_WORDS, (most,))
    connection.execute("UPDATE state SET indexed = ?", (last,))
    (left,) = connection.execute("SELECT count(*) FROM folded WHERE number > ?", (last,)).fetchone()
    return int(left)


def _storable(text: str) -> str:
    """Return the text without lone surrogates, which SQLite rejects."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _of_row(row: Row) -> Message:
    number, seen, facts, tags = row
    return Message.from_json(json.loads(facts), number, bool(seen), sorted(set(filter(None, (tags or "").split("\n")))))


def _chosen(scope: Scope, ids: Sequence[str] | None, terms: Terms, connection: Connection) -> list[int]:
    """Return the numbers of the messages that a change applies to."""
    selection = select(scope, terms)
    if ids is None:
        return [number for (number,) in connection.execute(selection.sql("m.number"), selection.values)]
    selection.and_where("m.id IN (SELECT value FROM json_each(?))", json.dumps(list(ids)))
    return [number for (number,) in connection.execute(selection.sql("m.number"), selection.values)]


def _messages(numbers: Iterable[int], connection: Connection) -> list[Message]:
    found = connection.execute(
        f"SELECT {ROW} FROM message m WHERE m.number IN (SELECT value FROM json_each(?)) ORDER BY m.number",
        (json.dumps(list(numbers)),),
    )
    return [_of_row(row) for row in found]


def set_seen(
    seen: bool, scope: Scope, ids: Sequence[str] | None, terms: Terms, connection: Connection
) -> tuple[int, list[Message]]:
    """Mark messages as read or unread. Return how many changed, and the messages themselves if there are few."""
    numbers = _chosen(scope, ids, terms, connection)
    cursor = connection.executemany(
        "UPDATE message SET seen = ? WHERE number = ? AND seen <> ?",
        [(int(seen), number, int(seen)) for number in numbers],
    )
    count = max(cursor.rowcount, 0)
    told = _messages(numbers, connection) if len(numbers) <= TOLD else []
    return count, told


def delete_all(connection: Connection) -> int:
    """Delete all messages. Return how many there were."""
    (count,) = connection.execute("SELECT count(*) FROM message").fetchone()
    for table in ("message", "content", "folded", "key", "tag", "hidden"):
        connection.execute(f"DELETE FROM {table}")
    connection.execute("INSERT INTO words (words) VALUES ('delete-all')")
    connection.execute(
        "UPDATE state SET indexed = coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'message'), 0)"
    )
    return int(count)


Deleted = tuple[int, list[Message], int, int, list[Message]]
"""The number of deleted messages; the messages that were only hidden; the unread count and the bytes of the deleted
messages; and the deleted messages themselves if there are few."""


def delete(scope: Scope, ids: Sequence[str] | None, terms: Terms, connection: Connection) -> Deleted:
    """Delete messages, or hide them in a scope; see :data:`Deleted`."""
    numbers = _chosen(scope, ids, terms, connection)
    hidden: list[Message] = []
    if scope.keys:
        shared = [message for message in _messages(numbers, connection) if not scope.alone_has(message)]
        connection.executemany(
            "INSERT OR IGNORE INTO hidden VALUES (?, ?)", [(scope.label, message.number) for message in shared]
        )
        hidden = shared
        kept = {message.number for message in shared}
        numbers = [number for number in numbers if number not in kept]
    gone, _, unread, octets, messages = _remove(numbers, connection)
    return gone, hidden, unread, octets, messages


def delete_chosen(choose: Callable[[Connection], list[int]], connection: Connection) -> Deleted:
    """Delete the messages whose numbers *choose* returns; see :data:`Deleted`."""
    return _remove(choose(connection), connection)


def _remove(numbers: Sequence[int], connection: Connection) -> Deleted:
    messages = _messages(numbers, connection) if len(numbers) <= TOLD else []
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS doomed (number INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM doomed")
    connection.executemany("INSERT OR IGNORE INTO doomed VALUES (?)", [(number,) for number in numbers])
    gone, octets, unread = connection.execute(
        "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(seen = 0), 0) FROM message"
        " WHERE number IN (SELECT number FROM doomed)"
    ).fetchone()
    connection.execute(schema.FORGET_WORDS)
    for table in ("message", "content", "folded", "key", "tag", "hidden"):
        connection.execute(f"DELETE FROM {table} WHERE number IN (SELECT number FROM doomed)")
    return gone, [], unread, octets, messages


def oldest(too_many: int, too_large: int, connection: Connection) -> list[int]:
    """Return the numbers of the oldest messages: at least *too_many* of them, with at least *too_large* bytes."""
    numbers = []
    rows = connection.execute("SELECT number, size FROM message ORDER BY number").fetchall()
    for number, size in rows[:-1]:  # always keep the newest
        if too_many <= 0 and too_large <= 0:
            break
        numbers.append(number)
        too_many -= 1
        too_large -= size
    return numbers


def older(oldest: float, connection: Connection) -> list[int]:
    """Return the numbers of the messages that arrived before a time."""
    return [number for (number,) in connection.execute("SELECT number FROM message WHERE arrived < ?", (oldest,))]


def set_tags(ids: Sequence[str], tags: Sequence[str], scope: Scope, connection: Connection) -> list[Message]:
    """Set the tags of messages. Return the messages if there are few."""
    numbers = _chosen(scope, ids, (), connection)
    connection.executemany("DELETE FROM tag WHERE number = ?", [(number,) for number in numbers])
    connection.executemany(
        "INSERT OR IGNORE INTO tag VALUES (?, ?)", [(number, tag) for number in numbers for tag in tags]
    )
    return _messages(numbers[:TOLD], connection)


def rename_tag(old: str, new: str | None, scope: Scope, connection: Connection) -> None:
    """Rename a tag, or remove it if *new* is None."""
    numbers = [
        number
        for (number,) in connection.execute("SELECT number FROM tag WHERE name = ? COLLATE NOCASE", (old,)).fetchall()
    ]
    if scope.keys:
        ours = set(_chosen(scope, None, (), connection))
        numbers = [number for number in numbers if number in ours]
    connection.executemany(
        "DELETE FROM tag WHERE number = ? AND name = ? COLLATE NOCASE", [(number, old) for number in numbers]
    )
    if new:
        connection.executemany("INSERT OR IGNORE INTO tag VALUES (?, ?)", [(number, new) for number in numbers])


def put_session(session: SessionRecord, connection: Connection) -> None:
    """Store a session, and delete the oldest ones if there are too many."""
    connection.execute(
        "INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?)",
        (session.id, session.began, session.ended, session.peer, session.outcome, _storable(session.records)),
    )
    (count,) = connection.execute("SELECT count(*) FROM session").fetchone()
    if count > SESSIONS * 1.1:
        connection.execute(
            "DELETE FROM session WHERE id IN (SELECT id FROM session ORDER BY began LIMIT ?)", (count - SESSIONS,)
        )


# Run in the readers' threads


def totals(connection: Connection) -> tuple[int, int, int, int]:
    """Return the last number, and the count, the bytes and the unread count of all messages."""
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
    total, octets, unread = connection.execute(
        "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(seen = 0), 0) FROM message"
    ).fetchone()
    return (last[0] if last else 0), total, octets, unread


def find_page(
    scope: Scope,
    terms: Terms,
    start: int,
    limit: int | None,
    before: int | None,
    after: int,
    exact: bool,
    count: tuple[int, int] | None,
    connection: Connection,
) -> Page:
    """Return a page of messages. *count* is the count of all matching messages, if known."""
    selection = select(scope, terms)
    if after:
        selection.and_where(f"{selection.order} > ?", after)
    if before is not None:
        selection.and_where(f"{selection.order} < ?", before)
    rest = f"ORDER BY {selection.order} DESC LIMIT ? OFFSET ?"
    values = [*selection.values, -1 if limit is None else limit, start]
    messages = [_of_row(row) for row in connection.execute(selection.sql(ROW, rest), values)]
    if count is None:
        most = None if exact else COUNTED
        count = find_counts(scope, terms, after, most, connection)
    return Page(messages, *count, is_exact=exact or count[0] <= COUNTED)


def find_counts(scope: Scope, terms: Terms, after: int, most: int | None, connection: Connection) -> tuple[int, int]:
    """Return how many messages match and how many of them are unread. Counting may stop at *most*."""
    selection = select(scope, terms)
    if after:
        selection.and_where(f"{selection.order} > ?", after)
    inner = selection.sql("m.seen = 0 AS unread", "" if most is None else f"LIMIT {most + 1}")
    count, unread = connection.execute(
        f"SELECT count(*), coalesce(sum(unread), 0) FROM ({inner})", selection.values
    ).fetchone()
    return count, unread


def find_message(message_id: str, scope: Scope, connection: Connection) -> Message | None:
    """Return the message with this id, or None."""
    selection = select(scope, ())
    selection.and_where("m.id = ?", message_id)
    row = connection.execute(selection.sql(ROW), selection.values).fetchone()
    return None if row is None else _of_row(row)


def read_content(number: int, start: int, length: int | None, connection: Connection) -> bytes:
    """Return bytes of a message."""
    try:
        with connection.blobopen("content", "octets", number, readonly=True) as blob:
            blob.seek(min(start, len(blob)))
            return blob.read() if length is None else blob.read(length)
    except sqlite3.OperationalError:  # the message was deleted
        return b""


def find_tags(scope: Scope, connection: Connection) -> dict[str, int]:
    """Return the tags of a scope, and how many messages have each."""
    if not scope.keys:
        return dict(connection.execute("SELECT name, count(*) FROM tag GROUP BY name ORDER BY name").fetchall())
    selection = select(scope, ())
    return dict(
        connection.execute(
            f"SELECT name, count(*) FROM tag WHERE number IN ({selection.sql('m.number')}) GROUP BY name ORDER BY name",
            selection.values,
        ).fetchall()
    )


def find_session(session_id: str, connection: Connection) -> SessionRecord | None:
    """Return the session with this id, or None."""
    row = connection.execute("SELECT * FROM session WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else _session_of(row, EVERYTHING, connection)


def _session_of(row: Any, scope: Scope, connection: Connection) -> SessionRecord:
    selection = select_of_session(row[0], scope)
    ids = connection.execute(selection.sql("m.id", "ORDER BY m.number"), selection.values)
    session_id, began, ended, peer, outcome, records = row
    messages = tuple(message_id for (message_id,) in ids)
    return SessionRecord(session_id, began, ended, peer, outcome, records, messages)


def find_sessions(scope: Scope, limit: int, connection: Connection) -> list[SessionRecord]:
    """Return the sessions of a scope, newest first."""
    if not scope.keys:
        rows = connection.execute("SELECT * FROM session ORDER BY began DESC LIMIT ?", (limit,)).fetchall()
        return [_session_of(row, scope, connection) for row in rows]
    selection = select(scope, ())
    # Sessions without mail are found by their transcript: approximately here, exactly below.
    named = " AND ".join("instr(lower(records), ?)" for _ in scope.keys)
    candidates = connection.execute(
        f"SELECT *, id IN ({selection.sql('m.session')}) AS has_mail FROM session WHERE has_mail OR ({named})"
        " ORDER BY began DESC",
        [*selection.values, *(value for _, value in scope.keys)],
    )
    found = []
    for *row, has_mail in candidates:
        if has_mail or set(scope.keys) <= named_in(row[-1]):
            found.append(_session_of(row, scope, connection))
            if len(found) == limit:
                break
    return found
