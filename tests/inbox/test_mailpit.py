"""Mailpit's API, as its clients need it."""

from __future__ import annotations

import base64

from tests.inbox.support import PNG, SiteTestCase, mail, multipart


class ListTests(SiteTestCase):
    """Lists of messages."""

    async def test_keys(self) -> None:
        """A list has Mailpit's keys and no others, for clients that compare for equality."""
        await self.add(mail("one", user="carl"))
        answer = (await self.get("/api/v1/messages")).json
        [message] = answer.pop("messages")
        self.assertEqual(
            answer,
            {
                "total": 1,
                "unread": 1,
                "count": 1,
                "messages_count": 1,
                "messages_unread": 1,
                "start": 0,
                "tags": [],
            },
        )
        self.assertRegex(message.pop("ID"), "^[0-9A-Za-z]{22}$")
        self.assertRegex(message.pop("Created"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            message,
            {
                "MessageID": "",
                "Read": False,
                "From": {"Name": "Ann", "Address": "ann@example.org"},
                "To": [{"Name": "", "Address": "bob@example.com"}],
                "Cc": [],
                "Bcc": [],
                "ReplyTo": [],
                "Subject": "one",
                "Username": "carl",
                "Tags": [],
                "Size": 74,
                "Attachments": 0,
                "Snippet": "Hello!",
            },
        )

    async def test_pages(self) -> None:
        """Lists are newest first, with start and limit. limit=0 returns all."""
        await self.add(*[mail(str(number)) for number in range(5)])
        self.assertEqual(await self.subjects("/api/v1/messages?start=1&limit=2"), ["3", "2"])
        self.assertEqual(await self.subjects("/api/v1/messages?limit=0"), ["4", "3", "2", "1", "0"])
        self.assertEqual(await self.subjects("/api/v1/messages?limit=0&start=3"), ["1", "0"])

    async def test_notANumber(self) -> None:
        """An invalid start is refused, with its name."""
        answer = await self.get("/api/v1/messages?start=x")
        self.assertEqual((answer.status, answer.text), (400, "start must be a number, not 'x'\n"))

    async def test_search(self) -> None:
        """A search counts its matches. Total and unread count all mail."""
        await self.add(mail("one"), mail("two"))
        answer = (await self.get("/api/v1/search?query=subject:ONE")).json
        self.assertEqual([answer[name] for name in ("total", "messages_count")], [2, 1])
        self.assertEqual([message["Subject"] for message in answer["messages"]], ["one"])

    async def test_noQuery(self) -> None:
        """A search without a query is refused."""
        self.assertEqual((await self.get("/api/v1/search?query=")).status, 400)


class MessageTests(SiteTestCase):
    """One message."""

    async def test_full(self) -> None:
        """A message has its text, its HTML and its parts. Parts that the HTML refers to are inline."""
        image = (
            "Content-Type: image/png; name=a.png\r\nContent-ID: <a@b>\r\nContent-Transfer-Encoding: base64\r\n\r\n"
            + base64.b64encode(PNG).decode()
        )
        file = "Content-Type: text/csv\r\nContent-Disposition: attachment; filename=table.csv\r\n\r\n1,2"
        [message] = await self.add(multipart("<p>Hi</p>", image, file, text="Hi"))
        answer = (await self.get(f"/api/v1/message/{message.id}")).json
        self.assertEqual(
            " ".join(sorted(answer)),
            "Attachments Bcc Cc Date From HTML ID Inline ListUnsubscribe MessageID ReplyTo ReturnPath Size Subject"
            " Tags Text To Username",
        )
        self.assertEqual((answer["Text"], answer["HTML"]), ("Hi", "<p>Hi</p>"))
        self.assertEqual([part["PartID"] for part in answer["Inline"]], ["2"])
        [attachment] = answer["Attachments"]
        self.assertEqual(
            {name: attachment[name] for name in ("PartID", "FileName", "ContentType", "Size")},
            {"PartID": "3", "FileName": "table.csv", "ContentType": "text/csv", "Size": 3},
        )
        self.assertEqual((await self.get(f"/api/v1/message/{message.id}/part/2")).body, PNG)

    async def test_opening(self) -> None:
        """Opening a message marks it as read."""
        [message] = await self.add(mail())
        await self.get(f"/api/v1/message/{message.id}")
        self.assertEqual((await self.get("/api/v1/messages")).json["unread"], 0)

    async def test_latest(self) -> None:
        """The newest message has the id latest. With a query, it is the newest match."""
        await self.add(mail("one"), mail("two"))
        self.assertEqual((await self.get("/api/v1/message/latest")).json["Subject"], "two")
        self.assertEqual((await self.get("/api/v1/message/latest?query=subject:one")).json["Subject"], "one")

    async def test_noMail(self) -> None:
        """Without mail there is no latest message."""
        answer = await self.get("/api/v1/message/latest")
        self.assertEqual((answer.status, answer.text), (404, "Message not found\n"))

    async def test_hiddenRecipients(self) -> None:
        """Recipients that no field names are in Bcc, and Return-Path is the reverse-path. The source has neither."""
        content = b"To: bob@example.com\r\n\r\nHello\r\n"
        from txsmtpd.inbox.message import Arrival

        [message] = await self.add(Arrival(content, "ann@example.org", ("bob@example.com", "eve@example.net")))
        answer = (await self.get(f"/api/v1/message/{message.id}/headers")).json
        self.assertEqual(
            answer, {"Bcc": ["eve@example.net"], "Return-Path": ["<ann@example.org>"], "To": ["bob@example.com"]}
        )
        self.assertEqual((await self.get(f"/api/v1/message/{message.id}/raw")).body, content)


class ChangeTests(SiteTestCase):
    """Requests that change something."""

    async def test_deleteAll(self) -> None:
        """DELETE without a body deletes all mail."""
        await self.add(mail(), mail())
        answer = await self.ask("DELETE", "/api/v1/messages")
        self.assertEqual((answer.status, answer.body), (200, b"ok"))
        self.assertEqual(await self.subjects(), [])

    async def test_deleteSome(self) -> None:
        """DELETE with ids deletes those messages. Keys are case-insensitive."""
        one, _ = await self.add(mail("one"), mail("two"))
        await self.ask("DELETE", "/api/v1/messages", {"ids": [one.id]})
        self.assertEqual(await self.subjects(), ["two"])

    async def test_deleteGarbage(self) -> None:
        """DELETE with a body that is not JSON, or not a list of ids, deletes nothing."""
        await self.add(mail("one"))
        for body in (b"{", b"[]", b'{"IDs": "x"}', b'{"IDs": [1]}'):
            self.assertEqual((await self.ask("DELETE", "/api/v1/messages", body)).status, 400, body)
        self.assertEqual(await self.subjects(), ["one"])

    async def test_deleteSearch(self) -> None:
        """DELETE of a search deletes its matches, and nothing without a query."""
        await self.add(mail("one"), mail("two"))
        self.assertEqual((await self.ask("DELETE", "/api/v1/search")).status, 400)
        await self.ask("DELETE", "/api/v1/search?query=subject:one")
        self.assertEqual(await self.subjects(), ["two"])

    async def test_read(self) -> None:
        """Messages are marked as read by id, by search, or all."""
        one, _, _ = await self.add(mail("one"), mail("two"), mail("three"))
        for body, unread in (
            ({"IDs": [one.id], "Read": True}, 2),
            ({"Search": "subject:two", "Read": True}, 1),
            ({"Read": True}, 0),
            ({}, 3),
        ):
            self.assertEqual((await self.ask("PUT", "/api/v1/messages", body)).body, b"ok")
            self.assertEqual((await self.get("/api/v1/messages")).json["unread"], unread)
        self.assertEqual((await self.ask("PUT", "/api/v1/messages", {"IDs": [one.id], "Search": "x"})).status, 400)

    async def test_tags(self) -> None:
        """Tags are set, renamed and removed. Characters that tags cannot have are removed."""
        [message] = await self.add(mail())
        await self.ask("PUT", "/api/v1/tags", {"IDs": [message.id], "Tags": ["one", "<two>"]})
        self.assertEqual((await self.get("/api/v1/tags")).json, ["one", "two"])
        await self.ask("PUT", "/api/v1/tags/one", {"Name": "three"})
        self.assertEqual((await self.get("/api/v1/messages")).json["messages"][0]["Tags"], ["three", "two"])
        await self.ask("DELETE", "/api/v1/tags/two")
        self.assertEqual((await self.get("/api/v1/tags")).json, ["three"])

    async def test_send(self) -> None:
        """A message that is sent with the API is stored like one that arrived over SMTP."""
        body = {
            "From": {"Email": "ann@example.org", "Name": "Ann"},
            "To": [{"Email": "bob@example.com", "Name": "Bob"}],
            "Bcc": ["eve@example.net"],
            "Subject": "Grüße",
            "Text": "Hello",
            "HTML": "<p>Hello\nthere</p>",
            "Attachments": [{"Content": base64.b64encode(PNG).decode(), "Filename": "a.png"}],
        }
        answer = await self.ask("POST", "/api/v1/send", body)
        self.assertEqual(sorted(answer.json), ["ID"])
        message = (await self.get(f"/api/v1/message/{answer.json['ID']}")).json
        self.assertEqual(message["Subject"], "Grüße")
        self.assertEqual(message["Bcc"], [{"Name": "", "Address": "eve@example.net"}])
        self.assertEqual(message["ReturnPath"], "ann@example.org")
        self.assertEqual(message["HTML"].strip(), "<p>Hello\nthere</p>")
        self.assertEqual([part["ContentType"] for part in message["Attachments"]], ["image/png"])

    async def test_sendWrong(self) -> None:
        """An invalid message is refused, with the reason as JSON."""
        for body in (
            {},
            {"From": {"Email": "x"}},
            {"From": {"Email": "a@b.test"}},
            {"From": {"Email": "a@b.test\r\nBcc: x@y.test"}, "Bcc": ["c@d.test"]},
            {"From": {"Email": "a@b.test"}, "Bcc": ["c@d.test\r\nRSET"]},
            {"From": {"Email": "a@b.test"}, "Bcc": ["c@d.test"], "Attachments": [{"Content": "*"}]},
        ):
            answer = await self.ask("POST", "/api/v1/send", body)
            self.assertEqual(answer.status, 400, body)
            self.assertEqual(sorted(answer.json), ["Error"])
        self.assertEqual(await self.subjects(), [])


class ServerTests(SiteTestCase):
    """Information about the server."""

    async def test_info(self) -> None:
        """The server has a version that Mailpit's clients accept, and does not look for a newer one."""
        await self.add(mail())
        answer = (await self.get("/api/v1/info")).json
        self.assertRegex(answer["Version"], r"^v1\.30\.5\+txsmtpd\.")
        self.assertEqual(answer["LatestVersion"], "disabled")
        self.assertEqual(answer["RuntimeStats"]["SMTPAccepted"], 1)

    async def test_missing(self) -> None:
        """An unknown path gets 404, and an unknown method 405."""
        self.assertEqual((await self.get("/nowhere")).text, "404 page not found\n")
        answer = await self.ask("POST", "/api/v1/info", {})
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET"))

    async def test_alive(self) -> None:
        """Probes get a response."""
        for path in ("/livez", "/readyz"):
            self.assertEqual((await self.get(path)).status, 200)


class CheckTests(SiteTestCase):
    """The HTML check."""

    async def test_features(self) -> None:
        """Elements, attributes, properties, rules and functions are found by name, and counted. Text does not count."""
        html = (
            "<style>@media print { p:hover { margin: 0 } }</style><video></video><h2 align=left>position: x</h2>"
            "<p style=\"display:flex; border-radius: 3px\">x</p><p style='border-radius:1px'>y</p>"
        )
        [message] = await self.add(multipart(html))
        answer = (await self.get(f"/api/v1/message/{message.id}/html-check")).json
        found = {warning["Slug"]: warning["Score"]["Found"] for warning in answer["Warnings"]}
        for slug, count in (
            ("html-video", 1),
            ("html-align", 1),
            ("css-display-flex", 1),
            ("css-border-radius", 2),
            ("css-at-media", 1),
            ("css-pseudo-class-hover", 1),
        ):
            self.assertEqual(found.get(slug), count, slug)
        self.assertNotIn("css-position", found)
        self.assertEqual(answer["Total"]["Nodes"], 5)
        self.assertTrue(all(0 <= warning["Score"]["Supported"] <= 100 for warning in answer["Warnings"]))

    async def test_noHtml(self) -> None:
        """A message without HTML has no check."""
        await self.add(mail())
        self.assertEqual((await self.get("/api/v1/message/latest/html-check")).status, 404)
