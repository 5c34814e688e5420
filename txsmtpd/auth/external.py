"""EXTERNAL (RFC 4422 appendix A): the client has proved by its certificate who it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zope.interface import implementer

from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import AuthResult, user_name
from txsmtpd.interfaces import IAuthMechanism


@dataclass(frozen=True)
class ClientCertificate:
    """A client's certificate, which TLS has verified, and the name that it asks for ("": the certificate's own)."""

    login: str
    certificate: Any


@implementer(IAuthMechanism)
class External:
    """EXTERNAL, offered to clients that have shown a certificate.

    :param authenticator: says whether the certificate may use the name, in place of the server's own; its
        ``auth_data`` is a :class:`ClientCertificate`.
    """

    name = "EXTERNAL"
    credentials = ClientCertificate

    def __init__(self, authenticator: Callable[..., Any] | None = None) -> None:
        self.authenticator = authenticator

    def available(self, session: Any) -> bool:
        """Whether the client has shown a certificate."""
        return getattr(session.ssl, "peer_certificate", None) is not None

    async def authenticate(self, exchange: Exchange) -> AuthResult:
        name = await exchange.challenge()
        credentials = ClientCertificate(user_name(name) if name else "", exchange.session.ssl.peer_certificate)
        return await exchange.decide(credentials, self.authenticator)
