"""Limits the errors, the refusals and the junk commands of a session, after which it is closed.

The counts are attributes of the session's dispatcher; the limits are options (:class:`~txsmtpd.settings.Settings`).
"""

from __future__ import annotations

import math
from typing import Any

from twisted.internet.task import deferLater

from txsmtpd.engine.refusals import NEED_STARTTLS
from txsmtpd.engine.results import Action
from txsmtpd.limits.pace import growing_delay
from txsmtpd.reply import Refused, Reply
from txsmtpd.settings import ERROR_LIMIT

TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, closing connection")
TOO_MUCH_JUNK = Reply(421, "4.7.0", "Too many commands without a mail transaction, closing connection")
PROMPT_ERRORS = 9  # errors whose replies are not delayed
LONGEST_DELAY = 10.0  # seconds
STRESSED_ERRORS = 1  # error_limit in stress mode
STRESSED_JUNK = 4  # junk_command_limit in stress mode; a normal session has EHLO, STARTTLS and another EHLO
ERRORS = frozenset([500, 501, 502, 503, 504, 553, 555])  # replies to mistakes of the client


def count_call(dispatcher: Any, verb: bytes) -> None:
    """Count a command towards the limit of its verb (``command_call_limit``).

    :raises Refused: with 421, if the limit is exceeded.
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
    """Count a command that is not part of a mail transaction (``junk_command_limit``).

    :raises Refused: with 421, if the limit is exceeded.
    """
    dispatcher.junk += 1
    limit = STRESSED_JUNK if dispatcher.connection.timeouts.stressed else dispatcher.server.settings.junk_command_limit
    if limit is not None and dispatcher.junk > limit:
        raise Refused(TOO_MUCH_JUNK)


def count_refusal(dispatcher: Any, reply: Reply) -> Reply:
    """Count a refusal: a mistake of the client towards ``error_limit``, any other towards ``refusal_limit``.

    :return: the reply, or 421 if the limit is reached.
    """
    if reply.code in ERRORS or reply is NEED_STARTTLS or reply is dispatcher.refuse_all:
        dispatcher.errors += 1
    elif reply.code not in (421, 535):  # failures of AUTH are counted separately
        dispatcher.refusals += 1
    else:
        return reply
    limit = STRESSED_ERRORS if dispatcher.connection.timeouts.stressed else dispatcher.server.settings.error_limit
    return TOO_MANY_ERRORS if limit is not None and _errors(dispatcher) >= limit else reply


def _errors(dispatcher: Any) -> float:
    """Return the number of errors, in which a refusal counts as a fraction of an error. A mailing list has a few
    refusals; a client with hundreds is looking for valid recipients."""
    settings = dispatcher.server.settings
    errors: float = dispatcher.errors
    if settings.refusal_limit:
        errors += dispatcher.refusals * (settings.error_limit or ERROR_LIMIT) / settings.refusal_limit
    return errors


def delay_of_refusal(dispatcher: Any) -> float:
    """Return the delay of a refusal in seconds, which grows with the number of errors (``error_delay``).

    It is 0 for clients without limits. It is also 0 in stress mode, because a delay keeps the connection open.
    """
    server = dispatcher.server
    first = server.settings.error_delay
    errors = _errors(dispatcher)
    if errors <= PROMPT_ERRORS or not first or dispatcher.connection.timeouts.stressed:
        return 0.0
    if server.settings.admission.network(server.session.peer) is None:
        return 0.0
    return growing_delay(math.ceil(errors - PROMPT_ERRORS), first, LONGEST_DELAY)


class LateReply(Action):
    """A refusal that was delayed. It was counted and logged before."""

    answers = True

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def act(self, server: Any) -> None:
        server._dispatcher.send_reply(self._reply)


async def delayed(clock: Any, seconds: float, reply: Reply) -> LateReply:
    """Wait, and return the refusal."""
    await deferLater(clock, seconds)
    return LateReply(reply)
