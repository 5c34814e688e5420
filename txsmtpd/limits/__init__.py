"""Limits on what a client may do.

Contains rates, tables of bounded size, the network that a client belongs to, the pace of a slow client, the memory of
messages, and stress mode. Only :mod:`~txsmtpd.limits.shared` needs more than the standard library. There are no
transports, replies or options here: the engine asks for decisions, and makes the replies.
"""

from txsmtpd.limits.limiter import KINDS, Limits
from txsmtpd.limits.memory import Memory
from txsmtpd.limits.rate import Rate, Retry

__all__ = ["KINDS", "Limits", "Memory", "Rate", "Retry"]
