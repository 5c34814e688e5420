"""Authentication-Results fields (RFC 8601): parses them, and removes forged ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from txsmtpd.filters.header import Header
from txsmtpd.filters.message import QUARANTINE
from txsmtpd.session import Envelope

FIELD = "Authentication-Results"

# Linear time for any input, since the text may come from an attacker.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[;=]|[^\s;="]++')


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one method (RFC 8601 2.2)."""

    method: str  #: such as ``"dkim"``, in lower case
    result: str  #: such as ``"pass"``, in lower case
    reason: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    """What the result refers to, such as ``{"header.d": "example.com"}``."""


@dataclass(frozen=True, slots=True)
class AuthenticationResults:
    """One Authentication-Results field."""

    authserv_id: str  #: the server that produced the results
    results: tuple[Result, ...] = ()


def parse_results(value: str) -> AuthenticationResults:
    """Parse the value of an Authentication-Results field. What does not match the grammar is skipped.

    >>> parse_results("mx.example.com; dkim=pass (good) header.d=example.org; spf=none").results[0]
    Result(method='dkim', result='pass', reason=None, properties={'header.d': 'example.org'})
    """
    first, *rest = _segments(value)
    results = []
    for words in rest:
        pairs = list(_pairs(words))
        if not pairs or "." in pairs[0][0]:
            continue  # "none", or not a result
        (method, result), *more = pairs
        reason = next((text for name, text in more if name == "reason"), None)
        properties = {name: text for name, text in more if "." in name}
        results.append(Result(method.partition("/")[0], result.lower(), reason, properties))
    return AuthenticationResults(_unquoted(first[0]) if first else "", tuple(results))


def _segments(value: str) -> list[list[str]]:
    """Split into words between semicolons. A word is a quoted string, an equals sign, or anything without spaces."""
    segments: list[list[str]] = [[]]
    for word in _TOKEN.findall(_without_comments(value)):
        if word == ";":
            segments.append([])
        else:
            segments[-1].append(word)
    return segments


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the names and values around equals signs. A name may have spaces around its dots and slashes."""
    name: list[str] = []
    is_value = False
    for word in words:
        if is_value:
            yield "".join(name).lower(), _unquoted(word)
            name = []
            is_value = False
        elif word == "=":
            is_value = bool(name)
        elif name and (word[0] in "./" or name[-1][-1] in "./"):
            name.append(word)
        else:
            name = [word]


def authentication_results(envelope: Envelope) -> list[Result]:
    """Return the results that the filters found, from the fields that they added to the message.

    Handlers should use this instead of the message itself: it never includes fields that the client wrote.
    """
    return [
        result
        for verdict in envelope.filters.values()
        for name, value in verdict.headers
        if name.lower() == FIELD.lower()
        for result in parse_results(value).results
    ]


def remove_forgeries(header: Header, authserv_ids: Iterable[str | None]) -> None:
    """Remove fields that only this server may add: Authentication-Results with its names (RFC 8601 5), X-Quarantine."""
    header.remove(QUARANTINE)
    fields = header.get_all(FIELD)
    if not fields:
        return
    ours = {name.lower() for name in authserv_ids if name}
    forged = {id(each) for each in fields if _signed_by(each.text).lower().partition("/")[0] in ours}
    if forged:
        header.fields = [each for each in header.fields if id(each) not in forged]
        header.changed = True


def _signed_by(value: str) -> str:
    first = _TOKEN.match(_without_comments(value).lstrip())
    return _unquoted(first[0]) if first else ""


def _without_comments(text: str) -> str:
    """Replace each comment (RFC 5322 3.2.2) with a space."""
    out = []
    depth = 0
    quoted = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and (quoted or depth):
            escaped = True
        elif quoted:
            quoted = character != '"'
        elif character == "(":
            depth += 1
            if depth == 1:
                out.append(" ")
        elif character == ")" and depth:
            depth -= 1
            continue
        elif character == '"' and not depth:
            quoted = True
        if not depth:
            out.append(character)
    return "".join(out)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
