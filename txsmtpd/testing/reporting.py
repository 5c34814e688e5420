"""Show what was said when a test fails, with no word of it in the test."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Iterator
from types import FrameType
from typing import Any

from txsmtpd.testing.transcript import Transcripts


def attach(testcase: unittest.TestCase, transcripts: Transcripts) -> None:
    """Print the transcripts to standard error once the test has ended, if it has failed.

    To be called in ``setUp``, or in the test, of a test case of trial or unittest. What shows nothing of a test's
    output, such as ``trial -j``, shows nothing of this either.
    """
    testcase.addCleanup(_report, testcase, transcripts)


def _report(testcase: unittest.TestCase, transcripts: Transcripts) -> None:
    if len(transcripts) and has_failed(testcase):
        print(f"\n{testcase.id()}: what was said\n\n{transcripts}\n", file=sys.stderr, flush=True)


def has_failed(testcase: unittest.TestCase) -> bool:
    """Whether the test has failed. To be asked by a cleanup of the test."""
    return any(_tells_of_failure(result, testcase) for result in _results(testcase))


def _results(testcase: unittest.TestCase) -> Iterator[Any]:
    outcome = getattr(testcase, "_outcome", None)
    if outcome is not None:
        yield outcome.result
        return
    # A test case of trial does not know its result. But whoever runs its cleanups has it at hand.
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_locals.get("self") is testcase and "result" in frame.f_locals:
            yield frame.f_locals["result"]
        frame = frame.f_back


def _tells_of_failure(result: Any, testcase: unittest.TestCase) -> bool:
    result = getattr(result, "original", result)  # what trial has made of a result of unittest's
    if getattr(result, "_excinfo", None):  # pytest's
        return True
    failed = [*getattr(result, "errors", ()), *getattr(result, "failures", ())]
    return any(getattr(test, "test_case", test) is testcase for test, _ in failed)  # a subtest's is its test
