"""The text of ``--help``, and suggestions for unknown options and variables."""

from __future__ import annotations

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping

from txsmtpd.service.handlers import VARIABLES
from txsmtpd.service.options.table import Group, Option, variable_of

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
# Variables that Kubernetes and Docker set for a service named "txsmtpd".
_CLUSTER_VARIABLES = re.compile(r"TXSMTPD_(?:SERVICE_(?:HOST|PORT)|PORT|NAME|ENV)(?:_.*)?")
COLUMN = 32


def describe(groups: Iterable[Group], intro: str) -> str:
    """Return the text of ``--help``: the options in their groups."""
    width = min(max(shutil.get_terminal_size().columns, 60), 110)
    lines = ["Usage: txsmtpd [options]", "       twist smtpd [options]", "", *textwrap.wrap(intro, width)]
    for group in groups:
        lines += ["", f"{group.title}:"]
        for option in group.options:
            lines += _described(option, width)
    return "\n".join(lines)


def _described(option: Option, width: int) -> list[str]:
    names = f"  {f'-{option.short}, ' if option.short else '    '}--{option.name}"
    if option.metavar is not None:
        names += f"={option.metavar}"
    text = option.help
    if option.many:
        text += " May be repeated."
    if option.default:
        text += f" [default: {option.default}]"
    lines = textwrap.wrap(text, width - COLUMN, break_on_hyphens=False)
    first = [] if len(names) < COLUMN else [names]
    start = " " * COLUMN if first else names.ljust(COLUMN)
    return [*first, start + lines[0], *(" " * COLUMN + line for line in lines[1:])]


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
            odd.append(f"{variable} is in the environment, but is no option; see --help")
    return wrong, odd
