"""Where events go in programs that have a log of their own: :mod:`twisted.logger`."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from txsmtpd.log.events import LEVEL_NAMES, Event

LOGGER = Logger(namespace="txsmtpd")
_LEVELS = {level: LogLevel.levelWithName(name) for level, name in LEVEL_NAMES.items()}


class TwistedSink:
    """Makes an event of :mod:`twisted.logger`: the fields by their names, and ``event`` and ``session``."""

    def emit(self, event: Event, session: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        text = "{session} " + event.text
        if error is None:
            LOGGER.emit(_LEVELS[event.level], text, event=event.name, session=session, **fields)
        else:
            failure = Failure(error, type(error), error.__traceback__)
            LOGGER.failure(text, failure, _LEVELS[event.level], event=event.name, session=session, **fields)


TWISTED = TwistedSink()
