"""The inbox's own API: envelope, links, codes, sessions, dialogs, faults, export, and its description; and release."""

from __future__ import annotations

import io
import json
import mailbox
import re
import smtplib
import zipfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.inbox.support import SiteTestCase, mail, multipart
from txsmtpd.factory import SMTPFactory
from txsmtpd.faults.rules import Faults
from txsmtpd.handlers.upstream import Upstream
from txsmtpd.inbox.handler import InboxHandler
from txsmtpd.inbox.sessions import make_transcripts
from txsmtpd.inbox.web.content import PIECE
from txsmtpd.inbox.web.table import ROUTES
from txsmtpd.testing import MailCatcher
from txsmtpd.testing.dialog import Dialog

OWN = "/api/inbox/v1"


class ParameterTests(SiteTestCase):
    """Query parameters."""

    async def test_unknown(self) -> None:
        """An unknown parameter of the inbox's own API is rejected, except one against caches; others ignore it."""
        await self.add(mail())
        for path, status in (
            (f"{OWN}/cursor", 200),
            (f"{OWN}/cursor?_=1764427000", 200),
            (f"{OWN}/cursor?after=1", 400),
            (f"{OWN}/message/latest/links?query=is:unread&tz=UTC", 200),
            (f"{OWN}/message/latest/links?subject=x", 400),
            (f"{OWN}/export.mbox?qeury=x", 400),
            ("/api/v1/messages?subject=x", 200),
        ):
            self.assertEqual((await self.get(path)).status, status, path)
        answer = await self.get(f"{OWN}/export.mbox?qeury=x")
        self.assertEqual(answer.text.strip(), "there is no parameter 'qeury'; did you mean query?")
        answer = await self.get(f"{OWN}/cursor?after=1")
        self.assertEqual(answer.text.strip(), "there is no parameter 'after'; there are none")


class MessageTests(SiteTestCase):
    """Data that Mailpit's JSON does not have."""

    async def test_envelope(self) -> None:
        """The envelope is returned as received."""
        [message] = await self.add(
            mail(
                to=("a@w3.test", "b@w3.test"),
                mail_options=("SIZE=5",),
                peer="127.0.0.1:5",
                helo="client",
                tls="TLSv1.3 X",
                user="ann",
                session="s1",
                arrived=0.5,
            )
        )
        answer = (await self.get(f"{OWN}/message/{message.id}/envelope")).json
        self.assertEqual(
            answer,
            {
                "ID": message.id,
                "Number": 1,
                "Arrived": "1970-01-01T00:00:00.500Z",
                "From": "ann@example.org",
                "To": ["a@w3.test", "b@w3.test"],
                "FromOptions": ["SIZE=5"],
                "ToOptions": [],
                "Peer": "127.0.0.1:5",
                "Helo": "client",
                "TLS": "TLSv1.3 X",
                "Username": "ann",
                "Session": "s1",
            },
        )

    async def test_links(self) -> None:
        """The links of HTML and text are returned in order, without duplicates."""
        html = (
            "<a href='https://a.example/?x=1&amp;y=2'>a</a> <A class=b HREF=mailto:b@c.test>b</A> <a href='#top'>t</a>"
        )
        await self.add(multipart(html, text="See https://b.example/path. And (https://a.example/?x=1&y=2)!"))
        answer = (await self.get(f"{OWN}/message/latest/links")).json
        self.assertEqual(answer, {"links": ["https://a.example/?x=1&y=2", "mailto:b@c.test", "https://b.example/path"]})

    async def test_codes(self) -> None:
        """Text that looks like a one-time code is returned. Words, years in dates, prices and addresses are not."""
        text = "Your code: 123 456. Or AB12CD! On 2026-11-29, for 12.50, see https://x.test/123456 HELLO"
        await self.add(mail("Code 9876", text))
        self.assertEqual((await self.get(f"{OWN}/message/latest/codes")).json, {"codes": ["9876", "123456", "AB12CD"]})
        answer = (await self.get(f"{OWN}/message/latest/codes?longest=5")).json
        self.assertEqual(answer, {"codes": ["9876"]})


class ExportTests(SiteTestCase):
    """Messages as one file."""

    async def test_mbox(self) -> None:
        """Python's module can read the mbox. Lines that start with From are quoted."""
        await self.add(mail("one", "From here\r\n>From there"), mail("two"))
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write((await self.get(f"{OWN}/export.mbox")).body)
        found = list(mailbox.mbox(path))
        self.assertEqual([message["Subject"] for message in found], ["two", "one"])
        self.assertEqual(found[1].get_payload(), ">From here\n>>From there\n")

    async def test_zip(self) -> None:
        """A zip has each message byte for byte. A query or ids select messages."""
        one, two = await self.add(mail("one"), mail("two"))
        for query, wanted in ("", [two, one]), ("?query=subject:one", [one]), (f"?ids={two.id},x", [two]):
            answer = await self.get(f"{OWN}/export.zip{query}")
            archive = zipfile.ZipFile(io.BytesIO(answer.body))
            self.assertEqual(archive.namelist(), [f"{each.number:08}-{each.id}.eml" for each in wanted])
            for name, message in zip(archive.namelist(), wanted, strict=True):
                self.assertEqual(archive.read(name), await self.store.content(message))

    async def test_large(self) -> None:
        """A message that is read from the store in pieces is exported completely, with the same lines."""
        text = "".join(f"From {number} {'x' * (number % 70)}\r\n" for number in range(60_000)) + "y" * PIECE * 2
        (message,) = await self.add(mail("large", text))
        self.assertGreater(message.size, 3 * PIECE)
        content = await self.store.content(message)
        archive = zipfile.ZipFile(io.BytesIO((await self.get(f"{OWN}/export.zip")).body))
        self.assertEqual(archive.read(archive.namelist()[0]) == content, True)
        _, _, quoted = (await self.get(f"{OWN}/export.mbox")).body.partition(b"\n")
        _, _, body = content.replace(b"\r\n", b"\n").partition(b"\n\n")
        expected = body.replace(b"\nFrom ", b"\n>From ").replace(b"From ", b">From ", 1) + b"\n"
        self.assertEqual(quoted.partition(b"\n\n")[2] == expected, True)

    async def test_many(self) -> None:
        """More messages than are looked up at once are all exported."""
        await self.add(*[mail(str(number)) for number in range(250)])
        archive = zipfile.ZipFile(io.BytesIO((await self.get(f"{OWN}/export.zip")).body))
        self.assertEqual(len(archive.namelist()), 250)


class DescriptionTests(SiteTestCase):
    """The description of the API."""

    async def test_routes(self) -> None:
        """The description has each route, with its variables. Each operation has its own name."""
        answer = (await self.get(f"{OWN}/openapi.json")).json
        described = {(method.upper(), path) for path, methods in answer["paths"].items() for method in methods}
        routes = {(route.method, route.path) for route in ROUTES if "/api/" in route.path or "/view/" in route.path}
        self.assertEqual(routes - described, set())
        names = []
        for path, methods in answer["paths"].items():
            for operation in methods.values():
                names.append(operation["operationId"])
                variables = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
                self.assertEqual(variables, re.findall(r"\{(\w+)\}", path))
                self.assertTrue(operation["summary"].endswith("."), operation["summary"])
        self.assertEqual(len(set(names)), len(names))

    def test_twice(self) -> None:
        """No two routes have the same method and path."""
        pairs = [(route.method, re.sub(r"\{\w+\}", "{}", route.path)) for route in ROUTES]
        self.assertEqual(len(set(pairs)), len(pairs))


class ServerTestCase(SiteTestCase):
    """An inbox with a server that receives mail for it."""

    async def setUp(self) -> None:
        await super().setUp()
        self.web.faults = Faults()
        self.web.transcripts = make_transcripts(self.store)
        factory = SMTPFactory(
            InboxHandler(self.store), faults=self.web.faults, transcript=self.web.transcripts, hostname="mx.test"
        )
        self.smtp = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(factory.drain)
        self.addCleanup(self.smtp.stopListening)

    async def say(self, *lines: str) -> list[str]:
        """Send lines to the server, and QUIT. Return the last line of each reply."""

        def talk() -> list[str]:
            replies = []
            with smtplib.SMTP("127.0.0.1", self.smtp.getHost().port, timeout=60) as client:
                for line in lines:
                    client.send(f"{line}\r\n")
                    code, text = client.getreply()
                    replies.append(f"{code} {text.decode().splitlines()[-1]}")
            return replies

        replies: list[str] = await deferToThread(talk)
        return replies

    async def sessions(self) -> list[Any]:
        """The sessions, once one has ended."""
        while True:
            found = (await self.get(f"{OWN}/sessions")).json["sessions"]
            if found:
                return found
            await deferLater(reactor, 0.01)


class SessionTests(ServerTestCase):
    """The transcripts of sessions."""

    mail = ("EHLO client.test", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "DATA", "Subject: x\r\n\r\n..x\r\n.")

    async def test_transcript(self) -> None:
        """A message has the transcript of its session, without credentials."""
        await self.say("EHLO client.test", "AUTH PLAIN AGFubgBzZWNyZXQ=", *self.mail[1:])
        records = (await self.get(f"{OWN}/message/latest/transcript")).json["records"]
        said = [record["text"] for record in records if record["mark"] == "C:"]
        self.assertEqual(said[:4], ["EHLO client.test", "AUTH PLAIN ********", *self.mail[1:3]])
        self.assertNotIn("AGFubgBzZWNyZXQ", json.dumps(records))

    async def test_refused(self) -> None:
        """A session without mail is in the list, too, with the reply that ended it."""
        self.web.faults.on("rcpt").reply("550 5.1.1 Nobody")
        await self.say(*self.mail[:3])
        [session] = await self.sessions()
        self.assertEqual((session["Outcome"], session["Messages"]), ("550 5.1.1 Nobody", []))
        whole = (await self.get(f"{OWN}/sessions/{session['ID']}")).json
        self.assertIn("RCPT TO:<c@d.test>", [record["text"] for record in whole["Records"]])
        for scope, status in ("d.test", 200), ("other.test", 404):
            name = session["ID"]
            for path in f"{OWN}/sessions/{name}", f"{OWN}/sessions/{name}/dialog", f"/sessions/{name}":
                answer = await self.get(f"/in/domain={scope}{path}")
                self.assertEqual(answer.status, status, path)

    async def test_dialog(self) -> None:
        """A session can be converted to a dialog, which passes against a similar server."""
        await self.say(*self.mail)
        await self.sessions()
        answer = await self.get(f"{OWN}/message/latest/dialog")
        self.assertIn("attachment", answer.headers["content-disposition"])
        lines = answer.text.splitlines()
        for line in ("C: Subject: x", "C: ..x", "C: .", "S: 354", "S: 250 2.0.0", "S."):
            self.assertIn(line, lines)
        dialog = Dialog(answer.text)
        dialog.play(lambda: SMTPFactory())
        dialog.play_cut(lambda: SMTPFactory())

    async def test_othersInSession(self) -> None:
        """In a scope, a session shows only its messages of the scope, and its dialog has no other contents."""
        secret = ("MAIL FROM:<a@b.test>", "RCPT TO:<e@other.test>", "DATA", "Subject: y\r\n\r\nsecret\r\n.")
        await self.say(*self.mail, *secret)
        [session] = await self.sessions()
        self.assertEqual(len(session["Messages"]), 2)
        scope = f"/in/domain=d.test{OWN}"
        [listed] = (await self.get(f"{scope}/sessions")).json["sessions"]
        shown = (await self.get(f"{scope}/sessions/{session['ID']}")).json
        self.assertEqual((listed["Messages"], shown["Messages"]), (session["Messages"][:1], session["Messages"][:1]))
        page = (await self.get(f"/in/domain=d.test/sessions/{session['ID']}")).text
        self.assertNotIn(f"/m/{session['Messages'][1]}", page)
        for path in f"{scope}/sessions/{session['ID']}/dialog", f"{scope}/message/latest/dialog":
            text = (await self.get(path)).text
            self.assertIn("C: Subject: x", text)
            self.assertNotIn("secret", text)

    async def test_unknown(self) -> None:
        """An unknown session is not found."""
        self.assertEqual((await self.get(f"{OWN}/sessions/x")).status, 404)


class FaultTests(ServerTestCase):
    """Faults that are switched on and off while clients are connected."""

    rcpt = ("EHLO a.test", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "RCPT TO:<c@d.test>")

    async def test_switched(self) -> None:
        """A rule is added, counts its hits, and is removed."""
        answer = await self.ask("POST", f"{OWN}/faults", {"spec": "rcpt first=2 reply=451 4.7.1 Later"})
        rule = answer.json
        self.assertEqual((answer.status, rule["hits"], rule["left"]), (201, 0, 2))
        self.assertEqual((await self.say(*self.rcpt))[-2:], ["451 4.7.1 Later"] * 2)
        [rule] = (await self.get(f"{OWN}/faults")).json["faults"]
        self.assertEqual((rule["hits"], rule["left"], rule["spec"]), (2, 0, "rcpt first=2 reply=451 4.7.1 Later"))
        self.assertEqual((await self.ask("DELETE", f"{OWN}/faults/{rule['id']}")).body, b"ok")
        self.assertEqual((await self.get(f"{OWN}/faults")).json["faults"], [])
        self.assertEqual((await self.ask("DELETE", f"{OWN}/faults/{rule['id']}")).status, 404)

    async def test_scope(self) -> None:
        """Below /in/, a rule applies only to that mail. It is listed there and above."""
        base = f"/in/domain=d.test{OWN}/faults"
        await self.ask("POST", base, {"spec": "rcpt reply=550 5.1.1 Nobody"})
        replies = await self.say("EHLO a.test", "MAIL FROM:<a@b.test>", "RCPT TO:<c@d.test>", "RCPT TO:<c@other.test>")
        self.assertEqual(replies[-2:], ["550 5.1.1 Nobody", "250 2.1.5 OK"])
        for path, count in (base, 1), (f"{OWN}/faults", 1), (f"/in/domain=other.test{OWN}/faults", 0):
            self.assertEqual(len((await self.get(path)).json["faults"]), count, path)
        await self.ask("DELETE", f"/in/domain=other.test{OWN}/faults")
        self.assertEqual(len(list(self.web.faults)), 1)
        await self.ask("DELETE", base)
        self.assertEqual(len(list(self.web.faults)), 0)

    async def test_mistakes(self) -> None:
        """An invalid rule is refused with an explanation, and is not added."""
        for spec, text in (
            ("rcpt", "the rule has no effect"),
            ("rcqt drop", "did you mean rcpt?"),
            ("rcpt first=x drop", "a number was expected"),
            ("starttls certificate=/etc/passwd", "only on the command line"),
            ("", "spec must be a rule"),
        ):
            answer = await self.ask("POST", f"{OWN}/faults", {"spec": spec})
            self.assertEqual(answer.status, 400, spec)
            self.assertIn(text, answer.text)
        answer = await self.ask("POST", f"/in/X-Test=1{OWN}/faults", {"spec": "rcpt drop"})
        self.assertEqual(answer.status, 400)
        self.assertEqual(list(self.web.faults), [])

    async def test_chaos(self) -> None:
        """Mailpit's chaos consists of three rules with a share."""
        body = {"Recipient": {"ErrorCode": 552, "Probability": 100}}
        answer = await self.ask("PUT", "/api/v1/chaos", body)
        self.assertEqual(answer.json["Recipient"], {"ErrorCode": 552, "Probability": 100})
        self.assertEqual((await self.say(*self.rcpt))[-1][:3], "552")
        self.assertEqual((await self.ask("PUT", "/api/v1/chaos", {})).json["Recipient"]["Probability"], 0)
        self.assertEqual(list(self.web.faults), [])
        for wrong in ({"Sender": {"ErrorCode": 200}}, {"Sender": {"Probability": 101}}, {"Sender": 1}):
            self.assertEqual((await self.ask("PUT", "/api/v1/chaos", wrong)).status, 400, wrong)

    async def test_noFaults(self) -> None:
        """If faults cannot be changed, the response says so."""
        self.web.faults = None
        self.assertEqual((await self.get("/api/v1/chaos")).status, 400)
        self.web.faults = Faults()


class ReleaseTests(SiteTestCase):
    """Release to the configured relay."""

    async def test_released(self) -> None:
        """A message is forwarded, byte for byte, to the recipients of the request."""
        relay = MailCatcher.for_test(self)
        self.web.relay = Upstream(*relay.address)
        [message] = await self.add(mail("one"))
        path = f"/api/v1/message/{message.id}/release"
        self.assertEqual((await self.ask("POST", path, {"To": ["x@y.test"]})).body, b"ok")
        caught = await relay.next()
        self.assertEqual((caught.mail_from, caught.rcpt_tos), ("ann@example.org", ("x@y.test",)))
        self.assertEqual(caught.content, await self.store.content(message))
        await self.web.relay.close()

    async def test_noOtherTarget(self) -> None:
        """Whatever server the request names, only the configured one is used. Without one, none is used."""
        elsewhere = MailCatcher.for_test(self)
        [message] = await self.add(mail("one"))
        body = {
            "To": ["x@y.test"],
            "Email": "x@y.test",
            "Host": "127.0.0.1",
            "Port": str(elsewhere.port),
            "Name": "x",
            "Save": False,
        }
        for path in (f"/api/v1/message/{message.id}/release", f"/api/v1/messages/{message.id}/release"):
            answer = await self.ask("POST", path, body)
            self.assertEqual(answer.status, 400)
            self.assertIn("there is no relay", answer.text)
        self.assertEqual(elsewhere.messages, [])

    async def test_recipients(self) -> None:
        """Invalid recipients are refused, and are not sent in a command."""
        self.web.relay = Upstream("127.0.0.1", 1)
        [message] = await self.add(mail("one"))
        for wrong in ([], ["x"] * 101, ["a@b.test>\r\nRSET"], ["a b"]):
            answer = await self.ask("POST", f"/api/v1/message/{message.id}/release", {"To": wrong})
            self.assertEqual(answer.status, 400, wrong)

    async def test_relayRefuses(self) -> None:
        """A refusal of the relay is returned."""
        relay = MailCatcher.for_test(self, faults=Faults())
        relay.factory.faults.on("rcpt").reply("550 5.1.1 Nobody")
        self.web.relay = Upstream(*relay.address)
        [message] = await self.add(mail("one"))
        answer = await self.ask("POST", f"/api/v1/message/{message.id}/release", {"To": ["x@y.test"]})
        await self.web.relay.close()
        self.assertEqual(answer.status, 502)
        self.assertIn("550 5.1.1 Nobody", answer.text)

    async def test_page(self) -> None:
        """If the relay rejects a message that is released on its page, this page says why."""
        self.web.relay = Upstream("127.0.0.1", 1)
        [message] = await self.add(mail("one"))
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await self.ask("POST", f"/m/{message.id}/release", b"to=x%40y.test", form)
        await self.web.relay.close()
        self.assertEqual(answer.status, 502)
        self.assertIn("The message was not released: the relay rejected it: x@y.test: 451 4.4.1", answer.text)
        self.assertIn("<h1>one</h1>", answer.text)


class LoginTests(SiteTestCase):
    """A login."""

    @property
    def settings(self) -> dict[str, Any]:
        from txsmtpd.service.checkers import make_checker, portal_of

        return {"portal": portal_of([make_checker("memory:user:secret")])}

    async def test_login(self) -> None:
        """Without a login, only probes get a response."""
        for header in (
            {},
            {"Authorization": "Basic dXNlcjp3cm9uZw=="},
            {"Authorization": "Bearer x"},
            {"Authorization": "Basic ?"},
        ):
            for path in ("/", "/api/v1/messages", "/api/events", f"{OWN}/events", "/view/latest"):
                answer = await self.get(path, **header)
                self.assertEqual(answer.status, 401, path)
                self.assertIn("Basic", answer.headers["www-authenticate"])
        self.assertEqual((await self.get("/livez")).status, 200)
        self.assertEqual((await self.get("/api/v1/messages", Authorization="Basic dXNlcjpzZWNyZXQ=")).status, 200)
