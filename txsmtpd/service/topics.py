"""The texts of the help topics: ``--help-handlers``, ``--help-filters``, ``--help-faults`` and ``--help-auth``.

Each is a table of the values that an option can have, with the defaults and units of their own options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from txsmtpd.service.checkers import checker_factories
from txsmtpd.service.columns import two_columns
from txsmtpd.service.filters import BUILT_IN as FILTERS
from txsmtpd.service.handlers import makers

Rows = Iterable[tuple[str, str]]

OWN_CLASS = (
    "package.Class[:ARG...]",
    "Your own class. If it has a class method from_cli(parser, *args), this creates it; otherwise, it gets no ARG.",
)

_PROMISE = (
    ("max-size=SIZE", "Maximum size of a message. [default: amqp 16m, kafka 1000000, webhook 32m]"),
    ("store=URL", "Store large messages there, and send a reference: s3://BUCKET[/PREFIX] or file:/FOLDER."),
    ("inline=SIZE", "With store, the largest message that is sent itself. [default: 1m]"),
    ("in-flight=N", "Maximum number of messages that are not confirmed yet. [default: 1000]"),
    ("memory=SIZE", "Maximum memory for these. [default: 64m, or twice max-size]"),
    ("wait=SECONDS", "Time that a client waits for memory; then it gets 451. [default: 30]"),
    ("confirm-timeout=SECONDS", "Timeout of the confirmation; then the client gets 451. [default: 60]"),
    ("received=yes|no", "Add a Received field. [default: yes]"),
)
_TLS_CLIENT = (
    ("ca=FILE", "Trusted certificate authorities. [default: the system's]"),
    ("certificate=FILE", "Client certificate."),
    ("key=FILE", "Key of the certificate, if it is not in the same file."),
)
HANDLER_OPTIONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "proxy": (
        ("lmtp", "Speak LMTP instead of SMTP."),
        (
            "tls=MODE",
            (
                "opportunistic: STARTTLS if offered, without verification. required: STARTTLS, with verification."
                " implicit: TLS from the start, with verification. never: no TLS. [default: opportunistic; required"
                " with a password; never over a Unix socket]"
            ),
        ),
        ("user=NAME", "User name to log in with."),
        ("password-file=FILE", "File with the password."),
        ("hello=NAME", "Host name in EHLO. [default: that of --hostname]"),
    ),
    "amqp": (
        ("queue=NAME", "Queue to publish to."),
        ("exchange=NAME", "Exchange to publish to, instead of a queue."),
        ("routing-key=TEXT", "Routing key for the exchange. [default: mail. and the recipient's domain, reversed]"),
        ("declare=yes|no", "Create the queue if it does not exist. [default: no]"),
        ("url-file=FILE", "File with the URL, which contains a password; or set TXSMTPD_AMQP_URL."),
        *_TLS_CLIENT,
    ),
    "kafka": (
        ("topic=NAME", "Topic to publish to."),
        ("key=domain|none", "Key of a message: the domain of its first recipient, or none. [default: domain]"),
        ("config=FILE", "Properties of librdkafka, such as security.protocol=SASL_SSL."),
    ),
    "webhook": (
        ("format=NAME", "Format of the requests: raw, json, sendgrid or mailgun. [default: raw]"),
        ("secret-file=FILE", "Secrets to sign the requests with, one on each line."),
        ("timeout=SECONDS", "Timeout of a request. [default: 30]"),
        ("requests=N", "Maximum number of concurrent requests. [default: 50]"),
        ("rcpt=URL", "URL that is asked about each recipient before it is accepted."),
        ("url-file=FILE", "File with the URL; or set TXSMTPD_WEBHOOK_URL."),
        *_TLS_CLIENT,
    ),
}
HANDED_OFF = ("amqp", "kafka", "webhook")  # handlers that have the options of _PROMISE, too

FILTER_OPTIONS = (
    (
        "on-failure=tempfail|accept",
        (
            "While the filter is not available, reject mail temporarily (451, or 421 outside of a transaction), or"
            " accept it without the filter. [default: tempfail]"
        ),
    ),
    ("name=TEXT", "Name of the filter in the log. [default: rspamd or milter]"),
    ("authserv-id=NAME", "Server name in its Authentication-Results fields. [default: that of --hostname]"),
    ("connect-timeout=SECONDS", "Timeout of the connection. [default: rspamd 10, milter 30]"),
    (
        "timeout=SECONDS",
        "Timeout of a reply; of rspamd to a message, of a milter to a command. [default: rspamd 60, milter 30]",
    ),
    ("content-timeout=SECONDS", "milter only: timeout of a reply to a part of a message. [default: 300]"),
    ("password-file=FILE", "rspamd only: file with its password."),
)

_FAULTS = (
    (
        "Stages",
        (
            ("helo, ehlo, mail, rcpt, data, ...", "A command: instead of executing it."),
            ("connect", "A client has connected."),
            ("greeting", "Instead of the greeting."),
            ("message", "A message has arrived, before the handler gets it."),
            ("accepted", "The handler has accepted a message, before the client gets the reply."),
            ("any", "Any command."),
        ),
    ),
    (
        "Conditions",
        (
            ("to=PATTERN", "Recipient; * is a wildcard, as in *@example.com."),
            ("mail-from=PATTERN", "Sender."),
            ("helo=PATTERN", "Host name in HELO or EHLO."),
            ("peer=PATTERN", "Client address, or a network such as 192.0.2.0/24."),
            ("size=OCTETS", "Messages of at least this size."),
        ),
    ),
    (
        "Schedules",
        (
            ("first=N", "The first N times."),
            ("nth=N", "Only the Nth time."),
            ("every=N", "Each Nth time."),
            ("share=P", "At random, with a probability from 0 to 1."),
            ("rate=N/SECONDS", "What exceeds this rate."),
        ),
    ),
    (
        "Effects",
        (
            ("reply=CODE TEXT", "Send this reply. It must be last."),
            ("delay=SECONDS", "Wait. May be combined with another effect."),
            ("slow=OCTETS", "Send the reply at this rate, in octets a second."),
            ("drop", "Close the connection without a reply."),
            ("reset", "Reset the connection."),
            ("half-close", "Close the server's side of the connection."),
            ("stop-reading", "Neither read nor reply."),
            ("garbage", "Send a line that is not a reply."),
            (
                "certificate=KIND",
                (
                    "At starttls or connect: use a certificate that is expired, not-yet-valid, wrong-name or"
                    " unknown-authority, or let the handshake hang: stalled. Or a certificate file."
                ),
            ),
        ),
    ),
)
_CHECKERS = {
    "file": ("file:PATH", "A file with a line NAME:PASSWORD for each user, not hashed."),
    "memory": ("memory:NAME:PASSWORD[:...]", "Users given here; other users of the machine can see the passwords."),
    "unix": ("unix", "The users of this system."),
}


def describe_handlers() -> str:
    """Return the text of ``--help-handlers``."""
    found: list[Any] = sorted(makers().values(), key=lambda maker: str(maker.name))
    lines = ["Values of --handler:", *_table([*((each.usage, each.description) for each in found), OWN_CLASS])]
    for name, rows in HANDLER_OPTIONS.items():
        lines += ["", f"Options of {name}:", *_table(rows)]
    lines += ["", f"Options of {', '.join(HANDED_OFF[:-1])} and {HANDED_OFF[-1]}:", *_table(_PROMISE)]
    lines += ["", "A SIZE may have a unit, such as 64k or 16m. A backslash before a colon makes", "it part of a value."]
    return "\n".join(lines)


def describe_filters() -> str:
    """Return the text of ``--help-filters``."""
    return "\n".join(
        [
            "Values of --filter:",
            *_table([*((each.usage, each.description) for each in FILTERS.values()), OWN_CLASS]),
            "",
            "Options follow after commas, as in rspamd:http://127.0.0.1:11333,timeout=10:",
            *_table(FILTER_OPTIONS),
        ]
    )


def describe_faults() -> str:
    """Return the text of ``--help-faults``."""
    lines = [
        "Values of --fault: STAGE[,STAGE...] [CONDITION...] [SCHEDULE...] EFFECT...",
        "",
        "Examples:",
        "  --fault='rcpt first=2 reply=451 4.7.1 Try again later'",
        "  --fault='rcpt to=*@example.com reply=550 5.1.1 No such user'",
        "  --fault='message every=3 delay=5 drop'",
    ]
    for title, rows in _FAULTS:
        lines += ["", f"{title}:", *_table(rows)]
    return "\n".join([*lines, "", "Only the first rule that applies has an effect."])


def describe_checkers() -> str:
    """Return the text of ``--help-auth``."""
    rows = [
        _CHECKERS.get(each.authType, (f"{each.authType}[:ARGS]", each.argStringFormat)) for each in checker_factories()
    ]
    return "\n".join(
        ["Values of --auth and --web-auth:", *_table(rows), "", "--help-auth-type=TYPE tells more about one of them."]
    )


def _table(rows: Rows) -> list[str]:
    return two_columns((f"  {name}", description) for name, description in rows)
