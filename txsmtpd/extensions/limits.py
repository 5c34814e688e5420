"""LIMITS (RFC 9422): advertises the limits of connections and messages to clients."""

from __future__ import annotations

from typing import Any

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply

TOO_MANY_MESSAGES = Reply(421, "4.7.0", "Too many messages in this session, open a new one")
TOO_MANY_DOMAINS = Reply(452, "4.5.3", "Too many recipient domains in this session")


class Limits(Extension):
    """Advertises the server's ``recipient_limit`` as RCPTMAX, and enforces two more limits.

    :param mail_max: MAIL commands in a session (MAILMAX); after the last, 421. None: no limit.
    :param rcpt_domain_max: domains of recipients in a session (RCPTDOMAINMAX). None: no limit.
    """

    keyword = "LIMITS"

    def __init__(self, mail_max: int | None = None, rcpt_domain_max: int | None = None) -> None:
        for name, limit in (("mail_max", mail_max), ("rcpt_domain_max", rcpt_domain_max)):
            if limit is not None and not 1 <= limit <= 999_999:  # RFC 9422 4: six digits
                raise ValueError(f"{name} must be a number from 1 to 999999, or None, not {limit!r}")
        self.mail_max = mail_max
        self.rcpt_domain_max = rcpt_domain_max

    def parameter(self, server: Any) -> str | None:
        limits = {
            "MAILMAX": self.mail_max,
            "RCPTMAX": server.settings.recipient_limit,
            "RCPTDOMAINMAX": self.rcpt_domain_max,
        }
        return " ".join(f"{name}={limit}" for name, limit in limits.items() if limit) or None

    def check_mail(self, server: Any, reverse_path: str) -> None:
        server.session.mail_commands += 1
        if self.mail_max is not None and server.session.mail_commands > self.mail_max:
            raise Refused(TOO_MANY_MESSAGES)

    def check_rcpt(self, server: Any, forward_path: str) -> None:
        if self.rcpt_domain_max is None or "@" not in forward_path:
            return
        domains = server.session.rcpt_domains | {forward_path.rpartition("@")[2].lower()}
        if len(domains) > self.rcpt_domain_max:
            raise Refused(TOO_MANY_DOMAINS)
        server.session.rcpt_domains = domains
