"""Fixtures for pytest: mail that the code under test sends.

``mail_catcher`` is a server for one test. ``mail_server`` is a server for the whole run, and ``mail_inbox`` is one
test's part of it. Neither Twisted nor txsmtpd is imported before a test uses one of them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest

SHARED = pytest.StashKey[Any]()
INBOX = pytest.StashKey[Any]()  # the page with the mail of this run
TRANSCRIPTS = pytest.StashKey[list[Callable[[], list[str]]]]()  # functions that return the transcripts of a test


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("txsmtpd", "mail that the code under test sends")
    group.addoption(
        "--shared-mail-server",
        action="store_true",
        help="let all workers of pytest-xdist use one mail_server, instead of one each",
    )

    group.addoption(
        "--mail-inbox",
        type=int,
        metavar="PORT",
        help="show the mail of all tests at http://127.0.0.1:PORT; on a terminal, until Ctrl+C. 0 is any port that is"
        " free. With pytest-xdist, the mail of mail_server, which all workers share then.",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mail_catcher(**options): options of this test's mail_catcher")
    port = config.getoption("mail_inbox")
    if port is None or hasattr(config, "workerinput"):
        return
    try:
        from txsmtpd.testing.served import InboxOfRun

        config.stash[INBOX] = InboxOfRun(port, "127.0.0.1")
    except ImportError as error:
        raise pytest.UsageError(f"--mail-inbox: {error}; pip install 'txsmtpd[inbox]'") from None
    except (OSError, OverflowError) as error:
        raise pytest.UsageError(f"--mail-inbox={port}: {getattr(error, 'strerror', None) or error}") from None
    config.option.shared_mail_server = True


@pytest.fixture
def mail_catcher(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A server that collects the mail of this test: a listening txsmtpd.testing.MailCatcher. Set its options with
    @pytest.mark.mail_catcher(tls="starttls"). With TLS, the environment variable SSL_CERT_FILE is set for this test,
    so that ssl.create_default_context() trusts the server."""
    from txsmtpd.testing import MailCatcher

    marker = request.node.get_closest_marker("mail_catcher")
    with (
        MailCatcher() if marker is None else MailCatcher(*marker.args, **marker.kwargs) as catcher,
        pytest.MonkeyPatch.context() as patch,
    ):
        if catcher.tls:
            patch.setenv("SSL_CERT_FILE", catcher.ca_file)
        _show(request, catcher.said)
        with _in_browser(request, catcher):
            yield catcher


@pytest.fixture(scope="session")
def mail_server(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Any]:
    """A server that collects the mail of all tests of this process, or of all workers."""
    shared = getattr(pytestconfig, "workerinput", {}).get("txsmtpd")
    if shared is not None:
        from txsmtpd.testing.sharing import Mirror

        mirror = Mirror(*shared)
        yield mirror
        mirror.close()
    else:
        from txsmtpd.testing import MailCatcher

        with MailCatcher() as catcher, _in_browser(request, catcher):
            yield catcher


@pytest.fixture
def mail_inbox(request: pytest.FixtureRequest, mail_server: Any) -> Any:
    """An inbox of mail_server for this test only. It has its own domain: mail_inbox.address("bob")."""
    inbox = mail_server.private_inbox(f"{uuid4().hex[:12]}.test")
    _show(request, lambda: mail_server.said(inbox.domain))
    page = request.config.stash.get(INBOX, None)
    if page is not None:
        page.name(inbox.domain, request.node.name)
    return inbox


@contextmanager
def _in_browser(request: pytest.FixtureRequest, catcher: Any) -> Iterator[None]:
    """Show the mail and the transcripts of a catcher on the page of this run."""
    page = request.config.stash.get(INBOX, None)
    if page is None:
        yield
        return
    page.follow(catcher, request.node.name)
    try:
        yield
    finally:
        page.keep(catcher.transcripts)


def _tag_of(name: str) -> str:
    from txsmtpd.testing.served import tag_of

    return tag_of(name)


def _show(request: pytest.FixtureRequest, transcripts: Callable[[], list[str]]) -> None:
    request.node.stash.setdefault(TRANSCRIPTS, []).append(transcripts)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the address of the server to a worker of pytest-xdist before it starts."""
    config = node.config
    if not config.getoption("shared_mail_server"):
        return
    if SHARED not in config.stash:
        from txsmtpd.testing.sharing import SharedCatcher

        config.stash[SHARED] = SharedCatcher().start()
        if INBOX in config.stash:
            config.stash[INBOX].follow(config.stash[SHARED])
    node.workerinput["txsmtpd"] = config.stash[SHARED].mirror_arguments


def pytest_unconfigure(config: pytest.Config) -> None:
    shared = config.stash.get(SHARED, None)
    if shared is not None:
        shared.stop()
    page = config.stash.get(INBOX, None)
    if page is not None:
        if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
            print(f"The mail of this run is at {page.url}; Ctrl+C ends.")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        page.stop()


def pytest_report_header(config: pytest.Config) -> str | None:
    page = config.stash.get(INBOX, None)
    return None if page is None else f"mail of this run: {page.url}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the transcripts if the test or one of its fixtures has failed."""
    report = yield
    if report.failed or report.when == "teardown":
        sources = item.stash.get(TRANSCRIPTS, []) if report.failed else []
        texts = [text for transcripts in sources for text in transcripts()]
        item.stash[TRANSCRIPTS] = []  # show them once
        page = item.config.stash.get(INBOX, None)
        if report.failed and page is not None and page.failed(item.name):
            texts.append(f"The mail of this test: {page.url}/?query=tag:{_tag_of(item.name)}")
        if texts:
            report.sections.append(("SMTP transcripts", "\n\n".join(texts)))
    return report
