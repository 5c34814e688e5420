"""The site: checks the host of a request, then finds its base path, login, scope and route, in this order."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import LoginFailed
from twisted.cred.portal import Portal
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import Interface

from txsmtpd.inbox.scope import EVERYTHING, Scope, make_key
from txsmtpd.inbox.store import Store, StoreError
from txsmtpd.inbox.web.gate import host_is_ours
from txsmtpd.inbox.web.request import JSON_LIMIT, Call, InboxRequest
from txsmtpd.inbox.web.response import HTTPError, Response, redirect, write
from txsmtpd.inbox.web.routes import Route, Routes
from txsmtpd.observe.http import PromptSite

LIVE = 100  # clients that may receive events
WAITING = 1000  # clients that wait for mail
IDLE = 60  # seconds that a connection may be idle between requests

log = Logger(namespace="txsmtpd.inbox")


@dataclass
class WebSettings:
    """The settings of the inbox's web site.

    :ivar path: prefix of all paths, such as ``/mail``, or ``""``.
    :ivar hosts: names of this server, in addition to IP addresses and local names.
    :ivar cors: origins whose pages may use the API.
    :ivar frames: origins whose pages may show the inbox in a frame.
    :ivar portal: authenticates users. None: no login is required.
    :ivar size_limit: the largest message that can be sent by the API, in bytes.
    :ivar relay: where messages are released to (:class:`~txsmtpd.handlers.upstream.Upstream`). None: nowhere.
    :ivar relay_name: the name of the relay.
    :ivar faults: the rules that clients may change (:class:`~txsmtpd.faults.rules.Faults`), or None.
    :ivar transcripts: the open sessions (:class:`~txsmtpd.observe.transcript.Transcripts`), or None.
    :ivar label: the title of the pages.
    :ivar smtp: where mail is received, such as ``127.0.0.1:1025``; shown on the pages.
    """

    path: str = ""
    hosts: frozenset[str] = frozenset()
    cors: frozenset[str] = frozenset()
    frames: tuple[str, ...] = ()
    portal: Portal | None = None
    size_limit: int = 2**25
    relay: Any = None
    relay_name: str = ""
    faults: Any = None
    transcripts: Any = None
    label: str = ""
    smtp: str = ""
    live_limit: int = LIVE
    waiting_limit: int = WAITING
    live: set[Any] = field(default_factory=set)  # clients that currently receive events
    waiting: set[Any] = field(default_factory=set)  # clients that currently wait


class Inbox(Resource):
    """The root of the site.

    :param store: the mail.
    :param settings: the settings of the site.
    :param routes: the routes.
    """

    isLeaf = True

    def __init__(self, store: Store, settings: WebSettings, routes: Iterable[Route]) -> None:
        super().__init__()
        self.store = store
        self.settings = settings
        self.routes = Routes(routes)
        self._frames = " ".join(["'self'", *settings.frames]) if settings.frames else "'none'"

    def render(self, request: Any) -> int:
        work = Deferred.fromCoroutine(self._answer(request))
        gone = request.notifyFinish()
        gone.addErrback(lambda _: work.cancel())  # the client has disconnected
        work.addErrback(_log_failure)
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> None:
        try:
            response = await self._respond(request)
        except HTTPError as error:
            response = Response(f"{error}\n".encode(), status=error.status, headers=error.headers)
        except StoreError as error:
            response = Response(f"{error}\n".encode(), status=507 if error.full else 503)
        except CancelledError:
            raise
        except Exception:
            log.failure("{method} {path} failed", method=request.method, path=request.path)
            response = Response(b"internal server error\n", status=500)
        if response is not None and not request.gone:
            _allow_origin(request, response, self.settings.cors)
            await write(request, response, self._frames)

    async def _respond(self, request: Any) -> Response | None:
        _check_host(request, self.settings.hosts)
        segments = [unquote(each.decode("ascii", "replace")) for each in request.path.split(b"/")[1:]]
        base, segments, bare = self._below_base(segments)
        if bare:
            return redirect(f"{base}/", 301)
        scope, base, segments, bare = self._scope(base, segments)
        if bare:
            return redirect(f"{base}/", 301)
        method = request.method.decode("ascii", "replace")
        if method == "OPTIONS":
            return _preflight(request, self.settings.cors)
        route, variables = self.routes.find(method, segments)
        user = "" if route.open else await self._login(request)
        call = Call(request, self.settings, self.store, scope, base, variables, user)
        return await route.answer(call)

    def _below_base(self, segments: Sequence[str]) -> tuple[str, list[str], bool]:
        """Return what follows the path of the settings.

        :return: the path, the segments after it, and whether there are none at all, not even an empty one.
        """
        prefix = [each for each in self.settings.path.split("/") if each]
        if list(segments[: len(prefix)]) != prefix:
            raise HTTPError(404, f"404 page not found; the inbox is at {self.settings.path}/")
        rest = list(segments[len(prefix) :])
        return self.settings.path, rest, not rest

    def _scope(self, base: str, segments: list[str]) -> tuple[Scope, str, list[str], bool]:
        """Return the scope that ``/in/NAME=VALUE/`` names, and what follows it."""
        scope = EVERYTHING
        while len(segments) > 1 and segments[0] == "in":
            name, equals, value = segments[1].partition("=")
            if not equals:
                raise HTTPError(404, "/in/ must be followed by a criterion, such as /in/domain=example.com/")
            try:
                scope = scope.within(make_key(name, value, self.store.headers))
            except ValueError as error:
                raise HTTPError(404, str(error)) from None
            base += f"/in/{quote(segments[1], safe='=@')}"
            segments = segments[2:]
        return scope, base, segments, not segments

    async def _login(self, request: Any) -> str:
        portal = self.settings.portal
        if portal is None:
            return ""
        credentials = _basic(request)
        if credentials is not None:
            name, password = credentials
            try:
                _, _, logout = await portal.login(UsernamePassword(name, password), None, Interface)
            except LoginFailed:
                pass
            else:
                logout()
                return name.decode("utf-8", "replace")
        raise HTTPError(401, "Unauthorized", {"WWW-Authenticate": 'Basic realm="inbox", charset="UTF-8"'})


def _log_failure(failure: Any) -> None:
    if not failure.check(CancelledError):
        log.failure("handling a request failed", failure)


def _check_host(request: Any, names: frozenset[str]) -> None:
    hosts = request.requestHeaders.getRawHeaders(b"host") or []
    if len(hosts) != 1:
        raise HTTPError(400, "a request needs one Host field")
    host = hosts[0].decode("latin-1")
    if not host_is_ours(host, names):
        raise HTTPError(421, f"this server is not called {host[:100]!r}; --web-host=NAME adds a name")


def _basic(request: Any) -> tuple[bytes, bytes] | None:
    """Return the name and password of the request (RFC 7617), or None."""
    fields = request.requestHeaders.getRawHeaders(b"authorization") or []
    if len(fields) != 1:
        return None
    scheme, _, encoded = fields[0].partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return (name, password) if colon else None


def _origin(request: Any, cors: frozenset[str]) -> str | None:
    origins = request.requestHeaders.getRawHeaders("Origin") or []
    return origins[0] if len(origins) == 1 and origins[0].lower() in cors else None


def _allow_origin(request: Any, response: Response, cors: frozenset[str]) -> None:
    """Let pages of a configured origin read the response, but never with the browser's credentials."""
    if not cors:
        return
    response.headers["Vary"] = "Origin"
    origin = _origin(request, cors)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "Inbox-Cursor, Preference-Applied"
        response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"


def _preflight(request: Any, cors: frozenset[str]) -> Response:
    headers: Mapping[str, str] = {"Allow": "GET, HEAD, POST, PUT, DELETE, OPTIONS"}
    if _origin(request, cors) is not None:
        headers = {
            **headers,
            "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, Prefer, Last-Event-ID",
            "Access-Control-Max-Age": "600",
        }
    return Response(status=204, headers=dict(headers))


def make_site(store: Store, settings: WebSettings | None = None, *, reactor: Any = None) -> Site:
    """Make the site of an inbox. It can listen on any endpoint.

    :param store: the mail. Open it before the first request.
    :param settings: the settings of the site.
    """
    from txsmtpd.inbox.web.table import ROUTES

    settings = settings or WebSettings()
    limit = max(JSON_LIMIT, 2 * (settings.size_limit or 2**30))  # base64 in JSON, for messages sent by the API

    class BoundedRequest(InboxRequest):
        pass

    BoundedRequest.limit = limit
    options = {} if reactor is None else {"reactor": reactor}
    return PromptSite(
        Inbox(store, settings, ROUTES),
        requestFactory=BoundedRequest,
        timeout=IDLE,
        parsePOSTFormSubmission=False,
        **options,
    )
