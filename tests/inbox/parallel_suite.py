"""Tests for pytest that share one inbox; ``test_parallel`` runs them in several processes.

The base address of each test selects its own inbox, which shows no mail of other tests.
"""

from __future__ import annotations

import json
import os
import smtplib
import urllib.request
from typing import Any

import pytest

URL = os.environ.get("INBOX_URL", "")
SMTP_PORT = int(os.environ.get("INBOX_SMTP_PORT", "0"))


def ask(method: str, url: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
        body = answer.read()
    return None if body == b"ok" else json.loads(body)


@pytest.mark.parametrize("number", range(int(os.environ.get("INBOX_TESTS", "0"))))
def test_own(number: int) -> None:
    """Send, wait, list, and delete: there is one message, and then none. The mail of other tests is not visible."""
    base = f"{URL}/in/domain=test{number}.example"
    neighbour = f"x@test{number + 1}.example"
    cursor = ask("GET", f"{base}/api/inbox/v1/cursor")["cursor"]
    with smtplib.SMTP("127.0.0.1", SMTP_PORT, timeout=60) as client:
        for recipients, subject in ([f"x@test{number}.example"], "own"), ([neighbour], "for the neighbour"):
            client.sendmail("ann@example.org", recipients, f"Subject: {subject} of {number}\r\n\r\nHello\r\n")
    wanted = f"own of {number}"
    waited = ask("GET", f"{base}/api/inbox/v1/wait?subject={wanted.replace(' ', '%20')}&after={cursor}&timeout=60")
    assert [message["Subject"] for message in waited["messages"]] == [wanted]
    listed = ask("GET", f"{base}/api/v1/messages")
    subjects = {message["Subject"] for message in listed["messages"]}
    assert wanted in subjects
    assert subjects <= {wanted, f"for the neighbour of {number - 1}"}
    latest = ask("GET", f"{base}/api/v1/message/latest?query=subject:own")
    assert latest["Subject"] == wanted
    ask("DELETE", f"{base}/api/v1/search?query=subject:own")
    assert wanted not in {message["Subject"] for message in ask("GET", f"{base}/api/v1/messages")["messages"]}
