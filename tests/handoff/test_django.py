"""Django with anymail receives mail from a web hook unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from twisted.internet.threads import deferToThread

from tests.handoff.clients import HandoffTestCase
from txsmtpd.handoff import WebhookHandoff

APPLICATION = Path(__file__).with_name("django_receiver.py")
KEY = "mailgun-signing-key"

MESSAGE = (
    b"From: a@x.test\r\nTo: b@y.test\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: multipart/mixed; boundary=x\r\n\r\n"
    b"--x\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"na\xefve\r\n.dots\r\n\r\n"
    b"--x\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=data.bin\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\nAP/+DQoK\r\n"
    b"--x\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: attachment; filename=text.txt\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\n\xe2\x82\xac 5\r\n"
    b"--x--\r\n"
)


class DjangoTests(HandoffTestCase):
    """A Django application with anymail's views."""

    async def test_inbound(self) -> None:
        """Both forms arrive with envelope, text and attachments. A wrong signature is refused, and nothing is lost."""
        folder = Path(self.mktemp())
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(APPLICATION), str(folder), KEY], stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        django = int(await deferToThread(process.stdout.readline))
        for format in "mailgun", "sendgrid":
            url = f"http://user:password@127.0.0.1:{django}/anymail/{format}/inbound/"
            code, text = await self.send(await self.serve(WebhookHandoff(url, format=format, secrets=[KEY])), MESSAGE)
            self.assertEqual(code, 250, text)
        for name in "Mailgun", "SendGrid":
            seen = json.loads((folder / f"{name}.json").read_text())
            self.assertEqual((seen["envelope_sender"], seen["envelope_recipient"]), ("a@x.test", "b@y.test"))
            self.assertEqual((seen["subject"], seen["text"]), ("café", "naïve\n.dots\n"))
            self.assertEqual(
                seen["attachments"],
                [["data.bin", b"\0\xff\xfe\r\n\n".hex()], ["text.txt", "€ 5".encode().hex()]],
            )
        url = f"http://user:password@127.0.0.1:{django}/anymail/mailgun/inbound/"
        code, text = await self.send(await self.serve(WebhookHandoff(url, format="mailgun", secrets=["no"])), MESSAGE)
        self.assertEqual((code, text[:5]), (451, "4.3.5"))
