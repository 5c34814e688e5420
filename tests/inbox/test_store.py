"""The common behavior of all stores, in a file and in memory."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from glob import glob
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from tests.inbox.support import StoreTestCase, mail, multipart
from txsmtpd.bridges.monotonic import use_monotonic_clock
from txsmtpd.inbox.events import Event
from txsmtpd.inbox.memory import MemoryStore
from txsmtpd.inbox.message import Arrival, parse
from txsmtpd.inbox.scope import EVERYTHING, Scope, make_key
from txsmtpd.inbox.search import Term, holds, parse_query
from txsmtpd.inbox.sqlite import SQLiteStore
from txsmtpd.inbox.store import Counts, Retention, SessionRecord, Store, new_id


def scope(**keys: str) -> Scope:
    return EVERYTHING.within(*(make_key(name, value) for name, value in keys.items()))


class Shared:
    """The tests; each kind of store runs them."""

    store: Store
    add: Any
    assertEqual: Any
    assertIsNone: Any

    async def found(self, query: str = "", where: Scope = EVERYTHING) -> list[str]:
        """The subjects of the messages that a search finds."""
        page = await self.store.page(where, parse_query(query), limit=None)
        self.assertEqual((await self.store.page(where, parse_query(query), limit=1)).count, len(page.messages))
        return [message.subject for message in page.messages]

    async def test_octets(self) -> None:
        """A message is kept byte for byte, whatever its octets are."""
        for content in (b"", b"\0\xff\r\r\n.\n", b"Subject: x\n\nbare", bytes(range(256)) * 5000):
            message = await self.store.add(Arrival(content, "a@b.test", ("c@d.test",)))
            self.assertEqual(await self.store.content(message), content)
            self.assertEqual(await self.store.content(message, 3, 4), content[3:7])

    async def test_again(self) -> None:
        """The message that is read is equal to the stored one."""
        stored = await self.store.add(multipart("<p>x</p>", "Content-Type: image/png; name=a.png\r\n\r\nPNG"))
        self.assertEqual(await self.store.message(stored.id), stored)
        self.assertEqual((await self.store.page()).messages, [stored])
        self.assertIsNone(await self.store.message("nothing"))

    async def test_search(self) -> None:
        """Each term finds its messages, case-insensitively. All terms must match."""
        await self.add(
            mail("Grüße aus Köln", "Der Text mit 100%_Sicherheit", sender="ann@example.org", to="bob@example.com"),
            mail("two words here", "nothing", sender="carl@example.net", to="dora@w3.test"),
            multipart("<p>Only <b>HTML</b></p>", "Content-Disposition: attachment; filename=Table.CSV\r\n\r\n1"),
        )
        one, two, three = "Grüße aus Köln", "two words here", "parts"
        for query, subjects in (
            ("", [three, two, one]),
            ("GRÜSSE", [one]),
            ("köln", [one]),
            ("kö", [one]),
            ('"two words"', [two]),
            ("two nothing", [two]),
            ("two köln", []),
            ("100%_sicher", [one]),
            ("100_%", []),
            ("%", [one]),
            ("subject:words", [two]),
            ("from:example.org", [three, one]),
            ("to:dora", [two]),
            ("addressed:carl", [two]),
            ("-subject:words", [three, one]),
            ("!two -köln", [three]),
            ("table.csv", [three]),
            ("has:attachment", [three]),
            ("-has:attachment", [two, one]),
            ("has:inline", []),
            ("is:unread", [three, two, one]),
            ("is:read", []),
            ("larger:1m", []),
            ("smaller:1m", [three, two, one]),
            ("after:2000-01-01", [three, two, one]),
            ("before:2000-01-01", []),
            ("is:tagged", []),
        ):
            self.assertEqual(await self.found(query), subjects, query)

    async def test_searchRandomly(self) -> None:
        """Any text finds exactly the messages that contain it: quotes, wildcards, any script."""
        random = Random(1)
        alphabet = 'ab"%_*^ -:()ß\u0130é漢😀\0'

        def text(most: int) -> str:
            return "".join(random.choices(alphabet, k=random.randint(1, most))).strip() or "ab"

        bodies = [text(40) for _ in range(40)]
        await self.add(*[mail(str(number), body) for number, body in enumerate(bodies)])
        arrivals = [mail(str(number), body) for number, body in enumerate(bodies)]
        parsed = [parse(arrival, new_id()) for arrival in arrivals]
        for _ in range(400):
            start = (body := random.choice(bodies))[random.randrange(len(body)) :]
            terms = tuple(
                Term("words", word.casefold(), columns=columns, negated=random.random() < 0.2)
                for word, columns in ((start[: random.randint(1, 9)], ("text",)), (text(2), ("text", "subject")))
            )
            page = await self.store.page(EVERYTHING, terms, limit=None)
            expected = [
                each.message.subject for each in parsed if all(holds(term, each.message, each.folded) for term in terms)
            ]
            self.assertEqual([message.subject for message in page.messages], expected[::-1], terms)
            self.assertEqual(page.count, len(expected), terms)

    async def test_pages(self) -> None:
        """Pages start after a number of messages, or before the last known message."""
        messages = await self.add(*[mail(str(number)) for number in range(6)])
        page = await self.store.page(start=1, limit=2)
        self.assertEqual([message.subject for message in page.messages], ["4", "3"])
        page = await self.store.page(limit=2, before=messages[3].number)
        self.assertEqual([message.subject for message in page.messages], ["2", "1"])
        self.assertEqual(page.count, 6)
        page = await self.store.page(after=messages[3].number)
        self.assertEqual(([message.subject for message in page.messages], page.count), (["5", "4"], 2))

    async def test_seen(self) -> None:
        """Messages are read or unread. The counts are updated, for all mail and for a scope."""
        one, _ = await self.add(mail("one", to="a@one.test"), mail("two", to="a@two.test"))
        await self.store.set_seen(True, ids=[one.id])
        self.assertEqual(await self.store.counts(), Counts(2, 1))
        self.assertEqual(await self.store.counts(scope(domain="one.test")), Counts(1, 0))
        await self.store.set_seen(True, scope(domain="two.test"))
        self.assertEqual(await self.store.counts(), Counts(2, 0))
        await self.store.set_seen(False)
        self.assertEqual(await self.found("is:unread"), ["two", "one"])

    async def test_scopes(self) -> None:
        """Mail is filed under whole addresses, not under parts of them."""
        await self.add(
            mail("one", to="bob@w3.test", user="ann", header="X-Test: 42\r\n"),
            mail("two", to=("notbob@w3.test", "x@other.test")),
            mail("three", to="BOB@W3.TEST", sender=""),
        )
        for where, subjects in (
            (scope(to="bob@w3.test"), ["three", "one"]),
            (scope(domain="w3.test"), ["three", "two", "one"]),
            (scope(domain="w3.test", user="ann"), ["one"]),
            (scope(sender=""), ["three"]),
            (scope(subject="two"), ["two"]),
            (scope(**{"x-test": "42"}), ["one"]),
            (scope(**{"x-test": "4"}), []),
            (scope(domain="3.test"), []),
        ):
            self.assertEqual(await self.found("", where), subjects, where)
        self.assertEqual(await self.found("notbob", scope(domain="w3.test")), ["two"])

    async def test_deleteInScope(self) -> None:
        """Deleting in a scope deletes messages that belong only to it, and hides shared ones in it."""
        _, shared = await self.add(mail("own", to="a@w3.test"), mail("shared", to=("a@w3.test", "b@other.test")))
        await self.store.delete(scope(domain="w3.test"))
        self.assertEqual(await self.found("", scope(domain="w3.test")), [])
        self.assertEqual(await self.found("", scope(domain="w3.test", to="a@w3.test")), [])
        self.assertEqual(await self.store.counts(scope(domain="w3.test")), Counts(0, 0))
        self.assertIsNone(await self.store.message(shared.id, scope(domain="w3.test")))
        self.assertEqual(await self.found("", scope(domain="other.test")), ["shared"])
        self.assertEqual(await self.found(), ["shared"])

    async def test_deleteForeign(self) -> None:
        """In a scope, other mail is not accessible, by id or by search."""
        (message,) = await self.add(mail("one", to="a@one.test"))
        await self.store.delete(scope(domain="two.test"), [message.id])
        await self.store.delete(scope(domain="two.test"), terms=parse_query("one"))
        await self.store.set_tags([message.id], ["x"], scope(domain="two.test"))
        await self.store.set_seen(True, scope(domain="two.test"), [message.id])
        self.assertEqual(await self.store.message(message.id), message)

    async def test_delete(self) -> None:
        """Messages that were deleted by id, by search or all are not in lists, searches and counts."""
        one, *_ = await self.add(*[mail(subject) for subject in ("one", "two", "three", "four")])
        await self.store.delete(ids=[one.id])
        await self.store.delete(terms=parse_query("subject:two"))
        self.assertEqual(await self.found(), ["four", "three"])
        self.assertEqual(await self.found("one"), [])
        self.assertEqual(await self.store.counts(), Counts(2, 2))
        self.assertEqual(await self.store.content(one), b"")
        await self.store.delete()
        self.assertEqual((await self.found(), await self.found("three")), ([], []))
        self.assertEqual(await self.store.counts(), Counts(0, 0))
        (after,) = await self.add(mail("after"))
        self.assertEqual((after.number, await self.found("after")), (5, ["after"]))

    async def test_tags(self) -> None:
        """Tags are set, renamed, removed and counted. A field X-Tags sets some."""
        one, two = await self.add(mail("one", header="X-Tags: a, b\r\n"), mail("two"))
        await self.store.set_tags([two.id], ["b", "c"])
        self.assertEqual(dict(await self.store.tags()), {"a": 1, "b": 2, "c": 1})
        self.assertEqual(await self.found("tag:B"), ["two", "one"])
        await self.store.rename_tag("B", "d")
        await self.store.rename_tag("c", None)
        self.assertEqual(dict(await self.store.tags()), {"a": 1, "d": 2})
        self.assertEqual((await self.store.message(one.id)).tags, ("a", "d"))
        self.assertEqual(await self.found("-is:tagged"), [])

    async def test_events(self) -> None:
        """Each change is published to the subscribers whose scope it concerns."""
        told: dict[str, list[tuple[str, str]]] = {"all": [], "one": []}

        def teller(name: str) -> Any:
            def tell(event: Event) -> None:
                told[name].append((event.kind, event.message.subject if event.message else ""))

            return tell

        self.store.hub.subscribe(EVERYTHING, teller("all"))
        self.store.hub.subscribe(scope(domain="one.test"), teller("one"))
        one, two = await self.add(mail("one", to="a@one.test"), mail("two", to="a@two.test"))
        await self.store.set_seen(True, ids=[one.id])
        await self.store.set_tags([two.id], ["x"])
        await self.store.delete(ids=[one.id])
        await self.store.delete()
        self.assertEqual(
            told["all"],
            [("new", "one"), ("new", "two"), ("seen", "one"), ("tags", "two"), ("delete", "one"), ("truncate", "")],
        )
        self.assertEqual(told["one"], [("new", "one"), ("seen", "one"), ("delete", "one"), ("truncate", "")])

    async def test_sessions(self) -> None:
        """Sessions are kept with the ids of their messages, newest first. A scope includes those without mail that
        tried to send it."""
        (message,) = await self.add(mail("one", to="a@one.test", session="s1"))
        for name, said in ("s1", "RCPT TO:<a@one.test>"), ("s2", "RCPT TO:<b@One.test>"), ("s3", "QUIT"):
            await self.store.put_session(SessionRecord(name, float(name[1]), 9.0, "peer", "550 no", said))
        self.assertEqual([session.id for session in await self.store.sessions()], ["s3", "s2", "s1"])
        self.assertEqual([session.id for session in await self.store.sessions(scope(domain="one.test"))], ["s2", "s1"])
        for name, value in (
            ("domain", "ne.test"),
            ("to", "a@one"),
            ("sender", "b@one.test"),
            ("domain", "2"),
            ("to", "@one.test"),
        ):
            self.assertEqual(await self.store.sessions(Scope((make_key(name, value),))), [], (name, value))
        both = Scope((make_key("domain", "one.test"), make_key("x-test", "42")))
        self.assertEqual(await self.store.sessions(both), [])
        session = await self.store.session("s1")
        assert session is not None
        self.assertEqual((session.messages, session.outcome), ((message.id,), "550 no"))
        self.assertIsNone(await self.store.session("s4"))

    async def test_retention(self) -> None:
        """Above the limits, the oldest messages are deleted. The newest is kept, whatever its size."""
        self.store.retention = Retention(messages=3, octets=0)  # type: ignore[attr-defined]
        await self.add(*[mail(str(number)) for number in range(6)])
        await self.settle()
        self.assertEqual(await self.found(), ["5", "4", "3"])
        self.store.retention = Retention(messages=0, octets=10)  # type: ignore[attr-defined]
        await self.add(mail("large"))
        await self.settle()
        self.assertEqual(await self.found(), ["large"])

    async def settle(self) -> None:
        """Let the store do its pending work."""


class SQLiteTests(Shared, StoreTestCase):
    """The store in a file."""

    async def settle(self) -> None:
        await self.store.set_tags([], [])  # changes are executed in order, so the earlier ones are done then
        await self.store.set_tags([], [])

    async def test_age(self) -> None:
        """Messages that are too old are deleted soon after, even with the clock of the command line, which does not
        count from the epoch."""
        from twisted.internet import reactor

        use_monotonic_clock(reactor)
        await self.add(mail("old", arrived=time.time() - 3600), mail("new"))
        store: Any = self.store
        store.retention = Retention(age=60)
        store._next_check.reset(0)
        for _ in range(3):
            await later()
            await self.settle()
        self.assertEqual(await self.found(), ["new"])

    async def test_group(self) -> None:
        """Messages that arrive together are all stored, in their order."""
        added = await gatherResults([Deferred.fromCoroutine(self.store.add(mail(str(n)))) for n in range(100)])
        self.assertEqual([message.number for message in added], list(range(1, 101)))
        self.assertEqual(await self.store.counts(), Counts(100, 100))

    async def test_cancelled(self) -> None:
        """If a client disconnects while its message is stored, the counts are correct: the message is stored and
        published."""
        told: list[Event] = []
        self.store.hub.subscribe(EVERYTHING, told.append)
        work = Deferred.fromCoroutine(self.store.add(mail("one")))
        work.addErrback(lambda _: None)
        work.cancel()
        await self.settle()
        self.assertEqual((await self.store.counts(), len(told)), (Counts(1, 1), 1))


class MemoryTests(Shared, StoreTestCase):
    """The store in memory."""

    def make_store(self) -> Store:
        return MemoryStore()


def later() -> Deferred[None]:
    """Fires in a later iteration of the reactor."""
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    return deferLater(reactor, 0.01)


class FileTests(TestCase):
    """Opening files."""

    async def test_permissions(self) -> None:
        """Only the owner can access a new file, and the files beside it; those of an existing file are kept."""
        self.addCleanup(os.umask, os.umask(0))
        path = self.mktemp()
        for mode in 0o600, 0o640:
            store = SQLiteStore(path)
            await store.open()
            await store.add(mail("1"))
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), mode)
            self.assertEqual(stat.S_IMODE(os.stat(f"{path}-wal").st_mode), mode)
            await store.close()
            os.chmod(path, 0o640)

    async def test_link(self) -> None:
        """A link to a file that does not exist yet is followed, and only the owner can access the new file."""
        self.addCleanup(os.umask, os.umask(0))
        path, link = self.mktemp(), self.mktemp()
        os.symlink(os.path.abspath(path), link)
        store = SQLiteStore(link)
        await store.open()
        await store.close()
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    async def test_kept(self) -> None:
        """Stored messages are there when the file is opened again, and the numbers continue."""
        path = self.mktemp()
        for number in 1, 2:
            store = SQLiteStore(path)
            await store.open()
            message = await store.add(mail(str(number)))
            self.assertEqual((message.number, await store.counts()), (number, Counts(number, number)))
            await store.delete(ids=[])
            await store.close()

    async def test_temporary(self) -> None:
        """A temporary file is removed when the store is closed."""
        store = SQLiteStore()
        await store.open()
        folder = os.path.dirname(store.path)
        await store.close()
        self.assertFalse(os.path.exists(folder))

    async def test_inUse(self) -> None:
        """A file that another store has opened is refused."""
        store = SQLiteStore(self.mktemp())
        with self.assertRaisesRegex(OSError, "another process has opened it"):
            SQLiteStore(store.path)
        await store.close()
        await SQLiteStore(store.path).close()

    def test_foreign(self) -> None:
        """A file of another kind is refused, and no other file is left."""
        for content in b"x", b"This is no database, and never was one." * 100:
            path = self.mktemp()
            Path(path).write_bytes(content)
            with self.assertRaisesRegex(ValueError, "not a database"):
                SQLiteStore(path)
            self.assertEqual(Path(path).read_bytes(), content)
        other = self.mktemp()
        connection = sqlite3.connect(other)
        connection.execute("CREATE TABLE theirs (x)")
        connection.close()
        with self.assertRaisesRegex(ValueError, "another program"):
            SQLiteStore(other)
        folder = self.mktemp()
        os.mkdir(folder)
        self.assertRaises(OSError, SQLiteStore, folder)
        for refused in path, other, folder:
            self.assertEqual(glob(f"{refused}?*"), [])

    async def test_version(self) -> None:
        """A file of another version is refused."""
        path = self.mktemp()
        await SQLiteStore(path).close()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        with self.assertRaisesRegex(ValueError, "its format is 99, not 1"):
            SQLiteStore(path)

    def test_noFolder(self) -> None:
        """A file in a missing folder is refused."""
        self.assertRaises(OSError, SQLiteStore, os.path.join(self.mktemp(), "mail"))
