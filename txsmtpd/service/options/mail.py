"""Options for the handler and for the server's name."""

from __future__ import annotations

import re

from txsmtpd.interfaces import IFactoryMaker
from txsmtpd.service.handlers import make_handler
from txsmtpd.service.listening import GRACE
from txsmtpd.service.options.table import Chosen, Given, Group, Option, refusing
from txsmtpd.service.options.values import name, seconds, text, yes_or_no
from txsmtpd.service.privileges import server_privileges
from txsmtpd.service.topics import describe_handlers
from txsmtpd.settings import Settings

DEFAULT_HANDLER = "debugging"

OPTIONS = (
    Option(
        name="handler",
        short="H",
        metavar="NAME[:ARGS]",
        help="Handler that receives the mail; see --help-handlers.",
        default=DEFAULT_HANDLER,
    ),
    Option(
        name="hostname",
        metavar="NAME",
        help="Host name in the greeting.",
        default="this host's",
        setting="hostname",
        read=name,
    ),
    Option(
        name="ident",
        metavar="TEXT",
        help="Text after the name in the greeting.",
        default="ESMTP txsmtpd",
        setting="ident",
        read=text,
    ),
    Option(
        name="smtputf8",
        short="u",
        help="Accept addresses and headers in UTF-8 (SMTPUTF8).",
        setting="enable_SMTPUTF8",
        read=yes_or_no,
    ),
    Option(
        name="grace",
        metavar="TIME",
        help="Time for open transactions to finish after SIGTERM.",
        default=f"{GRACE:g}s",
        read=seconds,
    ),
    Option(name="help-handlers", help="List the handlers and exit.", action=lambda: print(describe_handlers())),
)


def read(chosen: Chosen) -> None:
    """Read the options of the whole process."""
    chosen["grace"] = chosen.value("grace", GRACE)


def finish(chosen: Chosen) -> None:
    """Make the handler with the privileges that the server will have."""
    given = chosen.one("handler") or Given("--handler", DEFAULT_HANDLER)
    # Error messages must not quote the password of a URL.
    with refusing(Given(given.where, re.sub(r"(?<=://)[^/@]*@", "***@", given.text))):
        handler = make_handler(given.text, server_privileges(getattr(chosen, "parent", None)))
        Settings.make(handler, chosen.settings)  # finds hooks that cannot be called
        if IFactoryMaker.providedBy(handler) and chosen["lmtp_endpoints"]:
            raise ValueError("it supports only SMTP, not --listen-lmtp")
    chosen["handler"] = handler
    chosen["handler_name"] = given.text


GROUP = Group(title="Mail", options=OPTIONS, read=read, finish=finish)
