"""MailHog's API: version 2 for lists and searches, and the parts of version 1 that its clients use.

``GET /api/v1/messages`` and ``DELETE /api/v1/messages`` behave as in Mailpit.
"""

from __future__ import annotations

import re
from typing import Any

from txsmtpd.inbox.message import Message
from txsmtpd.inbox.search import Term, Terms
from txsmtpd.inbox.web import shapes
from txsmtpd.inbox.web.content import source_response
from txsmtpd.inbox.web.faults import add_rule, rules
from txsmtpd.inbox.web.release import release_message
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTTPError, Response, json_response
from txsmtpd.inbox.web.routes import Route, options
from txsmtpd.mime.structure import Entity, structure

MOST = 250  # messages per page
LARGEST = 2**20  # bytes; a list contains the whole of messages up to this size

KINDS = {"from": ("from",), "to": ("to", "cc", "bcc"), "containing": ("text",)}


def _path(address: str) -> dict[str, Any]:
    mailbox, _, domain = address.rpartition("@")
    return {"Relays": None, "Mailbox": mailbox, "Domain": domain, "Params": ""}


async def item(call: Call, message: Message) -> dict[str, Any]:
    """Return a message, in MailHog's format."""
    content = await call.store.content(message, 0, None if message.size <= LARGEST else LARGEST)
    root = structure(content)
    known = message.envelope
    return {
        "ID": message.id,
        "From": _path(known.mail_from),
        "To": [_path(path) for path in known.rcpt_tos],
        "Content": _content(root, content),
        "Created": shapes.timestamp(message.arrived),
        "MIME": {"Parts": [_content(part, content) for part in root.parts]} if root.parts else None,
        "Raw": {
            "From": known.mail_from,
            "To": list(known.rcpt_tos),
            "Data": content.decode("utf-8", "replace"),
            "Helo": known.helo,
        },
    }


def _content(entity: Entity, content: bytes) -> dict[str, Any]:
    headers: dict[str, list[str]] = {}
    for name, value in entity.fields:
        headers.setdefault(shapes.canonical(name), []).append(value.decode("utf-8", "replace"))
    body = content[entity.body : entity.end].decode("utf-8", "replace")
    parts = {"Parts": [_content(part, content) for part in entity.parts]} if entity.parts else None
    return {"Headers": headers, "Body": body, "Size": entity.end - entity.start, "MIME": parts}


async def _listed(call: Call, terms: Terms) -> Response:
    start, limit = call.number("start", 0), call.number("limit", 50, MOST)
    page = await call.store.page(call.scope, terms, start=start, limit=limit)
    items = [await item(call, message) for message in page.messages]
    return json_response({"total": page.count, "count": len(items), "start": start, "items": items})


async def messages(call: Call) -> Response:
    return await _listed(call, ())


async def search(call: Call) -> Response:
    kind, query = call.query.get("kind", ""), call.query.get("query", "")
    if kind not in KINDS or not query:
        raise HTTPError(400, f"kind must be one of {', '.join(KINDS)}, and query what to look for")
    return await _listed(call, (Term("words", query.casefold(), columns=KINDS[kind]),))


async def _found(call: Call) -> Message:
    message = await call.store.message(call.path["id"], call.scope)
    if message is None:
        raise HTTPError(404, "Message not found")
    return message


async def message(call: Call) -> Response:
    return json_response(await item(call, await _found(call)))


async def delete(call: Call) -> Response:
    message = await _found(call)
    await call.store.delete(call.scope, [message.id])
    return Response(b"")


async def download(call: Call) -> Response:
    return source_response(call.store, await _found(call), download=True)


async def release(call: Call) -> Response:
    # The relay is the configured one. The host and the password in the request are ignored.
    email = call.json().get("email")
    if not isinstance(email, str):
        raise HTTPError(400, "Email must be a recipient")
    await release_message(call, await _found(call), [email])
    return Response(b"")


async def outgoing(call: Call) -> Response:
    return json_response({})


# Jim, MailHog's fault injection

_JIM = {
    "DisconnectChance": ("any share={} drop", 0.005),
    "AcceptChance": ("connect share={} reply=421 4.3.2 Jim", 0.99),
    "LinkSpeedAffect": ("any share={} slow=1000", 0.1),
    "RejectSenderChance": ("mail share={} reply=550 5.7.1 Jim", 0.05),
    "RejectRecipientChance": ("rcpt share={} reply=550 5.7.1 Jim", 0.05),
    "RejectAuthChance": ("auth share={} reply=535 5.7.8 Jim", 0.05),
}


def _jims(call: Call) -> list[Any]:
    specs = [re.escape(spec).replace(r"\{\}", "[0-9.e-]+") for spec, _ in _JIM.values()]
    return [rule for rule in rules(call) if any(re.fullmatch(spec, getattr(rule.when, "spec", "")) for spec in specs)]


async def jim(call: Call) -> Response:
    if not _jims(call):
        raise HTTPError(404, "Jim is not enabled")
    found = dict.fromkeys(_JIM, 0.0)
    found["AcceptChance"] = 1.0
    for rule in _jims(call):
        for name, (spec, _) in _JIM.items():
            before, _, after = spec.partition("{}")
            text = getattr(rule.when, "spec", "")
            if text.startswith(before) and text.endswith(after):
                share = float(text[len(before) : len(text) - len(after)])
                found[name] = round(1 - share, 6) if name == "AcceptChance" else share
    return json_response(found)


async def set_jim(call: Call) -> Response:
    body = call.json()
    shares = {}
    for name, (_, default) in _JIM.items():
        share = body.get(name.lower(), default)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise HTTPError(400, f"{name} must be a number from 0 to 1")
        shares[name] = 1 - share if name == "AcceptChance" else share
    await delete_jim(call)
    for name, (spec, _) in _JIM.items():
        if shares[name]:
            add_rule(call, spec.format(f"{shares[name]:g}"))
    return Response(b"", status=201 if call.request.method == b"POST" else 200)


async def delete_jim(call: Call) -> Response:
    for rule in _jims(call):
        call.settings.faults.remove(rule)
    call.store.hub.publish("faults")
    return Response(b"")


_PAGE = options(start="number of messages to skip", limit="maximum number of messages, at most 250")

ROUTES = [
    Route("GET", "/api/v2/messages", messages, "List messages, in MailHog's format.", parameters=_PAGE),
    Route(
        "GET",
        "/api/v2/search",
        search,
        "Search messages, in MailHog's format.",
        parameters={**options(kind="from, to or containing", query="the text to search for"), **_PAGE},
    ),
    Route("GET", "/api/v1/messages/{id}", message, "Return a message, in MailHog's format."),
    Route("DELETE", "/api/v1/messages/{id}", delete, "Delete a message."),
    Route("GET", "/api/v1/messages/{id}/download", download, "Download the source of a message."),
    Route("POST", "/api/v1/messages/{id}/release", release, "Send the message through the configured relay."),
    Route("GET", "/api/v2/outgoing-smtp", outgoing, "List MailHog's outgoing servers; always empty."),
    Route("GET", "/api/v2/jim", jim, "Return the settings of MailHog's Jim (random faults)."),
    Route("POST", "/api/v2/jim", set_jim, "Enable Jim."),
    Route("PUT", "/api/v2/jim", set_jim, "Change the settings of Jim."),
    Route("DELETE", "/api/v2/jim", delete_jim, "Disable Jim."),
]
