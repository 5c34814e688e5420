"""Stages in which a connection does not process commands: waiting for a PROXY header or a TLS handshake."""

from __future__ import annotations

from typing import Protocol


class Stage(Protocol):
    """Is told, in place of commands, what happens to the connection whose ``stage`` it is."""

    def input_ended(self) -> None:
        """The client has closed its side."""

    def connection_lost(self, reason: BaseException) -> None:
        """The connection is gone. ``connection.cause`` may say why, in place of the reason."""

    def idle(self) -> bool:
        """The client has said nothing for too long; True: the stage has seen to it."""

    def cancel(self) -> None:
        """The connection is going to be closed."""
