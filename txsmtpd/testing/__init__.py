"""For tests: sessions in memory, a catcher of mail, and TLS with nothing to set up."""

from txsmtpd.testing.memory import MemoryConnection, MemorySession, PretendedTLS
from txsmtpd.testing.replies import read_replies

__all__ = ["MemoryConnection", "MemorySession", "PretendedTLS", "read_replies"]
