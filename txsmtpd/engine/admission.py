"""Checks limits for clients, and makes the reply to a client that exceeds one.

:mod:`txsmtpd.limits` makes the decision; this module turns it into a reply.
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

    :return: None if it is allowed; or an awaitable, if the limiter needs time.
    :raises Refused: if it is not allowed now.
    """
    admission = server.settings.admission
    answer = admission.admit(kind, server.session)
    if answer is None:
        admission.admitted[kind] += 1
        return None
    if isinstance(answer, Awaitable):
        return _require_answer(admission, kind, answer)
    admission.refused[kind] += 1
    raise Refused(refusal(kind, answer))


async def _require_answer(admission: Any, kind: str, answer: Awaitable[Retry | None]) -> None:
    retry = await answer
    if retry is not None:
        admission.refused[kind] += 1
        raise Refused(refusal(kind, retry))
    admission.admitted[kind] += 1


def refusal(kind: str, retry: Retry) -> Reply:
    """Return the reply to a client that exceeds a limit."""
    code, status, text = _REFUSALS[kind]
    seconds = seconds_left(retry)
    return Reply(code, status, f"{text}, try again in {seconds} second{'' if seconds == 1 else 's'}")
