"""The reasons of failures, in one line for the log and for health checks."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure


def reason_of(error: Any) -> str:
    """Return the reason of an exception or a Failure, including nested ones and those of OpenSSL."""
    if isinstance(error, Failure):
        error = error.value
    several = getattr(error, "reasons", None)  # from twisted.web's client
    if several:
        return "; ".join(sorted({reason_of(each) for each in several}))
    if isinstance(error, DeferredTimeout) and len(error.args) == 2:  # those of Deferred.addTimeout, which has no text
        return f"no answer within {error.args[0]:g} seconds"
    if type(error).__module__ == "OpenSSL.SSL" and error.args and isinstance(error.args[0], list):
        return "TLS: " + "; ".join(str(each[-1]) for each in error.args[0])
    text = getattr(error, "reply_text", None) or str(error)  # `reply_text` is pika's
    return " ".join(text.split()) or type(error).__name__
