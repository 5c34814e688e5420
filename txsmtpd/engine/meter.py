"""Meters count the replies and messages of a session, for metrics.

Without a meter, this costs one comparison with None.
"""

from __future__ import annotations

from typing import Any

from txsmtpd.reply import Reply
from txsmtpd.session import TLSInfo


class Meter:
    """Counts events of one session. Unlike an observer, it does not receive lines and data, so it costs little.
    Override the methods that you need. They must not raise exceptions."""

    __slots__ = ()

    def replied(self, verb: bytes, reply: Reply) -> None:
        """The reply to a command, or the greeting, was sent.

        :param verb: the verb in upper case, even if the command does not exist.
        """

    def decided(self, by: str) -> None:
        """A hook or a filter, and not the server, has decided on the refusal that follows.

        :param by: ``"hook"``, ``"filter"``, or ``"filter_failure"`` for a filter that has failed. If this is called
            several times for one refusal, the first call counts.
        """

    def message_complete(self, octets: int) -> None:
        """A message was received completely. Its reply follows."""

    def tls_started(self, tls: TLSInfo) -> None:
        """A TLS handshake is complete."""

    def closed(self, cause: BaseException) -> None:
        """The connection is closed."""


def report_decider(server: Any, by: str) -> None:
    """Call :meth:`Meter.decided`, if the session has a meter."""
    dispatcher = server._dispatcher
    if dispatcher is not None and dispatcher.meter is not None:
        dispatcher.meter.decided(by)
