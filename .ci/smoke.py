"""Start a server as a user would, send mail to it with smtplib and swaks, and check its Maildir.

``smoke.py MAILDIR LINE`` runs the line in a shell, in this directory. The server must listen on port 8025. The Maildir
must have each message unchanged, with LF line ends, below the trace fields, which are the only addition. SIGTERM must
end the server.
"""

import contextlib
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PORT = 8025
INSTALLATION = 300  # seconds until the server must listen
TRACE = ("Return-Path", "Received", "X-Peer", "X-MailFrom", "X-RcptTo")

MESSAGE = (
    b"From: a@example.com\n"
    b"To: b@example.com\n"
    b"Subject: octets \xc3\xa4\xff\n"
    b"\n"
    b"The first line.\n"
    b".a dot\n"
    b"..two dots\n"
    b".\n"
    b"trailing blanks  \t\n"
    b"\n" + b"a long line " * 200 + b"\nFrom here on nothing is quoted.\n\n\n"
)


def listening() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def wait_for(what: str, condition, seconds: float, server: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if server is not None and server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode} before {what}")
        if time.monotonic() > end:
            sys.exit(f"{what}: not within {seconds:g} seconds")
        time.sleep(0.1)


def send_with_smtplib(sender: str, recipient: str) -> None:
    with smtplib.SMTP("127.0.0.1", PORT, "client.example.com", timeout=30) as client:
        refused = client.sendmail(sender, [recipient], MESSAGE.replace(b"\n", b"\r\n"), ["BODY=8BITMIME"])
    assert not refused, refused


def send_with_swaks(sender: str, recipient: str) -> None:
    with tempfile.NamedTemporaryFile() as data:
        data.write(MESSAGE.removesuffix(b"\n"))  # swaks adds the last line end itself
        data.flush()
        arguments = ["--server", f"127.0.0.1:{PORT}", "--helo", "client.example.com", "--timeout", "30"]
        arguments += ["--silent", "2"]  # print only errors
        arguments += ["--from", sender, "--to", recipient, "--data", f"@{data.name}"]
        subprocess.run(["swaks", *arguments], check=True, stdin=subprocess.DEVNULL)


def messages(maildir: Path) -> set[Path]:
    return set(maildir.glob("new/*"))


def check_message(stored: bytes, sender: str, recipient: str) -> None:
    assert stored.endswith(MESSAGE), f"not what was sent: {stored!r}"
    trace = stored[: -len(MESSAGE)].decode("ascii")
    unfolded = re.sub(r"\n(?=[ \t])", "", trace).splitlines()
    fields = [tuple(line.split(": ", 1)) for line in unfolded]
    assert all(len(field) == 2 and field[0] in TRACE for field in fields), f"more than trace headers: {trace}"
    found = dict(fields)
    assert found["Return-Path"] == f"<{sender}>", trace
    assert "client.example.com" in found["Received"], trace
    assert found["X-MailFrom"] == sender, trace
    assert found["X-RcptTo"] == recipient, trace
    assert "127.0.0.1" in found["X-Peer"], trace


def main(maildir: Path, line: str) -> None:
    if listening():
        sys.exit(f"something listens on port {PORT} already")
    print(line, flush=True)
    # Use a new process group, so that the signal reaches the server and not only the shell.
    server = subprocess.Popen(["bash", "-c", line], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for("the server listens", listening, INSTALLATION, server)
        for name, send in ("smtplib", send_with_smtplib), ("swaks", send_with_swaks):
            sender, recipient = f"{name}@example.com", f"{name}.recipient@example.com"
            before = messages(maildir)
            send(sender, recipient)
            new = messages(maildir) - before
            assert len(new) == 1, f"{len(new)} new messages"
            check_message(new.pop().read_bytes(), sender, recipient)
            print(f"{name}: delivered, octet for octet", flush=True)
        assert not list(maildir.glob("tmp/*")), "something is left in tmp"
        os.killpg(server.pid, signal.SIGTERM)
        wait_for("the server ends at SIGTERM", lambda: server.poll() is not None and not listening(), 15)
        assert server.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM), server.returncode
        print("ended at SIGTERM", flush=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
