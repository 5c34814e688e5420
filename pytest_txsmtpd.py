"""Fixtures for pytest: mail that the code under test sends.

``mail_catcher`` is a server for one test. ``mail_server`` is one for the whole run, and ``mail_inbox`` what one test
sees of it. Neither Twisted nor txsmtpd is imported before one of them is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

SHARED = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("txsmtpd", "mail that the code under test sends")
    group.addoption(
        "--shared-mail-server",
        action="store_true",
        help="let all workers of pytest-xdist use one mail_server, instead of one each",
    )


@pytest.fixture
def mail_catcher() -> Iterator[Any]:
    """A server that collects what this test sends it: a txsmtpd.testing.MailCatcher that listens."""
    from txsmtpd.testing import MailCatcher

    with MailCatcher() as catcher:
        yield catcher


@pytest.fixture(scope="session")
def mail_server(pytestconfig: pytest.Config) -> Iterator[Any]:
    """One server for all tests of this process, or of all workers; all mail of all of them is there."""
    shared = getattr(pytestconfig, "workerinput", {}).get("txsmtpd")
    if shared is not None:
        from txsmtpd.testing.sharing import Mirror

        mirror = Mirror(*shared)
        yield mirror
        mirror.close()
    else:
        from txsmtpd.testing import MailCatcher

        with MailCatcher() as catcher:
            yield catcher


@pytest.fixture
def mail_inbox(mail_server: Any) -> Any:
    """An inbox on mail_server for this test alone, with a domain of its own: mail_inbox.address("bob")."""
    return mail_server.private_inbox(f"{uuid4().hex[:12]}.test")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of pytest-xdist is about to start: tell it of the server."""
    config = node.config
    if not config.getoption("shared_mail_server"):
        return
    if SHARED not in config.stash:
        from txsmtpd.testing.sharing import Tap

        config.stash[SHARED] = Tap().start()
    node.workerinput["txsmtpd"] = config.stash[SHARED].whereabouts


def pytest_unconfigure(config: pytest.Config) -> None:
    shared = config.stash.get(SHARED, None)
    if shared is not None:
        shared.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show what was said, when the test has failed."""
    report = yield
    if report.when == "call" and report.failed:
        fixtures = getattr(item, "funcargs", {})
        catcher, inbox = fixtures.get("mail_catcher"), fixtures.get("mail_inbox")
        said = [str(each) for each in getattr(catcher, "transcripts", None) or ()]
        if inbox is not None:
            server = getattr(fixtures.get("mail_server"), "transcripts", None) or ()
            said += [text for text in map(str, server) if inbox.domain in text]
        if said:
            report.sections.append(("SMTP: what was said", "\n\n".join(said)))
    return report
