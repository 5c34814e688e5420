"""DELIVERBY (RFC 2852): the time by which the message must be delivered, and what to do if it is late."""

from __future__ import annotations

import re
from typing import Any

from txsmtpd.extensions.base import Extension
from txsmtpd.parameters import DeliverBy as Terms
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope

_BY = re.compile(r"(?P<seconds>[+-]?[0-9]{1,9});(?P<mode>[NRnr])(?P<trace>[Tt])?")
NOT_BY = Reply(501, "5.5.4", "BY must be seconds, a semicolon and N or R, as in BY=3600;R")
IS_OVER = Reply(501, "5.5.4", "BY with R requires a time greater than 0")


class DeliverBy(Extension):
    """Sets ``envelope.deliver_by``.

    :param soonest: the minimum time in seconds that the server accepts; a message that would have to be returned sooner
        is refused. None: the server does not advertise a minimum.
    """

    keyword = "DELIVERBY"
    mail_growth = 17  # RFC 2852 2

    def __init__(self, soonest: int | None = None) -> None:
        if soonest is not None and not 0 <= soonest <= 999_999_999:
            raise ValueError(f"soonest must be seconds, of nine digits at most, not {soonest!r}")
        self.soonest = soonest

    def parameter(self, server: Any) -> str:
        return "" if self.soonest is None else str(self.soonest)

    def by(self, envelope: Envelope, value: str | None) -> None:
        found = _BY.fullmatch(value or "")
        if found is None:
            raise Refused(NOT_BY)
        terms = Terms(int(found["seconds"]), found["mode"] in "Rr", found["trace"] is not None)
        if terms.returns and terms.seconds <= 0:
            raise Refused(IS_OVER)
        if terms.returns and terms.seconds < (self.soonest or 0):
            raise Refused(Reply(555, "5.5.4", f"BY must be at least {self.soonest} seconds"))
        envelope.deliver_by = terms

    mail_parameters = {"BY": by}
