"""Filters examine mail before a handler gets it.

``SMTPFactory(handler, filters=[...])`` takes objects that provide :class:`~txsmtpd.filters.interfaces.IFilter`: those
in this package, or your own. The engine does not depend on any of them.
"""

from txsmtpd.filters.interfaces import IFilter
from txsmtpd.filters.results import AuthenticationResults, Result, authentication_results, parse_results
from txsmtpd.filters.verdict import ACCEPT, DISCARD, FilterError, Verdict

__all__ = [
    "ACCEPT",
    "DISCARD",
    "AuthenticationResults",
    "FilterError",
    "IFilter",
    "Result",
    "Verdict",
    "authentication_results",
    "parse_results",
]
