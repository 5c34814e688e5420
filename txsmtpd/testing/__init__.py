"""For tests: a catcher of mail, sessions in memory, TLS with nothing to set up, transcripts, and faults on purpose."""

from txsmtpd.interfaces import verifyHandler
from txsmtpd.testing.catcher import MailCatcher
from txsmtpd.testing.dialog import Dialog, DialogError
from txsmtpd.testing.faults import Faults
from txsmtpd.testing.inbox import Inbox, Mail, NoMailArrived
from txsmtpd.testing.memory import MemoryConnection, MemorySession, PretendedTLS
from txsmtpd.testing.replies import read_replies
from txsmtpd.testing.reporting import attach
from txsmtpd.testing.tls import Authority
from txsmtpd.testing.transcript import Transcript, Transcripts

__all__ = [
    "Authority",
    "Dialog",
    "DialogError",
    "Faults",
    "Inbox",
    "Mail",
    "MailCatcher",
    "MemoryConnection",
    "MemorySession",
    "NoMailArrived",
    "PretendedTLS",
    "Transcript",
    "Transcripts",
    "attach",
    "read_replies",
    "verifyHandler",
]
