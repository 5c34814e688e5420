"""pytest: code that calls Django's send_mail."""

from email import message_from_bytes, policy

import django
import pytest
from aiosmtpd.controller import Controller
from django.conf import settings
from django.core.mail import send_mail
from django.test import override_settings

settings.configure()
django.setup()


def invite(address):
    """The code under test."""
    send_mail("Welcome", "Hello!", "app@example.com", [address])


class Keeper:
    def __init__(self):
        self.envelopes = []

    async def handle_DATA(self, server, session, envelope):
        self.envelopes.append(envelope)
        return "250 OK"


@pytest.fixture
def keeper():
    keeper = Keeper()
    controller = Controller(keeper, hostname="127.0.0.1", port=8032)
    controller.start()
    yield keeper
    controller.stop()


def test_invite(keeper):
    with override_settings(
        EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend", EMAIL_HOST="127.0.0.1", EMAIL_PORT=8032
    ):
        invite("bob@example.com")
    [envelope] = keeper.envelopes
    message = message_from_bytes(envelope.content, policy=policy.default)
    assert (envelope.rcpt_tos, message["Subject"]) == (["bob@example.com"], "Welcome")
