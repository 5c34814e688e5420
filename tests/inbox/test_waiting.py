"""Waiting for mail on the server, and inboxes that are separated by their address."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.inbox.support import Answer, SiteTestCase, mail

WAIT = "/api/inbox/v1/wait"


class WaitTests(SiteTestCase):
    """A request that waits for mail."""

    async def started(self, path: str, **headers: str) -> Deferred[Answer]:
        """A request that has started to wait."""
        waiting = Deferred.fromCoroutine(self.get(path, **headers))
        while not self.web.waiting:
            await deferLater(reactor, 0.005)
        return waiting

    async def test_there(self) -> None:
        """Messages that are already there are returned immediately, with a cursor."""
        await self.add(mail("one"), mail("two"))
        answer = await self.get(f"{WAIT}?subject=two&timeout=0")
        self.assertEqual((answer.status, answer.headers["inbox-cursor"]), (200, "2"))
        self.assertEqual([message["Subject"] for message in answer.json["messages"]], ["two"])

    async def test_comes(self) -> None:
        """A later message is returned when it arrives. Other mail is ignored."""
        waiting = await self.started(f"{WAIT}?to=bob@example.com&timeout=30")
        await self.add(mail("other", to="notbob@example.com"))
        self.assertEqual(len(self.web.waiting), 1)
        await self.add(mail("one", to="Bob@Example.com"))
        answer = await waiting
        self.assertEqual([message["Subject"] for message in answer.json["messages"]], ["one"])
        self.assertEqual(len(self.web.waiting), 0)

    async def test_count(self) -> None:
        """A request can wait for several messages."""
        waiting = await self.started(f"{WAIT}?domain=example.com&count=3&timeout=30")
        await self.add(*[mail(str(number)) for number in range(3)])
        self.assertEqual((await waiting).json["messages_count"], 3)

    async def test_cursor(self) -> None:
        """Mail before a cursor does not count, even if it was deleted meanwhile."""
        await self.add(mail("old"))
        answer = await self.get("/api/inbox/v1/cursor")
        self.assertEqual((answer.json, answer.headers["inbox-cursor"]), ({"cursor": 1}, "1"))
        self.assertEqual((await self.get(f"{WAIT}?after=1&timeout=0")).status, 404)
        await self.store.delete()
        await self.add(mail("new"))
        answer = await self.get(f"{WAIT}?after=1&timeout=0")
        self.assertEqual([message["Subject"] for message in answer.json["messages"]], ["new"])

    async def test_missing(self) -> None:
        """If no message arrives in time, the response is 404, with the criteria, similar mail, and the mail that did
        arrive."""
        await self.add(mail("one", to="bobby@example.com"))
        answer = await self.get(f"{WAIT}?to=bob@example.com&query=is:unread&timeout=0.01")
        self.assertEqual(answer.status, 404)
        told = answer.json
        self.assertEqual(told["wanted"], "to 'bob@example.com', is:unread")
        self.assertEqual(told["nearest"], ["to=bobby@example.com"])
        self.assertEqual([message["Subject"] for message in told["arrived"]], ["one"])
        self.assertEqual(told["error"], "no mail to 'bob@example.com', is:unread arrived within 0.01 seconds")

    async def test_nearest(self) -> None:
        """Similar values are listed for the criterion that is wrong, also if they only contain what was wanted."""
        await self.add(mail("Welcome to the shop"), mail("other", to="bobby@example.com"))
        answer = await self.get(f"{WAIT}?to=bob@example.com&subject=Welcome&timeout=0")
        self.assertEqual(answer.json["nearest"], ["subject=Welcome to the shop"])

    async def test_some(self) -> None:
        """Of several messages, the response says how many arrived."""
        await self.add(mail("one"))
        answer = await self.get(f"{WAIT}?count=2&timeout=0")
        self.assertEqual(answer.json["error"], "1 of 2 messages arrived within 0 seconds")

    async def test_none(self) -> None:
        """A request can also check that no mail arrives."""
        answer = await self.get(f"{WAIT}?to=bob@example.com&expect=none&within=0.01")
        self.assertEqual(answer.status, 200)
        waiting = await self.started(f"{WAIT}?to=bob@example.com&expect=none&within=30")
        await self.add(mail("one"))
        answer = await waiting
        self.assertEqual((answer.status, answer.json["messages_count"]), (409, 1))

    async def test_criteria(self) -> None:
        """Criteria are exact. A header field is given with its value."""
        await self.add(mail("one", user="ann", header="X-Test: 42\r\n"))
        for query, status in (
            ("sender=ann@example.org", 200),
            ("sender=ann@example", 404),
            ("domain=example.com&user=ann", 200),
            ("subject=on", 404),
            ("header=X-Test:%2042", 200),
            ("header=x-test:4", 404),
            ("query=subject:on", 200),
        ):
            self.assertEqual((await self.get(f"{WAIT}?{query}&timeout=0")).status, status, query)

    async def test_mistakes(self) -> None:
        """An invalid criterion is refused immediately, with the valid ones."""
        for query, text in (
            ("header=X-Test", "header must be a field and its value"),
            ("header=X-Other:1", "'x-other' is not a criterion; there are to, domain, sender, user, subject, X-Test"),
            ("to=", "to needs a value"),
            ("query=after:x", "after:x: not a date"),
            ("timeout=soon", "timeout must be a number of seconds, not 'soon'"),
            ("expect=some", "expect can only be none"),
            ("within=1", "within requires expect=none"),
            ("count=0", "count must be 1 or more"),
            ("subjct=x", "there is no parameter 'subjct'; did you mean subject?"),
            ("to=a@example.com&to=b@example.com", "the parameter 'to' is given 2 times"),
            ("zebra=x", "there is no parameter 'zebra'; there are to, domain, "),
        ):
            answer = await self.get(f"{WAIT}?{query}")
            self.assertEqual(answer.status, 400, query)
            self.assertIn(text, answer.text)

    async def test_tooMany(self) -> None:
        """If too many requests wait, further ones are refused with Retry-After."""
        self.web.waiting_limit = 1
        waiting = await self.started(f"{WAIT}?timeout=30")
        answer = await self.get(WAIT)
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "1"))
        await self.add(mail())
        await waiting

    async def test_left(self) -> None:
        """When a client disconnects, its request ends."""
        waiting = await self.started(f"{WAIT}?timeout=60")
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        while self.web.waiting:
            await deferLater(reactor, 0.005)

    async def test_prefer(self) -> None:
        """An unmodified client of Mailpit waits if its configuration adds a header."""
        for path, status in (
            ("/api/v1/search?query=subject:one", 200),
            ("/api/v1/message/latest?query=subject:one", 200),
            ("/view/latest?query=subject:one", 302),
        ):
            await self.store.delete()
            waiting = await self.started(path, Prefer="wait=30")
            await self.add(mail("other"), mail("one"))
            answer = await waiting
            self.assertEqual((answer.status, answer.headers["preference-applied"]), (status, "wait=30"), path)

    async def test_preferInVain(self) -> None:
        """If no message arrives in time, the response is the usual one."""
        answer = await self.get("/api/v1/search?query=one", Prefer="wait=0")
        self.assertEqual((answer.status, answer.json["messages"]), (200, []))
        answer = await self.get("/api/v1/message/latest", Prefer="respond-async, wait=0")
        self.assertEqual((answer.status, answer.text), (404, "Message not found\n"))
        self.assertEqual(answer.headers["preference-applied"], "wait=0")
        self.assertNotIn("preference-applied", (await self.get("/api/v1/search?query=one")).headers)

    async def test_preferTooLong(self) -> None:
        """A request to wait longer than a minute waits for a minute, and the response says so."""
        await self.add(mail("one"))
        answer = await self.get("/api/v1/search?query=one", Prefer="wait=999999")
        self.assertEqual(answer.headers["preference-applied"], "wait=60")


class IsolationTests(SiteTestCase):
    """The whole API, below /in/CRITERION=VALUE/."""

    async def setUp(self) -> None:
        await super().setUp()
        self.mine, self.theirs, self.shared = await self.add(
            mail("mine", to="a@w3.test"), mail("theirs", to="a@w4.test"), mail("shared", to=("a@w3.test", "a@w4.test"))
        )

    async def json(self, path: str) -> Any:
        return (await self.get(path)).json

    async def test_lists(self) -> None:
        """Lists, searches, counts and the newest message are those of the scope."""
        base = "/in/domain=w3.test"
        self.assertEqual(await self.subjects(f"{base}/api/v1/messages"), ["shared", "mine"])
        self.assertEqual(await self.subjects(f"{base}/api/v1/search?query=e"), ["shared", "mine"])
        self.assertEqual((await self.json(f"{base}/api/v1/messages"))["total"], 2)
        self.assertEqual((await self.json(f"{base}/api/v1/message/latest"))["Subject"], "shared")
        self.assertEqual((await self.json(f"{base}/api/v2/messages"))["total"], 2)

    async def test_foreign(self) -> None:
        """Other mail is not accessible below any address of the scope."""
        for path in (
            "api/v1/message/{}",
            "api/v1/message/{}/raw",
            "api/v1/message/{}/headers",
            "api/v1/message/{}/part/0",
            "api/inbox/v1/message/{}/envelope",
            "api/v1/messages/{}",
            "view/{}.txt",
        ):
            answer = await self.get(f"/in/domain=w3.test/{path.format(self.theirs.id)}")
            self.assertEqual(answer.status, 404, path)
            self.assertEqual((await self.get(f"/{path.format(self.theirs.id)}")).status, 200, path)

    async def test_delete(self) -> None:
        """Deleting all messages there keeps other mail, and hides shared messages."""
        self.assertEqual((await self.ask("DELETE", "/in/domain=w3.test/api/v1/messages")).body, b"ok")
        self.assertEqual(await self.subjects("/in/domain=w3.test/api/v1/messages"), [])
        self.assertEqual(await self.subjects("/in/domain=w4.test/api/v1/messages"), ["shared", "theirs"])
        self.assertEqual(await self.subjects(), ["shared", "theirs"])

    async def test_names(self) -> None:
        """A scope is a criterion, a header field, or several, one within the other."""
        await self.add(mail("named", to="b@w3.test", header="X-Test: a/b 1\r\n"))
        for base, subjects in (
            ("/in/to=b@w3.test", ["named"]),
            ("/in/X-Test=a%2Fb%201", ["named"]),
            ("/in/domain=w3.test/in/to=b@w3.test", ["named"]),
            ("/in/domain=w3.test/in/domain=w4.test", ["shared"]),
        ):
            self.assertEqual(await self.subjects(f"{base}/api/v1/messages"), subjects, base)

    async def test_mistakes(self) -> None:
        """An invalid scope is not found, and the response names the valid ones."""
        for path, text in (
            ("/in/colour=red/", "'colour' is not a criterion; there are to, domain, sender, user, subject, X-Test"),
            ("/in/w3.test/", "such as /in/domain=example.com/"),
            ("/in/to=/", "to needs a value"),
        ):
            answer = await self.get(path)
            self.assertEqual(answer.status, 404)
            self.assertIn(text, answer.text)

    async def test_redirects(self) -> None:
        """Links stay in the scope."""
        answer = await self.get("/in/domain=w3.test/view/latest")
        self.assertEqual(answer.headers["location"], f"/in/domain=w3.test/view/{self.shared.id}.txt")
        self.assertEqual((await self.get("/in/domain=w3.test")).headers["location"], "/in/domain=w3.test/")


class BasePathTests(SiteTestCase):
    """A path prefix, for a reverse proxy."""

    settings = {"path": "/mail"}

    async def test_below(self) -> None:
        """Everything is below the path, and nothing is elsewhere."""
        await self.add(mail("one"))
        self.assertEqual(await self.subjects("/mail/api/v1/messages"), ["one"])
        self.assertEqual((await self.get("/api/v1/messages")).status, 404)
        self.assertEqual((await self.get("/mail")).headers["location"], "/mail/")
        answer = await self.get("/mail/in/to=bob@example.com/view/latest")
        self.assertTrue(answer.headers["location"].startswith("/mail/in/to=bob@example.com/view/"))
