"""Rates of TLS sessions, with real TLS over loopback."""

from __future__ import annotations

import smtplib

from tests.support.tls import TLSTestCase, trusting

PATIENCE = 60  # seconds until a test gives up


class RateTests(TLSTestCase):
    """``rates["tls"]``."""

    async def test_starttls(self) -> None:
        """A TLS session above the rate is refused with 454. The session continues without TLS."""
        port = await self.serve(rates={"tls": "2/hour"}, unlimited_networks=[])

        def talk(number: int) -> int:
            with smtplib.SMTP("localhost", port, timeout=PATIENCE) as client:
                client.ehlo()
                code, text = client.docmd("STARTTLS") if number == 2 else client.starttls(context=trusting())
                if code == 454:
                    self.assertIn(b"4.7.0 Too many TLS sessions, try again in", text)
                    self.assertEqual(client.noop()[0], 250)
                return code

        codes = [await self.run_client(talk, number) for number in range(3)]
        self.assertEqual(codes, [220, 220, 454])

    async def test_implicit(self) -> None:
        """With implicit TLS, a connection above the rate is closed before its handshake."""
        port = await self.serve(rates={"tls": "1/hour"}, unlimited_networks=[], implicit_tls=True)

        def talk() -> str:
            try:
                with smtplib.SMTP_SSL("localhost", port, timeout=PATIENCE, context=trusting()) as client:
                    return str(client.noop()[0])
            except (OSError, smtplib.SMTPServerDisconnected):
                return "closed"

        self.assertEqual([await self.run_client(talk) for _ in range(2)], ["250", "closed"])
