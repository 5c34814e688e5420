"""The mechanisms, with the examples of their RFCs, and with independent clients."""

from __future__ import annotations

import base64
import hmac
import json
import re
from typing import Any

from scramp import ScramClient
from twisted.cred.portal import Portal
from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.support.auth import INVALID, OK, Connection, Tls, b64, friend, plain
from txsmtpd import auth
from txsmtpd.auth import (
    AuthResult,
    BearerToken,
    ClientCertificate,
    NameRealm,
    PortalAuthenticator,
    ProvedLogin,
    Scram,
    ScramKeys,
)
from txsmtpd.auth.saslprep import saslprep


def unb64(line: bytes) -> bytes:
    """The challenge in a line of the server."""
    assert line[:4] == b"334 ", line
    return base64.b64decode(line[4:])


class PlainTests(SynchronousTestCase):
    """PLAIN (RFC 4616)."""

    def test_authorizationIdentity(self) -> None:
        """An authorization identity of another user is refused. The user's own is allowed."""
        for authzid, reply in (("user", OK), ("other", INVALID), ("User", INVALID)):
            client = Connection(authenticator=friend)
            self.assertEqual(client.say(b"AUTH PLAIN " + plain("user", "sesame", authzid)), [reply])

    def test_fields(self) -> None:
        """PLAIN requires exactly three fields."""
        for message in (b"", b"user", b"user\0sesame", b"\0user\0sesame\0", b"\0user\0ses\0ame"):
            client = Connection(authenticator=friend)
            client.say(b"AUTH PLAIN")
            self.assertEqual(client.say(b64(message))[0][:9], b"501 5.5.2", message)

    def test_refusedUnseen(self) -> None:
        """Empty names and passwords, control characters in names, and names that are not UTF-8 never reach the
        authenticator."""
        asked: list[Any] = []
        for message in (b"\0\0sesame", b"\0user\0", b"\0us\r\ner\0sesame", b"\0us\ter\0x", b"\0\xff\0x", b"\0\x7f\0x"):
            client = Connection(authenticator=lambda *arguments: asked.append(arguments) or True)
            self.assertEqual(client.say(b"AUTH PLAIN " + b64(message)), [INVALID], message)
        self.assertEqual(asked, [])

    def test_login(self) -> None:
        """PLAIN and LOGIN accept the same names."""
        asked: list[Any] = []
        for name in (b"us\ner", b"\x7f", b"\xff\xfe", b"J\xfcrgen", "a\x85b".encode(), "a\u2028b".encode(),
                     "a\u2029b".encode(), "a\x9bb".encode()):  # fmt: skip
            for lines in ([b"AUTH LOGIN", b64(name), b64("x")], [b"AUTH PLAIN " + b64(b"\0" + name + b"\0x")]):
                client = Connection(authenticator=lambda *arguments: asked.append(arguments) or True)
                self.assertEqual(client.say(*lines)[-1], INVALID, name)
        self.assertEqual(asked, [])
        client = Connection(authenticator=lambda *arguments: arguments[-1] == ("J\u00fcrgen".encode(), b"x"))
        self.assertEqual(client.say(b"AUTH LOGIN", b64("J\u00fcrgen"), b64("x"))[-1], OK)

    def test_utf8(self) -> None:
        client = Connection(
            authenticator=lambda *arguments: arguments[-1] == ("J\u00fcrgen".encode(), "p\u00e4ss".encode())
        )
        self.assertEqual(client.say(b"AUTH PLAIN " + plain("J\u00fcrgen", "p\u00e4ss")), [OK])


class CramMD5Tests(SynchronousTestCase):
    """CRAM-MD5 (RFC 2195)."""

    def test_example(self) -> None:
        """The example of RFC 2195 2."""
        value = auth.ChallengeResponse(
            b"tim", b"<1896.697170952@postoffice.reston.mci.net>", b"b913a602c7eda7a495b4e6e7334d3890"
        )
        self.assertTrue(value.checkPassword(b"tanstaaftanstaaf"))
        self.assertFalse(value.checkPassword(b"tanstaaf"))

    def client(self) -> Connection:
        async def authenticator(*arguments: Any) -> bool:
            credentials = arguments[-1]
            return credentials.login == b"user" and bool(credentials.checkPassword(b"sesame"))

        return Connection(authenticator=authenticator, auth_mechanisms=[auth.CramMD5()])

    def test_challenges(self) -> None:
        """Each attempt has its own challenge in the form of a message id."""
        client = self.client()
        challenges = set()
        for _ in range(5):
            (line,) = client.say(b"AUTH CRAM-MD5")
            challenges.add(unb64(line))
            client.say(b"*")
        self.assertEqual(len(challenges), 5)
        for challenge in challenges:
            self.assertRegex(challenge, rb"^<[0-9a-f]{32}\.[0-9]+@mx\.test>$")

    def test_replay(self) -> None:
        """A response is valid for one attempt only."""
        client = self.client()
        challenge = unb64(client.say(b"AUTH CRAM-MD5")[0])
        proof = b64("user " + hmac.new(b"sesame", challenge, "md5").hexdigest())
        client.say(b"*", b"AUTH CRAM-MD5")
        self.assertEqual(client.say(proof), [INVALID])

    def test_malformed(self) -> None:
        for answer in (b"", b"user", b"user x", b" " + b"0" * 32, b"us\0er " + b"0" * 32, b"user " + b"0" * 33):
            client = self.client()
            client.say(b"AUTH CRAM-MD5")
            self.assertEqual(client.say(b64(answer)), [INVALID], answer)


class BoundTls(Tls):
    """A pretended TLS connection of which both ends export the same value."""


SECRET_OF_BOTH = bytes(range(32))


class Handle:
    """The methods of an OpenSSL connection that are needed here."""

    def export_keying_material(self, label: bytes, olen: int, context: bytes | None = None) -> bytes:
        assert (label, olen, context) == (b"EXPORTER-Channel-Binding", 32, b"")  # RFC 9266 2
        return SECRET_OF_BOTH


class ScramTests(SynchronousTestCase):
    """SCRAM (RFC 5802, RFC 7677)."""

    keys = {
        "SHA-1": ScramKeys.of("sesame", "SHA-1"),
        "SHA-256": ScramKeys.of("sesame"),
        "SHA-512": ScramKeys.of("sesame", "SHA-512"),
    }

    def client(self, name: str = "SHA-256", **options: Any) -> Connection:
        users = {"user": self.keys[name]}
        return Connection(auth_mechanisms=[Scram(name, users.get, **options)])

    def test_sha1(self) -> None:
        """The example of RFC 5802 5."""
        keys = ScramKeys.of("pencil", "SHA-1", base64.b64decode("QSXCR+Q6sek8bf92"), 4096)
        client = Connection(
            auth_mechanisms=[Scram("SHA-1", {"user": keys}.get, make_nonce=lambda: "3rfcNHYJY1ZVvWVs7j")]
        )
        (line,) = client.say(b"AUTH SCRAM-SHA-1 " + b64("n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL"))
        self.assertEqual(unb64(line), b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096")
        (line,) = client.say(b64("c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="))
        self.assertEqual(unb64(line), b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=")
        self.assertEqual(client.say(b""), [OK])
        self.assertEqual(client.session.auth_data, ProvedLogin("user"))

    def test_sha256(self) -> None:
        """The example of RFC 7677 3."""
        keys = ScramKeys.of("pencil", "SHA-256", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
        client = Connection(
            auth_mechanisms=[Scram("SHA-256", {"user": keys}.get, make_nonce=lambda: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")]
        )
        (line,) = client.say(b"AUTH SCRAM-SHA-256 " + b64("n,,n=user,r=rOprNGfwEbeRWgbNEkqO"))
        self.assertEqual(
            unb64(line),
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        )
        (line,) = client.say(
            b64(
                "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
                "p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
            )
        )
        self.assertEqual(unb64(line), b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
        self.assertEqual(client.say(b""), [OK])

    def dialog(self, client: Connection, scram: ScramClient, name: bytes, initial: bool = True) -> list[bytes]:
        """The server's last reply to an independent client."""
        first = b64(scram.get_client_first())
        if initial:
            (line,) = client.say(b"AUTH " + name + b" " + first)
        else:
            self.assertEqual(client.say(b"AUTH " + name), [b"334 "])
            (line,) = client.say(first)
        if line[:3] != b"334":
            return [line]
        scram.set_server_first(unb64(line).decode())
        (line,) = client.say(b64(scram.get_client_final()))
        if line[:3] != b"334":
            return [line]
        scram.set_server_final(unb64(line).decode())
        return client.say(b"")

    def test_independentClient(self) -> None:
        """An independent client authenticates with each of the hash functions."""
        for name in self.keys:
            mechanism = f"SCRAM-{name}"
            for password, reply in (("sesame", OK), ("xyzzy", INVALID)):
                for initial in (True, False):
                    client = self.client(name)
                    scram = ScramClient([mechanism], "user", password)
                    self.assertEqual(self.dialog(client, scram, mechanism.encode(), initial), [reply])

    def test_unknownUser(self) -> None:
        """A user that does not exist looks like one with another password, at each attempt."""
        mechanism = Scram("SHA-256", {"user": self.keys["SHA-256"]}.get)
        salts = []
        for _ in range(2):
            client = Connection(auth_mechanisms=[mechanism])
            (line,) = client.say(b"AUTH SCRAM-SHA-256 " + b64("n,,n=nobody,r=abc"))
            found = re.fullmatch(rb"r=abc[!-~]+,s=([^,]+),i=4096", unb64(line))
            assert found
            salts.append(found[1])
        self.assertEqual(salts[0], salts[1])
        self.assertEqual(len(salts[0]), len(base64.b64encode(self.keys["SHA-256"].salt)))
        scram = ScramClient(["SCRAM-SHA-256"], "nobody", "sesame")
        self.assertEqual(self.dialog(Connection(auth_mechanisms=[mechanism]), scram, b"SCRAM-SHA-256"), [INVALID])

    def salt(self, mechanism: Scram, name: str) -> str:
        """Return the salt and the iterations that the mechanism sends for a name."""
        client = Connection(auth_mechanisms=[mechanism])
        client.session.ssl = BoundTls()
        header = "p=tls-exporter,," if mechanism.plus else "n,,"
        (line,) = client.say(b"AUTH " + mechanism.name.encode() + b" " + b64(f"{header}n={name},r=a"))
        return unb64(line).decode().partition(",")[2]

    def test_saltOfNobody(self) -> None:
        """All mechanisms of one hash send the same salt for a user that does not exist, so that it is not
        recognizable."""
        first = Scram("SHA-256", {}.get)
        for other in (Scram("SHA-256", {}.get), Scram("SHA-256", {}.get, plus=True)):
            self.assertEqual(self.salt(first, "nobody"), self.salt(other, "nobody"))
        self.assertNotEqual(self.salt(first, "nobody"), self.salt(first, "somebody"))
        self.assertNotEqual(self.salt(first, "nobody"), self.salt(Scram("SHA-512", {}.get), "nobody"))

    def test_secret(self) -> None:
        """With a secret, the salt is the same in other processes."""
        secret = b"sixteen octets.."
        mechanism = Scram("SHA-256", {}.get, secret=secret)
        expected = b64(hmac.digest(secret, b"sha256 nobody", "sha256")[:16]).decode()
        self.assertEqual(self.salt(mechanism, "nobody"), f"s={expected},i=4096")
        self.assertNotEqual(self.salt(Scram("SHA-256", {}.get), "nobody"), self.salt(mechanism, "nobody"))
        for wrong in (b"short", "sixteen octets.."):
            self.assertRaises(ValueError, Scram, "SHA-256", {}.get, secret=wrong)

    def test_lookups(self) -> None:
        """The lookup of keys may be asynchronous."""

        async def look_up(name: str) -> ScramKeys:
            return self.keys["SHA-256"]

        for lookup in (look_up, lambda name: succeed(self.keys["SHA-256"])):
            client = Connection(auth_mechanisms=[Scram("SHA-256", lookup)])
            scram = ScramClient(["SCRAM-SHA-256"], "user", "sesame")
            self.assertEqual(self.dialog(client, scram, b"SCRAM-SHA-256"), [OK])

    def test_names(self) -> None:
        """Names and passwords may contain commas, equals signs and accents."""
        for login, password in (("a,b=c", "p=,w"), ("J\u00fcrgen", "p\u00e4ss\u00a0w\u00f6rd"), ("I\u00adX", "\u00aa")):
            users = {saslprep(login): ScramKeys.of(password)}
            client = Connection(auth_mechanisms=[Scram("SHA-256", users.get)])
            scram = ScramClient(["SCRAM-SHA-256"], login, password)
            self.assertEqual(self.dialog(client, scram, b"SCRAM-SHA-256"), [OK])
            self.assertEqual(client.session.auth_data.login, saslprep(login))

    def test_lastWord(self) -> None:
        """An authenticator may refuse a user whose proof is valid. Then the server does not send its own signature."""
        for answer, reply in ((True, OK), (False, INVALID)):
            client = self.client(authenticator=lambda *_, answer=answer: answer)
            scram = ScramClient(["SCRAM-SHA-256"], "user", "sesame")
            self.assertEqual(self.dialog(client, scram, b"SCRAM-SHA-256"), [reply])

    def test_portal(self) -> None:
        """A portal returns the avatar of a user whose proof is valid."""
        client = self.client(authenticator=PortalAuthenticator(Portal(NameRealm())))
        self.assertEqual(self.dialog(client, ScramClient(["SCRAM-SHA-256"], "user", "sesame"), b"SCRAM-SHA-256"), [OK])
        self.assertEqual(client.session.auth_data, "user")

    def test_malformedFirst(self) -> None:
        for message in (b"", b"n,,", b"n,,n=user", b"n,,r=a,n=user", b"x,,n=user,r=a", b"n,n=user,r=a", b"n,,n=,r=a",
                        b"n,,n=user,r=", b"n,,m=1,n=user,r=a", b"n,,n=us=er,r=a", b"n,,n=user,r=a\x7f", b"\xff",
                        b"n,,n=user,r=a,"):  # fmt: skip
            client = self.client()
            self.assertEqual(client.say(b"AUTH SCRAM-SHA-256 " + b64(message))[0][:9] if message else b"501 5.5.2",
                             b"501 5.5.2", message)  # fmt: skip

    def test_identities(self) -> None:
        """An authorization identity of another user is refused."""
        client = self.client()
        self.assertEqual(client.say(b"AUTH SCRAM-SHA-256 " + b64("n,a=other,n=user,r=a")), [INVALID])
        self.assertEqual(client.say(b"AUTH SCRAM-SHA-256 " + b64("n,a=user,n=user,r=a"))[0][:4], b"334 ")

    def test_malformedFinal(self) -> None:
        for message in (b"", b"c=biws", b"c=biws,r={n}", b"c=biws,r={n},p=!", b"c=,r={n},p=AAAA",
                        b"c=biws,p=AAAA,r={n}", b"c=b,r={n},p=AAAA"):  # fmt: skip
            client = self.client()
            line = unb64(client.say(b"AUTH SCRAM-SHA-256 " + b64("n,,n=user,r=a"))[0])
            nonce = line[2 : line.index(b",")]
            self.assertEqual(client.say(b64(message.replace(b"{n}", nonce)))[0][:9], b"501 5.5.2", message)

    def test_wrongFinal(self) -> None:
        """Proofs that are too short, other nonces and other bindings are refused."""
        right = ScramClient(["SCRAM-SHA-256"], "user", "sesame")
        for wrong in (lambda final: re.sub("p=.*", "p=AAAA", final),
                      lambda final: re.sub("r=[^,]*", "r=other", final),
                      lambda final: final.replace("r=", "r=x", 1),
                      lambda final: final.replace("c=biws", "c=eSws")):  # fmt: skip
            client = self.client()
            right = ScramClient(["SCRAM-SHA-256"], "user", "sesame")
            (line,) = client.say(b"AUTH SCRAM-SHA-256 " + b64(right.get_client_first()))
            right.set_server_first(unb64(line).decode())
            self.assertEqual(client.say(b64(wrong(right.get_client_final()))), [INVALID])

    def test_lastAnswer(self) -> None:
        """A client that does not accept the server's signature cancels, and is not authenticated."""
        for answer, reply in ((b"*", b"501 5.7.0"), (b64("x"), b"501 5.5.2")):
            client = self.client()
            right = ScramClient(["SCRAM-SHA-256"], "user", "sesame")
            (line,) = client.say(b"AUTH SCRAM-SHA-256 " + b64(right.get_client_first()))
            right.set_server_first(unb64(line).decode())
            client.say(b64(right.get_client_final()))
            self.assertEqual(client.say(answer)[0][:9], reply)
            self.assertIs(client.session.authenticated, False)

    # Channel binding

    def bound(self, binds: bool = True) -> Connection:
        users = {"user": self.keys["SHA-256"]}
        client = Connection(auth_mechanisms=[Scram("SHA-256", users.get), Scram("SHA-256", users.get, plus=True)])
        client.session.ssl = BoundTls()
        client.session.ssl.binds = binds
        client.transport.getHandle = Handle  # type: ignore[attr-defined]
        return client

    def test_plusOffered(self) -> None:
        """The -PLUS variant requires TLS with channel binding."""
        self.assertEqual(self.bound().offered(), b"AUTH SCRAM-SHA-256 SCRAM-SHA-256-PLUS")
        self.assertEqual(self.bound(binds=False).offered(), b"AUTH SCRAM-SHA-256")
        client = self.bound()
        client.session.ssl = None
        self.assertEqual(client.offered(), b"AUTH SCRAM-SHA-256")

    def plus(self, binding: bytes, header: str = "p=tls-exporter,,", password: str = "sesame") -> bytes:
        """The reply to a client written here, according to RFC 5802 3."""
        client = self.bound()
        bare = "n=user,r=clientnonce"
        (line,) = client.say(b"AUTH SCRAM-SHA-256-PLUS " + b64(header + bare))
        if line[:3] != b"334":
            return line
        first = unb64(line).decode()
        fields = dict(each.split("=", 1) for each in first.split(","))
        import hashlib

        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without = f"c={b64(header.encode() + binding).decode()},r={fields['r']}"
        said = f"{bare},{first},{without}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), said, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        (line,) = client.say(b64(f"{without},p={b64(proof).decode()}"))
        if line[:3] != b"334":
            return line
        server_signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), said, "sha256")
        self.assertEqual(unb64(line), b"v=" + b64(server_signature))
        return client.say(b"")[0]

    def test_plus(self) -> None:
        """The proof is bound to this connection, so an intermediary cannot use it on another one."""
        self.assertEqual(self.plus(SECRET_OF_BOTH), OK)
        self.assertEqual(self.plus(SECRET_OF_BOTH, password="xyzzy"), INVALID)
        self.assertEqual(self.plus(bytes(32)), INVALID)
        self.assertEqual(self.plus(b""), INVALID)
        self.assertEqual(self.plus(SECRET_OF_BOTH, "p=tls-unique,,"), INVALID)
        self.assertEqual(self.plus(b"", "n,,"), INVALID)
        self.assertEqual(self.plus(b"", "y,,"), INVALID)

    def test_downgrade(self) -> None:
        """If the client believes that the server has no -PLUS variant although it has, someone has changed the
        offer."""
        client = self.bound()
        self.assertEqual(client.say(b"AUTH SCRAM-SHA-256 " + b64("y,,n=user,r=a")), [INVALID])
        client = self.bound(binds=False)
        self.assertEqual(client.say(b"AUTH SCRAM-SHA-256 " + b64("y,,n=user,r=a"))[0][:4], b"334 ")
        self.assertEqual(client.say(b"*")[0][:3], b"501")
        self.assertEqual(client.say(b"AUTH SCRAM-SHA-256 " + b64("p=tls-exporter,,n=user,r=a")), [INVALID])


class SaslprepTests(SynchronousTestCase):
    """SASLprep (RFC 4013)."""

    def test_examples(self) -> None:
        """The examples of RFC 4013 3."""
        for text, prepared in (
            ("I\u00adX", "IX"),
            ("user", "user"),
            ("USER", "USER"),
            ("\u00aa", "a"),
            ("\u2168", "IX"),
        ):
            self.assertEqual(saslprep(text), prepared)
        self.assertRaises(ValueError, saslprep, "\u0007")
        self.assertRaises(ValueError, saslprep, "\u0627\u0031")

    def test_more(self) -> None:
        self.assertEqual(saslprep("a\u00a0b"), "a b")
        self.assertEqual(saslprep(""), "")
        self.assertEqual(saslprep("\u0627\u0628"), "\u0627\u0628")
        for text in ("\u0221", "\u200e", "\ue000", "\ufdd0", "\u0627a\u0628"):
            self.assertRaises(ValueError, saslprep, text)


class OAuthTests(SynchronousTestCase):
    """OAUTHBEARER (RFC 7628) and XOAUTH2."""

    OAUTHBEARER = b"n,a=user@example.com,\1host=server.example.com\1port=587\1auth=Bearer vF9dft4qmT==\1\1"
    XOAUTH2 = b"user=user@example.com\1auth=Bearer vF9dft4qmT==\1\1"

    def client(self, seen: list[Any] | None = None, **options: Any) -> Connection:
        async def validate(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
            if seen is not None:
                seen.append((mechanism, auth_data))
            return AuthResult(success=auth_data.token == "vF9dft4qmT==", auth_data=auth_data.login)

        return Connection(auth_mechanisms=[auth.XOAuth2(validate, **options), auth.OAuthBearer(validate, **options)])

    def test_success(self) -> None:
        for name, message in ((b"OAUTHBEARER", self.OAUTHBEARER), (b"XOAUTH2", self.XOAUTH2)):
            seen: list[Any] = []
            client = self.client(seen)
            self.assertEqual(client.say(b"AUTH " + name + b" " + b64(message)), [OK])
            self.assertEqual(seen, [(name.decode(), BearerToken("user@example.com", "vF9dft4qmT=="))])
            self.assertEqual(client.session.auth_data, "user@example.com")

    def test_failure(self) -> None:
        """The client gets the reason as JSON. Whatever its response is, the attempt has failed (RFC 7628 3.2.2,
        3.2.3)."""
        for name, message, problem in (
            (b"OAUTHBEARER", self.OAUTHBEARER, {"status": "invalid_token", "scope": "mail"}),
            (b"XOAUTH2", self.XOAUTH2, {"status": "401", "schemes": "bearer", "scope": "mail"}),
        ):
            for answer in (b"AQ==", b"", b"*", b"!!"):
                client = self.client(scope="mail")
                (line,) = client.say(b"AUTH " + name + b" " + b64(message.replace(b"vF9", b"xxx")))
                self.assertEqual(json.loads(unb64(line)), problem)
                self.assertEqual(client.say(answer), [INVALID])

    def test_failuresCount(self) -> None:
        """Cancelling after the error message is a failure, too."""
        client = self.client()
        line = b"AUTH XOAUTH2 " + b64(self.XOAUTH2.replace(b"vF9", b"xxx"))
        replies = client.say(line, b"*", line, b"*", line, b"*")
        self.assertEqual([each[:3] for each in replies], [b"334", b"535", b"334", b"535", b"334", b"421"])

    def test_configuration(self) -> None:
        client = Connection(
            auth_mechanisms=[auth.OAuthBearer(lambda *_: False, openid_configuration="https://example.com/.well-known")]
        )
        (line,) = client.say(b"AUTH OAUTHBEARER " + b64(self.OAUTHBEARER))
        self.assertEqual(
            json.loads(unb64(line)),
            {"status": "invalid_token", "openid-configuration": "https://example.com/.well-known"},
        )

    def test_serversAuthenticator(self) -> None:
        """A mechanism without its own authenticator uses the server's."""
        seen: list[Any] = []
        client = Connection(
            authenticator=lambda *arguments: seen.append(arguments[3:]) or True, auth_mechanisms=[auth.XOAuth2()]
        )
        self.assertEqual(client.offered(), b"AUTH LOGIN PLAIN XOAUTH2")
        self.assertEqual(client.say(b"AUTH XOAUTH2 " + b64(self.XOAUTH2)), [OK])
        self.assertEqual(seen[0][0], "XOAUTH2")

    def test_escapes(self) -> None:
        seen: list[Any] = []
        self.client(seen).say(b"AUTH OAUTHBEARER " + b64(b"n,a=a=2Cb=3Dc,\1auth=bearer x\1\1"))
        self.client(seen).say(b"AUTH OAUTHBEARER " + b64(b"n,,\1auth=Bearer x\1\1"))
        self.assertEqual([credentials.login for _, credentials in seen], ["a,b=c", ""])

    def test_scheme(self) -> None:
        """The name of the scheme is case-insensitive (RFC 7235 2.1)."""
        for scheme in (b"BEARER", b"bEaReR"):
            self.assertEqual(
                self.client().say(b"AUTH OAUTHBEARER " + b64(self.OAUTHBEARER.replace(b"Bearer", scheme))), [OK]
            )

    def test_malformed(self) -> None:
        for message in (b"", b"n,,", b"n,,\1\1", b"n,,\1auth=Bearer x\1", b"n,,\1auth=Basic x\1\1",
                        b"n,,\1auth=Bearer\1\1", b"n,,\1auth=Bearer x\1auth=Bearer y\1\1",
                        b"x,,\1auth=Bearer x\1\1", b"n,a=,\1auth=Bearer x\1\1", b"n,,\1auth=Bearer x y\1\1",
                        b"n,,auth=Bearer x\1\1"):  # fmt: skip
            client = self.client()
            client.say(b"AUTH OAUTHBEARER")
            self.assertEqual(client.say(b64(message))[0][:9], b"501 5.5.2", message)
        for message in (b"", b"user=a", b"user=a\1\1", b"auth=Bearer x\1\1", b"user=a\1auth=Bearer \xff\1\1"):
            client = self.client()
            client.say(b"AUTH XOAUTH2")
            self.assertEqual(client.say(b64(message))[0][:9], b"501 5.5.2", message)
        self.assertEqual(self.client().say(b"AUTH XOAUTH2 " + b64(b"user=a\r\n\1auth=Bearer x\1\1")), [INVALID])


class ExternalTests(SynchronousTestCase):
    """EXTERNAL (RFC 4422 appendix A)."""

    def client(self, seen: list[Any]) -> Connection:
        def authenticator(*arguments: Any) -> bool:
            seen.append(arguments[-1])
            return arguments[-1].login in ("", "user")

        client = Connection(auth_mechanisms=[auth.External(authenticator)], auth_require_tls=True)
        client.session.ssl = Tls()
        client.session.ssl.peer_certificate = "a certificate"
        return client

    def test_certificate(self) -> None:
        for word, login, reply in ((b"=", "", OK), (b64("user"), "user", OK), (b64("other"), "other", INVALID)):
            seen: list[Any] = []
            client = self.client(seen)
            self.assertEqual(client.say(b"AUTH EXTERNAL " + word), [reply])
            self.assertEqual(seen, [ClientCertificate(login, "a certificate")])

    def test_withoutCertificate(self) -> None:
        client = self.client([])
        client.session.ssl.peer_certificate = None
        self.assertEqual(client.say(b"AUTH EXTERNAL =")[0][:3], b"504")

    def test_name(self) -> None:
        client = self.client([])
        self.assertEqual(client.say(b"AUTH EXTERNAL"), [b"334 "])
        self.assertEqual(client.say(b64("us\ner")), [INVALID])
