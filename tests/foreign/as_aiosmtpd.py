"""A plugin for pytest under which ``import aiosmtpd`` imports txsmtpd.

To run aiosmtpd's own tests, set the environment variable ``AIOSMTPD_SOURCE`` to the folder of its source: the packages
``tests`` and ``testing`` are imported from there. Then replies are compared by their codes, exceptions and warnings by
their classes, and log records by their levels, because the texts differ. The result of each test, and whether it is a
black-box test, is written to the file that ``AIOSMTPD_RESULTS`` names.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import smtplib
import socket
import ssl
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import txsmtpd
from txsmtpd.wire.grammar import own_host_name

DEFAULT_PORT = 8025
MODULES = ("smtp", "controller", "handlers", "lmtp", "main", "proxy_protocol")

# aiosmtpd's reply codes that are different in txsmtpd: the code, the text with it, and txsmtpd's code. The page "Coming
# from aiosmtpd" lists all of them.
OTHER_CODES = (
    (250, b"Supported commands", 214),
    (250, b"Syntax:", 214),
    (501, b"Supported commands", 504),
    (500, b"Error: (", 451),
    (500, b"Command line too long", 421),
    (500, b"Error: strict ASCII", 550),
    (501, b"Error: SMTPUTF8 disabled", 555),
    (538, b"5.7.11", 502),
    (535, b"5.7.8", 502),
    (502, b"5.5.1 Too many", 421),
)
# Extensions that txsmtpd offers and aiosmtpd does not.
OTHER_KEYWORDS = {b"8BITMIME", b"CHUNKING", b"BINARYMIME", b"PIPELINING", b"ENHANCEDSTATUSCODES"}

results: dict[str, str] = {}
white: dict[str, str] = {}  # tests that are not black-box tests, and the reason
documented: set[str] = set()  # tests in which the server sent a code of OTHER_CODES
current: list[str] = []


def install() -> None:
    """Install txsmtpd under the name aiosmtpd."""
    package: Any = types.ModuleType("aiosmtpd")
    source = os.environ.get("AIOSMTPD_SOURCE")
    package.__path__ = [str(Path(source, "aiosmtpd"))] if source else []
    package.__version__ = txsmtpd.__version__
    sys.modules["aiosmtpd"] = package
    for name in MODULES:
        module = importlib.import_module(f"txsmtpd.{name}")
        sys.modules[f"aiosmtpd.{name}"] = module
        setattr(package, name, module)
    _use_a_free_port()
    if source:
        _use_our_host_name()
        _stand_in(package)
        _compare_by_code()


def _use_our_host_name() -> None:
    """The server's default name is the host's, without a DNS lookup."""
    socket.getfqdn = lambda name="": own_host_name()


def _use_a_free_port() -> None:
    """Another process of this host may use the default port."""
    controller: Any = sys.modules["aiosmtpd.controller"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller.InetMixin.__init__.__defaults__ = (None, port, None)
    # main() uses this port too, and clients connect to the default port.
    bind, connect = controller.InetMixin._bind, smtplib.SMTP.connect

    def bind_free(self: Any, *args: Any) -> Any:
        self._wanted_port = port if self._wanted_port == DEFAULT_PORT else self._wanted_port
        return bind(self, *args)

    controller.InetMixin._bind = bind_free
    # Types are ignored below because mypy does not allow the replacement of functions of other modules.
    smtplib.SMTP.connect = lambda self, host="localhost", number=0, *args, **kwargs: connect(  # type: ignore[method-assign]
        self, host, port if number == DEFAULT_PORT else number, *args, **kwargs
    )


def _stand_in(package: Any) -> None:
    """Modules that the tests import and that txsmtpd does not have."""
    module: Any = types.ModuleType("pkg_resources")  # setuptools does not have it any more
    module.resource_filename = lambda package, name: str(Path(importlib.import_module(package).__path__[0], name))
    sys.modules.setdefault("pkg_resources", module)
    package._get_or_new_eventloop = asyncio.new_event_loop
    main: Any = sys.modules["aiosmtpd.main"]
    main.DEFAULT_CLASS = "aiosmtpd.handlers.Debugging"

    def client_context(server_context: Any) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    controller: Any = sys.modules["aiosmtpd.controller"]
    controller._server_to_client_ssl_ctx = client_context
    controller._FakeServer = None


def _same_code(expected: int, text: bytes, said: int) -> bool:
    if expected == said:
        return True
    found = any(expected == theirs and said == ours and text.startswith(why) for theirs, why, ours in OTHER_CODES)
    if found:
        documented.update(current[-1:])
    return found


class _Said(tuple[Any, ...]):
    """The replies that a client got."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and _same_code(other[0], other[1], self[0])

    def __ne__(self, other: object) -> bool:
        return not self.__eq__(other)

    __hash__ = tuple.__hash__


class _Octets(bytes):
    def __eq__(self, other: object) -> bool:
        if not (isinstance(other, bytes) and self and other):
            return bytes(self) == other
        return _same_code(int(self[:3]), self[4:], int(other[:3]))

    def __ne__(self, other: object) -> bool:
        return not self.__eq__(other)

    __hash__ = bytes.__hash__


class _Lines(list[bytes]):
    """The lines of a reply. A reply to EHLO may have extensions that only this server has."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list):
            return False
        besides = [line for line in self if line not in other]
        if besides and OTHER_KEYWORDS.issuperset(besides):
            documented.update(current[-1:])
            return [line for line in self if line in other] == other
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self.__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # unhashable, as Python spells it


class _Reply(bytes):
    """The text of a reply."""

    def splitlines(self, keepends: bool = False) -> list[bytes]:
        return _Lines(super().splitlines(keepends))


class _Text(str):
    """A text for people: the tests compare whether there is one, but not its words."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and bool(other) == bool(self)

    def __ne__(self, other: object) -> bool:
        return not self.__eq__(other)

    __hash__ = str.__hash__


class _Complaint(_Text):
    """A text for people on standard error."""

    __slots__ = ()

    def __contains__(self, other: object) -> bool:
        return bool(self)

    __hash__ = str.__hash__


class _Raises:
    """A context manager of :func:`pytest.raises`, after which the arguments of the exception are texts."""

    def __init__(self, raises: Any) -> None:
        self.raises = raises

    def __enter__(self) -> Any:
        self.found = self.raises.__enter__()
        return self.found

    def __exit__(self, *exception: Any) -> Any:
        result = self.raises.__exit__(*exception)
        error = self.found.value
        if isinstance(error, TypeError | ValueError):
            error.args = tuple(_Text(each) if isinstance(each, str) else each for each in error.args)
        return result


def _compare_by_code() -> None:
    codes: Any = importlib.import_module("aiosmtpd.testing.statuscodes")
    status, to_bytes = codes.StatusCode, codes.StatusCode.to_bytes
    status.__eq__ = lambda self, other: isinstance(other, tuple) and _same_code(self[0], self[1], other[0])
    status.__ne__ = lambda self, other: not status.__eq__(self, other)
    status.__hash__ = lambda self: hash(self[0])
    status.to_bytes = lambda self, crlf=False: _Octets(to_bytes(self, crlf))
    for name in ("getreply", "docmd", "ehlo", "helo", "help", "data", "login", "quit"):
        setattr(smtplib.SMTP, name, _said(getattr(smtplib.SMTP, name)))
    helpers: Any = importlib.import_module("aiosmtpd.testing.helpers")
    send_recv = helpers.send_recv
    helpers.send_recv = lambda *args, **kwargs: _Octets(send_recv(*args, **kwargs))
    proxy: Any = sys.modules["aiosmtpd.proxy_protocol"]
    with_error = proxy.ProxyData.with_error
    proxy.ProxyData.with_error = lambda self, message: with_error(self, _Text(message))
    handlers: Any = sys.modules["aiosmtpd.handlers"]
    for name in ("Debugging", "Sink", "Mailbox"):
        _say_text(getattr(handlers, name))
    # As above: functions of pytest are replaced.
    warns = pytest.warns
    pytest.warns = lambda *args, match=None, **kwargs: warns(*args, **kwargs)  # type: ignore[assignment]
    raises = pytest.raises
    pytest.raises = lambda *args, match=None, **kwargs: _Raises(raises(*args, **kwargs))  # type: ignore[assignment]
    records = pytest.LogCaptureFixture.record_tuples.fget
    pytest.LogCaptureFixture.record_tuples = property(  # type: ignore[assignment]
        lambda self: [(_Text(name), level, _Text(text)) for name, level, text in records(self)]
    )
    read = pytest.CaptureFixture.readouterr

    def readouterr(self: Any) -> Any:
        said = read(self)
        return said._replace(err=_Complaint(said.err))

    pytest.CaptureFixture.readouterr = readouterr  # type: ignore[method-assign]


def _say_text(handler: Any) -> None:
    """Let a handler's class pass texts to its parser that are not compared."""
    from_cli = handler.from_cli.__func__

    class Parser:
        def __init__(self, parser: Any) -> None:
            self.parser = parser

        def error(self, message: str) -> None:
            self.parser.error(_Text(message))

    handler.from_cli = classmethod(lambda cls, parser, *args: from_cli(cls, Parser(parser), *args))


def _said(method: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        return _Said((result[0], _Reply(result[1]))) if type(result) is tuple else result

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    source = os.environ.get("AIOSMTPD_SOURCE")
    if source:
        import black_box

        white.update(black_box.white_boxes({name_of(item): item for item in items}, Path(source, "aiosmtpd")))


def name_of(item: pytest.Item) -> str:
    """The test's module, class and name."""
    module = getattr(item, "module", None)
    return "::".join([getattr(module, "__name__", "").rpartition(".")[2], *item.nodeid.split("::")[1:]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    current.append(name_of(item))
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = current[-1] if current else report.nodeid
    if report.failed:
        results[name] = "failed"
    elif report.when == "call":
        results.setdefault(name, report.outcome)
    elif report.skipped:
        results[name] = "skipped"


def pytest_sessionfinish() -> None:
    path = os.environ.get("AIOSMTPD_RESULTS")
    if path:
        Path(path).write_text(json.dumps({"results": results, "documented": sorted(documented), "white": white}))


install()
