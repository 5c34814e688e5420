"""Sink: accepts all mail and discards it. For tests and measurements."""

from __future__ import annotations

from typing import Any, Self

from zope.interface import implementer

from txsmtpd.interfaces import IDiscardingHandler


@implementer(IDiscardingHandler)
class Sink:
    """Accept every message and discard it."""

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make the handler for the command line, without arguments."""
        if args:
            parser.error(f"{cls.__name__} takes no arguments")
        return cls()
