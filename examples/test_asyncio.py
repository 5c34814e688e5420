"""pytest: asyncio code that sends mail with aiosmtplib, in the background."""

import asyncio
from email.message import EmailMessage

import aiosmtplib
import pytest


async def invite(address, host, port):
    """The code under test."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "app@example.com", address, "Welcome"
    await aiosmtplib.send(message, hostname=host, port=port)


@pytest.mark.asyncio
async def test_invite(mail_catcher):
    task = asyncio.create_task(invite("bob@example.com", *mail_catcher.address))
    mail = await mail_catcher.next(to="bob@example.com")
    assert mail.subject == "Welcome"
    await task
