"""For tests: sessions in memory, a catcher of mail, TLS with nothing to set up, and what was said in each session."""

from txsmtpd.testing.memory import MemoryConnection, MemorySession, PretendedTLS
from txsmtpd.testing.replies import read_replies
from txsmtpd.testing.reporting import attach
from txsmtpd.testing.transcript import Transcript, Transcripts

__all__ = [
    "MemoryConnection",
    "MemorySession",
    "PretendedTLS",
    "Transcript",
    "Transcripts",
    "attach",
    "read_replies",
]
