"""LOGIN: user name and password in two responses. No RFC defines it, but many clients use it."""

from __future__ import annotations

from zope.interface import implementer

from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import LoginPassword, login_password
from txsmtpd.interfaces import IAuthMechanism


@implementer(IAuthMechanism)
class Login:
    """LOGIN. An initial response is taken for the user name. The server defines the texts of the challenges."""

    name = "LOGIN"
    credentials = LoginPassword

    async def authenticate(self, exchange: Exchange) -> LoginPassword:
        server = exchange.server
        login = await exchange.challenge(server.AuthLoginUsernameChallenge.encode("utf-8"))
        return login_password(login, await exchange.challenge(server.AuthLoginPasswordChallenge.encode("utf-8")))
