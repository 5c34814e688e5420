"""Why something failed, in one line for the log and for health checks."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure


def reason_of(error: Any) -> str:
    """The reason: of an exception or a Failure, also if there are several in one, or OpenSSL's."""
    if isinstance(error, Failure):
        error = error.value
    several = getattr(error, "reasons", None)  # of twisted.web's client
    if several:
        return "; ".join(sorted({reason_of(each) for each in several}))
    if type(error).__module__ == "OpenSSL.SSL" and error.args:
        return "TLS: " + "; ".join(str(each[-1]) for each in error.args[0])
    text = getattr(error, "reply_text", None) or str(error)  # the former is pika's
    return " ".join(text.split()) or type(error).__name__
