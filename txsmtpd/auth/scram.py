"""SCRAM (RFC 5802, RFC 7677): both sides prove that they know the password, without sending it.

The server stores keys derived from the password, never the password itself. The -PLUS variants bind the proof to the
TLS connection (``tls-exporter``, RFC 9266), so that an intermediary cannot relay it.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zope.interface import implementer

from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import INVALID, AuthResult, ProvedLogin, user_name
from txsmtpd.auth.saslprep import saslprep
from txsmtpd.interfaces import IAuthMechanism
from txsmtpd.reply import Refused, Reply

MALFORMED = Reply(501, "5.5.2", "Malformed SCRAM message")
HASHES = {"SHA-1": "sha1", "SHA-256": "sha256", "SHA-512": "sha512"}
ITERATIONS = 4096  # RFC 7677 4: at least
_SECRET = secrets.token_bytes(32)  # the default secret of this process

# RFC 5802 7: the parts that are used.
_NONCE = r"[!-+\--~]+"
_NAME = r"(?:[^\x00=,]|=2C|=3D)+"
_EXTENSIONS = r"(?:,[A-Za-z]=[^\x00,]+)*"
_CLIENT_FIRST = re.compile(
    rf"(?P<header>(?P<flag>n|y|p=(?P<type>[A-Za-z0-9.-]+)),(?:a=(?P<authzid>{_NAME}))?,)"
    rf"(?P<bare>n=(?P<name>{_NAME}),r=(?P<nonce>{_NONCE}){_EXTENSIONS})",
)
_CLIENT_FINAL = re.compile(
    rf"(?P<bare>c=(?P<binding>[A-Za-z0-9+/=]+),r=(?P<nonce>{_NONCE}){_EXTENSIONS}),p=(?P<proof>[A-Za-z0-9+/=]+)"
)


@dataclass(frozen=True)
class ScramKeys:
    """The keys that a server stores for a password, for one hash function."""

    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @classmethod
    def of(
        cls, password: str, hash_name: str = "SHA-256", salt: bytes | None = None, iterations: int = ITERATIONS
    ) -> ScramKeys:
        """Derive the keys from a password. This takes a while; call it when a password is set.

        :param hash_name: ``"SHA-1"``, ``"SHA-256"`` or ``"SHA-512"``.
        :raises ValueError: if the password has characters that SASLprep does not allow.
        """
        digest = HASHES[hash_name]
        salt = secrets.token_bytes(16) if salt is None else salt
        salted = hashlib.pbkdf2_hmac(digest, saslprep(password).encode("utf-8"), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", digest)
        stored_key = hashlib.new(digest, client_key).digest()
        return cls(salt, iterations, stored_key, hmac.digest(salted, b"Server Key", digest))


class _First(NamedTuple):
    """The client's first message."""

    header: str
    bare: str
    flag: str
    login: str
    nonce: str


@implementer(IAuthMechanism)
class Scram:
    """One mechanism of the SCRAM family.

    :param hash_name: ``"SHA-1"``, ``"SHA-256"`` or ``"SHA-512"``.
    :param lookup: returns the :class:`ScramKeys` of a user name, or None; directly, as a coroutine or as a Deferred.
    :param plus: True for the -PLUS variant, which needs TLS 1.3.
    :param authenticator: makes the final decision about the :class:`~txsmtpd.auth.ProvedLogin`; None: the proof is
        enough.
    :param iterations: the number of iterations that most users have, sent for users that do not exist.
    :param secret: secret random bytes for the salts that are sent for users that do not exist. They must be the same
        for all processes of a service and after each restart. Otherwise these salts change, which reveals that the user
        does not exist.
    """

    def __init__(
        self,
        hash_name: str,
        lookup: Callable[[str], Any],
        *,
        plus: bool = False,
        authenticator: Callable[..., Any] | None = None,
        iterations: int = ITERATIONS,
        secret: bytes | None = None,
        make_nonce: Callable[[], str] = secrets.token_urlsafe,
    ) -> None:
        if secret is not None and (not isinstance(secret, bytes) or len(secret) < 16):
            raise ValueError("secret must be at least 16 octets")
        self.name = f"SCRAM-{hash_name}-PLUS" if plus else f"SCRAM-{hash_name}"
        self.digest = HASHES[hash_name]
        self.lookup = lookup
        self.plus = plus
        self.authenticator = authenticator
        self.iterations = iterations
        self.make_nonce = make_nonce
        self._secret = _SECRET if secret is None else secret

    def available(self, session: Any) -> bool:
        """Return True if the client's connection meets the requirements of the -PLUS variant."""
        return not self.plus or getattr(session.ssl, "binds", False)

    async def authenticate(self, exchange: Exchange) -> AuthResult:
        first = self._first(exchange, _text(await exchange.challenge()))
        exchange.login = first.login
        keys = exchange.server.settings.in_asyncio(self.lookup)(first.login)
        if isinstance(keys, Awaitable):
            keys = await keys
        known = keys is not None
        if keys is None:
            keys = self._fake_keys(first.login)
        nonce = first.nonce + self.make_nonce()
        server_first = f"r={nonce},s={b64encode(keys.salt).decode()},i={keys.iterations}"

        final = _CLIENT_FINAL.fullmatch(_text(await exchange.challenge(server_first.encode())))
        if final is None:
            raise Refused(MALFORMED)
        binding = first.header.encode() + (channel_binding(exchange.server) if self.plus else b"")
        said = f"{first.bare},{server_first},{final['bare']}".encode()
        good = (
            hmac.compare_digest(_decoded(final["binding"]), binding)
            & hmac.compare_digest(final["nonce"], nonce)
            & self._proves(_decoded(final["proof"]), keys.stored_key, said)
        )
        if not (good and known):
            raise Refused(INVALID)

        login = ProvedLogin(first.login)
        result = AuthResult(success=True, auth_data=login)
        if self.authenticator is not None:
            result = await exchange.decide(login, self.authenticator)
        if result.success:
            signature = hmac.digest(keys.server_key, said, self.digest)
            if await exchange.challenge(b"v=" + b64encode(signature)):
                raise Refused(MALFORMED)  # RFC 4954 4: the response to the last message is empty
        return result

    def _first(self, exchange: Exchange, message: str) -> _First:
        found = _CLIENT_FIRST.fullmatch(message)
        if found is None:
            raise Refused(MALFORMED)
        login = _name(found["name"])
        if found["authzid"] is not None and _name(found["authzid"]) != login:
            raise Refused(INVALID)
        flag = found["flag"]
        if self.plus:
            if found["type"] != "tls-exporter":
                raise Refused(INVALID)
        elif flag != "n" and (flag != "y" or f"{self.name}-PLUS" in exchange.server._offered_mechanisms()):
            # "y": the client supports binding, but thinks that we do not. If we do, an attacker has changed our offer.
            raise Refused(INVALID)
        return _First(found["header"], found["bare"], flag, login, found["nonce"])

    def _fake_keys(self, login: str) -> ScramKeys:
        """Return keys that match no password, with a constant salt, so that they do not reveal which users exist."""
        salt = hmac.digest(self._secret, f"{self.digest} {login}".encode(), "sha256")[:16]
        size = hashlib.new(self.digest).digest_size
        return ScramKeys(salt, self.iterations, secrets.token_bytes(size), secrets.token_bytes(size))

    def _proves(self, proof: bytes, stored_key: bytes, said: bytes) -> bool:
        signature = hmac.digest(stored_key, said, self.digest)
        if len(proof) != len(signature):
            return False
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        return hmac.compare_digest(hashlib.new(self.digest, client_key).digest(), stored_key)


def channel_binding(server: Any) -> bytes:
    """Return the channel binding data of the TLS connection (RFC 9266 2)."""
    binding: bytes = server.transport.getHandle().export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
    return binding


def _text(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(MALFORMED) from None


def _name(escaped: str) -> str:
    try:
        name = saslprep(escaped.replace("=2C", ",").replace("=3D", "="))
    except ValueError:
        raise Refused(INVALID) from None
    return user_name(name.encode("utf-8"))


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except binascii.Error:
        raise Refused(MALFORMED) from None
