"""trial: a Twisted application that sends mail."""

from twisted.mail.smtp import sendmail
from twisted.trial.unittest import TestCase

from txsmtpd.testing import MailCatcher


def invite(address, host, port):
    """The code under test."""
    return sendmail(host, "app@example.com", address, b"Subject: Welcome\n\nHello!\n", port=port)


class InviteTests(TestCase):
    def setUp(self):
        self.catcher = MailCatcher.for_test(self)

    async def test_invite(self):
        await invite("bob@example.com", *self.catcher.address)
        mail = await self.catcher.next(to="bob@example.com")
        self.assertEqual(mail.subject, "Welcome")
