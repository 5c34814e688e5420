"""A plugin for pytest: the server of aiosmtplib's tests, changed as the page "Migrating from aiosmtpd" recommends.

Its class overrides methods that have a replacement here, and its mocks use an asyncio transport.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import as_aiosmtpd  # noqa: F401  # replaces the modules first

from txsmtpd import smtp
from txsmtpd.auth import MISSING

REPLACED = ("_getaddr", "_call_handler_hook", "push")  # the last has no replacement


class Writer:
    """The methods of a stream that the mocks use."""

    def __init__(self, transport: Any) -> None:
        self.write = transport.write

    async def drain(self) -> None:
        """All data is written."""


class Ported(smtp.SMTP):
    """The base class of their server."""

    __module__ = "txsmtpd.ported"  # its own methods are not checked

    def __init_subclass__(cls, **arguments: Any) -> None:
        for name in REPLACED:
            if name in vars(cls):
                delattr(cls, name)
        super().__init_subclass__(**arguments)

    def __init__(self, handler: Any, **options: Any) -> None:
        super().__init__(handler, lenient_addresses=True, **options)

    def connectionMade(self) -> None:
        self.transport.close = self.transport.write_eof = self.transport.loseConnection
        super().connectionMade()

    @property
    def _tls_protocol(self) -> Any:
        return self.session.ssl

    @property
    def _writer(self) -> Writer:
        return Writer(self.transport)

    async def smtp_EHLO(self, arg: str) -> Any:
        self.event_handler.record_command("EHLO", arg)
        return await super().smtp_EHLO(arg)

    async def smtp_AUTH(self, arg: str | None) -> Any:
        self.event_handler.record_command("AUTH", arg)
        return await super().smtp_AUTH(arg)

    def call_hook(self, name: str, *arguments: Any, default: Any) -> Any:
        self.event_handler.record_command(name, *arguments)
        return super().call_hook(name, *arguments, default=default)

    async def _call_handler_hook(self, name: str, *arguments: Any) -> Any:
        self.event_handler.record_command(name, *arguments)
        return await self._dispatcher.result_of_hook(name, *arguments) if name in self.settings.hooks else MISSING


module: Any = types.ModuleType("aiosmtpd.smtp")
vars(module).update(vars(smtp), SMTP=Ported)
sys.modules["aiosmtpd.smtp"] = module
