"""How often a client may do what brings no message nearer, until its session ends.

The counts are attributes of the session's dispatcher; the limits are options (:class:`~txsmtpd.settings.Settings`).
"""

from __future__ import annotations

from typing import Any

from txsmtpd.reply import Refused, Reply

TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, goodbye")
TOO_MUCH_JUNK = Reply(421, "4.7.0", "Too many commands without a message, goodbye")
ERRORS = frozenset([500, 501, 502, 503, 504, 553, 555])  # what a client has to say otherwise


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
    """Count a command that brings no message nearer (``junk_command_limit``).

    :raises Refused: 421, if it is one too many.
    """
    dispatcher.junk += 1
    limit = dispatcher.server.settings.junk_command_limit
    if limit is not None and dispatcher.junk > limit:
        raise Refused(TOO_MUCH_JUNK)


def count_error(dispatcher: Any, reply: Reply) -> Reply:
    """Count a refusal (``error_limit``).

    :return: the reply; or, if the refusal is one too many, 421.
    """
    dispatcher.errors += 1
    limit = dispatcher.server.settings.error_limit
    return TOO_MANY_ERRORS if limit is not None and dispatcher.errors >= limit else reply
