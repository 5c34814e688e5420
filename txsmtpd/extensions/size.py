"""SIZE (RFC 1870): the client may declare the size of a message, and the server its limit."""

from __future__ import annotations

from typing import Any

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope
from txsmtpd.wire.grammar import parse_size

TOO_LARGE = Reply(552, "5.3.4", "Message size exceeds the limit")  # RFC 1870 6.1, 6.3


class Size(Extension):
    """:param limit: maximum size of a message in octets; 0: no limit, but clients may declare sizes (RFC 1870 4)."""

    keyword = "SIZE"
    mail_growth = 26

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def parameter(self, server: Any) -> str:
        return str(self.limit)

    def declared(self, envelope: Envelope, value: str | None) -> None:
        if parse_size(value) > self.limit > 0:
            raise Refused(TOO_LARGE)

    mail_parameters = {"SIZE": declared}
