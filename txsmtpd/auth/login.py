"""LOGIN: the password as it is, in two answers. No RFC defines it; clients use it all the same."""

from __future__ import annotations

from zope.interface import implementer

from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import LoginPassword, login_password
from txsmtpd.interfaces import IAuthMechanism


@implementer(IAuthMechanism)
class Login:
    """LOGIN. An initial response is taken for the user name. The server has the words of the challenges."""

    name = "LOGIN"
    credentials = LoginPassword

    async def authenticate(self, exchange: Exchange) -> LoginPassword:
        server = exchange.server
        login = await exchange.challenge(server.AuthLoginUsernameChallenge.encode("utf-8"))
        return login_password(login, await exchange.challenge(server.AuthLoginPasswordChallenge.encode("utf-8")))
