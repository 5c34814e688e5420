"""Python warnings about what a program gives to the package. They name the program's line, not one of the package:
otherwise they do not help, and Python does not show a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings

# Modules whose lines are not the program's.
NOT_PROGRAMS = frozenset(["txsmtpd", "pytest_txsmtpd", "asyncio", "concurrent", "threading", "twisted"])


def warn_program(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line of the program. Without one, as in a thread in which a controller makes its
    factory again, the program has been warned already."""
    frame, level = sys._getframe(1), 2
    while str(frame.f_globals.get("__name__")).partition(".")[0] in NOT_PROGRAMS:
        if frame.f_back is None:
            return
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
