"""Kill a server that uses a real milter, or the milter, repeatedly during messages.

``python benchmarks/milter_kills.py --kills=30``. OpenDKIM signs each message, and a maildir stores it. Half of the
kills hit the server, and half of them OpenDKIM, which is restarted while the clients continue. Then

* each accepted message must be stored once, complete, and signed once;
* a message that was not accepted may be stored once, signed, since its 250 may have been lost;
* no client waits for a reply for long: without OpenDKIM, the reply is 451, and 421 to new connections.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import smtplib
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from kills import END, NUMBER, PATIENCE, SIZES, Round, Server

CLIENTS = 4
TOO_LONG = 30.0  # seconds for a reply
PAUSE = 0.05  # seconds after a refusal
SIGNATURE = re.compile(rb"^DKIM-Signature:", re.MULTILINE | re.IGNORECASE)


class OpenDKIM:
    """OpenDKIM, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        key = folder / "key.pem"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        key.chmod(0o600)
        self.socket = folder / "dkim.sock"
        self._config = folder / "opendkim.conf"
        self._config.write_text(
            f"Mode s\nDomain example.com\nSelector s\nKeyFile {key}\nRequireSafeKeys false\nSyslog false\n"
            f"InternalHosts 127.0.0.1\nUMask 000\nSocket local:{self.socket}\n"
        )
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["opendkim", "-f", "-x", self._config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("opendkim does not start")
            time.sleep(0.02)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Clients:
    """Clients that continue after any reply until they are stopped."""

    def __init__(self, port: int) -> None:
        self.accepted: list[str] = []
        self.refused: Counter[int] = Counter()
        self.slowest = 0.0
        self.hung = 0
        self.disconnected = 0
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def go_on(self) -> bool:
        """Wait until a message is accepted. After failures, the server does not call the milter for some seconds."""
        before = len(self.accepted)
        deadline = time.monotonic() + TOO_LONG
        while len(self.accepted) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        return len(self.accepted) > before

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                connection = smtplib.SMTP("127.0.0.1", self._port, timeout=TOO_LONG)
                while not self._stop.is_set():
                    number += 1
                    name = f"milter.{client}.{number}"
                    began = time.monotonic()
                    connection.sendmail("a@example.com", ["b@example.com"], text_of(name))
                    self.accepted.append(name)
                    self.slowest = max(self.slowest, time.monotonic() - began)
            except smtplib.SMTPRecipientsRefused as error:
                self.refused[next(iter(error.recipients.values()))[0]] += 1
            except smtplib.SMTPResponseException as error:
                self.refused[error.smtp_code] += 1
            except TimeoutError:
                self.hung += 1
            except (smtplib.SMTPServerDisconnected, ConnectionError):
                self.disconnected += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(PAUSE)


class Signed(Round):
    """Clients of a server that is killed, whose messages OpenDKIM signs."""

    def text(self, name: str) -> str:
        return text_of(name)


def text_of(name: str) -> str:
    """A message of a random size."""
    body = "x" * 70 + "\r\n"
    head = f"X-Number: {name}\r\nFrom: a@example.com\r\nDate: Thu, 26 Nov 2026 12:00:00 +0000\r\n"
    return (
        f"{head}Message-ID: <{name}@example.com>\r\n\r\n{body * (random.choice(SIZES) // len(body))}{END.decode()}\r\n"
    )


def check(folder: Path, accepted: list[str]) -> tuple[int, int]:
    """Return how many accepted messages are missing or damaged, and how many other messages are damaged. Damaged is
    a message that is stored twice, cut off, or not signed exactly once."""
    found: Counter[str] = Counter()
    damaged = set()
    for path in (folder / "new").iterdir():
        content = path.read_bytes()
        number = NUMBER.search(content)
        name = path.name if number is None else number[1].decode()
        found[name] += 1
        header = content.partition(b"\r\n\r\n")[0] if b"\r\n\r\n" in content else content.partition(b"\n\n")[0]
        if found[name] > 1 or not content.rstrip().endswith(END) or len(SIGNATURE.findall(header)) != 1:
            damaged.add(name)
    lost = {name for name in accepted if name not in found or name in damaged}
    return len(lost), len(damaged - lost)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    times = parser.parse_args().kills
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    wrong = 0
    dkim = OpenDKIM(folder)
    try:
        words = [f"--filter=milter:unix:{dkim.socket}"]
        accepted: list[str] = []
        cut_off = 0
        for number in range(times // 2):
            server = Server(f"mailbox:{folder / 'server'}", *words)
            one = Signed(server.port, f"server.{number}")
            one.run(server, random.uniform(0.2, 1.0))
            accepted += one.accepted
            cut_off += one.partly
        lost, damaged = check(folder / "server", accepted)
        wrong += lost + damaged
        print(
            f"server: {times // 2} kills, {len(accepted)} messages with 250, {cut_off} cut off, {lost} lost,"
            f" {damaged} damaged",
            flush=True,
        )
        server = Server(f"mailbox:{folder / 'milter'}", *words)
        clients = Clients(server.port)
        works_again = True
        for _ in range(times - times // 2):
            works_again = works_again and clients.go_on()
            time.sleep(random.uniform(0.0, 0.5))
            dkim.kill()
            time.sleep(random.uniform(0.0, 0.5))
            dkim.start()
        works_again = works_again and clients.go_on()
        clients.stop()
        server.end()
        lost, damaged = check(folder / "milter", clients.accepted)
        wrong += lost + damaged + clients.hung + (not works_again)
        print(
            f"milter: {times - times // 2} kills, {len(clients.accepted)} messages with 250, refused:"
            f" {dict(clients.refused)}, {clients.disconnected} disconnected, {lost} lost, {damaged} damaged,"
            f" {clients.hung} hung, slowest {clients.slowest:.1f} s, works again: {works_again}",
            flush=True,
        )
    finally:
        dkim.kill()
        shutil.rmtree(folder)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
