"""The actions of SIGHUP, without signals."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.signals import Signals


class ReloadTests(SynchronousTestCase):
    """The log has the beginning of a reload, its end and its result."""

    def signals(self, *reload: Callable[[], Any]) -> Signals:
        signals = Signals(reload=reload, hurry=lambda: None, grace=1.0)
        signals.running = True
        return signals

    def logged(self, *reload: Callable[[], Any]) -> list[str | None]:
        with capturedLogs() as events:
            self.successResultOf(self.signals(*reload).reload())
        return [formatEvent(each) for each in events if each["log_namespace"] == "txsmtpd"]

    def test_waits(self) -> None:
        """It has ended when all Deferreds have fired, and not before."""
        first: Deferred[bool] = Deferred()
        called = []
        with capturedLogs() as events:
            reloaded = self.signals(lambda: first, lambda: called.append("second")).reload()
            self.assertEqual([each["log_format"] for each in events], ["reloading"])
            self.assertEqual(called, [])
            first.callback(True)
            self.successResultOf(reloaded)
        self.assertEqual([each["log_format"] for each in events], ["reloading", "reloaded"])
        self.assertEqual(called, ["second"])

    def test_fails(self) -> None:
        """An error does not prevent the other functions from being called, but the reload has failed. A missing file is
        a line without a traceback."""
        called = []

        def missing() -> None:
            os.stat("no/such/file")

        self.assertEqual(
            self.logged(missing, lambda: False, lambda: called.append("third")),
            ["reloading", "cannot reload: no/such/file: No such file or directory", "the reload failed"],
        )
        self.assertEqual(called, ["third"])

    def test_unexpected(self) -> None:
        """An exception is logged with its traceback."""
        self.assertEqual(self.logged(lambda: 1 / 0), ["reloading", "cannot reload", "the reload failed"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_ends(self) -> None:
        """A reload that ends because the server stops has not failed."""
        first: Deferred[bool] = Deferred()
        signals = self.signals(lambda: first)
        with capturedLogs() as events:
            signals.reload()
            signals.running = False
            first.callback(False)
        self.assertEqual([each["log_format"] for each in events], ["reloading"])
