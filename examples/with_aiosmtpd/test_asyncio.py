"""pytest: asyncio code that sends mail with aiosmtplib, in the background."""

import asyncio
from email import message_from_bytes, policy
from email.message import EmailMessage

import aiosmtplib
import pytest
from aiosmtpd.controller import Controller


async def invite(address, host, port):
    """The code under test."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "app@example.com", address, "Welcome"
    await aiosmtplib.send(message, hostname=host, port=port)


class Keeper:
    def __init__(self, loop):
        self.loop = loop
        self.arrived = asyncio.Queue()

    async def handle_DATA(self, server, session, envelope):
        self.loop.call_soon_threadsafe(self.arrived.put_nowait, envelope)
        return "250 OK"


@pytest.mark.asyncio
async def test_invite():
    keeper = Keeper(asyncio.get_running_loop())
    controller = Controller(keeper, hostname="127.0.0.1", port=8033)
    controller.start()
    try:
        task = asyncio.create_task(invite("bob@example.com", "127.0.0.1", 8033))
        envelope = await asyncio.wait_for(keeper.arrived.get(), 5)
        assert envelope.rcpt_tos == ["bob@example.com"]
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert message["Subject"] == "Welcome"
        await task
    finally:
        controller.stop()
