"""Replies to a message for each recipient. LMTP sends one reply for each (RFC 2033 4.2); for SMTP they are combined
into one.

A handler may return one status for the whole message, or one for each recipient: a list or tuple in the order of the
recipients, or a mapping from forward-paths to statuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from txsmtpd.reply import FAILED, OK, Reply, parse_status

FOR_EACH = (list, tuple, Mapping)
"""The types of results with a status for each recipient."""

SHOWN = 10  # the number of recipients listed in one log line


def replies_for(result: Any, paths: Sequence[str]) -> tuple[list[Reply], list[str]]:
    """Return the reply for each recipient, and the recipients for which the result has no status.

    Their reply is 451: it is unknown whether they have the message, and receiving it twice is better than losing it. If
    the number of statuses is wrong, it is unknown which recipient each belongs to, so all get 451.

    :param result: an instance of one of `FOR_EACH`.
    :param paths: the recipients, in order; a recipient named twice counts twice.
    """
    statuses: Iterable[Any]
    if isinstance(result, Mapping):
        statuses = [result.get(path) for path in paths]
    else:
        statuses = result if len(result) == len(paths) else [None] * len(paths)
    replies = [_final(status) for status in statuses]
    missing = [path for path, reply in zip(paths, replies, strict=True) if reply is None]
    return [FAILED if reply is None else reply for reply in replies], missing


def folded(replies: Sequence[Reply]) -> Reply:
    """Combine the replies into one, so that no recipient's mail is lost silently.

    The result is positive only if all replies are, because a client deletes a message after a positive reply.
    Otherwise it is the refusal with the lowest code. So 421, which closes the connection, has precedence over all
    others. After a 4yz the client tries again, so some recipients may get the message twice. After a 5yz the sender
    gets a report, although other recipients have the message.
    """
    refusals = [reply for reply in replies if not reply.positive]
    if refusals:
        return min(refusals, key=lambda reply: reply.code)
    return replies[0] if replies else OK


@dataclass(frozen=True)
class Replies:
    """The replies to one message, one for each recipient that the server has accepted."""

    recipients: Sequence[str]
    replies: Sequence[Reply]

    @property
    def positive(self) -> bool:
        """Return True if at least one recipient gets the message."""
        return any(reply.positive for reply in self.replies)

    def by_reply(self) -> dict[Reply, list[str]]:
        """Return each distinct reply, with the recipients it applies to."""
        whose: dict[Reply, list[str]] = {}
        for recipient, reply in zip(self.recipients, self.replies, strict=True):
            whose.setdefault(reply, []).append(recipient)
        return whose

    def __str__(self) -> str:
        return "; ".join(f"{reply} for {named(recipients)}" for reply, recipients in self.by_reply().items())


def named(paths: Sequence[str], total: int | None = None) -> str:
    """Return the first few recipients as text for the log.

    :param total: the number of recipients, if *paths* has only some of them.
    """
    total = len(paths) if total is None else total
    more = f" and {total - SHOWN} more" if total > SHOWN else ""
    return ", ".join(f"<{path}>" for path in paths[:SHOWN]) + more


def _final(status: Any) -> Reply | None:
    try:
        reply = parse_status(status)
    except (TypeError, ValueError):
        return None
    return None if reply.code // 100 == 3 else reply
