"""The inbox database: its tables, and the translation of searches to SQL. No threads, no policy.

``words`` is an index over ``folded`` of all sequences of three characters (FTS5, trigram). ``detail=none`` keeps it
small, but it then knows neither columns nor positions: the text of each message that it finds is compared as well.
Each query starts from the most selective part: a key of the scope, the index, or the messages themselves, newest
first. So a query stops as soon as its page is full.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from txsmtpd.inbox.scope import Scope
from txsmtpd.inbox.search import Term, Terms

APPLICATION = 0x74787369  # "txsi": marks the file as an inbox
VERSION = 1
MAGIC = b"SQLite format 3\0"  # the start of every SQLite file
COLUMNS = ("subject", "from", "to", "cc", "bcc", "reply_to", "message_id", "text")
INDEXED = 3  # characters: the length of the sequences in the index
PAGE = 8192  # bytes: with SQLite's default of 4096, two messages of 2 KB do not fit into a page

_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)

SCHEMA = f"""
CREATE TABLE message (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, arrived REAL NOT NULL, size INTEGER NOT NULL,
    seen INTEGER NOT NULL DEFAULT 0, inline INTEGER NOT NULL, attachments INTEGER NOT NULL, session TEXT NOT NULL,
    facts TEXT NOT NULL
);
CREATE INDEX message_unseen ON message (number) WHERE seen = 0;
CREATE INDEX message_attachments ON message (number) WHERE attachments > 0;
CREATE INDEX message_inline ON message (number) WHERE inline > 0;
CREATE INDEX message_arrived ON message (arrived);
CREATE INDEX message_session ON message (session);
CREATE TABLE content (number INTEGER PRIMARY KEY, octets BLOB NOT NULL);
CREATE TABLE folded (number INTEGER PRIMARY KEY, {_NAMES});
CREATE VIRTUAL TABLE words USING fts5 (
    {_NAMES}, content = 'folded', content_rowid = 'number', tokenize = 'trigram', detail = none
);
CREATE TABLE key (name TEXT, value TEXT, number INTEGER, PRIMARY KEY (name, value, number)) WITHOUT ROWID;
CREATE INDEX key_number ON key (number);
CREATE TABLE tag (number INTEGER, name TEXT, PRIMARY KEY (number, name)) WITHOUT ROWID;
CREATE INDEX tag_name ON tag (name);
CREATE TABLE hidden (inbox TEXT, number INTEGER, PRIMARY KEY (inbox, number)) WITHOUT ROWID;
CREATE INDEX hidden_number ON hidden (number);
CREATE TABLE session (
    id TEXT PRIMARY KEY, began REAL NOT NULL, ended REAL, peer TEXT NOT NULL, outcome TEXT NOT NULL,
    records TEXT NOT NULL
);
CREATE INDEX session_began ON session (began);
CREATE TABLE state (indexed INTEGER NOT NULL);
INSERT INTO state VALUES (0);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""

INSERT_FOLDED = f"INSERT INTO folded (number, {_NAMES}) VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
# Indexing many at once costs half as much as one by one. Messages above the number in the state are not indexed yet.
_NOT_INDEXED = "FROM folded WHERE number > (SELECT indexed FROM state) ORDER BY number LIMIT ?"
INDEX_WORDS = f"INSERT INTO words (rowid, {_NAMES}) SELECT number, {_NAMES} {_NOT_INDEXED}"
INDEXED_TO = f"SELECT max(number) FROM (SELECT number {_NOT_INDEXED})"
# To remove rows from the index, the indexed values must be given again.
FORGET_WORDS = f"""
INSERT INTO words (words, rowid, {_NAMES})
SELECT 'delete', number, {_NAMES} FROM folded
WHERE number IN (SELECT number FROM doomed) AND number <= (SELECT indexed FROM state)
"""
ROW = "m.number, m.seen, m.facts, (SELECT group_concat(name, char(10)) FROM tag WHERE tag.number = m.number)"


def connect(path: str, lasting: bool = True) -> sqlite3.Connection:
    """Open a connection with manual transactions.

    :param lasting: whether the file should outlive this process. Nothing is lost if the process is killed; a power
        failure may lose the last messages.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute(f"PRAGMA synchronous = {'NORMAL' if lasting else 'OFF'}")
    connection.execute("PRAGMA secure_delete = OFF")
    connection.execute("PRAGMA cache_size = -8000")
    return connection


def check_kind(path: str) -> None:
    """Reject a file that is not a database. SQLite itself overwrites it if it has fewer than 512 octets.

    :raises ValueError: if it is not one. A missing or an empty file may become one.
    """
    with suppress(OSError), open(path, "rb") as file:
        if file.read(len(MAGIC)) not in (b"", MAGIC):
            raise ValueError("the file is not a database; use another file")


def prepare(path: str, lasting: bool = True) -> None:
    """Create the file and its tables, or check that the file has them. Only the owner can access a new file.

    :param lasting: as for :func:`connect`.
    :raises ValueError: if the file is not an inbox, or of another version.
    :raises OSError: if it cannot be created.
    :raises sqlite3.Error: if it cannot be opened.
    """
    check_kind(path)
    with suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection = connect(path, lasting)
    try:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not tables and not application:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.executescript(SCHEMA)
            connection.execute("PRAGMA journal_mode = WAL")  # stored in the file
        elif application != APPLICATION:
            raise ValueError("the file is a database of another program; use another file")
        elif version != VERSION:
            raise ValueError(f"the file is from another version (its format is {version}, not {VERSION})")
    finally:
        connection.close()


@dataclass
class Selection:
    """The part of a SELECT that selects messages."""

    tables: str
    order: str = "m.number"
    where: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    needs_folded: bool = False

    def and_where(self, condition: str, *values: Any) -> None:
        self.where.append(condition)
        self.values.extend(values)

    def sql(self, columns: str, rest: str = "") -> str:
        """Return the statement."""
        tables = self.tables + (" CROSS JOIN folded f ON f.number = m.number" if self.needs_folded else "")
        where = f" WHERE {' AND '.join(self.where)}" if self.where else ""
        return f"SELECT {columns} FROM {tables}{where} {rest}"


def select(scope: Scope, terms: Terms) -> Selection:
    """Select the messages of a scope that match all terms."""
    # CROSS JOIN keeps the tables in this order.
    if scope.keys:
        selection = Selection("key k CROSS JOIN message m ON m.number = k.number", "k.number")
        selection.and_where("k.name = ? AND k.value = ?", *scope.keys[0])
        _restrict(selection, scope, 1)
    elif indexed := [term.text for term in terms if _is_indexed(term)]:
        selection = Selection("words w CROSS JOIN message m ON m.number = w.rowid", "w.rowid")
        selection.and_where("w.words MATCH ?", " ".join(map(_sequences, indexed)))
    else:
        selection = Selection("message m")
    for term in terms:
        _add(selection, term)
    return selection


def select_of_session(session_id: str, scope: Scope) -> Selection:
    """Select the messages of a session that belong to a scope."""
    selection = Selection("message m", where=["m.session = ?"], values=[session_id])
    _restrict(selection, scope, 0)
    return selection


def _restrict(selection: Selection, scope: Scope, known: int) -> None:
    """Restrict the selection to a scope. The first *known* of its keys are handled already."""
    for name, value in scope.keys[known:]:
        selection.and_where(
            "EXISTS (SELECT 1 FROM key WHERE name = ? AND value = ? AND number = m.number)", name, value
        )
    for label in scope.labels:
        selection.and_where("NOT EXISTS (SELECT 1 FROM hidden WHERE inbox = ? AND number = m.number)", label)


def _is_indexed(term: Term) -> bool:
    # FTS5 would take a NUL for the end of the expression.
    return term.kind == "words" and not term.negated and len(term.text) >= INDEXED and "\0" not in term.text


def _sequences(text: str) -> str:
    """Return the expression that finds the messages with the sequences of a text, wherever they are.

    Every third sequence and the last one cover the text. Further sequences would exclude only few more messages.
    """
    starts = {*range(0, len(text) - INDEXED + 1, INDEXED), len(text) - INDEXED}
    sequences = (text[start : start + INDEXED].replace('"', '""') for start in sorted(starts))
    return " ".join(f'"{sequence}"' for sequence in sequences)


def _add(selection: Selection, term: Term) -> None:
    sign = "NOT " if term.negated else ""
    if term.kind == "words":
        selection.needs_folded = True
        anywhere = " OR ".join(f'instr(f."{column}", ?)' for column in term.columns)
        selection.and_where(f"{sign}({anywhere})", *[term.text] * len(term.columns))
    elif term.kind == "tag":
        exists = "EXISTS (SELECT 1 FROM tag WHERE tag.number = m.number AND tag.name = ? COLLATE NOCASE)"
        selection.and_where(sign + exists, term.text)
    elif term.kind == "is" and term.text == "tagged":
        selection.and_where(f"{sign}EXISTS (SELECT 1 FROM tag WHERE tag.number = m.number)")
    elif term.kind == "is":
        selection.and_where(f"m.seen = {int((term.text == 'read') != term.negated)}")
    elif term.kind == "has":
        selection.and_where(f"{sign}m.{'inline' if term.text == 'inline' else 'attachments'} > 0")
    else:
        column, operator = {
            "after": ("arrived", ">="),
            "before": ("arrived", "<"),
            "larger": ("size", ">"),
            "smaller": ("size", "<"),
        }[term.kind]
        selection.and_where(f"{sign}(m.{column} {operator} ?)", term.number)
