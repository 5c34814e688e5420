"""The web pages: the list, a message, sessions, faults. They work with links and forms; scripts only make them faster.

Each function handles one route; the table of routes is at the end. Formatting of values is in
:mod:`~txsmtpd.inbox.web.presentation`. The HTML of a mail is never inserted into a page: a frame loads it from
``/view/``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache, wraps
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode
from zlib import crc32

from txsmtpd.bridges.reactors import call_in_pool
from txsmtpd.inbox.message import Message
from txsmtpd.inbox.sessions import find_session, records_of
from txsmtpd.inbox.web import faults, html_check
from txsmtpd.inbox.web.content import wants_remote
from txsmtpd.inbox.web.mailpit import terms_of
from txsmtpd.inbox.web.own import found_session, in_scope
from txsmtpd.inbox.web.presentation import dialog, environment
from txsmtpd.inbox.web.release import release_message
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTML, HTTPError, Response, redirect
from txsmtpd.inbox.web.routes import Route
from txsmtpd.mime import markup
from txsmtpd.mime.text import in_charset

ROWS = 50  # messages per page of the list
SESSIONS = 200
SHOWN = 2**18  # bytes of the source that the page shows

TABS = {
    "html": "HTML",
    "markup": "HTML source",
    "text": "Text",
    "source": "Raw",
    "headers": "Headers",
    "envelope": "Envelope",
    "session": "Session",
    "parts": "Parts",
    "check": "HTML check",
}
OF_HTML = ("html", "markup", "check")  # tabs of messages that have HTML
WIDTHS = ("phone", "tablet", "desktop")

STATIC = {
    "favicon.svg": "image/svg+xml",
    "inbox.css": "text/css; charset=utf-8",
    "inbox.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "vendor/htmx.min.js": "text/javascript; charset=utf-8",
    "vendor/sse.min.js": "text/javascript; charset=utf-8",
}

_HEADINGS = {400: "Invalid request", 404: "Not found"}

_templates = cache(environment)


@cache
def _static(name: str) -> bytes:
    return (files("txsmtpd.inbox.web") / "static" / name).read_bytes()


@cache
def _version(name: str) -> str:
    return f"{crc32(_static(name)):08x}"


# Pages


def page(function: Callable[[Call], Awaitable[Response]]) -> Callable[[Call], Awaitable[Response]]:
    """Show the errors of a page's function as a page."""

    @wraps(function)
    async def answer(call: Call) -> Response:
        try:
            return await function(call)
        except HTTPError as error:
            response = await _render(
                call, "error.html", page="", heading=_HEADINGS.get(error.status, "Error"), detail=str(error)
            )
            response.status = error.status
            response.headers.update(error.headers)
            return response

    return answer


async def _render(call: Call, template: str, **values: Any) -> Response:
    def url(*segments: object) -> str:
        return f"{call.base}/" + "/".join(quote(str(each), safe="/@") for each in segments)

    def static(name: str) -> str:
        return f"{call.settings.path}/static/{name}?{_version(name)}"

    context = {
        "url": url,
        "static": static,
        "root": f"{call.settings.path}/",
        "scope": call.scope.keys,
        "unread": (await call.store.counts(call.scope)).unread,
        "faults_on": len(faults.rules(call)) if call.settings.faults is not None else 0,
        "with_faults": call.settings.faults is not None,
        "query": "",
        "notice": None,
        "failure": None,
        "here": url(),
        **values,
    }
    text = _templates().get_template(template).render(context)
    # With "no-referrer", browsers would send "Origin: null" with our forms.
    return Response(text.encode("utf-8", "replace"), HTML, headers={"Referrer-Policy": "same-origin"})


@page
async def show_list(call: Call) -> Response:
    """Show the list without a message."""
    return await _mail(call)


@page
async def show_message(call: Call) -> Response:
    """Show the list with a message beside it."""
    message = await call.store.message(call.path["id"], call.scope)
    if message is None:
        response = await _mail(call, gone=True)
        response.status = 404
        return response
    if not message.seen:
        await call.store.set_seen(True, call.scope, [message.id])
    notice = "The message was released." if call.query.get("released") else None
    return await _mail(call, message=message, notice=notice, **await _details(call, message))


async def _mail(call: Call, message: Message | None = None, **values: Any) -> Response:
    query = call.query.get("query", "").strip()
    before = call.number("before", 0) or None
    keep = {name: value for name, value in (("query", query), ("before", call.query.get("before", ""))) if value}
    kept = f"?{urlencode(keep)}" if keep else ""
    base = f"{call.base}/"
    context: dict[str, Any] = {"messages": [], "count": 0, "exact": True, "older": None, "newer": None, "wrong": None}
    try:
        terms = terms_of(query)
    except HTTPError as error:
        context["wrong"] = str(error)
    if call.header("HX-Target") != "detail" and not context["wrong"]:  # the script takes only the message from the page
        found = await call.store.page(call.scope, terms, limit=ROWS + 1, before=before, exact=False)
        shown = found.messages[:ROWS]
        context |= {"messages": shown, "count": found.count, "exact": found.is_exact}
        if len(found.messages) > ROWS:
            context["older"] = f"{base}?{urlencode({**keep, 'before': shown[-1].number})}"
        if before is not None:
            context["newer"] = f"{base}?{urlencode({'query': query})}" if query else base
    host, _, port = call.settings.smtp.rpartition(":")
    context |= {
        "message": message,
        "gone": False,
        "keep": kept,
        "query": query,
        "here": base + kept,
        "smtp": call.settings.smtp,
        "smtp_host": host.strip("[]"),
        "smtp_port": port,
    }
    response = await _render(call, "mail.html", page="mail", **context | values)
    if context["wrong"]:
        response.status = 400
    return response


async def _details(call: Call, message: Message) -> dict[str, Any]:
    """Return what the template needs for the open tab of a message."""
    store = call.store
    html = await store.html(message) if message.has_html else ""
    text = await store.text(message)
    tab = call.query.get("tab", "")
    if tab not in TABS or (tab in OF_HTML and not html):
        tab = "html" if html else "text"
    details: dict[str, Any] = {
        "tab": tab,
        "tabs": [(name, label) for name, label in TABS.items() if html or name not in OF_HTML],
        "width": call.query.get("width") if call.query.get("width") in WIDTHS else "desktop",
        "remote": call.query.get("remote") == "1",
        "remote_content": wants_remote(html),
        "relay": call.settings.relay_name if call.settings.relay is not None else "",
        "links": markup.links(html, text),
        "codes": markup.codes(text)[:3],
    }
    match tab:
        case "markup":
            details["source"] = html[:SHOWN]
            details["cut"] = SHOWN if len(html) > SHOWN else None
        case "text":
            details["text"] = text
        case "source":
            details["source"] = in_charset(await store.content(message, 0, SHOWN), "")
            details["cut"] = SHOWN if message.size > SHOWN else None
        case "headers":
            details["fields"] = await store.fields(message)
        case "envelope":
            details["envelope"] = list(_envelope(message))
        case "session":
            session = await find_session(call.store, message.envelope.session, call.settings.transcripts)
            details["session"] = session
            details["lines"] = list(dialog(records_of(session))) if session is not None else []
        case "check":
            details["check"] = await call_in_pool(html_check.check, html)
    return details


def _envelope(message: Message) -> Any:
    envelope = message.envelope
    yield "MAIL FROM", envelope.mail_from or "<>"
    yield "RCPT TO", "\n".join(envelope.rcpt_tos)
    for name, value in (
        ("MAIL parameters", " ".join(envelope.mail_options)),
        ("RCPT parameters", " ".join(envelope.rcpt_options)),
        ("Client", envelope.peer),
        ("EHLO", envelope.helo),
        ("TLS", envelope.tls),
        ("Authenticated as", envelope.user),
        ("Session", envelope.session),
    ):
        if value:
            yield name, value


# Changes


@page
async def change(call: Call) -> Response:
    """Perform the action of a button of the list or of a message, and redirect to the page it was on."""
    fields = call.form()
    ids = fields.get("id", [])
    query = fields.get("query", [""])[-1]
    action = fields.get("action", [""])[-1]
    match action:
        case "read" | "unread" if ids:
            await call.store.set_seen(action == "read", call.scope, ids)
        case "delete" if ids:
            await call.store.delete(call.scope, ids)
        case "read" | "unread" | "delete":
            raise HTTPError(400, "No message is selected.")
        case "read-all":
            await call.store.set_seen(True, call.scope)
        case "delete-all":
            await call.store.delete(call.scope, None, terms_of(query))
        case _:
            raise HTTPError(400, "Unknown action.")
    return redirect(_way_back(call, fields.get("back", [""])[-1]), 303)


@page
async def confirm_deletion(call: Call) -> Response:
    """Ask before all mail is deleted."""
    query = call.query.get("query", "").strip()
    found = await call.store.page(call.scope, terms_of(query), limit=1, exact=True)
    return await _render(call, "delete.html", page="mail", query=query, count=found.count)


def _way_back(call: Call, path: str) -> str:
    """Return the path if it is one of ours: a form can contain any path."""
    ours = path.startswith(f"{call.base}/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if ours else f"{call.base}/"


# Sessions


@page
async def show_sessions(call: Call) -> Response:
    """List sessions, newest first."""
    sessions = await call.store.sessions(call.scope, SESSIONS)
    here = f"{call.base}/sessions"
    found = {"session": None, "sessions": sessions, "most": SESSIONS}
    return await _render(call, "sessions.html", page="sessions", here=here, **found)


@page
async def show_session(call: Call) -> Response:
    """Show the transcript of a session."""
    session = await in_scope(call, await found_session(call))
    lines = list(dialog(records_of(session)))
    return await _render(call, "sessions.html", page="sessions", session=session, lines=lines)


# Faults


@dataclass(frozen=True, slots=True)
class Preset:
    """A fault with a button that switches it on and off."""

    name: str
    title: str
    description: str
    spec: str  #: in the syntax of ``--fault``


PRESETS = (
    Preset(
        "greylist",
        "Greylisting",
        "The next three recipients are rejected temporarily, with 451.",
        "rcpt first=3 reply=451 4.7.1 Try again later",
    ),
    Preset(
        "full",
        "Mailbox full",
        "All recipients are rejected temporarily, with 452.",
        "rcpt reply=452 4.2.2 Mailbox full",
    ),
    Preset(
        "unknown",
        "Unknown recipient",
        "All recipients are rejected permanently, with 550.",
        "rcpt reply=550 5.1.1 No such user",
    ),
    Preset(
        "flaky",
        "One in three fails",
        "A third of all messages is rejected temporarily, with 451.",
        "message share=0.33 reply=451 4.3.0 Try again",
    ),
    Preset("slow", "Slow", "The reply to each message takes ten seconds.", "accepted delay=10"),
    Preset("reset", "Reset after DATA", "The connection is reset after a message has been sent.", "message reset"),
    Preset(
        "busy",
        "Too many connections",
        "New connections are rejected temporarily, with 421.",
        "connect reply=421 4.3.2 Too many connections",
    ),
    Preset(
        "silent", "No reply", "The server does not reply to MAIL, so that the client times out.", "mail stop-reading"
    ),
)


@page
async def show_faults(call: Call) -> Response:
    """Show the active faults, and the presets."""
    return await _fault_page(call)


async def _fault_page(call: Call, **values: Any) -> Response:
    if call.settings.faults is None:
        raise HTTPError(404, "Faults cannot be changed here.")
    rules = [faults.shown(rule) for rule in faults.rules(call)]
    in_force = {rule["spec"] for rule in rules}
    presets = [{"preset": preset, "on": preset.spec in in_force} for preset in PRESETS]
    context = {"rules": rules, "presets": presets, "error": None, "spec": "", "here": f"{call.base}/faults"}
    return await _render(call, "faults.html", page="faults", **context | values)


@page
async def change_faults(call: Call) -> Response:
    """Switch a preset on or off, add a rule, or remove one."""
    fields = {name: values[-1] for name, values in call.form().items()}
    preset = next((each for each in PRESETS if each.name == fields.get("preset")), None)
    match fields.get("action"):
        case "on" if preset is not None:
            faults.add_rule(call, preset.spec)
        case "off" if preset is not None:
            faults.remove_rules(call, lambda rule: faults.shown(rule)["spec"] == preset.spec)
        case "remove":
            faults.remove_rules(call, lambda rule: str(rule.number) == fields.get("rule"))
        case "add":
            spec = fields.get("spec", "").strip()
            try:
                faults.add_rule(call, spec)
            except HTTPError as error:
                response = await _fault_page(call, error=str(error), spec=spec)
                response.status = error.status
                return response
        case _:
            raise HTTPError(400, "Unknown action.")
    return redirect(f"{call.base}/faults", 303)


@page
async def release(call: Call) -> Response:
    """Send a message to the configured relay."""
    message = await call.store.message(call.path["id"], call.scope)
    if message is None:
        raise HTTPError(404, "This message was deleted.")
    recipients = [each.strip() for each in call.form().get("to", [""])[-1].split(",") if each.strip()]
    try:
        await release_message(call, message, recipients)
    except HTTPError as error:
        failure = f"The message was not released: {error}"
        response = await _mail(call, message=message, failure=failure, **await _details(call, message))
        response.status = error.status
        return response
    return redirect(f"{call.base}/m/{message.id}?released=1", 303)


# Files that do not change


async def send_static(call: Call) -> Response:
    """Send a static file. Only files in a fixed list are served."""
    name = "/".join(call.path.values())
    if name not in STATIC:
        raise HTTPError(404, "404 page not found")
    return Response(_static(name), STATIC[name], headers={"Cache-Control": "public, max-age=31536000, immutable"})


ROUTES = [
    Route("GET", "/", show_list),
    Route("GET", "/m/{id}", show_message),
    Route("POST", "/do", change),
    Route("GET", "/delete", confirm_deletion),
    Route("GET", "/sessions", show_sessions),
    Route("GET", "/sessions/{session}", show_session),
    Route("POST", "/m/{id}/release", release),
    Route("GET", "/faults", show_faults),
    Route("POST", "/faults", change_faults),
    Route("GET", "/static/{file}", send_static, open=True),
    Route("GET", "/static/{folder}/{file}", send_static, open=True),
]
