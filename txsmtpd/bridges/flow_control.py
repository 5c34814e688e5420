"""Flow control between a connection and the receiver of its octets, as Twisted's push producers have it."""

from __future__ import annotations

from typing import Any


class FlowControl:
    """The part of an :class:`~twisted.internet.interfaces.IConsumer` that pauses its push producer."""

    _producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def _pause(self) -> None:
        if self._producer is not None:
            self._producer.pauseProducing()

    def _resume(self) -> None:
        if self._producer is not None:
            self._producer.resumeProducing()
