"""CRAM-MD5 (RFC 2195): the client proves that it knows the password. The server must know the password itself.

For devices that support nothing better.
"""

from __future__ import annotations

import re
import secrets
import time

from zope.interface import implementer

from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import INVALID, ChallengeResponse, user_name
from txsmtpd.interfaces import IAuthMechanism
from txsmtpd.reply import Refused

_ANSWER = re.compile(rb"(.+) ([0-9a-f]{32})", re.DOTALL)


@implementer(IAuthMechanism)
class CramMD5:
    """CRAM-MD5. The credentials are a :class:`~txsmtpd.auth.ChallengeResponse`, which a portal can check if its
    checkers know the passwords."""

    name = "CRAM-MD5"
    credentials = ChallengeResponse

    async def authenticate(self, exchange: Exchange) -> ChallengeResponse:
        exchange.begin()
        challenge = f"<{secrets.token_hex(16)}.{time.time():.0f}@{exchange.server.hostname}>".encode("ascii")
        found = _ANSWER.fullmatch(await exchange.challenge(challenge))
        if found is None:
            raise Refused(INVALID)
        user_name(found[1])
        return ChallengeResponse(found[1], challenge, found[2])
