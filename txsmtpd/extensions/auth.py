"""AUTH (RFC 4954): which mechanisms a client may use, and what it says about the sender of a message."""

from __future__ import annotations

from typing import Any

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope
from txsmtpd.wire.grammar import decode_xtext

NOT_MAILBOX = Reply(501, "5.5.4", "AUTH needs a mailbox in xtext, or <>")


class Auth(Extension):
    """To believe what some clients say about who sent a message, override :meth:`trusts`."""

    keyword = "AUTH"
    mail_growth = 500  # RFC 4954 3, item 6

    def parameter(self, server: Any) -> str | None:
        return " ".join(server.offered_mechanisms()) or None

    def submitter(self, envelope: Envelope, value: str | None) -> str:
        """RFC 4954 5: the claim of a client that is not trusted counts as ``<>``, nobody in particular."""
        if not value:
            raise Refused(NOT_MAILBOX)
        if value == "<>":
            return value
        # What is hidden in the xtext stays there: programs have taken it for lines of their own.
        return value if self.trusts(envelope, decode_xtext(value)) else "<>"

    def trusts(self, envelope: Envelope, mailbox: str) -> bool:
        """Whether the client is trusted to say that this mailbox has sent the message. By default, none is."""
        return False

    mail_parameters = {"AUTH": submitter}
