"""PLAIN (RFC 4616): user name and password in one message."""

from __future__ import annotations

from zope.interface import implementer

from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import INVALID, LoginPassword, login_password
from txsmtpd.interfaces import IAuthMechanism
from txsmtpd.reply import Refused, Reply


@implementer(IAuthMechanism)
class Plain:
    """PLAIN. An authorization identity other than the user's own is refused, since nothing here could authorize it."""

    name = "PLAIN"
    credentials = LoginPassword

    async def authenticate(self, exchange: Exchange) -> LoginPassword:
        fields = (await exchange.challenge()).split(b"\0")
        if len(fields) != 3:
            raise Refused(Reply(501, "5.5.2", "PLAIN needs exactly three fields"))
        authzid, login, password = fields
        credentials = login_password(login, password)
        if authzid not in (b"", login):
            raise Refused(INVALID)
        return credentials
