"""The pages without a browser: responses to invalid requests."""

from __future__ import annotations

import html
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.inbox.support import SiteTestCase, mail, multipart
from txsmtpd.inbox.web.presentation import dialog


class MessageTests(SiteTestCase):
    """The page of a message."""

    async def test_manyAddresses(self) -> None:
        """Of many addresses, the page shows ten, and the others on request."""
        (message,) = await self.add(mail(to=tuple(f"user{number}@example.com" for number in range(30))))
        shown, _, others = (await self.get(f"/m/{message.id}")).text.partition("<summary>and 20 more</summary>")
        self.assertIn("user9@", shown.partition("<dt>To</dt>")[2])
        self.assertIn("user29@", others.partition("</details>")[0])
        (few,) = await self.add(mail(to=tuple(f"user{number}@example.com" for number in range(10))))
        self.assertNotIn('<details class="rest"', (await self.get(f"/m/{few.id}")).text)

    async def test_links(self) -> None:
        """URLs in a text are links, and everything else of it is text."""
        text = '<b>See</b> https://example.com/?a=<i>&b=1, javascript:alert(1) and http://example.net/"onclick=x.'
        (message,) = await self.add(mail(text=text))
        shown = (await self.get(f"/m/{message.id}?tab=text")).text.partition('<pre class="text">')[2]
        shown = shown.partition("</pre>")[0]
        self.assertEqual(re.findall('href="([^"]*)"', shown), ["https://example.com/?a=", "http://example.net/"])
        self.assertEqual(html.unescape(re.sub("</?a( [^<>]*)?>", "", shown)).strip(), text)
        self.assertEqual(set(re.findall("<(/?[a-z]+)", shown)), {"a", "/a"})

    async def test_manyLinks(self) -> None:
        """Only the first thousand URLs in a text are links: hundreds of thousands would delay all clients."""
        (message,) = await self.add(mail(text="http://a.test/ " * 1001))
        shown = (await self.get(f"/m/{message.id}?tab=text")).text.partition('<pre class="text">')[2]
        self.assertEqual(shown.count("<a "), 1000)
        self.assertIn("</a> http://a.test/ \n", shown)

    async def test_htmlOnly(self) -> None:
        """The views of the HTML exist for messages with HTML; for others, the text is shown."""
        plain, rich = await self.add(mail(), multipart("<p>Hello</p>"))
        for tab, shown in ("markup", "&lt;p&gt;Hello&lt;/p&gt;"), ("check", "caniemail.com"):
            self.assertIn(shown, (await self.get(f"/m/{rich.id}?tab={tab}")).text)
            answer = await self.get(f"/m/{plain.id}?tab={tab}")
            self.assertIn('<pre class="text">Hello!', answer.text)
            self.assertNotIn("HTML source", answer.text)

    async def test_missing(self) -> None:
        """A session or message that does not exist is a page that says so."""
        for path, said in ("/sessions/none", "There is no such session."), ("/m/none", "Message not found"):
            answer = await self.get(path)
            self.assertEqual(answer.status, 404)
            self.assertIn(said, answer.text)


class FullTests(SiteTestCase):
    """A full disk."""

    async def test_change(self) -> None:
        """If the disk is full, a change gets 507, and messages can still be read."""
        (message,) = await self.add(mail())
        store: Any = self.store
        await store._write(lambda connection: connection.execute("PRAGMA max_page_count = 1"))  # simulates a full disk
        tags = [f"{number} {'x' * 90}" for number in range(5000)]
        answer = await self.ask("PUT", "/api/v1/tags", {"IDs": [message.id], "Tags": tags})
        self.assertEqual((answer.status, answer.text), (507, "database or disk is full\n"))
        self.assertEqual(await self.subjects(), ["hello"])


class SearchTests(SiteTestCase):
    """Invalid searches."""

    async def test_refused(self) -> None:
        """The list explains an invalid search, and keeps it in the field. Nothing is deleted."""
        (message,) = await self.add(mail())
        for query, reason in (
            ("larger:big", "larger:big: not a size"),
            ("before:soon", "before:soon: not a date"),
            ("+".join("x" * 51), "more than 50 terms"),
            ("x" * 2001, "longer than 2000 characters"),
        ):
            for path in "/", f"/m/{message.id}":
                answer = await self.get(f"{path}?query={query}")
                self.assertEqual(answer.status, 400, path)
                self.assertIn(reason, answer.text)
                self.assertIn(f'value="{query.replace("+", " ")}"', answer.text)
            self.assertEqual((await self.get(f"/delete?query={query}")).status, 400)
            form = f"action=delete-all&query={query}".encode()
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            self.assertEqual((await self.ask("POST", "/do", form, kind)).status, 400)
        self.assertEqual(await self.subjects(), ["hello"])

    async def test_hostile(self) -> None:
        """Whatever the search is, the pages respond, and show it as text."""
        for query in (
            '"',
            '""',
            "-",
            "!",
            "*",
            "%25",
            "_",
            "a%00b",
            "%ED%A0%80",
            "NEAR(a+b)",
            "tag:%22",
            "to:",
            "a'--",
        ):
            for path in "/", "/delete", "/api/v1/search", "/api/inbox/v1/export.mbox":
                answer = await self.get(f"{path}?query={query}")
                self.assertEqual(answer.status, 200, (path, query))
        text = (await self.get("/?query=%3Cscript%3E%22onfocus=x")).text
        self.assertNotIn("<script>", text)
        self.assertIn("&lt;script&gt;&#34;onfocus=x", text)


class TranscriptTests(SynchronousTestCase):
    """The lines of a session."""

    def test_end(self) -> None:
        """Why a connection ended is said in the words of the log, whatever the exception."""
        for cause, said in (
            ("ConnectionDone", "connection closed"),
            ("Idle", "idle for too long"),
            ("OddError", "connection closed: OddError"),
        ):
            record = {"at": 1.5, "kind": "closed", "mark": "*", "text": f"closed: {cause}"}
            self.assertEqual([(line.at, line.text) for line in dialog([record])], [("1.500", said)])
