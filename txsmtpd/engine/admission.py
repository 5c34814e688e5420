"""Makes the reply to a client that exceeds a limit. :mod:`txsmtpd.limits` makes the decision."""

from __future__ import annotations

from collections.abc import Awaitable

from txsmtpd.limits.admission import Admission, seconds_left
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


async def require(admission: Admission, kind: str, answer: Retry | Awaitable[Retry | None]) -> None:
    """Refuse what the client wants to do, unless the limiter needs time and then allows it.

    :param answer: what :meth:`~txsmtpd.limits.admission.Admission.admit` has returned. Do not call this for None.
    :raises Refused: if the client exceeds the limit.
    """
    retry = await answer if isinstance(answer, Awaitable) else answer
    if retry is not None:
        admission.refused[kind] += 1
        raise Refused(refusal(kind, retry))
    admission.admitted[kind] += 1


def refusal(kind: str, retry: Retry) -> Reply:
    """Return the reply to a client that exceeds a limit."""
    code, status, text = _REFUSALS[kind]
    seconds = seconds_left(retry)
    return Reply(code, status, f"{text}, try again in {seconds} second{'' if seconds == 1 else 's'}")
