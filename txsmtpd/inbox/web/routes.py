"""Routes: which function handles which method and path, and with which checks.

A route checks the origin of a request itself, before it calls its function. There is no list of prefixes that a path
with a different spelling could bypass. The API's description is generated from the routes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from txsmtpd.inbox.web.gate import origin_is_ours
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTTPError, Response

OWN = "/api/inbox/v1/"  # unknown parameters are ignored elsewhere, as Mailpit and MailHog do
CACHE_BUSTER = "_"  # a parameter that HTTP clients add so that responses are not cached

Answer = Response | None  # None: the function has taken over the request
Function = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """A method and a path, and the function that handles them.

    :ivar path: such as ``/api/v1/message/{id}``. A variable is one segment, and an extension may follow it.
    :ivar summary: a sentence for the API's description; ``""`` omits the route from it.
    :ivar live: the response does not end, so the origin is checked as for a change.
    :ivar open: needs no login.
    :ivar parameters: query parameters, with descriptions.
    :ivar body: keys of a JSON body, with descriptions.
    """

    method: str
    path: str
    function: Function
    summary: str = ""
    live: bool = False
    open: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        return self.method not in ("GET", "HEAD")

    @property
    def pattern(self) -> tuple[str | re.Pattern[str], ...]:
        """The string or regular expression that matches each segment of the path."""
        return tuple(map(_segment, self.path.removeprefix("/").split("/")))

    async def answer(self, call: Call) -> Answer:
        """Handle a request.

        :raises HTTPError: if it comes from a page of another site and would change something or receive events, or if
            the inbox's own API does not know a parameter.
        """
        if self.changes or self.live:
            headers = call.request.requestHeaders
            fetch_site = headers.getRawHeaders("Sec-Fetch-Site")
            if not origin_is_ours(
                call.header("Host") or "",
                headers.getRawHeaders("Origin") or [],
                None if fetch_site is None else fetch_site[-1],
                call.settings.cors,
            ):
                raise HTTPError(403, "the request comes from a page of another site")
        if self.path.startswith(OWN):
            self._check_parameters([name for name, _ in call.parameters])
        return await self.function(call)

    def _check_parameters(self, names: Sequence[str]) -> None:
        """Check the names of parameters: without a misspelt criterion, a request would apply to other mail.

        :raises HTTPError: if one is unknown, or repeated.
        """
        for name in names:
            if names.count(name) > 1:
                raise HTTPError(400, f"the parameter {name[:50]!r} is given {names.count(name)} times")
            if name not in self.parameters and name != CACHE_BUSTER:
                near = difflib.get_close_matches(name, self.parameters, 1)
                known = f"there are {', '.join(self.parameters)}" if self.parameters else "there are none"
                hint = f"did you mean {near[0]}?" if near else known
                raise HTTPError(400, f"there is no parameter {name[:50]!r}; {hint}")


def _segment(text: str) -> str | re.Pattern[str]:
    if "{" not in text:
        return text
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(text))
    return re.compile(pattern, re.DOTALL)


class Routes:
    """Routes, by method and path. The first match is used.

    :param routes: in order.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.all = tuple(routes)
        self._by_length: dict[int, list[tuple[tuple[str | re.Pattern[str], ...], Route]]] = {}
        for route in self.all:
            pattern = route.pattern
            self._by_length.setdefault(len(pattern), []).append((pattern, route))

    def find(self, method: str, segments: Sequence[str]) -> tuple[Route, dict[str, str]]:
        """Return the route for a path, and the variables in the path.

        :param segments: of the path, decoded.
        :raises HTTPError: if there is none: 404, or 405 with the allowed methods.
        """
        method = "GET" if method == "HEAD" else method
        methods: dict[str, None] = {}
        for pattern, route in self._by_length.get(len(segments), ()):
            variables = _match(pattern, segments)
            if variables is not None:
                if route.method == method:
                    return route, variables
                methods[route.method] = None
        if methods:
            raise HTTPError(405, "method not allowed", {"Allow": ", ".join(methods)})
        raise HTTPError(404, "404 page not found")


def _match(pattern: Sequence[str | re.Pattern[str]], segments: Sequence[str]) -> dict[str, str] | None:
    variables: dict[str, str] = {}
    for wanted, segment in zip(pattern, segments, strict=True):
        if isinstance(wanted, str):
            if wanted != segment:
                return None
        else:
            match = wanted.fullmatch(segment)
            if match is None:
                return None
            variables.update(match.groupdict())
    return variables


def options(**values: Any) -> dict[str, str]:
    """Return the parameters of a route from keyword arguments. An underscore stands for a hyphen."""
    return {name.replace("_", "-"): str(value) for name, value in values.items()}
