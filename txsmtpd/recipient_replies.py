"""What became of a message for each of its recipients: a reply for each, where the protocol has room for them (LMTP,
RFC 2033 4.2), or one that stands for all, where it has not (SMTP).

A handler may give one status for the whole message, or one for each recipient: a list or tuple in the order of the
recipients, or a mapping by their forward-paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from txsmtpd.reply import FAILED, OK, Reply, parse_status

FOR_EACH = (list, tuple, Mapping)
"""The types of a result that tells of each recipient."""

SHOWN = 10  # recipients that a line of the log names


def replies_for(result: Any, paths: Sequence[str]) -> tuple[list[Reply], list[str]]:
    """The reply for each recipient, and the recipients for whom the result has none.

    Theirs is 451: whether they have the message nobody knows, and to get it twice is better than not at all. If the
    number of statuses is wrong, nobody knows whose they are.

    :param result: one of `FOR_EACH`.
    :param paths: the recipients, in order; one who is named twice counts twice.
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
    """The one reply that stands for all of them, so that no recipient's mail is lost without a word.

    Positive only if all are: what a positive reply has taken on, the client forgets. If one failed for now, the client
    shall try again: some may get the message twice. If some were refused for good and none for now, the sender shall
    hear of it, although others have the message. So it is the refusal with the lowest code; 421, which closes the
    connection, comes before all others.
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
        """Whether somebody gets the message."""
        return any(reply.positive for reply in self.replies)

    def by_reply(self) -> dict[Reply, list[str]]:
        """Each reply once, with the recipients whose it is."""
        whose: dict[Reply, list[str]] = {}
        for recipient, reply in zip(self.recipients, self.replies, strict=True):
            whose.setdefault(reply, []).append(recipient)
        return whose

    def __str__(self) -> str:
        return "; ".join(f"{reply} for {named(recipients)}" for reply, recipients in self.by_reply().items())


def named(paths: Sequence[str], total: int | None = None) -> str:
    """Recipients as a log names them: the first few.

    :param total: how many there are, if these are not all.
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
