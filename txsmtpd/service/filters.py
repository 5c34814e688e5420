"""Makes filters from values of ``--filter``: ``NAME[:WHERE][,OPTION=VALUE...]``.

``NAME`` is ``rspamd``, ``milter``, or the dotted name of a class. ``WHERE`` extends from the first colon to the first
comma, so that it may be a URL or an endpoint, which have colons themselves. Each error is a ``ValueError`` or a
:class:`~twisted.python.usage.UsageError`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from txsmtpd.service.exit_status import described
from txsmtpd.service.handlers import HandlerParser, Raised, find_object, parse_spec


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("must be a number of seconds")
    return number


def _word(text: str) -> str:
    if not text:
        raise ValueError("a value is needed")
    return text


def _secret(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read from {path}: {getattr(error, 'strerror', None) or error}") from error


class BuiltIn(NamedTuple):
    """A built-in filter."""

    usage: str
    description: str
    make: Callable[..., Any]
    options: Mapping[str, tuple[str, Callable[[str], Any]]]
    """The options of the command line; for each, its parameter of *make*, and a function that parses its value."""

    where: str | None  #: the default of ``WHERE``; None: it is required


def _rspamd(url: str, **options: Any) -> Any:
    from txsmtpd.filters.rspamd import DEFAULT_URL, Rspamd

    return Rspamd(url or DEFAULT_URL, **options)


def _milter(endpoint: str, **options: Any) -> Any:
    from txsmtpd.filters.milter import Milter

    return Milter(endpoint, **options)


_COMMON: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "on-failure": ("on_failure", _word),
    "name": ("name", _word),
    "authserv-id": ("authserv_id", _word),
    "connect-timeout": ("connect_timeout", _seconds),
}

BUILT_IN: Mapping[str, BuiltIn] = {
    "rspamd": BuiltIn(
        "rspamd[:URL]",
        "Check mail with rspamd, over HTTP.",
        _rspamd,
        {**_COMMON, "timeout": ("timeout", _seconds), "password-file": ("password", _secret)},
        "",
    ),
    "milter": BuiltIn(
        "milter:ENDPOINT",
        "Check mail with a milter, such as OpenDKIM: milter:unix:/run/opendkim.sock.",
        _milter,
        {**_COMMON, "timeout": ("command_timeout", _seconds), "content-timeout": ("content_timeout", _seconds)},
        None,
    ),
}


def make_filter(spec: str) -> Any:
    """Return the filter that a value of ``--filter`` describes."""
    name, colon, rest = spec.partition(":")
    if not colon:
        name, comma, more = name.partition(",")
        rest = comma + more
    built_in = BUILT_IN.get(name)
    if built_in is not None:
        return _make_built_in(name, built_in, rest)
    if "." not in name:
        near = difflib.get_close_matches(name.lower(), BUILT_IN, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BUILT_IN)}, and dotted names"
        raise ValueError(f"no filter is called {name!r}; {hint}")
    return _make_dotted(spec)


def _make_built_in(name: str, built_in: BuiltIn, rest: str) -> Any:
    where, *words = rest.split(",")
    if not where and built_in.where is None:
        raise ValueError(f"write {built_in.usage}")
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in built_in.options or not equals:
            near = difflib.get_close_matches(key, built_in.options, 1)
            known = ", ".join(f"{each}=" for each in built_in.options)
            raise ValueError(
                f"{key!r} is not an option of {name}; "
                + (f"did you mean {near[0]}=?" if near else f"there are {known}")
            )
        keyword, read = built_in.options[key]
        try:
            options[keyword] = read(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    return _checked(built_in.make(where or built_in.where, **options))


def _make_dotted(spec: str) -> Any:
    path, arguments = parse_spec(spec)
    made = find_object(path)
    try:
        if hasattr(made, "from_cli"):
            made = made.from_cli(HandlerParser(), *arguments)
        elif arguments:
            raise ValueError(f"{path} takes no arguments, because it has no from_cli")
        elif isinstance(made, type):
            made = made()
    except ValueError:
        raise
    except Raised as error:
        raise ValueError(f"creating it raised {described(error)}") from error
    return _checked(made)


def _checked(filter: Any) -> Any:
    """Return *filter*, if it is a filter."""
    from txsmtpd.filters.chain import Link

    Link(filter, (), lambda hook: hook)
    return filter
