"""Limits the errors and the junk commands of a session, after which it is closed.

The counts are attributes of the session's dispatcher; the limits are options (:class:`~txsmtpd.settings.Settings`).
"""

from __future__ import annotations

import math
from typing import Any

from twisted.internet.task import deferLater

from txsmtpd.engine.observer import Action
from txsmtpd.limits.pace import growing_delay
from txsmtpd.reply import Refused, Reply

TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, closing connection")
TOO_MUCH_JUNK = Reply(421, "4.7.0", "Too many commands without a mail transaction, closing connection")
PROMPT_ERRORS = 9  # whose replies do not wait
LONGEST_DELAY = 10.0  # seconds
STRESSED_ERRORS = 1  # in place of error_limit, in stress mode
STRESSED_JUNK = 4  # in place of junk_command_limit: a session has a greeting, STARTTLS and another greeting
ERRORS = frozenset([500, 501, 502, 503, 504, 553, 555])  # what a client has to say otherwise
REFUSAL = 0.1  # of an error: what another refusal counts. A few are normal for a mailing list, hundreds are a harvest


def count_call(dispatcher: Any, verb: bytes) -> None:
    """Count a command, where their number is limited (``command_call_limit``).

    :raises Refused: 421, if it is one too many.
    """
    settings = dispatcher.server.settings
    name = verb.decode("ascii", "replace")
    limit = settings.call_limits.get(name, settings.call_limit_default)
    if dispatcher.calls is None:
        dispatcher.calls = {}
    count = dispatcher.calls[verb] = dispatcher.calls.get(verb, 0) + 1
    if limit is not None and count > limit:
        raise Refused(Reply(421, "4.7.0", f"{name[:20]} sent too many times"))


def count_junk(dispatcher: Any) -> None:
    """Count a junk command, which does not help to deliver mail (``junk_command_limit``).

    :raises Refused: 421, if it is one too many.
    """
    dispatcher.junk += 1
    limit = STRESSED_JUNK if dispatcher.connection.patience.hurried else dispatcher.server.settings.junk_command_limit
    if limit is not None and dispatcher.junk > limit:
        raise Refused(TOO_MUCH_JUNK)


def count_error(dispatcher: Any, reply: Reply, weight: float = 1) -> Reply:
    """Count a refusal (``error_limit``).

    :param weight: as how many errors it counts.
    :return: the reply; or, if the refusal is one too many, 421.
    """
    dispatcher.errors = errors = round(dispatcher.errors + weight, 1)
    limit = STRESSED_ERRORS if dispatcher.connection.patience.hurried else dispatcher.server.settings.error_limit
    return TOO_MANY_ERRORS if limit is not None and errors >= limit else reply


def delay_of_refusal(dispatcher: Any) -> float:
    """Return the delay of a refusal in seconds, which grows with the number of errors (``error_delay``).

    There is none for clients without limits, nor in stress mode, where it would keep connections open.
    """
    server = dispatcher.server
    first = server.settings.error_delay
    if dispatcher.errors <= PROMPT_ERRORS or not first or dispatcher.connection.patience.hurried:
        return 0.0
    if server.settings.admission.network(server.session.peer) is None:
        return 0.0
    return growing_delay(math.ceil(dispatcher.errors - PROMPT_ERRORS), first, LONGEST_DELAY)


class LateReply(Action):
    """A refusal that was delayed. It was counted and logged before."""

    answers = True

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def act(self, server: Any) -> None:
        server._dispatcher.send_reply(self._reply)


async def delayed(clock: Any, seconds: float, reply: Reply) -> LateReply:
    """The refusal, after so many seconds."""
    await deferLater(clock, seconds)
    return LateReply(reply)
