"""Which parameters of MAIL and RCPT are forwarded to the next server, and which must not be dropped."""

from __future__ import annotations

from collections.abc import Iterable

from txsmtpd.handlers.client import Connection
from txsmtpd.reply import Refused, Reply
from txsmtpd.wire import grammar

NEEDS_8BITMIME = Reply(554, "5.6.3", "The next server does not support 8BITMIME")  # RFC 6152 3
NEEDS_BINARYMIME = Reply(554, "5.6.3", "The next server does not support BINARYMIME")  # RFC 3030 3
NEEDS_SMTPUTF8 = Reply(550, "5.6.7", "The next server does not support SMTPUTF8")  # RFC 6531 3.6
NEEDS_REQUIRETLS = Reply(550, "5.7.30", "The next server does not support REQUIRETLS")  # RFC 8689 5
NEEDS_DELIVERBY = Reply(550, "5.3.3", "The next server does not support DELIVERBY")  # RFC 2852 4
NEEDS_FUTURERELEASE = Reply(550, "5.3.3", "The next server does not support FUTURERELEASE")  # RFC 4865
NEEDS_RRVS = Reply(550, "5.7.19", "The next server does not support RRVS")  # RFC 7293

# The extension that defines a parameter, if it does not have the same name.
CARRIERS = {
    "BODY": "8BITMIME",
    "RET": "DSN",
    "ENVID": "DSN",
    "NOTIFY": "DSN",
    "ORCPT": "DSN",
    "BY": "DELIVERBY",
    "HOLDFOR": "FUTURERELEASE",
    "HOLDUNTIL": "FUTURERELEASE",
}
# Parameters that are refused if the server lacks the extension; the standards allow the others to be dropped.
NEEDED = {
    "SMTPUTF8": NEEDS_SMTPUTF8,
    "REQUIRETLS": NEEDS_REQUIRETLS,
    "HOLDFOR": NEEDS_FUTURERELEASE,
    "HOLDUNTIL": NEEDS_FUTURERELEASE,
}


def with_parameters(command: str, options: Iterable[str], connection: Connection, utf8: bool) -> str:
    """Return the command with those of its parameters that the server supports.

    :param utf8: whether non-ASCII characters are allowed (RFC 6531 3.4).
    :raises Refused: if a required parameter is not supported, or if there are characters that are not allowed.
    """
    words = [command]
    for option in options:
        (keyword, value), *more = grammar.parse_parameters(option).items()
        if more:
            raise ValueError(f"one parameter was expected, not {option!r}")
        if _carries(connection, keyword, value):
            words.append(option)
        elif (needed := _needed(keyword, value)) is not None:
            raise Refused(needed)
    line = " ".join(words)
    if not line.isascii():
        if not utf8:
            raise Refused(NEEDS_SMTPUTF8)
        grammar.decode(line.encode("utf-8", "surrogatepass"))
    return line


def _needed(keyword: str, value: str | None) -> Reply | None:
    """Return the refusal if the parameter is not supported, or None if it may be dropped."""
    value = (value or "").upper()
    if keyword == "BODY" and value == "BINARYMIME":
        return NEEDS_BINARYMIME
    if keyword == "BY" and ";R" in value:  # the sender wants the message returned; with N only a notification
        return NEEDS_DELIVERBY
    if keyword == "RRVS" and not value.endswith(";C"):
        return NEEDS_RRVS
    return NEEDED.get(keyword)


def _carries(connection: Connection, keyword: str, value: str | None) -> bool:
    extensions = connection.extensions
    if keyword == "BODY" and (value or "").upper() == "BINARYMIME":
        return "BINARYMIME" in extensions and "CHUNKING" in extensions
    if keyword == "REQUIRETLS" and not connection.verified:
        return False
    return CARRIERS.get(keyword, keyword) in extensions
