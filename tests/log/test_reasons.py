"""The reasons of failures, as the log has them."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.log.reasons import reason_of


class ReasonTests(SynchronousTestCase):
    """What is said about an exception."""

    def test_timeout(self) -> None:
        """A timeout of a Deferred has its time."""
        clock = Clock()
        failure = self.failureResultOf(_late(clock))
        self.assertEqual(reason_of(failure), "no answer within 2.5 seconds")

    def test_nested(self) -> None:
        """Several reasons are named once each; those of OpenSSL without library and function."""
        several = ValueError("several")
        openssl = SSL.Error([("SSL routines", "", "certificate verify failed")])
        several.reasons = [Failure(OSError("gone")), Failure(OSError("gone")), Failure(openssl)]  # type: ignore[attr-defined]  # as Twisted
        self.assertEqual(reason_of(Failure(several)), "TLS: certificate verify failed; gone")

    def test_noText(self) -> None:
        """An exception without text is named by its type; line ends are spaces."""
        self.assertEqual(reason_of(KeyboardInterrupt()), "KeyboardInterrupt")
        self.assertEqual(reason_of(ValueError("two\nlines")), "two lines")


def _late(clock: Clock) -> Deferred[None]:
    waiting: Deferred[None] = Deferred()
    waiting.addTimeout(2.5, clock)
    clock.advance(2.5)
    return waiting
