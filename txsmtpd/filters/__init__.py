"""Filters: what looks at mail before a handler gets it.

``SMTPFactory(handler, filters=[...])`` takes objects that provide :class:`~txsmtpd.filters.interfaces.IFilter`: those
here, and others of your own. The engine knows none of them.
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
