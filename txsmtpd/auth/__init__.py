"""AUTH (RFC 4954): the exchange with the client, the mechanisms, and the bridge to twisted.cred.

A mechanism exchanges messages with the client and returns credentials. An *authenticator* checks them: any callable
``f(server, session, envelope, mechanism, auth_data)`` that returns an :class:`AuthResult`, True or False, or a
coroutine or a Deferred of one. The command AUTH turns the result into a reply.
"""

from txsmtpd.auth.cram_md5 import CramMD5
from txsmtpd.auth.cred import FirstOf, InThread, NameRealm, PortalAuthenticator
from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.external import ClientCertificate, External
from txsmtpd.auth.login import Login
from txsmtpd.auth.oauth import BearerToken, OAuthBearer, XOAuth2
from txsmtpd.auth.plain import Plain
from txsmtpd.auth.results import (
    MISSING,
    AuthResult,
    ChallengeResponse,
    LoginPassword,
    ProvedLogin,
    auth_mechanism,
    in_thread,
)
from txsmtpd.auth.scram import Scram, ScramKeys

__all__ = [
    "MISSING",
    "AuthResult",
    "BearerToken",
    "ChallengeResponse",
    "ClientCertificate",
    "CramMD5",
    "Exchange",
    "External",
    "FirstOf",
    "InThread",
    "Login",
    "LoginPassword",
    "NameRealm",
    "OAuthBearer",
    "Plain",
    "PortalAuthenticator",
    "ProvedLogin",
    "Scram",
    "ScramKeys",
    "XOAuth2",
    "auth_mechanism",
    "in_thread",
]
