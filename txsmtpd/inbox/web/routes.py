"""The table of routes: which function answers which method and path, and what guards it.

A route checks the origin of a request itself, before it calls its function: there is no list of prefixes that a
differently spelled path could slip past. The table is also what the API's description is written from.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from txsmtpd.inbox.web.gate import origin_is_ours
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTTPError, Response

Answer = Response | None  # None: the function has taken the request over
Function = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """A method and a path, and the function that answers.

    :ivar path: as ``/api/v1/message/{id}``; a variable is one segment, and may have an extension after it.
    :ivar summary: a sentence for the API's description; ``""`` keeps the route out of it.
    :ivar live: the answer goes on and on; so the origin is checked as for a change.
    :ivar open: it answers without a login.
    :ivar parameters: of the query, with what they mean.
    :ivar body: keys of a JSON body, with what they mean.
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
        """What matches each segment of the path."""
        return tuple(map(_segment, self.path.removeprefix("/").split("/")))

    async def answer(self, call: Call) -> Answer:
        """Answer a request.

        :raises HTTPError: if it comes from a page of another site, and it would change something or listen.
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
        return await self.function(call)


def _segment(text: str) -> str | re.Pattern[str]:
    if "{" not in text:
        return text
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(text))
    return re.compile(pattern, re.DOTALL)


class Routes:
    """Routes, by method and path. The first that fits answers.

    :param routes: in order.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.all = tuple(routes)
        self._by_length: dict[int, list[tuple[tuple[str | re.Pattern[str], ...], Route]]] = {}
        for route in self.all:
            pattern = route.pattern
            self._by_length.setdefault(len(pattern), []).append((pattern, route))

    def find(self, method: str, segments: Sequence[str]) -> tuple[Route, dict[str, str]]:
        """The route for a path, and the variables in it.

        :param segments: of the path, decoded.
        :raises HTTPError: if there is none: 404, or 405 with the methods that there are.
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
    """Parameters of a route, as keyword arguments; an underscore stands for a hyphen."""
    return {name.replace("_", "-"): str(value) for name, value in values.items()}
