"""``python -m txsmtpd``: the syntax of aiosmtpd's command line."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import smtplib
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import txsmtpd
from tests.compatibility.test_controller import MESSAGE
from txsmtpd.main import endpoint_of, twist_arguments

HANDLER = """
import asyncio

class Shouts:
    def __init__(self, word):
        self.word = word

    @classmethod
    def from_cli(cls, parser, *args):
        if len(args) != 1:
            parser.error("one word is needed")
        return cls(*args)

    async def handle_DATA(self, server, session, envelope):
        async with asyncio.timeout(10):
            await asyncio.sleep(0.01)
        print(self.word, envelope.mail_from, flush=True)
        return "250 OK"
"""


class ArgumentTests(SynchronousTestCase):
    """Translation of the options."""

    def assertGives(self, line: str, *options: str) -> None:
        found = twist_arguments(line.split())
        self.assertEqual(found[found.index("smtpd") + 1 :], list(options))

    def test_handler(self) -> None:
        """A class and its arguments make a handler. The built-in handlers keep their names."""
        self.assertGives("-n")
        self.assertGives("-c aiosmtpd.handlers.Mailbox /a:b", "--handler=txsmtpd.handlers.Mailbox:/a\\:b")
        self.assertGives("--class mine.Handler a b", "--handler=mine.Handler:a:b")
        self.assertIn("--reactor=asyncio", twist_arguments(["-c", "mine.Handler"]))
        self.assertNotIn("--reactor=asyncio", twist_arguments(["-c", "txsmtpd.handlers.Sink"]))

    def test_listen(self) -> None:
        """A host, a port or both. An endpoint is unchanged."""
        for said, expected in {
            "": "tcp:8025:interface=localhost",
            "example.com": "tcp:8025:interface=example.com",
            ":25": "tcp:25:interface=localhost",
            "0.0.0.0:25": "tcp:25:interface=0.0.0.0",
            "::0:25": "tcp:25:interface=\\:\\:0",
            "[::1]:25": "tcp:25:interface=\\:\\:1",
            "[::1]": "tcp:8025:interface=\\:\\:1",
            "tcp:25": "tcp:25",
            "unix:/run/x": "unix:/run/x",
        }.items():
            self.assertEqual(endpoint_of(said), expected)
        self.assertGives("-l :25", "--listen=tcp:25:interface=localhost")

    def test_numbers(self) -> None:
        """Sizes, UTF-8 and the level of the log."""
        self.assertGives("-s 1000 -u", "--size=1000", "--smtputf8")
        for line, level in (("", "info"), ("-d", "info"), ("-dd", "debug"), ("-d -d -d", "debug")):
            self.assertEqual(twist_arguments(line.split())[1], f"--log-level={level}")

    def test_tls(self) -> None:
        """STARTTLS is required by default. With a certificate for implicit TLS, connections start with TLS."""
        self.assertGives("--tlscert c --tlskey k", "--tls=c:k", "--require-starttls")
        self.assertGives("--tlscert c --tlskey k --no-requiretls", "--tls=c:k")
        self.assertGives("--smtpscert c --smtpskey k", "--tls=c:k", "--listen-tls=tcp:8025:interface=localhost")

    def test_passedOn(self) -> None:
        """Options of the new command line may be added."""
        self.assertGives("-u --hostname=mx.test --grace=3", "--smtputf8", "--hostname=mx.test", "--grace=3")


class ProgramTests(SynchronousTestCase):
    """The program itself."""

    def run_main(self, *arguments: str) -> subprocess.Popen[str]:
        return self.run_python("-m", "txsmtpd", *arguments)

    def run_code(self, code: str) -> subprocess.Popen[str]:
        return self.run_python("-c", code)

    def run_python(self, *arguments: str) -> subprocess.Popen[str]:
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "own.py").write_text(HANDLER)
        package = Path(txsmtpd.__file__).parent.parent
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{folder.absolute()}"},
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_runs(self) -> None:
        """It serves mail to a handler that needs asyncio, created by its from_cli, until it is stopped."""
        folder = tempfile.mkdtemp()  # the path of a socket is short
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        path = f"{folder}/socket"
        process = self.run_main("-n", "-d", "-l", f"unix:{path}", "-c", "own.Shouts", "yes")
        assert process.stderr is not None
        for line in process.stderr:
            if "listening on" in line:
                break
        client = smtplib.LMTP(path)
        client.ehlo_msg = "ehlo"
        client.sendmail("a@example.com", "b@example.com", MESSAGE)
        client.close()
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=30)
        self.assertIn("yes a@example.com\n", said)
        self.assertNotIn("Traceback", said + errors)

    def test_inTheLoopOfAProgram(self) -> None:
        """main() serves in the loop of the program until it is stopped, several times in turn, and closes the loop."""
        code = """
import asyncio, logging, os, re, smtplib, ssl, sys, threading
from txsmtpd.main import main

class Listening(logging.Handler):
    def emit(self, record):
        found = re.search("listening on (.*):([0-9]+)", record.getMessage())
        if found:
            threading.Thread(target=client, args=(found[1], int(found[2]), asyncio.get_event_loop())).start()

def client(host, port, loop):
    with smtplib.SMTP(host, port, timeout=30) as client:
        client.sendmail("a@example.com", "b@example.com", "Subject: x\\n\\nHello\\n")
    loop.call_soon_threadsafe(loop.stop)

logging.getLogger("mail.log").addHandler(Listening())
for _ in range(2):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    main(["-n", "-d", "-l", "127.0.0.1:0", "-c", "own.Shouts", "heard"])
    print(loop.is_closed())
os.setuid = os.setgid = os.setgroups = print
os.geteuid = int
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
main(["-d", "-l", "127.0.0.1:0", "-c", "own.Shouts", "heard"])
print("twisted.internet.reactor" in sys.modules)
"""
        done = self.run_code(code)
        said, errors = done.communicate(timeout=60)
        nobody = pwd.getpwnam("nobody")
        heard = "heard a@example.com\n"
        self.assertEqual(
            said, f"{heard}True\n{heard}True\n[]\n{nobody.pw_gid}\n{nobody.pw_uid}\n{heard}False\n", errors
        )

    def test_mistakesInAProgram(self) -> None:
        """An error ends main() with one line: status 2 for arguments, 1 if the process cannot become nobody."""
        for words, status, told in (
            ("-n -l :x", 2, "Invalid port number: x"),
            ("-n --tlscert own.py --tlskey own.py", 2, "are not a certificate and its key"),
            ("-l 127.0.0.1:0", 1, "give -n"),
        ):
            code = f"""
import os
from txsmtpd.main import main
def refuse(number):
    raise PermissionError("not permitted")
os.setuid, os.geteuid = refuse, lambda: 1000
main({words.split()!r})
"""
            process = self.run_code(code)
            said, errors = process.communicate(timeout=60)
            self.assertEqual((process.returncode, said), (status, ""), errors)
            self.assertIn(told, errors.splitlines()[-1])

    def test_mistakes(self) -> None:
        """An error is one line and status 64."""
        for line, expected in {
            "-c own.Shouts": "one word is needed",
            "-c own.Nothing": "has no Nothing",
            "-s many": "--size=many: must be a number of octets",
            "-l nowhere:port": "--listen=tcp:port",
            "word": "'word'; the class that it is for is missing",
            "--tlscert x": "must be specified together",
            "--tlscert x --tlskey y": "x: No such file",
            "--tlscert a --tlskey b --smtpscert c --smtpskey d": "one certificate",
            "--colour=red": "colour",
        }.items():
            process = self.run_main(*line.split())
            said, errors = process.communicate(timeout=30)
            self.assertEqual((process.returncode, said, errors.count("\n")), (64, "", 1), errors)
            self.assertTrue(errors.startswith("txsmtpd: "), errors)
            self.assertIn(expected, errors)

    def test_version(self) -> None:
        """It prints its version."""
        said, _ = self.run_main("-v").communicate(timeout=30)
        self.assertEqual(said, f"txsmtpd {txsmtpd.__version__}\n")
