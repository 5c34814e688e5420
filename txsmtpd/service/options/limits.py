"""Options that limit clients: sizes, numbers and times. Each sets an option of Settings or of the factory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from txsmtpd.limits.memory import Memory
from txsmtpd.service.options.table import Chosen, Group, Option, check_setting, refusing
from txsmtpd.service.options.values import count, octets, or_none, seconds, some, some_octets, some_seconds, yes_or_no
from txsmtpd.settings import DATA_SIZE_DEFAULT, Settings


def limit(name: str, metavar: str, read: Callable[[str], Any], help: str) -> Option:
    """Return an option with the name of a setting, with hyphens in place of underscores."""
    return Option(name=name, metavar=metavar, read=read, help=help, setting=name.replace("-", "_").lower())


SIZES = (
    Option(
        name="size",
        short="s",
        metavar="OCTETS",
        help="Maximum size of a message; 0 for no limit.",
        setting="data_size_limit",
        read=octets,
    ),
    limit("command-size-limit", "OCTETS", some_octets, "Maximum length of a command line, without CRLF."),
    limit("line-length-limit", "OCTETS", or_none(some_octets), "Maximum length of a line of a message, with CRLF."),
    limit("header-size-limit", "OCTETS", or_none(some_octets), "Maximum size of the header of a message."),
    limit("local-part-limit", "N", count, "Maximum length of a local part; 0 for no limit."),
    Option(
        name="memory-limit",
        metavar="OCTETS",
        help="Maximum memory for messages, of all listeners together.",
        default="a quarter of the machine's memory",
        read=or_none(octets),
    ),
    limit("buffer-limit", "OCTETS", octets, "Amount of data read ahead while a handler runs."),
)

NUMBERS = (
    Option(
        name="connection-limit",
        metavar="N",
        help="Maximum number of open connections, for each listener.",
        default="what the file descriptors allow",
        read=or_none(some),
    ),
    Option(
        name="connection-limit-per-network",
        metavar="N",
        help="Maximum number of open connections from one network.",
        default="a quarter of connection-limit, at most 50",
        read=or_none(some),
    ),
    Option(
        name="connection-limit-per-host",
        metavar="N",
        help="Maximum number of open connections from one address.",
        default="none",
        read=or_none(some),
    ),
    limit("header-field-limit", "N", or_none(some), "Maximum number of header fields."),
    limit("recipient-limit", "N", or_none(some), "Maximum number of recipients of a message."),
    limit("error-limit", "N", or_none(count), "Errors before the connection is closed."),
    limit("refusal-limit", "N", or_none(count), "Other rejections before the connection is closed."),
    limit(
        "junk-command-limit",
        "N",
        or_none(count),
        "Commands outside of mail transactions before the connection is closed.",
    ),
    limit("batch-limit", "N", some, "Commands executed before other connections are served."),
    limit("command-call-limit", "N", or_none(count), "How often a connection may send each command."),
)

TIMES = (
    Option(
        name="timeout",
        short="t",
        metavar="TIME",
        help="Idle timeout of a client.",
        setting="timeout",
        read=some_seconds,
    ),
    limit("command-timeout", "TIME", or_none(some_seconds), "Timeout from the start of a command line to its end."),
    limit("data-rate-minimum", "OCTETS", or_none(some_octets), "Minimum data rate of a message, in octets a second."),
    limit("session-timeout", "TIME", or_none(some_seconds), "Maximum duration of a connection."),
    limit(
        "error-delay",
        "TIME",
        seconds,
        "Delay of the reply to the tenth error; doubled for each further one, up to 10s.",
    ),
    limit("hook-timeout", "TIME", or_none(some_seconds), "Timeout of a hook of the handler."),
    limit("linger", "TIME", seconds, "Time for the client to read the last replies."),
)

LENIENCE = (
    Option(
        name="bare-newlines",
        help="Accept messages that contain a bare CR or LF.",
        setting="bare_newlines",
        read=yes_or_no,
    ),
    Option(
        name="lenient-addresses",
        help="Accept invalid addresses, such as <webmaster>.",
        setting="lenient_addresses",
        read=yes_or_no,
    ),
)


def read(chosen: Chosen) -> None:
    """Read the limits that the factory enforces."""
    chosen["connection_limit"] = chosen.value("connection-limit", False)  # False: the default; None: no limit
    chosen["connection_limit_per_network"] = chosen.value("connection-limit-per-network", False)
    chosen.settings["memory_limit"] = _memory(chosen)
    chosen["connection_limit_per_host"] = chosen.value("connection-limit-per-host")


def _memory(chosen: Chosen) -> Memory:
    """Return the memory for messages that all listeners share."""
    largest = chosen.settings.get("data_size_limit", DATA_SIZE_DEFAULT)
    given = chosen.one("memory-limit")
    if given is None:
        return Settings(handler=None, data_size_limit=largest).memory
    with refusing(given):
        return check_setting("memory_limit", or_none(octets)(given.text), data_size_limit=largest).memory


GROUP = Group(title="Limits", options=(*SIZES, *NUMBERS, *TIMES, *LENIENCE), read=read)
