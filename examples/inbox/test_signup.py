"""Wait for a message in a pytest test. Each test has its own inbox. Start ``txsmtpd --handler=inbox`` first."""

import json
import os
import smtplib
import uuid
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

INBOX = os.environ.get("INBOX_URL", "http://127.0.0.1:8025")
SMTP_PORT = int(os.environ.get("INBOX_SMTP_PORT", "1025"))


class Inbox:
    """The mail to one domain, which only this test uses."""

    def __init__(self):
        self.domain = f"{uuid.uuid4().hex[:12]}.test"
        self.base = f"{INBOX}/in/domain={self.domain}"

    def get(self, path, **parameters):
        with urlopen(f"{self.base}{path}?{urlencode(parameters)}") as answer:
            return json.load(answer)

    def wait(self, **criteria):
        return self.get("/api/inbox/v1/wait", **criteria)["messages"]


@pytest.fixture
def inbox():
    return Inbox()


def sign_up(address):
    """Stands for the application."""
    with smtplib.SMTP("127.0.0.1", SMTP_PORT) as client:
        client.sendmail("shop@example.com", address, "Subject: Welcome\r\n\r\nYour code is 123456.\r\n")


def test_code(inbox):
    sign_up(f"bob@{inbox.domain}")
    [message] = inbox.wait(subject="Welcome", timeout=10)
    assert inbox.get(f"/api/inbox/v1/message/{message['ID']}/codes") == {"codes": ["123456"]}


def test_one_mail(inbox):
    sign_up(f"bob@{inbox.domain}")
    assert len(inbox.wait(to=f"bob@{inbox.domain}")) == 1
    cursor = inbox.get("/api/inbox/v1/cursor")["cursor"]
    assert inbox.wait(after=cursor, expect="none", within=0.2) == []
