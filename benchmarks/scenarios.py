"""The scenarios, one on each line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KB, MB = 1024, 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A load: what the client does, what the server must support, and the main figure."""

    name: str
    title: str
    size: int = KB  #: octets of a message
    sessions: int = 20  #: connections at one time
    first: int = 400  #: messages of the warm-up, from which the number of messages of a run is computed
    recipients: int = 1
    reconnect: bool = False  #: a new connection for each message
    client: Literal["smtp-source", "pipelined", "tls", "tls-handshake", "idle", "many"] = "smtp-source"
    figure: Literal["cpu", "peak", "idle"] = "cpu"
    lmtp: bool = False
    tls: bool = False
    maildir: bool = False
    fsync: bool = True
    messages: int | None = None  #: the number of messages, however long they take; None: computed


SCENARIOS = [
    Scenario(name="reuse", title="1 KB, reused connections"),
    Scenario(name="connect", title="1 KB, new connection each", reconnect=True),
    Scenario(name="pipelined", title="1 KB, pipelined", client="pipelined"),
    Scenario(name="rcpt10", title="1 KB, ten recipients", recipients=10, first=100),
    Scenario(name="100k", title="100 KB", size=100 * KB, sessions=10, first=50),
    Scenario(name="10m", title="10 MB", size=10 * MB, sessions=4, first=4),
    Scenario(name="lmtp", title="LMTP, 1 KB", lmtp=True),
    Scenario(name="tls-handshake", title="TLS handshake", client="tls-handshake", tls=True, sessions=4, first=40),
    Scenario(name="tls", title="TLS, 1 KB", client="tls", tls=True),
    Scenario(name="tls-10m", title="TLS, 10 MB", client="tls", tls=True, size=10 * MB, sessions=4, first=4),
    Scenario(name="maildir", title="Maildir, 4 KB, with fsync", maildir=True, size=4 * KB, first=100),
    Scenario(
        name="maildir-nofsync", title="Maildir, 4 KB, in memory", maildir=True, fsync=False, size=4 * KB, first=100
    ),
    Scenario(name="idle", title="idle connection", client="idle", figure="idle", sessions=5000, messages=5000),
    Scenario(
        name="many",
        title="100 x 10 MB at once, Maildir",
        client="many",
        figure="peak",
        maildir=True,
        size=10 * MB,
        sessions=100,
        messages=100,
    ),
]
