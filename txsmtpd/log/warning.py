"""Python warnings about values that a program passes to the package. They name a line of the program. With a line of
the package, they would not help, and Python would not show a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings

# Modules whose lines are not the program's.
NOT_PROGRAMS = frozenset(["txsmtpd", "pytest_txsmtpd", "asyncio", "concurrent", "threading", "twisted"])


def warn_program(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line of the program.

    If the stack has no such line, do nothing. This happens when a controller creates its factory again in a thread. The
    program has been warned before.
    """
    frame, level = sys._getframe(1), 2
    while str(frame.f_globals.get("__name__")).partition(".")[0] in NOT_PROGRAMS:
        if frame.f_back is None:
            return
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
