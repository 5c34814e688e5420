"""REQUIRETLS (RFC 8689): the message must be relayed only with TLS, and only to verified servers."""

from __future__ import annotations

from typing import Any

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope

NEEDS_TLS = Reply(530, "5.7.0", "REQUIRETLS requires TLS")


class RequireTLS(Extension):
    """Sets ``envelope.require_tls``. Offered and accepted only with TLS."""

    keyword = "REQUIRETLS"
    mail_growth = len(" REQUIRETLS")

    def parameter(self, server: Any) -> str | None:
        return "" if server.session.ssl else None

    def asked(self, envelope: Envelope, value: str | None) -> None:
        if value is not None:
            raise Refused(Reply(501, "5.5.4", "REQUIRETLS takes no value"))
        envelope.require_tls = True

    def check_mail(self, server: Any, reverse_path: str) -> None:
        if server.envelope.require_tls and not server.session.ssl:
            raise Refused(NEEDS_TLS)

    mail_parameters = {"REQUIRETLS": asked}
