"""The text of ``--help``, and suggestions for unknown options and variables."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from txsmtpd.service.columns import two_columns, width
from txsmtpd.service.handlers import VARIABLES
from txsmtpd.service.options.table import Group, Option, variable_of
from txsmtpd.settings import Settings

# Names of options of other servers, and the option to use here.
_ELSEWHERE = {
    "port": "--listen=tcp:PORT",
    "p": "--listen=tcp:PORT",
    "host": "--listen=HOST:PORT",
    "bind": "--listen=HOST:PORT",
    "address": "--listen=HOST:PORT",
    "smtp": "--listen=HOST:PORT",
    "class": "--handler=package.Class",
    "maildir": "--handler=mailbox:DIR",
    "max-size": "--size=10MB",
    "data-size-limit": "--size=10MB",
    "cert": "--tls=CERT:KEY",
    "certificate": "--tls=CERT:KEY",
    "key": "--tls=CERT:KEY",
    "ssl": "--tls=CERT:KEY",
    "starttls": "--tls=CERT:KEY",
    "tls-cert": "--tls=CERT:KEY",
    "tls-key": "--tls=CERT:KEY",
    "tlscert": "--tls=CERT:KEY",
    "tlskey": "--tls=CERT:KEY",
    "smtps": "--listen-tls=HOST:PORT",
    "log": "--log-file=FILE",
    "verbose": "--log-level=debug",
    "debug": "--log-level=debug",
}
_EXAMPLES = (
    ("txsmtpd --handler=inbox", "Show mail in a browser: http://127.0.0.1:8025/. SMTP is on port 1025."),
    ("txsmtpd --handler=mailbox:mail", "Store mail in the Maildir mail."),
    ("txsmtpd --listen=localhost:1025", "Print mail that arrives on port 1025."),
    ("txsmtpd --listen=tcp:25 --handler=proxy:mx.internal:25", "Relay mail to another server."),
)
_TOPICS = (
    ("--help-handlers", "Where mail can go: values of --handler and their options."),
    ("--help-filters", "rspamd, milters: values of --filter."),
    ("--help-auth", "Password checkers: values of --auth."),
    ("--help-faults", "Rules of --fault, which simulates server problems."),
)
_FORMS = (
    "TIME is a number of seconds, or has a unit, such as 5min. OCTETS is a size, and may have a unit, such as 10MB."
    " Each option can also be set in the environment: --log-level=debug is TXSMTPD_LOG_LEVEL=debug. There, a flag is"
    " yes or no, and several values are separated by spaces."
)
# Variables that Kubernetes and Docker set for a service named "txsmtpd".
_CLUSTER_VARIABLES = re.compile(r"TXSMTPD_(?:SERVICE_(?:HOST|PORT)|PORT|NAME|ENV)(?:_.*)?")


def describe(groups: Iterable[Group], intro: str) -> str:
    """Return the text of ``--help``: the options in their groups."""
    lines = ["Usage: txsmtpd [options]", "       twist smtpd [options]", "", *textwrap.wrap(intro, width())]
    lines += ["", "Examples:", *two_columns((f"  {command}", text) for command, text in _EXAMPLES)]
    lines += ["", "More help:", *two_columns((f"  {option}", text) for option, text in _TOPICS)]
    lines += ["", *textwrap.wrap(_FORMS, width())]
    for group in groups:
        lines += ["", f"{group.title}:", *two_columns(map(described_option, group.options))]
    return "\n".join(lines)


def described_option(option: Option) -> tuple[str, str]:
    """Return how an option is written, and the description that ``--help`` shows."""
    names = f"  {f'-{option.short}, ' if option.short else '    '}--{option.name}"
    if option.metavar is not None:
        names += f"={option.metavar}"
    text = option.help
    if option.many:
        text += " May be repeated."
    default = option.default or _default_setting(option)
    if default:
        text += f" [default: {default}]"
    return names, text


def _default_setting(option: Option) -> str:
    """Return the default of an option that is one of Settings, as it would be written for the option."""
    if option.setting is None or option.metavar is None:
        return ""
    value: Any = Settings.__dataclass_fields__[option.setting].default
    if value is None:
        return "none"
    if option.metavar == "TIME":
        return _with_unit(value, (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)))
    if option.metavar == "OCTETS":
        return _with_unit(value, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("", 1)))
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _with_unit(value: float, units: Iterable[tuple[str, int]]) -> str:
    for unit, size in units:
        if value >= size and not value % size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def unknown_option(word: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown option."""
    near = difflib.get_close_matches(word, list(known), 1)
    meant = _ELSEWHERE.get(word) or (f"--{near[0]}" if near else None)
    dashes = "-" if len(word) == 1 else "--"
    return f"there is no option {dashes}{word}; " + (f"did you mean {meant}?" if meant else "see --help")


def unknown_variables(environ: Mapping[str, str], known: Iterable[str]) -> tuple[list[str], list[str]]:
    """Check the variables that begin with ``TXSMTPD_``, and return errors and warnings.

    A name that is nearly that of an option is an error: without its value, mail might go elsewhere. Other unknown names
    may belong to other programs.
    """
    names = {variable_of(option) for option in known} | VARIABLES
    wrong, odd = [], []
    for variable in sorted(environ):
        if not variable.startswith("TXSMTPD_") or variable in names or _CLUSTER_VARIABLES.fullmatch(variable):
            continue
        near = difflib.get_close_matches(variable, names, 1, 0.85)
        if near:
            wrong.append(f"{variable}: there is no such option; did you mean {near[0]}?")
        else:
            odd.append(f"{variable} is in the environment, but is not an option; see --help")
    return wrong, odd
