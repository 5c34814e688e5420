"""Accepted messages are stored, whatever happens to the server: real processes, clients and disks."""

from __future__ import annotations

import os
import smtplib
import subprocess
import threading
from pathlib import Path

from tests.service.test_commandline import LOOPBACK, PATIENCE, CommandLineTestCase
from tests.support.programs import program

LAST_LINE = "the last line"
CLIENTS = 8
ENOUGH = 150  # messages after which the server is killed


class MailboxTests(CommandLineTestCase):
    """``twist smtpd --handler=mailbox:mail``, under load."""

    def stored(self, folder: str = "new") -> list[Path]:
        return list(Path(self.folder, "mail", folder).iterdir())

    def test_allOfThem(self) -> None:
        """2,000 messages over 20 connections are 2,000 complete messages in the maildir."""
        source = program("smtp-source", "postfix")
        server = self.smtpd(LOOPBACK, "--handler=mailbox:mail")
        subprocess.run(
            [source, "-s", "20", "-m", "2000", "-l", "4000", f"127.0.0.1:{server.port()}"], check=True, timeout=60
        )
        stored = self.stored()
        self.assertEqual(len(stored), 2000)
        self.assertLess(max(path.stat().st_size for path in stored) - min(path.stat().st_size for path in stored), 50)
        self.assertEqual(self.stored("tmp"), [])

    def test_killed(self) -> None:
        """After the server is killed, every message that got 250 is stored, and no partial message."""
        server = self.smtpd(LOOPBACK, "--handler=mailbox:mail")
        port = server.port()
        acknowledged: list[str] = []
        enough = threading.Event()

        def send(client: int) -> None:
            try:
                with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as smtp:
                    for number in range(ENOUGH * 100):
                        name = f"{client}-{number}"
                        lines = ["x" * 70] * (number % 3000)
                        smtp.sendmail(
                            "a@b.example", "c@d.example", "\r\n".join([f"Name: {name}", "", *lines, LAST_LINE, ""])
                        )
                        acknowledged.append(name)
                        if len(acknowledged) >= ENOUGH:
                            enough.set()
            except (OSError, smtplib.SMTPException):
                return  # the server is gone

        threads = [threading.Thread(target=send, args=(client,), daemon=True) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        self.assertTrue(enough.wait(6 * PATIENCE))
        server.process.kill()
        for thread in threads:
            thread.join(PATIENCE)
        names = set()
        for path in self.stored():
            text = path.read_text("ascii")
            self.assertTrue(text.endswith(f"\n{LAST_LINE}\n"), path.name)
            names.add(text.partition("\nName: ")[2].partition("\n")[0])
        self.assertGreaterEqual(len(acknowledged), ENOUGH)
        self.assertEqual(set(acknowledged) - names, set())
        # Each client may have one stored message whose 250 it did not receive. There are no others.
        self.assertLessEqual(len(names - set(acknowledged)), CLIENTS)

    def test_byteForByte(self) -> None:
        """A message is stored as sent, after the trace header: from smtplib, and from swaks."""
        swaks = program("swaks", "swaks")
        server = self.smtpd(LOOPBACK, "--handler=mailbox:mail", "--hostname=mx.example")
        port = server.port()
        message = "Subject: from smtplib\r\n\r\n.\r\n..dots\r\nnaïve\r\n\r\n".encode()
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as smtp:
            smtp.sendmail("a@b.example", ["c@d.example", "e@f.example"], message)
        self.assertEqual(self.below_header(), message.replace(b"\r\n", b"\n"))
        data = "Subject: from swaks\n\n.\nthe text\n"
        envelope = ["--from", "a@b.example", "--to", "c@d.example"]
        command = [swaks, "--server", "127.0.0.1", "--port", str(port), *envelope]
        command += ["--data", data.replace("\n", "\\n")]
        subprocess.run(command, check=True, timeout=PATIENCE, capture_output=True)
        # swaks adds an empty line to the end of the data.
        self.assertEqual(self.below_header().rstrip(b"\n"), data.encode().rstrip(b"\n"))

    def below_header(self) -> bytes:
        """Return what follows the trace header of the only message, and remove the message."""
        [path] = self.stored()
        content = path.read_bytes()
        os.unlink(path)
        header, _, message = content.partition(b"\nSubject: ")
        fields = [line.partition(b":")[0] for line in header.split(b"\n") if not line.startswith((b" ", b"\t"))]
        self.assertEqual(fields, [b"Return-Path", b"Received", b"X-Peer", b"X-MailFrom", b"X-RcptTo"])
        return b"Subject: " + message
