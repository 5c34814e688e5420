"""Decisions about how much a client may do, as values.

What lives here: rates, tables of bounded size, the network that a client belongs to, the pace of a slow client, the
memory of messages, and stress mode. All but :mod:`~txsmtpd.limits.shared` needs the standard library only. No
transport, no reply and no option: the engine asks, and says what a client is told.
"""

from txsmtpd.limits.limiter import KINDS, Limits
from txsmtpd.limits.memory import Memory
from txsmtpd.limits.rate import Rate, Retry

__all__ = ["KINDS", "Limits", "Memory", "Rate", "Retry"]
