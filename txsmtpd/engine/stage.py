"""Stages in which a connection does not process commands: waiting for a PROXY header or a TLS handshake."""

from __future__ import annotations

from typing import Protocol


class Stage(Protocol):
    """Receives the events of a connection while it is the connection's ``stage``."""

    def input_ended(self) -> None:
        """The client has closed its side."""

    def connection_lost(self, reason: BaseException) -> None:
        """The connection is lost. The stage may set ``connection.cause`` to a more precise exception."""

    def timed_out(self) -> None:
        """The client has taken too long."""

    def cancel(self) -> None:
        """The server is going to close the connection."""
