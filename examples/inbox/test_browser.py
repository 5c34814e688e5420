"""Open a message in a browser with Playwright, and check a link. Start ``txsmtpd --handler=inbox`` first."""

import os
import shutil
import smtplib
import uuid

import pytest
from playwright.sync_api import sync_playwright

INBOX = os.environ.get("INBOX_URL", "http://127.0.0.1:8025")
SMTP_PORT = int(os.environ.get("INBOX_SMTP_PORT", "1025"))

MAIL = """\
Subject: Please confirm
MIME-Version: 1.0
Content-Type: text/html

<h1>Hello!</h1><p><a href="https://shop.example.com/confirm?token=42">Confirm your address</a></p>
"""


@pytest.fixture
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser.new_page(extra_http_headers={"Prefer": "wait=10"})  # the server waits for the message
        browser.close()


def test_confirm(page):
    domain = f"{uuid.uuid4().hex[:12]}.test"
    with smtplib.SMTP("127.0.0.1", SMTP_PORT) as client:  # stands for the application
        client.sendmail("shop@example.com", f"bob@{domain}", MAIL)

    page.goto(f"{INBOX}/in/domain={domain}/view/latest")
    link = page.get_by_role("link", name="Confirm your address")
    assert link.get_attribute("href") == "https://shop.example.com/confirm?token=42"
