"""The terms on which a client hands a message over: what extensions find in the parameters of MAIL and RCPT.

Values that do not change, which handlers meet as attributes of the envelope. How they are written on the wire, and when
they are refused, is a matter of :mod:`txsmtpd.extensions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class Return(Enum):
    """How much of the message goes back with a report of failure (RFC 3461 4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


class Notify(Enum):
    """When the sender wants a report about a recipient (RFC 3461 4.1). With NEVER, nothing else is wanted."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class OriginalRecipient:
    """Whom the sender meant, whatever became of the address on its way (RFC 3461 4.2)."""

    type: str  #: of the address, in lower case: ``rfc822``, or ``utf-8`` (RFC 6533)
    address: str  #: decoded


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """When the message must have arrived (RFC 2852 4)."""

    seconds: int  #: from MAIL on; less than 0: the time was over before
    returns: bool  #: whether the message goes back if it has not (``R``); otherwise the sender is told (``N``)
    trace: bool = False  #: whether the sender wants to be told of each relay that knows nothing of this (``T``)


@dataclass(frozen=True, slots=True)
class ValidSince:
    """Since when the recipient must have had the mailbox (RFC 7293 3)."""

    when: datetime  #: with a time zone
    or_reject: bool = True  #: whether the message must not be relayed to where this is not known (``R``, not ``C``)


@dataclass(frozen=True, slots=True)
class Recipient:
    """What RCPT said of a recipient, besides the address. None: nothing."""

    notify: frozenset[Notify] | None = None  #: when the sender wants a report (RFC 3461)
    original: OriginalRecipient | None = None  #: whom the sender meant (RFC 3461)
    valid_since: ValidSince | None = None  #: since when the mailbox must have been the recipient's (RFC 7293)


NOTHING_SAID = Recipient()
