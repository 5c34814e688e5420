"""The verdicts of filters about messages, and the exceptions that filters raise when they fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})


class FilterError(Exception):
    """A filter has failed: the program behind it is down, slow, or sends invalid responses."""


class StillDownError(FilterError):
    """A filter failed recently, and was not called again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A filter's decision about a message. Handlers find it in ``envelope.filters``, by the filter's name."""

    action: str = "accept"
    """``"accept"``, ``"discard"``, ``"quarantine"``, or ``"failed"`` (it was down; *on_failure* is ``"accept"``)."""

    reason: str = ""
    """Why the message was quarantined, or why the filter failed."""

    score: float | None = None
    """The spam score, if the filter has one."""

    symbols: Mapping[str, float] = field(default_factory=dict)
    """The tests that matched, with their scores."""

    headers: tuple[tuple[str, str], ...] = ()
    """Names and values of the header fields that the filter added."""

    details: Any = None
    """Further information from the filter; for rspamd, its whole response."""


ACCEPT = Verdict()
"""Do not call this filter again for the message. From ``filter_CONNECT`` and ``filter_HELO``: for the connection."""

DISCARD = Verdict("discard")
"""Accept the message from the client, but drop it."""


class Verdicts(dict[str, Verdict]):
    """The verdicts about one message, by the names of the filters.

    :param message_id: the server's id of the message, as passed to filters: the session's id and a number.
    """

    discarded = False  #: whether a filter discards the message
    over = False  #: whether the filters were notified that the transaction is over

    def __init__(self, message_id: str) -> None:
        super().__init__()
        self.message_id = message_id
        self.finished: set[str] = set()
        """The filters that are not called again for the message."""
