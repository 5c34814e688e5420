"""Real milters in front of a handler: one on Sendmail's libmilter that uses every action, OpenDKIM, OpenDMARC and
clamav-milter."""

from __future__ import annotations

import smtplib
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from twisted.internet.threads import deferToThread

from tests.filters.programs import ProgramTests, exists, send_data
from tests.filters.support import Keeper
from tests.support.programs import not_here, program
from txsmtpd.filters import authentication_results
from txsmtpd.filters.milter import Milter

HEADER = b"From: a@example.com\r\nDate: Thu, 26 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n"
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"


def compiled(folder: Path) -> str:
    """The path of the milter that uses every action."""
    compiler = program("gcc", "gcc")
    if not Path("/usr/include/libmilter/mfapi.h").exists():
        raise not_here("libmilter is not installed; on Debian it is in the package libmilter-dev")
    source = Path(__file__).parent / "allactions.c"
    path = folder / "allactions"
    subprocess.run([compiler, "-o", path, source, "-lmilter", "-lpthread"], check=True, capture_output=True)
    return str(path)


def send(client: smtplib.SMTP, subject: str, sender: str = "a@example.com", to: str = "b@example.com") -> Any:
    """Send a message. Return the code and the text of the first refusal, or of the last reply."""
    content = f"Subject: {subject}\r\nX-Remove: 1\r\nX-Remove: 2\r\n\r\nHello\r\n".encode()
    replies = [client.docmd(f"MAIL FROM:<{sender}>"), client.docmd(f"RCPT TO:<{to}>")]
    refused = [reply for reply in replies if reply[0] >= 400]
    if refused:
        client.rset()
        return refused[0]
    return send_data(client, content)


class LibmilterTests(ProgramTests):
    """Sendmail's libmilter, which most milters use."""

    async def start_milter(self, **env: str) -> Milter:
        path = self.folder / "s"
        path.unlink(missing_ok=True)
        await self.start(compiled(self.folder), "", f"unix:{path}", ready=exists(path), **env)
        return Milter(f"unix:{path}")

    async def test_everyAction(self) -> None:
        """All actions of a milter, over one connection."""
        handler = Keeper()
        port = await self.serve(handler, filters=[await self.start_milter()])
        asked = (
            ("nothing", 250),
            ("progress change", 250),
            ("body skip", 250),
            ("envelope", 250),
            ("quarantine", 250),
            ("accept", 250),
            ("discard", 250),
            ("reject", 550),
            ("tempfail", 451),
            ("reply", 451),
        )
        replies = await self.client(port, lambda client: [send(client, subject) for subject, _ in asked])
        self.assertEqual([code for code, _ in replies], [code for _, code in asked])
        self.assertEqual(replies[-1], (451, b"4.7.7 not now"))
        macros = b"X-Macros: i=set mail_addr=a@example.com\r\n"
        seen = b"X-Seen: 3 headers,\r\n 7 octets\r\n"
        removes = b"X-Remove: 1\r\nX-Remove: 2\r\n"
        changed = b"X-First: first\r\nX-Second: second\r\nSubject: changed\r\nX-Remove: 1\r\n"
        self.assertEqual(
            handler.content,
            [
                macros + b"Subject: nothing\r\n" + removes + seen + b"\r\nHello\r\n",
                macros + changed + seen + b"X-New: new\r\n\r\nHello\r\n",
                macros + b"Subject: body skip\r\n" + removes + seen + b"\r\nanother\r\nbody\r\n",
                macros + b"Subject: envelope\r\n" + removes + seen + b"\r\nHello\r\n",
                b"X-Quarantine: looks odd\r\n"
                + macros
                + b"Subject: quarantine\r\n"
                + removes
                + seen
                + b"\r\nHello\r\n",
                macros + b"Subject: accept\r\n" + removes + seen + b"\r\nHello\r\n",
            ],
        )
        envelope = handler.envelopes[3]
        self.assertEqual(envelope.mail_from, "other@example.com")
        self.assertEqual(envelope.mail_options, ["RET=HDRS"])
        self.assertEqual(envelope.rcpt_tos, ["added@example.com", "more@example.com"])
        self.assertEqual(envelope.rcpt_options, ["NOTIFY=NEVER"])

    async def test_envelope(self) -> None:
        """Decisions at HELO, MAIL and RCPT, in several connections."""
        handler = Keeper()
        port = await self.serve(handler, filters=[await self.start_milter()])

        def talk(client: smtplib.SMTP) -> list[Any]:
            senders = [f"{name}@example.com" for name in ("reject", "tempfail", "accept", "discard")]
            return [
                *(send(client, "hello", sender) for sender in senders),
                send(client, "hello", to="no@example.com"),
                client.helo("reject.test"),
            ]

        replies = await self.client(port, talk)
        self.assertEqual([code for code, _ in replies], [550, 451, 250, 250, 550, 550])
        self.assertEqual(replies[4][1], b"5.1.1 100% of them\n5.1.1 are not here")
        self.assertEqual(len(handler.content), 1)
        self.assertNotIn(b"X-Seen", handler.content[0])

    async def test_restarted(self) -> None:
        """If a milter dies within a session, mail is refused temporarily, and accepted when the milter is back."""
        handler = Keeper()
        port = await self.serve(handler, filters=[await self.start_milter()])
        with smtplib.SMTP() as client:
            await deferToThread(client.connect, "127.0.0.1", port)
            await deferToThread(client.ehlo, "client.test")
            self.assertEqual((await deferToThread(send, client, "one"))[0], 250)
            await self.end(self.processes[0])
            self.assertEqual((await deferToThread(send, client, "two"))[0], 451)
            await self.start_milter()
            self.assertEqual((await deferToThread(send, client, "three"))[0], 250)
            await deferToThread(client.quit)
        self.assertEqual(len(handler.content), 2)

    async def test_negotiated(self) -> None:
        """Headers without responses, kept spaces, and macros that the milter chooses."""
        handler = Keeper()
        milter = await self.start_milter(NOREPLY="1", LEADSPC="1", SYMLIST="1")
        port = await self.serve(handler, filters=[milter])
        self.assertEqual((await self.client(port, lambda client: send(client, "nothing")))[0], 250)
        removes = b"X-Remove: 1\r\nX-Remove: 2\r\n"
        self.assertEqual(
            handler.content[0],
            b"X-Macros:i=set mail_addr=unset\r\nSubject: nothing\r\n"
            + removes
            + b"X-Seen:3 headers,\r\n 7 octets\r\n\r\nHello\r\n",
        )


class OpenDKIMTests(ProgramTests):
    """OpenDKIM and OpenDMARC."""

    async def test_signVerify(self) -> None:
        """One OpenDKIM signs, a second one verifies the signature, and OpenDMARC reads the result."""
        key = generate_private_key(65537, 2048)
        path = self.folder / "key"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        path.chmod(0o600)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        encoded = "".join(public.splitlines()[1:-1])
        (self.folder / "keys").write_text(f"test._domainkey.example.com v=DKIM1; k=rsa; p={encoded}\n")
        (self.folder / "local").write_text("127.0.0.1\n")
        (self.folder / "none").write_text("")
        filters = []
        signs = f"Domain example.com\nSelector test\nKeyFile {path}\nInternalHosts {self.folder}/local\n"
        for mode, more in ("s", signs), ("v", f"InternalHosts {self.folder}/none\n"):
            (self.folder / mode).write_text(
                "Syslog no\nUMask 000\nRequireSafeKeys no\n"
                f"Mode {mode}\nAuthservID mx.example.com\nTestPublicKeys {self.folder}/keys\n{more}"
            )
            socket = self.folder / f"{mode}.sock"
            arguments = ("-f", "-x", str(self.folder / mode), "-p", f"local:{socket}")
            await self.start("opendkim", "opendkim", *arguments, ready=exists(socket))
            filters.append(Milter(f"unix:{socket}", name=f"dkim-{mode}"))
        socket = self.folder / "dmarc.sock"
        (self.folder / "dmarc").write_text(
            f"AuthservID mx.example.com\nTrustedAuthservIDs mx.example.com\nUMask 000\nIgnoreHosts {self.folder}/none\n"
            "DNSTimeout 1\nSyslog false\n"
        )
        arguments = ("-f", "-c", str(self.folder / "dmarc"), "-p", f"local:{socket}")
        await self.start("opendmarc", "opendmarc", *arguments, ready=exists(socket))
        filters.append(Milter(f"unix:{socket}", name="dmarc"))
        handler = Keeper()
        port = await self.serve(handler, filters=filters)
        forged = b"Authentication-Results: mx.example.com; dkim=pass header.d=bank.example\r\n"
        message = forged + HEADER + b"Subject: hello\r\n\r\nHello\r\n"
        sent = await self.client(port, lambda client: client.sendmail("a@example.com", ["b@example.com"], message))
        self.assertEqual(sent, {})
        (content,) = handler.content
        self.assertNotIn(b"bank.example", content)
        self.assertIn(b"\r\nDKIM-Signature: v=1; a=rsa-sha256;", content)
        self.assertTrue(content.endswith(message.removeprefix(forged)))
        results = {result.method: result for result in authentication_results(handler.envelopes[0])}
        self.assertEqual(results["dkim"].result, "pass")
        self.assertEqual(results["dkim"].properties["header.d"], "example.com")
        self.assertIn(results["dmarc"].result, ("none", "temperror", "pass"))  # "pass": with DNS


class ClamAVTests(ProgramTests):
    """clamav-milter, with a scanner that knows one virus."""

    async def test_eicar(self) -> None:
        """A message with the test virus is refused. Another one is marked as clean."""
        database = self.folder / "db"
        database.mkdir()
        (database / "test.ndb").write_text(f"Test.Eicar:0:*:{EICAR.hex()}\n")
        clamd, milter = self.folder / "clamd.sock", self.folder / "milter.sock"
        (self.folder / "clamd.conf").write_text(
            f"Foreground yes\nLocalSocket {clamd}\nDatabaseDirectory {database}\nOfficialDatabaseOnly no\n"
            "MaxThreads 2\n"
        )
        (self.folder / "milter.conf").write_text(
            f"Foreground yes\nMilterSocket unix:{milter}\nClamdSocket unix:{clamd}\nOnInfected Reject\n"
            "RejectMsg %v found\nAddHeader Replace\n"
        )
        await self.start("clamd", "clamav-daemon", "-c", str(self.folder / "clamd.conf"), ready=exists(clamd))
        arguments = "-c", str(self.folder / "milter.conf")
        await self.start("clamav-milter", "clamav-milter", *arguments, ready=exists(milter))
        handler = Keeper()
        port = await self.serve(handler, filters=[Milter(f"unix:{milter}")])

        def talk(client: smtplib.SMTP) -> list[Any]:
            replies = []
            for body in b"Hello\r\n", EICAR + b"\r\n":
                client.docmd("MAIL FROM:<a@example.com>")
                client.docmd("RCPT TO:<b@example.com>")
                replies.append(send_data(client, HEADER + b"\r\n" + body))
            return replies

        clean, infected = await self.client(port, talk)
        self.assertEqual(clean[0], 250)
        self.assertEqual(infected, (550, b"5.7.1 Test.Eicar.UNOFFICIAL found"))
        (content,) = handler.content
        self.assertIn(b"\r\nX-Virus-Status: Clean\r\n\r\nHello\r\n", content)
