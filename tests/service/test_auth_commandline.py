"""Users on the command line: --auth, --require-auth, --auth-without-tls."""

from __future__ import annotations

import io
import smtplib
import ssl
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.service.test_commandline import LOOPBACK, CommandLineTestCase
from tests.service.test_service import parse, refusal
from tests.support.tls import MESSAGE, PATIENCE, RECIPIENT, SENDER, combined, issue, trusting, write
from txsmtpd.service import makeService
from txsmtpd.service.checkers import make_checker

CANARY = "Canary4Password"


class OptionsTests(SynchronousTestCase):
    """Valid and invalid options."""

    def settings(self, *words: str, **environ: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return makeService(parse(*words, environ=environ)).services[0].factory.settings

    def test_none(self) -> None:
        """Without --auth, no client can authenticate."""
        self.assertEqual(dict(self.settings().mechanisms), {})

    def test_auth(self) -> None:
        settings = self.settings("--auth=memory:user:sesame", "--auth-without-tls")
        self.assertEqual(list(settings.mechanisms), ["LOGIN", "PLAIN"])
        self.assertIs(settings.auth_required, False)
        self.assertIs(settings.auth_require_tls, False)

    def test_required(self) -> None:
        settings = self.settings("--auth=memory:user:sesame", "--auth-without-tls", "--require-auth")
        self.assertIs(settings.auth_required, True)

    def test_environment(self) -> None:
        """Several checkers are separated by white space."""
        settings = self.settings(
            TXSMTPD_AUTH="memory:a:b memory:c:d", TXSMTPD_REQUIRE_AUTH="yes", TXSMTPD_AUTH_WITHOUT_TLS="yes"
        )
        self.assertEqual((settings.auth_required, settings.auth_require_tls), (True, False))

    def test_refusals(self) -> None:
        """The error is one line that names the option and contains no password."""
        missing = str(Path(self.mktemp()).absolute())
        malformed = Path(self.mktemp()).absolute()
        malformed.write_text(f"# users\nann:sesame\n\n{CANARY}\n")
        for words, expected in [
            (
                ["--auth=memory:user:sesame"],
                "--auth: passwords would be sent without TLS; add --tls, or --auth-without-tls",
            ),
            (["--require-auth"], "--require-auth: requires --auth"),
            (["--auth-without-tls"], "--auth-without-tls: requires --auth"),
            (["--auth="], "--auth=: unknown password checker; see --help-auth"),
            (["--auth=nonesuch:x", "--auth-without-tls"], "--auth=nonesuch: unknown password checker"),
            (["--auth=anonymous", "--auth-without-tls"], "--auth=anonymous: it does not check passwords"),
            (
                ["--auth=memory", "--auth-without-tls"],
                "--auth=memory: no users; write memory:NAME:PASSWORD",
            ),
            (["--auth=memory:", "--auth-without-tls"], "--auth=memory: no users"),
            (["--auth=file:", "--auth-without-tls"], "--auth=file: no file: "),
            (
                [f"--auth=file:{malformed}", "--auth-without-tls"],
                f"--auth=file: {malformed}: line 4 is not a user, such as name:password",
            ),
            ([f"--auth=file:{missing}", "--auth-without-tls"], f"--auth=file: {missing}: No such file"),
            ([f"--auth=memory:user:{CANARY}:x", "--auth-without-tls"], "--auth=memory: "),
            ([f"--auth={CANARY[:6]}:user:{CANARY}", "--auth-without-tls"], "--auth=Canary: "),
        ]:
            line = refusal(*words)
            self.assertIn(expected, line)
            self.assertNotIn(CANARY, line)

    def test_noWarning(self) -> None:
        """An option that allows something suppresses its warning."""
        self.assertTrue(
            makeService(parse("--auth=memory:user:sesame", "--auth-without-tls", "--require-auth")).services
        )
        self.assertEqual(self.flushWarnings(), [])

    def test_help(self) -> None:
        """--help-auth lists the checkers for passwords."""
        output = io.StringIO()
        with redirect_stdout(output):
            end = self.assertRaises(SystemExit, parse, "--help-auth")
        self.assertEqual(end.code, 0)
        self.assertIn("memory", output.getvalue())
        self.assertNotIn("anonymous", output.getvalue())

    def test_withoutCrypt(self) -> None:
        """A checker without users is refused."""
        self.patch(__import__("txsmtpd.service.checkers", fromlist=["find_spec"]), "find_spec", lambda name: None)
        self.assertRaises(ValueError, make_checker, "unix")


class ServingTests(TestCase):
    """The server of the command line, with real clients."""

    timeout = 120

    async def test_login(self) -> None:
        """Users of several checkers log in. Others do not, and send no mail."""
        path = Path(self.mktemp())
        path.write_text("other:mustard\n")
        service = makeService(
            parse("--auth=memory:user:sesame", f"--auth=file:{path}", "--auth-without-tls", "--require-auth",
                  "--listen=tcp:0:interface=127.0.0.1")
        )  # fmt: skip
        self.flushWarnings()
        service.startService()
        self.addCleanup(service.stopService)
        listener: Any = service.services[0]
        while listener.port is None:
            from twisted.internet.task import deferLater

            await deferLater(reactor, 0.01)  # type: ignore[arg-type]
        number = listener.port.getHost().port

        def login(user: str, password: str) -> int:
            with smtplib.SMTP("127.0.0.1", number, timeout=60) as client:
                client.ehlo()
                self.assertEqual(client.mail("a@example.com")[0], 530)
                client.user, client.password = user, password
                try:
                    client.auth("PLAIN", client.auth_plain)
                except smtplib.SMTPAuthenticationError as error:
                    return error.smtp_code
                return client.mail("a@example.com")[0]

        self.assertEqual(await deferToThread(login, "user", "sesame"), 250)
        self.assertEqual(await deferToThread(login, "other", "mustard"), 250)
        self.assertEqual(await deferToThread(login, "user", "mustard"), 535)


class ProcessTests(CommandLineTestCase):
    """A real server, with users and TLS."""

    def test_loginInTLS(self) -> None:
        """With STARTTLS and with implicit TLS, only clients with the password send mail."""
        pem = write(Path(self.folder) / "server.pem", combined(issue("localhost")))
        process = self.smtpd(
            "--auth=memory:user:sesame", "--require-auth", f"--tls={pem}", LOOPBACK,
            LOOPBACK.replace("listen", "listen-tls"), "--handler=sink",
        )  # fmt: skip
        clear, implicit = process.port(), process.port()

        def by_starttls() -> smtplib.SMTP:
            client = smtplib.SMTP("localhost", clear, timeout=PATIENCE)
            client.ehlo()
            self.assertFalse(client.has_extn("auth"))
            self.assertEqual(client.docmd("AUTH PLAIN")[0], 538)
            client.starttls(context=trusting())
            return client

        def from_the_first_octet() -> smtplib.SMTP:
            return smtplib.SMTP_SSL("localhost", implicit, timeout=PATIENCE, context=trusting())

        for connect in by_starttls, from_the_first_octet:
            with connect() as client:
                self.assertIsInstance(client.sock, ssl.SSLSocket)
                refused = self.assertRaises(smtplib.SMTPAuthenticationError, client.login, "user", CANARY)
                self.assertEqual(refused.smtp_code, 535)
                self.assertEqual(client.mail(SENDER)[0], 530)
                client.login("user", "sesame")
                client.sendmail(SENDER, RECIPIENT, MESSAGE)
        self.assertEqual(process.errors, [])
