"""FUTURERELEASE (RFC 4865): hold the message until a given time. For submission servers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from txsmtpd.extensions.base import Extension
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope
from txsmtpd.wire.grammar import parse_date_time

_SECONDS = re.compile("[0-9]{1,9}")
NOT_SECONDS = Reply(501, "5.5.4", "HOLDFOR must be seconds, from 1 to 999999999")
NOT_BOTH = Reply(501, "5.5.4", "HOLDFOR and HOLDUNTIL are mutually exclusive")  # RFC 4865 4.2


class FutureRelease(Extension):
    """Sets ``envelope.hold_until``. A time in the past means immediately.

    :param longest: the maximum time in seconds for which the server holds a message.
    :param now: returns the seconds since the epoch.
    """

    keyword = "FUTURERELEASE"
    mail_growth = len(" HOLDUNTIL=2006-01-02T15:04:05.678+00:00")

    def __init__(self, longest: int, now: Callable[[], float] = time.time) -> None:
        if not 1 <= longest <= 999_999_999:
            raise ValueError(f"longest must be seconds, from 1 to 999999999, not {longest!r}")
        self.longest = timedelta(seconds=longest)
        self.now = now

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)

    def parameter(self, server: Any) -> str:
        latest = self._now() + self.longest
        return f"{self.longest // timedelta(seconds=1)} {latest:%Y-%m-%dT%H:%M:%SZ}"

    def hold_for(self, envelope: Envelope, value: str | None) -> None:
        if not _SECONDS.fullmatch(value or "") or not int(value or ""):
            raise Refused(NOT_SECONDS)
        self._hold(envelope, self._now() + timedelta(seconds=int(value or "")))

    def hold_until(self, envelope: Envelope, value: str | None) -> None:
        self._hold(envelope, parse_date_time(value))

    def _hold(self, envelope: Envelope, until: datetime) -> None:
        if envelope.hold_until is not None:
            raise Refused(NOT_BOTH)
        if until > self._now() + self.longest:
            raise Refused(
                Reply(501, "5.5.4", f"Messages are held for at most {self.longest.total_seconds():.0f} seconds")
            )
        envelope.hold_until = until

    mail_parameters = {"HOLDFOR": hold_for, "HOLDUNTIL": hold_until}
