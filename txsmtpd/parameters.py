"""The parsed parameters of MAIL and RCPT that extensions define.

They are immutable values; handlers find them as attributes of the envelope. :mod:`txsmtpd.extensions` parses and checks
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class Return(Enum):
    """How much of the message to return with a failure report (RFC 3461 4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


class Notify(Enum):
    """When the sender wants a report about a recipient (RFC 3461 4.1). NEVER cannot be combined with others."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class OriginalRecipient:
    """The recipient as the sender specified it, before any relay changed the address (RFC 3461 4.2)."""

    type: str  #: the address type, in lower case: ``rfc822``, or ``utf-8`` (RFC 6533)
    address: str  #: decoded


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """The time by which the message must be delivered (RFC 2852 4)."""

    seconds: int  #: counted from MAIL; negative if the time is already over
    returns: bool  #: whether a late message is returned (``R``); otherwise the sender is notified (``N``)
    trace: bool = False  #: whether the sender wants a report of each relay that does not support this (``T``)


@dataclass(frozen=True, slots=True)
class ValidSince:
    """The time since which the recipient must have owned the mailbox (RFC 7293 3)."""

    when: datetime  #: with a time zone
    or_reject: bool = True  #: whether servers without this extension must not get the message (``R``, not ``C``)


@dataclass(frozen=True, slots=True)
class Recipient:
    """The parameters of RCPT for a recipient. An attribute is None if the parameter was not given."""

    notify: frozenset[Notify] | None = None  #: when the sender wants a report (RFC 3461)
    original: OriginalRecipient | None = None  #: the recipient that the sender specified (RFC 3461)
    valid_since: ValidSince | None = None  #: since when the recipient must have owned the mailbox (RFC 7293)


NO_PARAMETERS = Recipient()
