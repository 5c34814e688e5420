"""Whether a client may go on, as the engine asks it, and what a client is told that may not.

The decision is in :mod:`txsmtpd.limits`; here it becomes a reply.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from txsmtpd.limits.admission import seconds_left
from txsmtpd.limits.limiter import AUTH
from txsmtpd.limits.rate import Retry
from txsmtpd.reply import Refused, Reply

TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections, try again later")
_REFUSALS = {
    "connections": (421, "4.7.0", "Too many connections from your network"),
    "messages": (450, "4.7.1", "Too many messages"),
    "recipients": (450, "4.7.1", "Too many recipients"),
    "tls": (454, "4.7.0", "Too many TLS sessions"),
    AUTH: (454, "4.7.0", "Too many failed authentications from your network"),
}


def require(server: Any, kind: str) -> Awaitable[None] | None:
    """Count something that the client does.

    :return: None if it may do it; or what to wait for, if the limiter takes its time.
    :raises Refused: if it may not do it now.
    """
    admission = server.settings.admission
    answer = admission.admit(kind, server.session)
    if isinstance(answer, Awaitable):
        return _required(admission, kind, answer)
    admission.note(kind, answer)
    if answer is not None:
        raise Refused(refusal(kind, answer))
    return None


async def _required(admission: Any, kind: str, answer: Awaitable[Retry | None]) -> None:
    retry = await answer
    admission.note(kind, retry)
    if retry is not None:
        raise Refused(refusal(kind, retry))


def refusal(kind: str, retry: Retry) -> Reply:
    """What a client is told that may not do something now."""
    code, status, text = _REFUSALS[kind]
    seconds = seconds_left(retry)
    return Reply(code, status, f"{text}, try again in {seconds} second{'' if seconds == 1 else 's'}")
