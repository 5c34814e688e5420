"""OAUTHBEARER (RFC 7628) and XOAUTH2: login with a token from an external service.

The application checks the token: with the service, or by its signature.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from zope.interface import implementer

from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import AuthResult, user_name
from txsmtpd.interfaces import IAuthMechanism
from txsmtpd.reply import Refused, Reply

MALFORMED = Reply(501, "5.5.2", "Malformed bearer token")

_BEARER = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)")  # RFC 6750 2.1, RFC 7235 2.1
_GS2_HEADER = re.compile(rb"[ny],(?:a=((?:[^=,]|=2C|=3D)+))?,")  # RFC 5801 4


@dataclass(frozen=True)
class BearerToken:
    """The client's token, and the user name that it gave ("": the token identifies the user)."""

    login: str
    token: str = field(repr=False)


class _Bearer:
    """The common base class: reads a message, calls the authenticator, and explains a failure to the client.

    :param authenticator: checks the :class:`BearerToken`, instead of the server's authenticator.
    :param scope: the required scope, sent to clients whose token is rejected.
    """

    credentials = BearerToken

    def __init__(self, authenticator: Callable[..., Any] | None = None, scope: str | None = None) -> None:
        self.authenticator = authenticator
        self.scope = scope

    def read(self, message: bytes) -> BearerToken:
        raise NotImplementedError

    def problem(self) -> dict[str, str]:
        raise NotImplementedError

    async def authenticate(self, exchange: Exchange) -> AuthResult:
        result = await exchange.decide(self.read(await exchange.challenge()), self.authenticator)
        if not result.success:
            exchange.failed()  # even if the client does not wait for the reason
            scope = {"scope": self.scope} if self.scope else {}
            # The client's response to this is a dummy (RFC 7628 3.2.3). The login has failed anyway.
            with suppress(Refused):
                await exchange.challenge(json.dumps(self.problem() | scope).encode("ascii"))
        return result


@implementer(IAuthMechanism)
class OAuthBearer(_Bearer):
    """OAUTHBEARER (RFC 7628).

    :param authenticator: checks the :class:`BearerToken`, instead of the server's authenticator.
    :param scope: the required scope, sent to clients whose token is rejected.
    :param openid_configuration: the URL where such clients find out how to get a token.
    """

    name = "OAUTHBEARER"

    def __init__(
        self,
        authenticator: Callable[..., Any] | None = None,
        scope: str | None = None,
        openid_configuration: str | None = None,
    ) -> None:
        super().__init__(authenticator, scope)
        self.openid_configuration = openid_configuration

    def read(self, message: bytes) -> BearerToken:
        """Return the token in the client's message (RFC 7628 3.1).

        :raises Refused: with 501 if there is none.
        """
        header, *pairs = message.split(b"\1")
        found = _GS2_HEADER.fullmatch(header)
        if found is None or pairs[-2:] != [b"", b""]:
            raise Refused(MALFORMED)
        name = (found[1] or b"").replace(b"=2C", b",").replace(b"=3D", b"=")
        return BearerToken(user_name(name) if name else "", _token(pairs[:-2]))

    def problem(self) -> dict[str, str]:
        """Return the error data for a rejected token (RFC 7628 3.2.2)."""
        where = {"openid-configuration": self.openid_configuration} if self.openid_configuration else {}
        return {"status": "invalid_token"} | where


@implementer(IAuthMechanism)
class XOAuth2(_Bearer):
    """XOAUTH2, the older form, which no RFC defines.

    :param authenticator: checks the :class:`BearerToken`, instead of the server's authenticator.
    :param scope: the required scope, sent to clients whose token is rejected.
    """

    name = "XOAUTH2"

    def read(self, message: bytes) -> BearerToken:
        """Return the token in the client's message.

        :raises Refused: with 501 if there is none.
        """
        user, *pairs = message.split(b"\1")
        if not user.startswith(b"user=") or pairs[-2:] != [b"", b""]:
            raise Refused(MALFORMED)
        return BearerToken(user_name(user.removeprefix(b"user=")), _token(pairs[:-2]))

    def problem(self) -> dict[str, str]:
        """Return the error data for a rejected token."""
        return {"status": "401", "schemes": "bearer"}


def _token(pairs: list[bytes]) -> str:
    values = [value for key, _, value in (pair.partition(b"=") for pair in pairs) if key == b"auth"]
    found = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    if found is None:
        raise Refused(MALFORMED)
    return found[1].decode("ascii")
