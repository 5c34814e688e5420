"""Show what was said when a test fails, with no word of it in the test."""

from __future__ import annotations

import sys
import unittest
from types import FrameType
from typing import Any

from txsmtpd.observe.transcript import Transcripts

# What a result is told when a test has failed; with the number of the argument that is None if it has not.
_BAD_NEWS = {"addError": None, "addFailure": None, "addUnexpectedSuccess": None, "addSubTest": 2}


def attach(testcase: unittest.TestCase, transcripts: Transcripts) -> None:
    """Print the transcripts to standard error once the test has ended, if it has failed: in ``setUp``, in the test, in
    ``tearDown`` or in a cleanup.

    To be called in ``setUp``, or in the test, of a test case of trial or unittest. ``trial -j`` shows nothing of what
    a test prints: there it is in ``_trial_temp/N/err.log``, N being the worker.
    """
    result = _result_of(testcase)
    if result is not None:
        _Report(testcase, transcripts, result)


def _result_of(testcase: unittest.TestCase) -> Any:
    """Who is told how the test goes; None if nobody is."""
    outcome = getattr(testcase, "_outcome", None)
    if outcome is not None:
        return outcome.result
    # A test case of trial does not know its result. But whoever runs it has it at hand.
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_locals.get("self") is testcase and "result" in frame.f_locals:
            return frame.f_locals["result"]
        frame = frame.f_back
    return None


class _Report:
    """Listens to what the result is told until the test has ended.

    Trial tells of much after the last cleanup: of what has failed in ``tearDown`` and in cleanups, of errors that were
    logged, of an unclean reactor.
    """

    def __init__(self, testcase: unittest.TestCase, transcripts: Transcripts, result: Any) -> None:
        self._testcase = testcase
        self._transcripts = transcripts
        self._failed = False
        self._result = result
        self._methods = {name: getattr(result, name) for name in (*_BAD_NEWS, "stopTest") if hasattr(result, name)}
        for name in self._methods:
            setattr(result, name, self._stop if name == "stopTest" else self._listener(name))

    def _listener(self, name: str) -> Any:
        tell, error = self._methods[name], _BAD_NEWS[name]

        def listen(*arguments: Any, **named: Any) -> Any:
            if error is None or arguments[error] is not None:
                self._failed = True
            return tell(*arguments, **named)

        return listen

    def _stop(self, test: Any) -> None:
        for name, method in self._methods.items():
            setattr(self._result, name, method)
        if self._failed and len(self._transcripts):
            print(f"\n{self._testcase.id()}: what was said\n\n{self._transcripts}\n", file=sys.stderr, flush=True)
        self._methods["stopTest"](test)
