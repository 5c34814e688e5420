"""SMTPUTF8 (RFC 6531): addresses and the message's header may be UTF-8 if MAIL has the parameter SMTPUTF8."""

from __future__ import annotations

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope


class SMTPUTF8(Extension):
    """SMTPUTF8 (RFC 6531), where *enable_SMTPUTF8* is set."""

    keyword = "SMTPUTF8"
    mail_growth = 10

    def asked(self, envelope: Envelope, value: str | None) -> None:
        if value is not None:
            raise Refused(Reply(501, "5.5.4", "SMTPUTF8 takes no value"))
        envelope.smtp_utf8 = True

    mail_parameters = {"SMTPUTF8": asked}
