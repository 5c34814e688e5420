"""Protocols with something put between: classes of their own, so that ordinary connections have not one step more."""

from __future__ import annotations

from functools import lru_cache

from txsmtpd.smtp import SMTP


class Instrument(SMTP):
    """What instruments have in common."""

    _deaf = False  # nothing that comes is looked at any more, and nothing is said


@lru_cache(maxsize=64)
def instrumented(instrument: type[Instrument], protocol: type[SMTP]) -> type[SMTP]:
    """The protocol's class, with the instrument's overrides before its methods.

    :param instrument: its class, which calls ``super()`` in all that it overrides.
    """
    bases = (instrument,) if protocol is SMTP else (instrument, protocol)
    return type(protocol.__name__, bases, {"__doc__": protocol.__doc__, "__module__": protocol.__module__})
