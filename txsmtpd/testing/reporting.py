"""Print transcripts when a test fails, without code for it in the test."""

from __future__ import annotations

import sys
import unittest
from types import FrameType
from typing import Any

from txsmtpd.observe.transcript import Transcripts

# Methods of a test result that report failures, with the index of the argument that is None if there is none.
_BAD_NEWS = {"addError": None, "addFailure": None, "addUnexpectedSuccess": None, "addSubTest": 2}


def attach(testcase: unittest.TestCase, transcripts: Transcripts) -> None:
    """Print the transcripts to standard error at the end of the test if it failed in ``setUp``, in the test, in
    ``tearDown`` or in a cleanup.

    Call it in ``setUp`` or in the test, in a test case of trial or unittest. ``trial -j`` does not show the output of
    tests; it writes it to ``_trial_temp/N/err.log``, where N is the worker.
    """
    result = _result_of(testcase)
    if result is not None:
        _Report(testcase, transcripts, result)


def _result_of(testcase: unittest.TestCase) -> Any:
    """Return the result object of the running test, or None."""
    outcome = getattr(testcase, "_outcome", None)
    if outcome is not None:
        return outcome.result
    # A test case of trial has no reference to its result, but the functions that run it do.
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_locals.get("self") is testcase and "result" in frame.f_locals:
            return frame.f_locals["result"]
        frame = frame.f_back
    return None


class _Report:
    """Records the failures reported to the result until the test ends.

    Trial reports some failures after the last cleanup: those in ``tearDown`` and in cleanups, logged errors, and an
    unclean reactor.
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
            print(f"\n{self._testcase.id()}: transcripts\n\n{self._transcripts}\n", file=sys.stderr, flush=True)
        self._methods["stopTest"](test)
