"""The mail of a catcher in a browser."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any
from unittest import IsolatedAsyncioTestCase, TestCase, mock

from twisted.trial.unittest import TestCase as TrialCase

from txsmtpd.faults.rules import Faults
from txsmtpd.testing import MailCatcher


def ask(url: str, method: str = "GET") -> Any:
    """The response of the inbox."""
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
        body = answer.read()
    return json.loads(body) if body[:1] in b"{[" else body.decode()


def send(catcher: MailCatcher, subject: str) -> None:
    with catcher.smtplib() as client:
        client.sendmail("ann@example.org", ["bob@example.com"], f"Subject: {subject}\r\n\r\nHello\r\n")


class ServeTests(TestCase):
    """A catcher in a thread, whose inbox is served."""

    def setUp(self) -> None:
        self.catcher = MailCatcher(faults=Faults()).start()
        self.addCleanup(self.catcher.stop)
        send(self.catcher, "before")
        self.url = self.catcher.serve_inbox()

    def subjects(self) -> list[str]:
        return [message["Subject"] for message in ask(f"{self.url}/api/v1/messages")["messages"]]

    def test_shared(self) -> None:
        """The page shows mail that was caught before and after. Deleting works in both directions."""
        send(self.catcher, "after")
        self.assertEqual(self.subjects(), ["after", "before"])
        ask(f"{self.url}/api/v1/search?query=subject:before", "DELETE")
        self.assertEqual([mail.subject for mail in self.catcher.messages], ["after"])
        self.catcher.clear()
        self.assertEqual(self.subjects(), [])

    def test_waiting(self) -> None:
        """The API can wait for mail."""
        send(self.catcher, "after")
        answer = ask(f"{self.url}/in/domain=example.com/api/inbox/v1/wait?subject=after&timeout=5")
        self.assertEqual(answer["messages_count"], 1)

    def test_sessions(self) -> None:
        """Each message has the transcript of its session. Faults can be switched on and off."""
        answer = ask(f"{self.url}/api/inbox/v1/message/latest/transcript")
        self.assertIn("mail from:<ann@example.org>", json.dumps(answer).lower())
        self.assertEqual(len(ask(f"{self.url}/api/inbox/v1/sessions")["sessions"]), 1)
        self.assertEqual(ask(f"{self.url}/api/inbox/v1/faults")["faults"], [])

    def test_faultsOfItsOwn(self) -> None:
        """A catcher without faults has some when it is served."""
        with MailCatcher() as catcher:
            url = catcher.serve_inbox()
            catcher.faults.on("rcpt").reply("451 4.7.1 Later")
            [fault] = ask(f"{url}/api/inbox/v1/faults")["faults"]
            self.assertEqual((fault["rule"], fault["effect"]), ("rcpt", "451 4.7.1 Later"))

    def test_missing(self) -> None:
        """Without the extra, the exception tells how to install it."""
        with (
            MailCatcher() as catcher,
            mock.patch.dict(sys.modules, {"txsmtpd.testing.served": None}),
            self.assertRaisesRegex(ModuleNotFoundError, r"is missing; install it by: pip install 'txsmtpd\[inbox\]'"),
        ):
            catcher.serve_inbox()

    def test_again(self) -> None:
        """A second call returns the same address."""
        self.assertEqual(self.catcher.serve_inbox(), self.url)


class AsyncioTests(IsolatedAsyncioTestCase):
    """A catcher on an asyncio loop."""

    async def test_loop(self) -> None:
        """The inbox is served on the catcher's loop. Results of threads are delivered there."""
        catcher = MailCatcher().listen()
        try:
            url = catcher.serve_inbox()
            markup = "<p>Hello</p>" * 10_000  # large enough to be processed in a thread
            await asyncio.to_thread(send, catcher, f"large\r\nContent-Type: text/html\r\n\r\n{markup}")
            waiting = asyncio.to_thread(ask, f"{url}/api/inbox/v1/wait?subject=large&timeout=10")
            self.assertEqual((await waiting)["messages_count"], 1)
            self.assertIn(markup[:100], await asyncio.to_thread(ask, f"{url}/view/latest"))
        finally:
            await catcher.stop_listening()


class RefusedTests(TestCase):
    """Where an inbox cannot be served."""

    def test_notListening(self) -> None:
        """A catcher that does not listen serves no inbox. The exception says what to do."""
        with self.assertRaisesRegex(RuntimeError, r"call start\(\) or listen\(\) before"):
            MailCatcher().serve_inbox()


class TrialTests(TrialCase):
    """A catcher in trial."""

    async def test_trial(self) -> None:
        """In trial, the site uses the reactor of the tests."""
        from twisted.internet import reactor
        from twisted.web.client import Agent, HTTPConnectionPool, readBody

        catcher = MailCatcher.for_test(self)
        url = catcher.serve_inbox()
        agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
        response = await agent.request(b"GET", f"{url}/api/v1/messages".encode())
        self.assertEqual(json.loads(await readBody(response))["total"], 0)
