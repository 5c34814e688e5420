"""8BITMIME (RFC 6152): the message may have non-ASCII octets. The server always accepts them; this advertises it."""

from __future__ import annotations

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope


class EightBitMIME(Extension):
    """8BITMIME (RFC 6152), with the parameter BODY of MAIL."""

    keyword = "8BITMIME"
    mail_growth = 17
    bodies: tuple[str, ...] = ("7BIT", "8BITMIME")

    def body(self, envelope: Envelope, value: str | None) -> str:
        body = value.upper() if value and value.isascii() else ""
        if body not in self.bodies:
            raise Refused(Reply(501, "5.5.4", f"BODY must be one of {', '.join(self.bodies)}"))
        envelope.body = body
        return body

    mail_parameters = {"BODY": body}
