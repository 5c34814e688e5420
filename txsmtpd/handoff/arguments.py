"""Parses hand-off arguments after ``--handler=NAME:``: a URL, which may have colons, and ``name=value`` options."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from txsmtpd.handoff.signature import lines_of

_OPTION = re.compile(r"([a-z][a-z_-]*)=(.*)", re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,15})(?:([kmg])(?:ib)?)?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}

# Converters from text to values. They raise ValueError.


def text(value: str) -> str:
    if not value:
        raise ValueError("a value is needed")
    return value


def size(value: str) -> int:
    """Parse a number of bytes, such as ``100000``, ``64k`` or ``16MiB``."""
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ValueError("must be a number of octets, such as 64k or 16m")
    return int(found[1]) * _FACTORS[(found[2] or "").lower()]


def number(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value)):
        raise ValueError("must be a number above 0")
    return int(value)


def seconds(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ValueError("must be a number of seconds above 0")
    return found


def yes_or_no(value: str) -> bool:
    if value.lower() not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return value.lower() == "yes"


def secret(path: str) -> str:
    """Read a file, and remove the final line end."""
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def secrets_in(path: str) -> list[str]:
    """Read the secrets to sign requests with."""
    found = lines_of(secret(path))
    if not found:  # requests must not go out unsigned unnoticed
        raise ValueError("contains no secret")
    return found


def properties_file(path: str) -> dict[str, str]:
    """Read a file of ``name=value`` lines, as used by Kafka's tools. Lines that start with # are comments."""
    properties = {}
    for line in secret(path).splitlines():
        name, equals, value = line.partition("=")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not equals:
            raise ValueError(f"must have lines such as security.protocol=SASL_SSL, not {name.strip()[:20]!r}")
        properties[name.strip()] = value.strip()
    return properties


# (`txsmtpd.handoff.stores.make_store` turns `store` into a store, once all options are known.)
PROMISE: Mapping[str, Callable[[str], Any]] = {
    "inline": size,
    "store": text,
    "max_size": size,
    "in_flight": number,
    "memory": size,
    "wait": seconds,
    "confirm_timeout": seconds,
    "received": yes_or_no,
}
"""The options that all hand-offs have; see :class:`~txsmtpd.handoff.Handoff`."""


def parse_arguments(
    parser: Any, args: Sequence[str], options: Mapping[str, Callable[[str], Any]]
) -> tuple[str, dict[str, Any]]:
    """Separate the arguments into the part before all options, and the options.

    A word that does not begin an option continues the previous one, since URLs contain colons too.

    :param parser: its ``parser.error(text)`` rejects the arguments.
    :param options: functions that convert each option's value, by name. A hyphen in a name stands for an underscore.
    """
    first: list[str] = []
    words: list[list[str]] = []
    for word in args:
        if _OPTION.match(word):
            words.append([word])
        else:
            (words[-1] if words else first).append(word)
    values: dict[str, Any] = {}
    for parts in words:
        name, _, value = ":".join(parts).partition("=")
        known = name.replace("-", "_")
        if known not in options and "@" in value:  # the part before it may belong to a password
            parser.error("in the credentials of a URL, write = as %3D")
        if known not in options:
            names = sorted(each.replace("_", "-") for each in options)
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            parser.error(f"there is no option {name!r}; {hint} (in a URL, write = as %3D)")
        if known in values:
            parser.error(f"{name} is given twice")
        try:
            values[known] = options[known](value)
        except ValueError as error:
            parser.error(f"{name}={value}: {error}")
    return ":".join(first), values


def url_of(parser: Any, given: str, options: dict[str, Any], variable: str) -> str:
    """Return the URL from the arguments, from a file named by ``url-file``, or from the environment."""
    found = [each for each in (given, options.pop("url_file", "")) if each]
    if len(found) > 1:
        parser.error("the URL is given twice: here, and by url-file")
    url = found[0] if found else os.environ.get(variable, "")
    if not url:
        parser.error(f"a URL is needed: here, in the environment as {variable}, or by url-file=PATH")
    return url


def need(parser: Any, module: str, extra: str) -> None:
    """Reject the arguments if a library is not installed."""
    try:
        missing = importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        parser.error(f"{module.partition('.')[0]} is not installed; pip install 'txsmtpd[{extra}]'")
