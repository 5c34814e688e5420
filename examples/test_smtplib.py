"""unittest: code that sends mail with smtplib."""

import smtplib
import unittest

from txsmtpd.testing import MailCatcher


def invite(address, host, port):
    """The code under test."""
    with smtplib.SMTP(host, port) as client:
        client.sendmail("app@example.com", [address], "Subject: Welcome\n\nHello!\n")


class InviteTests(unittest.TestCase):
    def setUp(self):
        self.catcher = MailCatcher.for_test(self)

    def test_invite(self):
        invite("bob@example.com", *self.catcher.address)
        [mail] = self.catcher.messages
        self.assertEqual((mail.rcpt_tos, mail.subject), (("bob@example.com",), "Welcome"))
