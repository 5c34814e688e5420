"""Limits the size and time of requests. Also :class:`Call`, the request as passed to the functions of routes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from twisted.web.server import Request

from txsmtpd.inbox.scope import EVERYTHING, Scope
from txsmtpd.inbox.web.response import HTTPError

if TYPE_CHECKING:
    from txsmtpd.inbox.store import Store
    from txsmtpd.inbox.web.site import WebSettings

JSON_LIMIT = 2**20  # bytes of a JSON body or a form
ARRIVAL = 10.0  # seconds in which the header of a request and a short body must arrive
RATE = 2**14  # bytes per second; a longer body may take longer at this rate, which slow networks have
MAX_FIELDS = 1000  # in a query or a form

_TOO_LARGE = b"The request is too large.\n"


class InboxRequest(Request):
    """A request with a limit for its body, for every resource."""

    limit = JSON_LIMIT  # set for the site
    gone = False  #: whether the client has disconnected
    _received = 0
    _refused = False
    _deadline: Any = None

    def __init__(self, channel: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(channel, *arguments, **options)
        self._expect(ARRIVAL)

    def _expect(self, seconds: float) -> None:
        self._arrived()
        clock = getattr(self.channel, "callLater", None)
        if clock is not None:
            self._deadline = clock(seconds, self._too_slow)

    def _arrived(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()

    def _too_slow(self) -> None:
        self._deadline = None
        self.channel.forceAbortClient()

    def gotLength(self, length: int | None) -> None:
        if length is not None and length > self.limit:
            self._refuse()
            length = 0
        else:
            self._expect(ARRIVAL + (self.limit if length is None else length) / RATE)
        super().gotLength(length)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self.limit:
            self._refuse()
        if not self._refused:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self._arrived()
        if not self._refused:
            super().requestReceived(command, path, version)

    def connectionLost(self, reason: Any) -> None:
        self.gone = True
        self._arrived()
        super().connectionLost(reason)

    def _refuse(self) -> None:
        if self._refused:
            return
        self._refused = True
        self._arrived()
        transport: Any = self.channel.transport
        transport.write(
            b"HTTP/1.1 413 Content Too Large\r\nContent-Type: text/plain\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(_TOO_LARGE), _TOO_LARGE)
        )
        self.channel.loseConnection()


@dataclass
class Call:
    """A request that has passed the checks of :mod:`.gate`, with everything that its response depends on.

    :ivar scope: the part of the mail that it applies to.
    :ivar base: the prefix of the paths in this scope, such as ``/mail/in/domain=w3.test``, or ``""``.
    :ivar path: the variables in the route's path.
    :ivar user: the logged-in user, or ``""``.
    """

    request: Any
    settings: WebSettings
    store: Store
    scope: Scope = EVERYTHING
    base: str = ""
    path: Mapping[str, str] = field(default_factory=dict)
    user: str = ""

    def url(self, path: str) -> str:
        """Return the URL of a path in this scope, for links."""
        return self.base + quote(path, safe="/?&=:,;@!$'()*+~.-_%#")

    def header(self, name: str) -> str | None:
        """Return the value of a header field. Several values are joined with commas."""
        values = self.request.requestHeaders.getRawHeaders(name)
        return None if values is None else ", ".join(values)

    # Parameters and body

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The names and values of the query parameters."""
        _, _, query = self.request.uri.partition(b"?")
        return _pairs(query.decode("utf-8", "replace"))

    @property
    def query(self) -> dict[str, str]:
        """The query parameters. If a name is repeated, the last one counts."""
        return dict(self.parameters)

    def number(self, name: str, default: int, most: int | None = None) -> int:
        """Return a parameter that is a number, at least 0.

        :raises HTTPError: if it is not.
        """
        text = self.query.get(name, "")
        if not text:
            return default
        if not re.fullmatch("[0-9]{1,18}", text):
            raise HTTPError(400, f"{name} must be a number, not {text[:50]!r}")
        return int(text) if most is None else min(int(text), most)

    def seconds(self, name: str, default: float, most: float) -> float:
        """Return a parameter that is a number of seconds.

        :raises HTTPError: if it is not.
        """
        text = self.query.get(name, "")
        if not text:
            return default
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise HTTPError(400, f"{name} must be a number of seconds, not {text[:50]!r}")
        return min(float(text), most)

    def body(self, limit: int = JSON_LIMIT) -> bytes:
        """Return the body of the request.

        :raises HTTPError: if it is longer than *limit* bytes.
        """
        octets: bytes = self.request.content.read(limit + 1)
        if len(octets) > limit:
            raise HTTPError(413, f"the body has more than {limit} octets")
        return octets

    def json(self, limit: int = JSON_LIMIT) -> dict[str, Any]:
        """Return the body, a JSON object, with its keys in lower case. An empty body is an empty object.

        :raises HTTPError: if it is something else.
        """
        kind = (self.header("Content-Type") or "").partition(";")[0].strip().lower()
        octets = self.body(limit)
        if not octets.strip():
            return {}
        if kind not in ("", "application/json"):
            # A form on any other site could send text/plain.
            raise HTTPError(415, "the body must be JSON, with Content-Type: application/json")
        try:
            value = json.loads(octets.decode())
            if b"\\u" in octets:
                json.dumps(value, ensure_ascii=False).encode()  # raises for a lone surrogate
        except (ValueError, RecursionError) as error:
            raise HTTPError(400, f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise HTTPError(400, "the body must be a JSON object")
        return {str(name).lower(): each for name, each in value.items()}

    def form(self) -> dict[str, list[str]]:
        """Return the fields of a form, each with all its values.

        :raises HTTPError: if the body is not a form.
        """
        kind = (self.header("Content-Type") or "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise HTTPError(415, "the body must be a form, with Content-Type: application/x-www-form-urlencoded")
        found: dict[str, list[str]] = {}
        for name, value in _pairs(self.body().decode("utf-8", "replace")):
            found.setdefault(name, []).append(value)
        return found


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise HTTPError(400, str(error)) from None


def strings(value: Any, name: str) -> list[str]:
    """Return a list of strings from JSON; null is an empty list.

    :raises HTTPError: if it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise HTTPError(400, f"{name} must be a list of strings")
    return value
