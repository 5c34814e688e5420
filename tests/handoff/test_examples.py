"""The programs in ``examples`` that receive what is handed off."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.handoff.clients import MESSAGE, HandoffTestCase
from tests.handoff.rabbitmq import free_port
from txsmtpd.handoff import WebhookHandoff

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 30  # seconds


class ExampleTestCase(HandoffTestCase):
    """Runs an example as a process, and reads what it prints."""

    def run_example(self, name: str, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self.lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        self.addCleanup(reader.join, PATIENCE)
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.put(line.rstrip("\n"))

    async def line(self) -> str:
        """The next line that the example prints."""
        text: str = await deferToThread(self.lines.get, True, PATIENCE)
        return text


class WebhookReceiverTests(ExampleTestCase):
    """``webhook_receiver.py``."""

    async def test_receiver(self) -> None:
        """It takes messages that are signed, words its own refusals, and believes nobody else."""
        number = free_port()
        self.run_example("webhook_receiver.py", str(number), WEBHOOK_SECRET=SECRET)
        url = f"http://127.0.0.1:{number}/"
        handler: Any = WebhookHandoff(url, secrets=["a new secret", SECRET], received=False)
        port = await self.serve(handler)
        code = 451
        while code == 451:  # it starts
            handler.target.breaker.succeeded()
            code, text = await self.send(port)
        self.assertEqual(code, 250, text)
        line = await self.line()
        self.assertEqual(line.split(" ", 1)[1], f"a@x.test b@y.test {len(MESSAGE)} octets")
        self.assertEqual(await self.send(port, to="nobody@y.test"), (550, "5.1.1 No such user"))
        for secrets in ["whsec_d3Jvbmc="], []:
            code, _ = await self.send(await self.serve(WebhookHandoff(url, secrets=secrets)))
            self.assertEqual(code, 451)
