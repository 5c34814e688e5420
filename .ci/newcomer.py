"""Make typical mistakes in README's program and with the command, and check that each is reported in one clear line.

Run ``newcomer.py README.md`` in an environment that has txsmtpd. It prints the message for each mistake.
"""

import contextlib
import os
import re
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 60  # seconds
MARKER = "<!-- the program that .ci/run makes mistakes in -->\n```python\n"
HANDLE_DATA = "    async def handle_DATA(self, server, session, envelope):\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def send(port: int) -> None:
    """Send a message as soon as the server listens. The result is in the server's log."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with (
                smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client,
                contextlib.suppress(smtplib.SMTPException),
            ):
                client.sendmail("a@example.com", "b@example.com", "Subject: hello\n\nHello!\n")
            return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def told(words: list[str], port: int, sends: bool, expected: str, **variables: str) -> list[str]:
    """Run a command. Return the lines that it prints, up to and including the expected line."""
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    try:
        if sends:
            send(port)
            process.terminate()  # then the program writes the rest of the log
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    lines = errors.splitlines()
    for number, line in enumerate(lines):
        if re.search(expected, line):
            return lines[: number + 1]
    raise AssertionError(f"{expected!r} is not in:\n{errors}")


def mistakes(program: str, port: int) -> dict[str, tuple[str, bool, str]]:
    """Each mistake: the program, whether a message is needed to show it, and the expected line."""

    def changed(before: str, after: str) -> str:
        assert before in program, before
        return program.replace(before, after)

    data = re.escape("handle_DATA")
    return {
        "a misspelt hook": (changed("handle_RCPT", "handle_RCTP"), False, "handle_RCTP.*handle_RCPT"),
        "a hook without an argument": (
            changed(HANDLE_DATA, HANDLE_DATA.replace(", envelope", "")),
            False,
            f"{data}.*envelope",
        ),
        "a class in place of an instance": (changed("Printer()", "Printer"), False, "not its class; write Printer"),
        "a function in place of a handler": (changed("Printer()", "print"), False, "TypeError: .*handler"),
        "a hook without return": (
            changed('return "250 2.0.0 Message accepted for delivery"', "pass"),
            True,
            f"{data}.*None.*missing return\\?",
        ),
        "a recipient that is not appended": (
            changed("        envelope.rcpt_tos.append(address)\n", ""),
            True,
            "handle_RCPT.*b@example.com",
        ),
        "a reply without a code": (
            changed('"250 2.0.0 Message accepted', '"Message accepted'),
            True,
            f"{data}.*Message accepted",
        ),
        "a hook that raises": (
            changed("len(envelope.content)", "len(envelope.contents)"),
            True,
            "DATA failed: AttributeError.*contents",
        ),
        "asyncio without its option": (
            changed("        print(envelope", "        import asyncio; await asyncio.sleep(0.01); print(envelope"),
            True,
            "asyncio=True",
        ),
        "a port without a protocol": (changed("localhost:", ""), False, "did you mean tcp:"),
        "a misspelt option": (
            changed(f'{port}"', f'{port}", data_sizelimit=10'),
            False,
            "data_sizelimit.*data_size_limit",
        ),
        "a port as an option": (
            changed(f'"localhost:{port}"', f"port={port}"),
            False,
            "unknown option 'port'; give an endpoint",
        ),
        "an address of another machine": (
            changed("localhost:", "192.0.2.1:"),
            False,
            "this machine has no such address",
        ),
    }


COMMANDS = {
    "a misspelt option": (["--hanlder=sink"], {}, "did you mean --handler\\?"),
    "a misspelt handler": (["--handler=mailbx:mail"], {}, "did you mean mailbox\\?"),
    "a misspelt variable": ([], {"TXSMTPD_HANDLR": "sink"}, "did you mean TXSMTPD_HANDLER\\?"),
    "a port alone": (["--listen=25"], {}, "did you mean tcp:25"),
    "another server's option": (["--port=25"], {}, "did you mean --listen=tcp:PORT\\?"),
    "the name of a port": (["--listen=localhost:smtp"], {}, "invalid port 'smtp'; it must be a number"),
    "TLS without a certificate": (["--listen-tls=localhost:465"], {}, "requires --tls"),
    "a limit of nothing": (["--recipient-limit=0"], {}, "must be at least 1; none for no limit"),
    "a size that is none": (["--size=big"], {}, "such as 1000000, 10MB or 32MiB"),
}


def main(readme: Path) -> None:
    program = readme.read_text("utf-8").partition(MARKER)[2].partition("```")[0]
    port = free_port()
    program = program.replace("localhost:8025", f"localhost:{port}")
    failed = []

    def check(name: str, most: int, words: list[str], sends: bool, expected: str, **variables: str) -> None:
        try:
            lines = told(words, port, sends, expected, **variables)
            print(f"{name}:\n    {lines[-1]}", flush=True)
            assert len(lines) <= most, f"{len(lines)} lines come first: {lines}"
        except (AssertionError, OSError, smtplib.SMTPException, subprocess.TimeoutExpired) as error:
            failed.append(name)
            print(f"{name}: {error}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        for name, (code, sends, expected) in mistakes(program, port).items():
            path.write_text(code, "utf-8")
            check(name, 40, [str(path)], sends, expected)
        path.write_text(program, "utf-8")
        with socket.create_server(("127.0.0.1", port)):
            check("a port that is taken", 1, [str(path)], False, "Address already in use")
    command = ["-c", "from txsmtpd.service.console import main; main()"]
    for name, (options, variables, expected) in COMMANDS.items():
        check(f"command: {name}", 1, [*command, *options], False, expected, **variables)
    if failed:
        sys.exit(f"not told in one clear line: {', '.join(failed)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
