"""pytest: code that calls Django's send_mail."""

import django
from django.conf import settings
from django.core.mail import send_mail
from django.test import override_settings

settings.configure()
django.setup()


def invite(address):
    """The code under test."""
    send_mail("Welcome", "Hello!", "app@example.com", [address])


def test_invite(mail_catcher):
    with override_settings(**mail_catcher.django_settings()):
        invite("bob@example.com")
    [mail] = mail_catcher.messages
    assert (mail.rcpt_tos, mail.subject) == (("bob@example.com",), "Welcome")
