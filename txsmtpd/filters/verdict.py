"""What a filter can say about a message, as values; and what it raises when it cannot say anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, Any] = MappingProxyType({})


class FilterError(Exception):
    """A filter could not do its work: the program behind it is down, slow, or talks nonsense."""


class StillDownError(FilterError):
    """A filter failed a moment ago, and was not asked again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter has decided about a message. Handlers find it in ``envelope.filters``, by the filter's name."""

    action: str = "accept"
    """``"accept"``, ``"discard"``, ``"quarantine"``, or ``"failed"``: the filter was down, and lets mail pass then."""

    reason: str = ""
    """Why the message was quarantined, or why the filter failed."""

    score: float | None = None
    """How much the message looks like spam, where the filter tells."""

    symbols: Mapping[str, float] = field(default_factory=dict)
    """The tests that matched, each with its share of the score."""

    headers: tuple[tuple[str, str], ...] = ()
    """Name and value of each header field that the filter has added."""

    details: Any = None
    """Whatever else the filter tells; of rspamd, its whole answer."""


ACCEPT = Verdict()
"""This filter need not see more of the message, or, from ``filter_CONNECT`` and ``filter_HELO``, of the connection."""

DISCARD = Verdict("discard")
"""Take the message from the client, and let nobody have it."""


class Verdicts(dict[str, Verdict]):
    """The verdicts about one message, by the names of the filters.

    :param message_id: this server's name for the message, as filters are told it: the session's id, and a number.
    """

    discarded = False  #: whether a filter wants nobody to have it

    def __init__(self, message_id: str) -> None:
        super().__init__()
        self.message_id = message_id
        self.finished: set[str] = set()
        """The filters that need not see more of the message."""
