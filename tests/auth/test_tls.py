"""AUTH in real TLS: passwords of smtplib, a proof bound to the connection, and client certificates."""

from __future__ import annotations

import base64
import hashlib
import hmac
import smtplib
from typing import Any

import trustme
from OpenSSL import SSL
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal

from tests.support.auth import GOOD, INVALID, OK, b64
from tests.support.tls import (
    MESSAGE,
    PATIENCE,
    RECIPIENT,
    SENDER,
    LineClient,
    TLSTestCase,
    from_the_first_octet,
    greeted,
    issue,
    secured,
    serial,
    trusting,
)
from txsmtpd import auth
from txsmtpd.tls.certificates import Certificates


def auth_line(client: LineClient) -> str | None:
    """Return the line AUTH of the reply to EHLO."""
    lines = client.ask("EHLO client.test").split("\n")
    return next((line[4:] for line in lines if line[4:8] == "AUTH"), None)


class ExportingClient(LineClient):
    """A client with channel binding data of its TLS 1.3 connection, which Python's ssl module does not provide."""

    def secure_exporting(self) -> None:
        """Begin TLS 1.3."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        self.socket.setblocking(True)  # with a timeout, OpenSSL would raise WantReadError
        connection = SSL.Connection(context, self.socket)
        connection.set_connect_state()
        connection.do_handshake()
        self.binding = connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        self.socket = connection  # type: ignore[assignment]  # it has the methods that are used

    def scram_plus(self, login: str, password: str, binding: bytes) -> str:
        """Authenticate according to RFC 5802 3. Return the server's last reply."""
        header, bare = "p=tls-exporter,,", f"n={login},r=rOprNGfwEbeRWgbNEkqO"
        reply = self.ask(f"AUTH SCRAM-SHA-256-PLUS {b64(header + bare).decode()}")
        first = base64.b64decode(reply.removeprefix("334 ")).decode()
        fields = dict(field.split("=", 1) for field in first.split(","))
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c={b64(header.encode() + binding).decode()},r={fields['r']}"
        said = f"{bare},{first},{without_proof}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), said, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        reply = self.ask(b64(f"{without_proof},p={b64(proof).decode()}").decode())
        if not reply.startswith("334 "):
            return reply
        server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), said, "sha256")
        if base64.b64decode(reply[4:]) != b"v=" + b64(server_signature):
            return "the server has not proved who it is"
        return self.ask("")


class AuthTlsTests(TLSTestCase):
    """The default: AUTH only with TLS."""

    async def serve_user(self, **options: Any) -> int:
        checker = InMemoryUsernamePasswordDatabaseDontUse(user=b"sesame")
        portal = Portal(auth.NameRealm(), [checker])
        return await self.serve(portal=portal, auth_failure_delay=0, **options)

    async def test_starttls(self) -> None:
        """smtplib logs in after STARTTLS and sends a message."""

        def send(port: int) -> None:
            with smtplib.SMTP("localhost", port, timeout=PATIENCE) as client:
                client.starttls(context=trusting())
                client.login("user", "sesame")
                client.sendmail(SENDER, RECIPIENT, MESSAGE)

        await self.run_client(send, await self.serve_user(auth_required=True))
        self.assertEqual([session.auth_data for session in self.handler.sessions], ["user"])

    async def test_implicit(self) -> None:
        """With implicit TLS, smtplib logs in, too; a wrong password is refused."""

        def send(port: int) -> int:
            with smtplib.SMTP_SSL("localhost", port, timeout=PATIENCE, context=trusting()) as client:
                try:
                    client.login("user", "xyzzy")
                except smtplib.SMTPAuthenticationError as error:
                    code = error.smtp_code
                client.login("user", "sesame")
                client.sendmail(SENDER, RECIPIENT, MESSAGE)
                return code

        port = await self.serve_user(auth_required=True, implicit_tls=True)
        self.assertEqual(await self.run_client(send, port), 535)
        self.assertEqual([session.auth_data for session in self.handler.sessions], ["user"])

    async def test_offered(self) -> None:
        """AUTH is offered only with TLS. Without TLS, it is refused before a password is sent."""

        def talk(port: int, implicit: int) -> list[Any]:
            clear, after = greeted(port), secured(port)
            inside = from_the_first_octet(implicit)
            try:
                return [auth_line(clear), clear.ask("AUTH LOGIN")[:3], clear.ask(f"AUTH PLAIN {GOOD.decode()}")[:3],
                        auth_line(after), auth_line(inside)]  # fmt: skip
            finally:
                for each in (clear, after, inside):
                    each.close()

        port = await self.serve_user()
        said = await self.run_client(talk, port, await self.serve_user(implicit_tls=True))
        self.assertEqual(said, [None, "538", "538", "AUTH LOGIN PLAIN", "AUTH LOGIN PLAIN"])

    async def test_scramPlus(self) -> None:
        """A proof is accepted only with the channel binding data of this connection."""
        users = {"user": auth.ScramKeys.of("sesame")}
        mechanisms = [auth.Scram("SHA-256", users.get), auth.Scram("SHA-256", users.get, plus=True)]
        port = await self.serve(auth_mechanisms=mechanisms, auth_failure_delay=0, auth_failure_limit=None)

        def talk() -> list[str | None]:
            client, other = ExportingClient(port), ExportingClient(port)
            try:
                for each in (client, other):
                    each.reply()
                    each.ask("STARTTLS")
                    each.secure_exporting()
                return [
                    auth_line(client),
                    client.scram_plus("user", "sesame", bytes(32)),
                    client.scram_plus("user", "sesame", other.binding),
                    client.scram_plus("user", "xyzzy", client.binding),
                    client.scram_plus("nobody", "sesame", client.binding),
                    client.scram_plus("user", "sesame", client.binding),
                ]
            finally:
                client.close()
                other.close()

        offered, *replies = await self.run_client(talk)
        self.assertEqual(offered, "AUTH SCRAM-SHA-256 SCRAM-SHA-256-PLUS")
        self.assertEqual(replies, [INVALID.decode()] * 4 + [OK.decode()])

    async def test_external(self) -> None:
        """A client certificate that TLS has verified identifies the user. Without one, EXTERNAL is not offered."""
        clients = trustme.CA()
        leaf = issue("user@client.test", ca=clients)
        client_ca = self.folder / "clients.crt"
        clients.cert_pem.write_to_path(client_ca)
        seen: list[Any] = []

        def decide(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> bool:
            seen.append(auth_data)
            return auth_data.login in ("", "user")

        port = await self.serve(
            tls_context=Certificates(self.certificate, client_ca=client_ca),
            auth_mechanisms=[auth.External(decide)],
            auth_failure_delay=0,
        )

        def talk() -> list[str | None]:
            without, having = secured(port), secured(port, trusting(leaf))
            try:
                return [auth_line(without), without.ask("AUTH EXTERNAL =")[:3], auth_line(having),
                        having.ask(f"AUTH EXTERNAL {b64('other').decode()}"),
                        having.ask("AUTH EXTERNAL =")]  # fmt: skip
            finally:
                without.close()
                having.close()

        said = await self.run_client(talk)
        self.assertEqual(said, [None, "504", "AUTH EXTERNAL", INVALID.decode(), OK.decode()])
        self.assertEqual([each.login for each in seen], ["other", ""])
        self.assertEqual({each.certificate.serial_number for each in seen}, {serial(leaf)})
