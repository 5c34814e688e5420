"""EXTERNAL (RFC 4422 appendix A): the client authenticates with its TLS certificate."""

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
    """A client's verified certificate, and the user name it requests ("": the name in the certificate)."""

    login: str
    certificate: Any


@implementer(IAuthMechanism)
class External:
    """EXTERNAL, offered to clients with a certificate.

    :param authenticator: checks whether the certificate may use the name, instead of the server's authenticator; its
        ``auth_data`` is a :class:`ClientCertificate`.
    """

    name = "EXTERNAL"
    credentials = ClientCertificate

    def __init__(self, authenticator: Callable[..., Any] | None = None) -> None:
        self.authenticator = authenticator

    def available(self, session: Any) -> bool:
        """Return True if the client has a certificate."""
        return getattr(session.ssl, "peer_certificate", None) is not None

    async def authenticate(self, exchange: Exchange) -> AuthResult:
        name = await exchange.challenge()
        credentials = ClientCertificate(user_name(name) if name else "", exchange.session.ssl.peer_certificate)
        return await exchange.decide(credentials, self.authenticator)
