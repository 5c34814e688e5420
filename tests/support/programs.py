"""Programs that tests use: where they are, and what happens to a test if one is missing."""

from __future__ import annotations

import os
import shutil
from unittest import SkipTest

# Servers and their tools are in folders that are only in root's PATH.
FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def program(name: str, package: str) -> str:
    """The path of a program.

    If it is missing, the test is skipped with a message that says what to install. With CI=true, the test fails,
    because CI installs all programs.

    :param package: the Debian package that contains it.
    """
    once()
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{FOLDERS}")
    if path is not None:
        return path
    raise not_here(f"{name} is not installed; on Debian it is in the package {package}")


def once() -> None:
    """Skip a test that real programs or many processes make slow, if ``SMTPD_TESTS`` is ``portable``: such tests run
    with only one Python version."""
    if os.environ.get("SMTPD_TESTS") == "portable":
        raise SkipTest("it runs with one Python only")


def not_here(why: str) -> Exception:
    """Return the exception for a test that cannot be run here: it is skipped, and fails under CI=true."""
    return AssertionError(why) if os.environ.get("CI") else SkipTest(why)
