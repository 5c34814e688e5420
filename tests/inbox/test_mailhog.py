"""MailHog's API."""

from __future__ import annotations

from tests.inbox.support import SiteTestCase, mail, multipart
from txsmtpd.faults.rules import Faults


class MailHogTests(SiteTestCase):
    """The requests of MailHog's clients."""

    async def test_list(self) -> None:
        """A list has whole messages, with envelope, header and body as received."""
        [message] = await self.add(mail("one", helo="client"))
        answer = (await self.get("/api/v2/messages")).json
        [item] = answer.pop("items")
        self.assertEqual(answer, {"total": 1, "count": 1, "start": 0})
        self.assertEqual(sorted(item), ["Content", "Created", "From", "ID", "MIME", "Raw", "To"])
        self.assertEqual(item["From"], {"Relays": None, "Mailbox": "ann", "Domain": "example.org", "Params": ""})
        self.assertEqual([path["Mailbox"] for path in item["To"]], ["bob"])
        self.assertEqual(item["Content"]["Headers"]["Subject"], ["one"])
        self.assertEqual((item["Content"]["Body"], item["MIME"]), ("Hello!\r\n", None))
        self.assertEqual((item["Raw"]["Helo"], item["Raw"]["From"]), ("client", "ann@example.org"))
        self.assertEqual(item["Raw"]["Data"].encode(), await self.store.content(message))

    async def test_parts(self) -> None:
        """Parts are not decoded, and may be nested."""
        await self.add(multipart("<p>x</p>", "Content-Transfer-Encoding: base64\r\n\r\naGk="))
        [item] = (await self.get("/api/v2/messages")).json["items"]
        inner, last = item["MIME"]["Parts"]
        self.assertEqual([part["Body"] for part in inner["MIME"]["Parts"]], ["Hello", "<p>x</p>"])
        self.assertEqual(last["Body"], "aGk=")

    async def test_search(self) -> None:
        """Searches are by sender, recipient or content."""
        await self.add(mail("one", "apple", to="a@w3.test"), mail("two", "pear", sender="carl@x.test"))
        for query, subjects in (
            ("kind=from&query=carl", ["two"]),
            ("kind=to&query=w3.test", ["one"]),
            ("kind=containing&query=APPLE", ["one"]),
        ):
            answer = (await self.get(f"/api/v2/search?{query}")).json
            self.assertEqual([item["Content"]["Headers"]["Subject"][0] for item in answer["items"]], subjects)
        for query in ("kind=x&query=a", "kind=to", ""):
            self.assertEqual((await self.get(f"/api/v2/search?{query}")).status, 400)

    async def test_one(self) -> None:
        """A message is read, downloaded and deleted by its id."""
        [message] = await self.add(mail("one"))
        self.assertEqual((await self.get(f"/api/v1/messages/{message.id}")).json["ID"], message.id)
        answer = await self.get(f"/api/v1/messages/{message.id}/download")
        self.assertEqual(answer.body, await self.store.content(message))
        self.assertEqual((await self.ask("DELETE", f"/api/v1/messages/{message.id}")).status, 200)
        self.assertEqual((await self.get(f"/api/v1/messages/{message.id}")).status, 404)

    async def test_jim(self) -> None:
        """Jim can be enabled, changed and disabled."""
        self.web.faults = Faults()
        self.assertEqual((await self.get("/api/v2/jim")).status, 404)
        answer = await self.ask("POST", "/api/v2/jim", {"RejectSenderChance": 0.5, "AcceptChance": 0.9})
        self.assertEqual(answer.status, 201)
        jim = (await self.get("/api/v2/jim")).json
        self.assertEqual((jim["RejectSenderChance"], jim["AcceptChance"]), (0.5, 0.9))
        await self.ask("PUT", "/api/v2/jim", {"RejectSenderChance": 0})
        self.assertEqual((await self.get("/api/v2/jim")).json["RejectSenderChance"], 0)
        self.assertEqual((await self.ask("PUT", "/api/v2/jim", {"AcceptChance": 2})).status, 400)
        await self.ask("DELETE", "/api/v2/jim")
        self.assertEqual(list(self.web.faults), [])
