"""The inbox's own API, below ``/api/inbox/v1/``: waiting for mail, and what Mailpit's API does not have."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from txsmtpd.inbox.scope import Scope, make_key
from txsmtpd.inbox.search import Terms
from txsmtpd.inbox.sessions import find_session, records_of
from txsmtpd.inbox.store import SessionRecord
from txsmtpd.inbox.web import shapes
from txsmtpd.inbox.web.dialogs import dialog_of
from txsmtpd.inbox.web.export import as_mbox, as_zip
from txsmtpd.inbox.web.mailpit import LATEST, TIME_ZONE, found, terms_of
from txsmtpd.inbox.web.openapi import description
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import TEXT, HTTPError, Response, json_response
from txsmtpd.inbox.web.routes import Route, options
from txsmtpd.inbox.web.waiting import DEFAULT, LONGEST, applied, wait_for
from txsmtpd.mime import markup

SHOWN = 20  # messages to list when the expected one did not arrive
NEAR = 5
MOST = 1000  # sessions

CRITERIA = ("to", "domain", "sender", "user", "subject")


def _wanted(call: Call) -> tuple[Scope, Terms, str]:
    """Return what a request waits for: the scope, the terms, and a description of both."""
    query = call.query
    try:
        keys = [make_key(name, query[name], call.store.headers) for name in CRITERIA if name in query]
        if "header" in query:
            name, colon, value = query["header"].partition(":")
            if not colon:
                raise ValueError("header must be a field and its value, such as X-Test: 42")
            if name.strip().lower() in (*CRITERIA,):
                raise ValueError(f"header cannot be {name.strip()}")
            keys.append(make_key(name, value, call.store.headers))
        scope = call.scope.within(*keys)
    except ValueError as error:
        raise HTTPError(400, str(error)) from None
    terms = terms_of(query.get("query", ""), query.get("tz", ""))
    text = ", ".join(filter(None, [str(scope), query.get("query", "")]))
    return scope, terms, text


async def wait(call: Call) -> Response:
    scope, terms, text = _wanted(call)
    query = call.query
    after, count = call.number("after", 0), call.number("count", 1)
    expect = query.get("expect", "")
    if expect not in ("", "none"):
        raise HTTPError(400, "expect can only be none")
    if count < 1:
        raise HTTPError(400, "count must be 1 or more; use expect=none to check that no message arrives")
    timeout = call.seconds("timeout", DEFAULT, LONGEST)
    if expect:
        timeout = call.seconds("within", timeout, LONGEST)
    elif "within" in query:
        raise HTTPError(400, "within requires expect=none; otherwise use timeout")
    limit = call.number("limit", 50, 1000) or 50
    page, came = await wait_for(
        call, scope, terms, timeout=timeout, count=1 if expect else count, after=after, limit=limit
    )
    counts = await call.store.counts(scope)
    answer = shapes.summaries(page, counts, await call.store.tags(scope), 0)
    cursor = str(max([after, *(message.number for message in page.messages)]))
    if expect:
        return json_response(answer, 409 if came else 200, Inbox_Cursor=cursor)
    if came:
        return json_response(answer, Inbox_Cursor=cursor)
    return json_response(await _missing(call, scope, text, count, page.count, timeout), 404, Inbox_Cursor=cursor)


async def _missing(call: Call, scope: Scope, text: str, count: int, came: int, timeout: float) -> dict[str, Any]:
    """Return the response when the expected mail did not arrive: it lists what did."""
    there = await call.store.page(call.scope, limit=SHOWN)
    missing = f"no mail {text + ' ' if text else ''}arrived within {timeout:g} seconds"
    if came:
        missing = f"{came} of {count} messages {text + ' ' if text else ''}arrived within {timeout:g} seconds"
    nearest: list[str] = []
    recent = await call.store.page(call.scope, limit=200, exact=False)
    for name, value in scope.keys[len(call.scope.keys) :]:
        values = {each for message in recent.messages for key, each in message.filed if key == name}
        nearest += [f"{name}={near}" for near in _similar(value, values)]
    return {
        "error": missing if there.messages else f"{missing}; nothing arrived at all",
        "wanted": text,
        "nearest": nearest,
        "arrived": [shapes.summary(message) for message in there.messages],
    }


def _similar(wanted: str, values: set[str]) -> list[str]:
    """Return the values that are similar to the wanted one. If the wanted one exists, return none: then another
    criterion does not match."""
    if wanted in values:
        return []
    close = difflib.get_close_matches(wanted, values, NEAR)
    within = sorted(each for each in values if wanted.lower() in each.lower())
    return list(dict.fromkeys([*close, *within]))[:NEAR]


async def cursor(call: Call) -> Response:
    number = call.store.last_number
    return json_response({"cursor": number}, Inbox_Cursor=str(number))


# One message


async def envelope(call: Call) -> Response:
    message, headers = await found(call)
    known = message.envelope
    answer = {
        "ID": message.id,
        "Number": message.number,
        "Arrived": shapes.timestamp(message.arrived),
        "From": known.mail_from,
        "To": list(known.rcpt_tos),
        "FromOptions": list(known.mail_options),
        "ToOptions": list(known.rcpt_options),
        "Peer": known.peer,
        "Helo": known.helo,
        "TLS": known.tls,
        "Username": known.user,
        "Session": known.session,
    }
    return applied(json_response(answer), headers)


async def links(call: Call) -> Response:
    message, headers = await found(call)
    documents = await call.store.html(message)
    texts = "\n".join(await call.store.texts(message, "text"))
    return applied(json_response({"links": markup.links(documents, texts)}), headers)


async def codes(call: Call) -> Response:
    message, headers = await found(call)
    shortest, longest = call.number("shortest", 4, 20), call.number("longest", 10, 20)
    text = f"{message.subject}\n{await call.store.text(message)}"
    return applied(json_response({"codes": markup.codes(text, shortest, longest)}), headers)


async def transcript(call: Call) -> Response:
    message, headers = await found(call)
    session = await _session(call, message.envelope.session)
    return applied(json_response({"records": records_of(session)}), headers)


async def dialog(call: Call) -> Response:
    message, headers = await found(call)
    return applied(await _dialog(call, await _session(call, message.envelope.session)), headers)


# Sessions


async def _session(call: Call, session_id: str) -> SessionRecord:
    session = await find_session(call.store, session_id, call.settings.transcripts)
    if session is None:
        raise HTTPError(404, "There is no such session.")
    return session


def shown(session: SessionRecord) -> dict[str, Any]:
    """Return a session for JSON, without its transcript."""
    return {
        "ID": session.id,
        "Began": shapes.timestamp(session.began),
        "Ended": None if session.ended is None else shapes.timestamp(session.ended),
        "Peer": session.peer,
        "Outcome": session.outcome,
        "Messages": list(session.messages),
    }


async def sessions(call: Call) -> Response:
    found = await call.store.sessions(call.scope, call.number("limit", 50, MOST) or 50)
    return json_response({"sessions": [shown(session) for session in found]})


async def found_session(call: Call) -> SessionRecord:
    """Return the session that a path names. Within a scope, only sessions listed there are found.

    :raises HTTPError: if there is no such session.
    """
    session = await _session(call, call.path["session"])
    if call.scope.keys and session.id not in {each.id for each in await call.store.sessions(call.scope, MOST)}:
        raise HTTPError(404, "There is no such session.")
    return session


async def session(call: Call) -> Response:
    found = await in_scope(call, await found_session(call))
    return json_response({**shown(found), "Records": records_of(found)})


async def in_scope(call: Call, session: SessionRecord) -> SessionRecord:
    """Return the session with only those of its messages that are in the scope of the request."""
    ids = [each for each in session.messages if await call.store.message(each, call.scope) is not None]
    return replace(session, messages=tuple(ids))


async def session_dialog(call: Call) -> Response:
    return await _dialog(call, await found_session(call))


async def _dialog(call: Call, session: SessionRecord) -> Response:
    contents = []
    for message_id in session.messages:
        message = await call.store.message(message_id, call.scope)
        contents.append(b"" if message is None else await call.store.content(message))
    text = dialog_of(session, records_of(session), contents)
    headers = {"Content-Disposition": 'attachment; filename="session.smtp"'}
    return Response(text.encode("utf-8", "replace"), TEXT, headers=headers)


# Export


def _selected(call: Call) -> tuple[list[str] | None, Terms]:
    ids = [each for each in call.query.get("ids", "").split(",") if each]
    return ids or None, terms_of(call.query.get("query", ""), call.query.get("tz", ""))


async def export_mbox(call: Call) -> Response:
    headers = {"Content-Disposition": 'attachment; filename="inbox.mbox"'}
    return Response(as_mbox(call.store, call.scope, *_selected(call)), "application/mbox", headers=headers)


async def export_zip(call: Call) -> Response:
    headers = {"Content-Disposition": 'attachment; filename="inbox.zip"'}
    return Response(as_zip(call.store, call.scope, *_selected(call)), "application/zip", headers=headers)


async def openapi(call: Call) -> Response:
    from txsmtpd.inbox.web.table import ROUTES as all_routes

    return json_response(description(all_routes, call.settings.path))


_SELECTION = {
    **options(ids="ids, separated by commas", query="a search, instead of ids; without both, all messages"),
    **TIME_ZONE,
}

ROUTES = [
    Route(
        "GET",
        "/api/inbox/v1/wait",
        wait,
        "Wait for messages. If too few arrive in time, return 404 and the last messages that have arrived.",
        parameters={
            **{name: f"the messages with exactly this {name}" for name in CRITERIA},
            **options(
                header="a header field and its value, such as X-Test: 42",
                query="an additional search",
                after="only messages after this cursor",
                count="number of messages; default 1",
                timeout="seconds, at most 60; default 10",
                expect="none, to expect no message: return 200 if no message arrives, or 409 and the message",
                within="the timeout for expect=none, in seconds",
                limit="maximum number of messages in the response; default 50",
            ),
            **TIME_ZONE,
        },
    ),
    Route("GET", "/api/inbox/v1/cursor", cursor, "The number of the newest message, for wait?after=."),
    Route(
        "GET",
        "/api/inbox/v1/message/{id}/envelope",
        envelope,
        "Return the envelope and the session data of a message.",
        parameters=LATEST,
    ),
    Route("GET", "/api/inbox/v1/message/{id}/links", links, "List the links.", parameters=LATEST),
    Route(
        "GET",
        "/api/inbox/v1/message/{id}/codes",
        codes,
        "List the one-time codes.",
        parameters={**LATEST, **options(shortest="minimum length; default 4", longest="maximum length; default 10")},
    ),
    Route(
        "GET",
        "/api/inbox/v1/message/{id}/transcript",
        transcript,
        "Return the transcript of the session.",
        parameters=LATEST,
    ),
    Route(
        "GET", "/api/inbox/v1/message/{id}/dialog", dialog, "Return the session as a dialog file.", parameters=LATEST
    ),
    Route(
        "GET",
        "/api/inbox/v1/sessions",
        sessions,
        "List sessions, newest first.",
        parameters=options(limit="maximum number; default 50"),
    ),
    Route("GET", "/api/inbox/v1/sessions/{session}", session, "Return a session with its transcript."),
    Route("GET", "/api/inbox/v1/sessions/{session}/dialog", session_dialog, "Return a session as a dialog file."),
    Route("GET", "/api/inbox/v1/export.mbox", export_mbox, "Export messages as an mbox file.", parameters=_SELECTION),
    Route("GET", "/api/inbox/v1/export.zip", export_zip, "Export messages as a zip file.", parameters=_SELECTION),
    Route("GET", "/api/inbox/v1/openapi.json", openapi, "This description."),
]
