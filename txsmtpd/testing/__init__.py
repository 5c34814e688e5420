"""Tools for tests: a mail catcher, sessions in memory, TLS without setup, transcripts, and fault injection."""

from txsmtpd.faults.replies import read_replies
from txsmtpd.faults.rules import Faults
from txsmtpd.interfaces import verifyHandler
from txsmtpd.observe.transcript import Transcript, Transcripts
from txsmtpd.testing.catcher import MailCatcher
from txsmtpd.testing.dialog import Dialog, DialogError
from txsmtpd.testing.inbox import Inbox, Mail, NoMailArrived, UnexpectedMail
from txsmtpd.testing.memory import MemoryConnection, MemorySession, PretendedTLS
from txsmtpd.testing.printing import talk
from txsmtpd.testing.reporting import attach
from txsmtpd.tls.authority import Authority

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
    "UnexpectedMail",
    "attach",
    "read_replies",
    "talk",
    "verifyHandler",
]
