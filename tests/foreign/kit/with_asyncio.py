"""The fixtures and a catcher together with pytest-asyncio and anyio."""

import asyncio

import anyio
import pytest
from sending import send

from txsmtpd.testing import MailCatcher


@pytest.mark.asyncio
async def test_catcher(mail_catcher):
    """A task can await mail from any sender."""
    waiting = mail_catcher.next()
    await asyncio.to_thread(send, mail_catcher)
    assert (await waiting).subject == "hello"
    send(mail_catcher)
    assert (await mail_catcher.next()).subject == "hello"


@pytest.mark.asyncio
async def test_block():
    """A catcher in an async block serves code that blocks the loop."""
    async with MailCatcher() as catcher:
        send(catcher)
        assert (await catcher.next()).subject == "hello"


@pytest.mark.asyncio
async def test_inTheLoop():
    """listen() serves in the running loop."""
    catcher = MailCatcher().listen()
    await asyncio.to_thread(send, catcher)
    assert (await catcher.next()).subject == "hello"
    await catcher.stop_listening()


@pytest.mark.anyio
async def test_anyio(mail_catcher):
    """The fixture works with any loop of anyio."""
    await anyio.to_thread.run_sync(send, mail_catcher)
    assert mail_catcher.wait().subject == "hello"
