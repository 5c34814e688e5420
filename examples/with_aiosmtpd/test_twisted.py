"""trial: a Twisted application that sends mail."""

from email import message_from_bytes, policy

from aiosmtpd.controller import Controller
from twisted.mail.smtp import sendmail
from twisted.trial.unittest import TestCase


def invite(address, host, port):
    """The code under test."""
    return sendmail(host, "app@example.com", address, b"Subject: Welcome\n\nHello!\n", port=port)


class Keeper:
    def __init__(self):
        self.envelopes = []

    async def handle_DATA(self, server, session, envelope):
        self.envelopes.append(envelope)
        return "250 OK"


class InviteTests(TestCase):
    def setUp(self):
        self.keeper = Keeper()
        controller = Controller(self.keeper, hostname="127.0.0.1", port=8031)
        controller.start()
        self.addCleanup(controller.stop)

    async def test_invite(self):
        await invite("bob@example.com", "127.0.0.1", 8031)
        [envelope] = self.keeper.envelopes
        self.assertEqual(envelope.rcpt_tos, ["bob@example.com"])
        message = message_from_bytes(envelope.content, policy=policy.default)
        self.assertEqual(message["Subject"], "Welcome")
