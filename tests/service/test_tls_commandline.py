"""TLS on the command line: options and the environment, and a server as users run it."""

from __future__ import annotations

import smtplib
import ssl
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.trial.unittest import SynchronousTestCase

from tests.service.test_commandline import LOOPBACK, PATIENCE, CommandLineTestCase
from tests.service.test_service import parse, refusal
from tests.support.tls import MESSAGE, RECIPIENT, SENDER, authority, chain, combined, issue, trusting, write
from txsmtpd.service import makeService


class OptionsTests(SynchronousTestCase):
    """The meaning of the options, and invalid ones."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        leaf = issue("localhost")
        self.pem = write(self.folder / "a.pem", combined(leaf))
        self.certificate = write(self.folder / "a.crt", chain(leaf))
        self.key = write(self.folder / "a.key", leaf.private_key_pem.bytes())
        self.authorities = write(self.folder / "ca.crt", authority().cert_pem.bytes())

    def factories(self, *words: str, **environ: str) -> list[Any]:
        """The settings of the servers, in the order of their endpoints."""
        service = makeService(parse(*words, environ=environ))
        assert isinstance(service, MultiService)
        return [listener.factory.settings for listener in service]  # type: ignore[attr-defined]

    def test_none(self) -> None:
        """Without --tls, there is no TLS."""
        (settings,) = self.factories()
        self.assertIsNone(settings.tls_context)

    def test_forms(self) -> None:
        """CERT, CERT:KEY and DIRECTORY. A colon may be part of an existing path."""
        odd = write(self.folder / "a:b.pem", self.pem.read_bytes())
        for value in self.pem, f"{self.certificate}:{self.key}", self.folder, odd:
            (settings,) = self.factories(f"--tls={value}")
            self.assertIsNotNone(settings.tls_context)
            self.assertEqual((settings.implicit_tls, settings.require_starttls), (False, False))

    def test_listen(self) -> None:
        """--listen-tls uses implicit TLS. Alone, nothing else listens."""
        both = self.factories(f"--tls={self.pem}", "--listen=tcp:1", "--listen-tls=tcp:2", "--listen-tls=tcp:3")
        self.assertEqual([settings.implicit_tls for settings in both], [False, True, True])
        self.assertEqual(len({settings.tls_context for settings in both}), 1)
        (only,) = self.factories(f"--tls={self.pem}", "--listen-tls=tcp:2")
        self.assertTrue(only.implicit_tls)

    def test_required(self) -> None:
        """TLS can be required."""
        (settings,) = self.factories(f"--tls={self.pem}", "--require-starttls")
        self.assertTrue(settings.require_starttls)

    def test_environment(self) -> None:
        """All options can be set in the environment."""
        settings = self.factories(
            TXSMTPD_TLS=str(self.pem),
            TXSMTPD_LISTEN="tcp:1",
            TXSMTPD_LISTEN_TLS="tcp:2 tcp:3",
            TXSMTPD_REQUIRE_STARTTLS="yes",
            TXSMTPD_TLS_CLIENT_CA=str(self.authorities),
            TXSMTPD_REQUIRE_CLIENT_CERTIFICATE="no",
        )
        self.assertEqual([each.implicit_tls for each in settings], [False, True, True])
        self.assertTrue(settings[0].require_starttls)
        self.assertEqual(len(self.factories(TXSMTPD_REQUIRE_STARTTLS="no")), 1)

    def test_badCertificate(self) -> None:
        """The error for an invalid certificate names its option and the reason."""
        self.assertEqual(refusal("--tls=/none.pem"), "--tls=/none.pem: /none.pem: No such file or directory")
        self.assertIn("it contains no private key", refusal(f"--tls={self.authorities}"))
        self.assertIn("and no file /none.key", refusal(f"--tls={self.certificate}:/none.key"))
        write(self.key, issue("other.test").private_key_pem.bytes())
        self.assertIn("does not match", refusal(f"--tls={self.certificate}:{self.key}"))
        self.assertIn("TXSMTPD_TLS=/none.pem: ", refusal(environ={"TXSMTPD_TLS": "/none.pem"}))

    def test_emptyValues(self) -> None:
        """The error for an empty file name says which one is missing."""
        self.assertEqual(refusal("--tls="), "--tls=: a certificate is needed: CERT[:KEY], or a DIRECTORY")
        crt, key = f"--tls={self.certificate}:", f"--tls=:{self.key}"
        self.assertEqual(refusal(crt), f"{crt}: the file of the key is missing: give CERT[:KEY]")
        self.assertEqual(refusal(key), f"{key}: the file of the certificate is missing: give CERT[:KEY]")
        tls = f"--tls={self.pem}"
        self.assertEqual(refusal(tls, "--tls-client-ca="), "--tls-client-ca=: a value is needed")

    def test_tlsWithinTLS(self) -> None:
        """An endpoint that starts TLS itself is refused for --listen-tls."""
        for kind in "ssl", "tls", "haproxy:ssl":
            asked = f"--listen-tls={kind}:0:privateKey={self.pem}"
            said = refusal(f"--tls={self.pem}", asked)
            self.assertTrue(said.startswith(f"{asked}: an endpoint {kind[-3:]}: starts TLS itself"), said)
            self.assertIn("use one such as tcp:465", said)

    def test_needsCertificate(self) -> None:
        """Options about TLS require --tls."""
        for word in "--listen-tls=tcp:1", "--require-starttls", "--tls-client-ca=x", "--require-client-certificate":
            said = refusal(word)
            self.assertTrue(said.startswith(word.partition("=")[0]), said)
            self.assertIn("requires --tls", said)

    def test_auto(self) -> None:
        """--tls=auto needs no file. Options that do not fit are refused, and then nothing is written."""
        ca = self.folder / "own-ca.pem"
        words = "--tls=auto", f"--ca-out={ca}"
        self.assertTrue(refusal(*words, "--listen=tcp:x").startswith("--listen=tcp:x: "))
        self.assertTrue(refusal(*words, f"--tls-client-ca={self.authorities}").startswith("--tls-client-ca="))
        self.assertFalse(ca.exists())
        self.assertIn("requires --tls=auto", refusal(f"--tls={self.pem}", f"--ca-out={ca}"))
        self.assertIn("requires --tls", refusal(f"--ca-out={ca}"))
        self.assertEqual(
            refusal("--tls=auto", "--ca-out=/none/ca.pem"), "--ca-out=/none/ca.pem: No such file or directory"
        )
        self.assertTrue(refusal("--tls=auto", "--ca-out=/none/ca.pem", "--hostname=[192.0.2.1]"))

    def test_clientCertificates(self) -> None:
        """The authorities of clients are checked, too, and the error names their option."""
        tls = f"--tls={self.pem}"
        self.factories(tls, f"--tls-client-ca={self.authorities}", "--require-client-certificate")
        self.assertTrue(refusal(tls, "--tls-client-ca=/none").startswith("--tls-client-ca=/none: "))
        self.assertIn("--tls-client-ca", refusal(tls, "--require-client-certificate"))

    def test_badEndpoint(self) -> None:
        """An endpoint of --listen-tls is checked like any other."""
        self.assertTrue(refusal(f"--tls={self.pem}", "--listen-tls=tcp:x").startswith("--listen-tls=tcp:x: "))


class ProcessTests(CommandLineTestCase):
    """A real server."""

    def test_bothWays(self) -> None:
        """--listen with STARTTLS, and --listen-tls, with clients that verify."""
        leaf = issue("localhost")
        pem = write(Path(self.folder) / "server.pem", combined(leaf))
        process = self.smtpd(
            f"--tls={pem}", "--require-starttls", LOOPBACK, LOOPBACK.replace("listen", "listen-tls"), "--handler=sink"
        )
        clear, implicit = process.port(), process.port()
        with smtplib.SMTP("localhost", clear, timeout=PATIENCE) as client:
            self.assertEqual(client.docmd("HELO", "x")[0], 530)
            client.starttls(context=trusting())
            client.sendmail(SENDER, RECIPIENT, MESSAGE)
        with smtplib.SMTP_SSL("localhost", implicit, timeout=PATIENCE, context=trusting()) as client:
            client.sendmail(SENDER, RECIPIENT, MESSAGE)

    def test_auto(self) -> None:
        """--tls=auto makes its certificate in memory, and one line says where the authority's certificate is."""
        ca = Path(self.folder) / "ca.pem"
        process = self.smtpd("--tls=auto", f"--ca-out={ca}", LOOPBACK, "--handler=sink", "--hostname=mx.test")
        port = process.port()
        context = ssl.create_default_context(cafile=str(ca))
        with smtplib.SMTP("localhost", port, timeout=PATIENCE) as client:
            client.starttls(context=context)
            client.sendmail(SENDER, RECIPIENT, MESSAGE)
        process.process.terminate()
        process.wait()
        (told,) = process.errors
        self.assertIn("--tls=auto: temporary certificate for localhost, 127.0.0.1, ::1, mx.test;", told)
        self.assertTrue(told.endswith(f"; CA certificate: {ca}\n"), told)

    def test_badCertificate(self) -> None:
        """The error for an invalid certificate is one line and status 64."""
        self.assertOneLine(self.smtpd("--tls=none.pem"), 64, "--tls=none.pem: ", "No such file")
