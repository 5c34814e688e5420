"""The sink for programs with their own logging: :mod:`twisted.logger`."""

from __future__ import annotations

import traceback
from typing import Any

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from txsmtpd.log.events import LEVEL_NAMES, Event, Recipients
from txsmtpd.log.printable import printable

LOGGER = Logger(namespace="txsmtpd")
_LEVELS = {level: LogLevel.levelWithName(name) for level, name in LEVEL_NAMES.items()}


class TwistedSink:
    """Makes :mod:`twisted.logger` events, with the fields by name, and ``event`` and ``session``."""

    def emit(
        self,
        event: Event,
        session: str | None,
        fields: dict[str, Any],
        error: BaseException | None = None,
        secret: bool = False,
    ) -> None:
        text = event.text if session is None else "{session} " + event.text
        fields = {name: _printable(value) for name, value in fields.items()}  # they may be untrusted
        if error is None:
            LOGGER.emit(_LEVELS[event.level], text, event=event.name, session=session, **fields)
        elif secret:
            LOGGER.error(
                text + ": {type}, whose text may hold a secret, in\n{traceback}",
                event=event.name,
                session=session,
                type=type(error).__qualname__,
                traceback="".join(traceback.format_tb(error.__traceback__)),
                **fields,
            )
        else:
            failure = Failure(error, type(error), error.__traceback__)
            LOGGER.failure(text, failure, _LEVELS[event.level], event=event.name, session=session, **fields)


def _printable(value: Any) -> Any:
    if type(value) is str:
        return printable(value)
    return printable(str(value)) if type(value) is Recipients else value


TWISTED = TwistedSink()
