"""unittest: code that sends mail with smtplib."""

import smtplib
import unittest
from email import message_from_bytes, policy

from aiosmtpd.controller import Controller


def invite(address, host, port):
    """The code under test."""
    with smtplib.SMTP(host, port) as client:
        client.sendmail("app@example.com", [address], "Subject: Welcome\n\nHello!\n")


class Keeper:
    def __init__(self):
        self.envelopes = []

    async def handle_DATA(self, server, session, envelope):
        self.envelopes.append(envelope)
        return "250 OK"


class InviteTests(unittest.TestCase):
    def setUp(self):
        self.keeper = Keeper()
        controller = Controller(self.keeper, hostname="127.0.0.1", port=8034)
        controller.start()
        self.addCleanup(controller.stop)

    def test_invite(self):
        invite("bob@example.com", "127.0.0.1", 8034)
        [envelope] = self.keeper.envelopes
        message = message_from_bytes(envelope.content, policy=policy.default)
        self.assertEqual((envelope.rcpt_tos, message["Subject"]), (["bob@example.com"], "Welcome"))
