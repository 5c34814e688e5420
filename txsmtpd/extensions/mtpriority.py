"""MT-PRIORITY (RFC 6710): how urgent the message is."""

from __future__ import annotations

import re
from typing import Any

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope

_PRIORITY = re.compile("-?[1-9]|0")
NOT_PRIORITY = Reply(501, "5.5.4", "MT-PRIORITY must be a number from -9 to 9")


class MTPriority(Extension):
    """Sets ``envelope.mt_priority``. ``handle_MAIL`` should decide which clients may set it (RFC 6710 4.1).

    :param profile: the registered name of the server's priority assignment policy, such as ``"MIXER"``.
    """

    keyword = "MT-PRIORITY"
    mail_growth = 15  # RFC 6710 3

    def __init__(self, profile: str | None = None) -> None:
        if profile is not None and not (profile.isascii() and profile.replace("-", "").isalnum()):
            raise ValueError(f"profile must be letters, digits and hyphens, not {profile!r}")
        self.profile = profile

    def parameter(self, server: Any) -> str:
        return self.profile or ""

    def priority(self, envelope: Envelope, value: str | None) -> None:
        if not _PRIORITY.fullmatch(value or ""):
            raise Refused(NOT_PRIORITY)
        envelope.mt_priority = int(value or "")

    mail_parameters = {"MT-PRIORITY": priority}
