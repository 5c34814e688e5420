"""The meaning of HTTP responses for a message, as a table. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from txsmtpd.handoff.outcome import BUSY, TOO_LARGE, UNAVAILABLE, NotTaken, OutcomeUnknown, Unroutable
from txsmtpd.reply import OK, Refused, Reply, parse_status

REFUSED = Reply(550, "5.7.1", "The message was refused")
NO_RECIPIENT = Reply(550, "5.1.1", "No such recipient")

FINAL = {406, 410, 422}
OURS = {400, 401, 403, 404, 405, 415}  # configuration errors: mail must not bounce because of them


@dataclass(frozen=True)
class Answer:
    """A response: its status and the relevant header fields."""

    status: int
    smtp_reply: str | None = None
    retry_after: str | None = None
    location: str | None = None


def reply_to(answer: Answer, refused: Reply = REFUSED) -> Reply:
    """Return the reply for a response: positive, or the application's own reply.

    :param refused: the reply for a rejection without its own text.
    :raises NotTaken: if the application has certainly not taken the message.
    :raises OutcomeUnknown: if it may have taken it.
    """
    status = answer.status
    own = _own_reply(answer)
    if own is not None and (200 <= status < 300 or not own.positive):
        return own
    if 200 <= status < 300:
        if answer.smtp_reply is not None:
            # The application wanted another reply, which may have been a refusal.
            raise Unroutable(f"the receiver has sent an invalid Smtp-Reply: {answer.smtp_reply[:100]!r}")
        return OK
    if status in FINAL:
        raise Refused(refused)
    if status == 413:
        raise Refused(TOO_LARGE)
    if status == 429 or (status == 503 and answer.retry_after is not None):
        raise NotTaken(f"the receiver asks for a pause (HTTP {status})", BUSY)
    if 300 <= status < 400 or status in OURS:
        where = f" to {answer.location}" if answer.location else ""
        raise Unroutable(f"the receiver does not accept mail at this URL (HTTP {status}{where})")
    raise OutcomeUnknown(f"the receiver failed (HTTP {status})", UNAVAILABLE)


def is_failure(answer: Answer) -> bool:
    """Return True if the response means that the application does not work."""
    return answer.status >= 500 and _own_reply(answer) is None


def pause_of(answer: Answer, now: float) -> float | None:
    """Return the seconds until the application accepts requests again (``Retry-After``), or None.

    :param now: seconds since the epoch.
    """
    if answer.status not in (429, 503) or answer.retry_after is None:
        return None
    value = answer.retry_after.strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now, 0.0)


def _own_reply(answer: Answer) -> Reply | None:
    """Return the application's own reply (``Smtp-Reply``) if it is valid: 250 to 252, 4yz or 5yz. Otherwise None.

    421 becomes 451, because it would announce that this server closes the connection.
    """
    if answer.smtp_reply is None:
        return None
    try:
        reply = parse_status(answer.smtp_reply)
    except ValueError:
        return None
    if reply.code == 421:
        return Reply(451, reply.status, reply.lines)
    return reply if 250 <= reply.code <= 252 or 400 <= reply.code <= 559 else None
