"""Mailpit's API, version 1, and the URLs that show a single mail.

Deliberate differences: ``raw`` is byte for byte what was received, a DELETE body that is not JSON is rejected, and
links are listed but not checked, because the content of a mail never causes the server to send a request.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from txsmtpd.bridges.reactors import call_in_pool
from txsmtpd.inbox.message import Arrival, Message
from txsmtpd.inbox.search import Term, Terms, parse_query
from txsmtpd.inbox.web import shapes
from txsmtpd.inbox.web.compose import composed
from txsmtpd.inbox.web.content import html_response, part_response, source_response, text_response
from txsmtpd.inbox.web.html_check import check
from txsmtpd.inbox.web.release import release_message
from txsmtpd.inbox.web.request import Call, strings
from txsmtpd.inbox.web.response import JSON, HTTPError, Response, json_response, ok, redirect
from txsmtpd.inbox.web.routes import Route, options
from txsmtpd.inbox.web.waiting import applied, wait_if_preferred
from txsmtpd.mime import markup

MOST = 1000  # messages per page
TOGETHER = 500  # messages to read at once when all are requested

# A white JPEG, 180 by 120: the server never decodes images from mail.
THUMBNAIL = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeX"
    "BkeFxlZ2P/wAALCAB4ALQBAREA/8QAFQABAQAAAAAAAAAAAAAAAAAAAAf/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oACAEBAAA/AKAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAD//2Q"
    "=="
)


def terms_of(query: str, tz: str = "") -> Terms:
    """Parse a search.

    :raises HTTPError: if one of the terms is invalid.
    """
    try:
        return parse_query(query, tz)
    except ValueError as error:
        raise HTTPError(400, str(error)) from None


async def found(call: Call) -> tuple[Message, dict[str, str]]:
    """Return the message that a path names, by its id or as ``latest``, and headers for the response.

    :raises HTTPError: if there is no such message.
    """
    headers: dict[str, str] = {}
    message_id = call.path["id"]
    if message_id == "latest":
        terms = terms_of(call.query.get("query", ""), call.query.get("tz", ""))
        await wait_if_preferred(call, terms, headers)
        message = await call.store.latest(call.scope, terms)
    else:
        message = await call.store.message(message_id, call.scope)
    if message is None:
        raise HTTPError(404, "Message not found", headers)
    return message, headers


# Lists


async def list_messages(call: Call) -> Response:
    return await _list(call, _before(call), {})


async def search(call: Call) -> Response:
    if not call.query.get("query", "").strip():
        raise HTTPError(400, "the search query is missing")
    terms = terms_of(call.query["query"], call.query.get("tz", ""))
    headers: dict[str, str] = {}
    await wait_if_preferred(call, terms, headers)
    return await _list(call, terms + _before(call), headers)


def _before(call: Call) -> Terms:
    """Return the ``before`` parameter, which is in milliseconds since the epoch, as terms."""
    before = call.number("before", 0)
    return (Term("before", number=before / 1000),) if before else ()


async def _list(call: Call, terms: Terms, headers: dict[str, str]) -> Response:
    start = call.number("start", 0)
    limit = call.number("limit", 50, MOST)
    counts = await call.store.counts(call.scope)
    tags = await call.store.tags(call.scope)
    if limit == 0 and call.query.get("limit"):
        page = await call.store.page(call.scope, terms, limit=0)
        length = max(0, page.count - start)
        totals = shapes.totals(page, counts, length, tags, start)
        return Response(_all_messages(call, terms, start, totals), JSON, headers=headers)
    page = await call.store.page(call.scope, terms, start=start, limit=limit or 50)
    return applied(json_response(shapes.summaries(page, counts, tags, start)), headers)


async def _all_messages(call: Call, terms: Terms, start: int, totals: dict[str, Any]) -> AsyncIterator[bytes]:
    yield json.dumps(totals).encode()[:-1] + b', "messages": ['
    before: int | None = None
    separator = b""
    while True:
        page = await call.store.page(call.scope, terms, start=start, limit=TOGETHER, before=before, exact=False)
        for message in page.messages:
            yield separator + json.dumps(shapes.summary(message)).encode()
            separator = b","
        if len(page.messages) < TOGETHER:
            break
        before, start = page.messages[-1].number, 0
    yield b"]}"


# Changes


async def set_read(call: Call) -> Response:
    body = call.json()
    ids, query, seen = strings(body.get("ids"), "IDs"), body.get("search") or "", body.get("read", False)
    if ids and query:
        raise HTTPError(400, "give IDs or Search, not both")
    if not isinstance(query, str) or not isinstance(seen, bool):
        raise HTTPError(400, "Search must be a string, and Read must be true or false")
    terms = terms_of(query, call.query.get("tz", ""))
    await call.store.set_seen(seen, call.scope, ids or None, terms)
    return ok()


async def delete_messages(call: Call) -> Response:
    ids = strings(call.json().get("ids"), "IDs")
    await call.store.delete(call.scope, ids or None)
    return ok()


async def delete_search(call: Call) -> Response:
    terms = terms_of(call.query.get("query", ""), call.query.get("tz", ""))
    if not terms:
        raise HTTPError(400, "the search query is missing")
    await call.store.delete(call.scope, terms=terms)
    return ok()


async def send(call: Call) -> Response:
    try:
        limit = call.settings.size_limit or 2**30
        sender, recipients, content = composed(call.json(2 * limit))
        if len(content) > limit:
            raise HTTPError(413, f"the message has more than {limit} octets")
    except HTTPError as error:
        return json_response({"Error": str(error)}, error.status)
    peer = call.request.getClientAddress()
    arrival = Arrival(content, sender, recipients, peer=str(getattr(peer, "host", "") or ""), user=call.user)
    message = await call.store.add(arrival)
    return json_response({"ID": message.id})


async def release(call: Call) -> Response:
    message, _ = await found(call)
    await release_message(call, message, strings(call.json().get("to"), "To"))
    return ok()


# One message


async def message(call: Call) -> Response:
    message, headers = await found(call)
    if not message.seen:
        await call.store.set_seen(True, call.scope, [message.id])
    return applied(json_response(await shapes.full(call.store, message)), headers)


async def message_headers(call: Call) -> Response:
    message, headers = await found(call)
    fields = await call.store.fields(message)
    return applied(json_response(shapes.headers(fields, message)), headers)


async def raw(call: Call) -> Response:
    message, headers = await found(call)
    return applied(source_response(call.store, message, call.query.get("dl") in ("1", "true")), headers)


async def part(call: Call) -> Response:
    message, headers = await found(call)
    part = message.part(call.path["part"])
    if part is None:
        raise HTTPError(404, "the message has no such part")
    return applied(part_response(call.store, message, part), headers)


async def thumbnail(call: Call) -> Response:
    message, headers = await found(call)
    if message.part(call.path["part"]) is None:
        raise HTTPError(404, "the message has no such part")
    return applied(Response(THUMBNAIL, "image/jpeg"), headers)


async def link_check(call: Call) -> Response:
    message, headers = await found(call)
    links = markup.links(await call.store.html(message), "\n".join(await call.store.texts(message, "text")))
    shown = [{"URL": link, "StatusCode": 0, "Status": "not checked"} for link in links if link.startswith("http")]
    return applied(json_response({"Errors": 0, "Links": shown}), headers)


async def html_check(call: Call) -> Response:
    message, headers = await found(call)
    if not message.has_html:
        raise HTTPError(404, "This message does not contain an HTML part", headers)
    return applied(json_response(await call_in_pool(check, await call.store.html(message))), headers)


# A single mail


async def view_html(call: Call) -> Response:
    message, headers = await found(call)
    if not message.has_html:
        raise HTTPError(404, "This message does not contain an HTML part", headers)
    wanted = {name: call.query.get(name) in ("1", "true") for name in ("embed", "remote")}
    return applied(await html_response(call.store, message, frames=call.settings.frames, **wanted), headers)


async def view_text(call: Call) -> Response:
    message, headers = await found(call)
    return applied(await text_response(call.store, message), headers)


async def view_latest(call: Call) -> Response:
    call.path = {"id": "latest"}
    message, headers = await found(call)
    kind = "html" if message.has_html else "txt"
    return applied(redirect(call.url(f"/view/{message.id}.{kind}")), headers)


# Tags


async def list_tags(call: Call) -> Response:
    return json_response(list(await call.store.tags(call.scope)))


async def set_tags(call: Call) -> Response:
    body = call.json()
    ids, tags = strings(body.get("ids"), "IDs"), strings(body.get("tags"), "Tags")
    await call.store.set_tags(ids, tags, call.scope)
    return ok()


async def rename_tag(call: Call) -> Response:
    name = call.json().get("name")
    if not isinstance(name, str) or not name.strip():
        raise HTTPError(400, "Name must be a tag")
    await call.store.rename_tag(call.path["tag"], name, call.scope)
    return ok()


async def delete_tag(call: Call) -> Response:
    await call.store.rename_tag(call.path["tag"], None, call.scope)
    return ok()


# The server


async def info(call: Call) -> Response:
    return json_response(await shapes.info(call.store, await call.store.tags()))


async def web_ui(call: Call) -> Response:
    settings = call.settings
    return json_response(
        {
            "Label": settings.label,
            "MessageRelay": {
                "Enabled": settings.relay is not None,
                "SMTPServer": settings.relay_name,
                "ReturnPath": "",
                "AllowedRecipients": "",
                "BlockedRecipients": "",
                "OverrideFrom": "",
                "PreserveMessageIDs": True,
                "RecipientAllowlist": "",
            },
            "SpamAssassin": False,
            "ChaosEnabled": settings.faults is not None,
            "DuplicatesIgnored": False,
            "HideDeleteAllButton": False,
        }
    )


async def alive(call: Call) -> Response:
    return ok()


_PAGE = options(start="number of messages to skip", limit="maximum number of messages; 0: all")
TIME_ZONE = options(tz="the time zone of dates in the query")
_QUERY = {**options(query="the search"), **TIME_ZONE}
LATEST = {**options(query="with the id latest: the newest message that matches this search"), **TIME_ZONE}
_IDS = options(IDs="the ids of the messages; without ids, all messages")

ROUTES = [
    Route("GET", "/api/v1/messages", list_messages, "List messages, newest first.", parameters=_PAGE),
    Route(
        "PUT",
        "/api/v1/messages",
        set_read,
        "Mark messages as read or unread.",
        body={**_IDS, **options(Read="true or false", Search="a search, instead of IDs")},
    ),
    Route("DELETE", "/api/v1/messages", delete_messages, "Delete messages.", body=_IDS),
    Route("GET", "/api/v1/search", search, "Search messages, newest first.", parameters={**_QUERY, **_PAGE}),
    Route("DELETE", "/api/v1/search", delete_search, "Delete the messages that match a search.", parameters=_QUERY),
    Route("GET", "/api/v1/message/{id}", message, "Return a message, and mark it as read.", parameters=LATEST),
    Route("GET", "/api/v1/message/{id}/headers", message_headers, "Return the header fields.", parameters=LATEST),
    Route(
        "GET",
        "/api/v1/message/{id}/raw",
        raw,
        "Return the source.",
        parameters={**LATEST, **options(dl="1: send as a download")},
    ),
    Route("GET", "/api/v1/message/{id}/part/{part}", part, "Return a part, decoded.", parameters=LATEST),
    Route("GET", "/api/v1/message/{id}/part/{part}/thumb", thumbnail, "A white image.", parameters=LATEST),
    Route(
        "GET",
        "/api/v1/message/{id}/html-check",
        html_check,
        "Check the HTML for compatibility with mail programs, with data from caniemail.com.",
        parameters=LATEST,
    ),
    Route(
        "GET",
        "/api/v1/message/{id}/link-check",
        link_check,
        "List the links, without checking them.",
        parameters=LATEST,
    ),
    Route(
        "POST",
        "/api/v1/message/{id}/release",
        release,
        "Send the message through the configured relay.",
        body=options(To="recipients"),
    ),
    Route(
        "POST",
        "/api/v1/send",
        send,
        "Store a message.",
        body=options(
            From="{Email, Name}",
            To="a list of {Email, Name}",
            Cc="a list of {Email, Name}",
            ReplyTo="a list of {Email, Name}",
            Bcc="a list of addresses",
            Subject="text",
            Text="text",
            HTML="text",
            Headers="values by name",
            Tags="a list of tags",
            Attachments="a list of {Content (base64), Filename, ContentType, ContentID}",
        ),
    ),
    Route("GET", "/api/v1/tags", list_tags, "List all tags."),
    Route(
        "PUT", "/api/v1/tags", set_tags, "Set the tags of messages.", body={**_IDS, **options(Tags="a list of tags")}
    ),
    Route("PUT", "/api/v1/tags/{tag}", rename_tag, "Rename a tag.", body=options(Name="its new name")),
    Route("DELETE", "/api/v1/tags/{tag}", delete_tag, "Remove a tag from all messages."),
    Route("GET", "/api/v1/info", info, "Return information about the server, and counters."),
    Route("GET", "/api/v1/webui", web_ui, "Return the features of the server."),
    Route("GET", "/view/latest", view_latest, "Redirect to the HTML of the newest message.", parameters=_QUERY),
    Route(
        "GET",
        "/view/{id}.html",
        view_html,
        "Return the HTML of a message as a page.",
        parameters=options(
            embed="1: links open in a new window",
            remote="1: allow the browser to load images, styles and fonts over HTTPS",
        ),
    ),
    Route("GET", "/view/{id}.txt", view_text, "Return the text of a message as a page."),
    Route("GET", "/livez", alive, "Check whether the server is running.", open=True),
    Route("GET", "/readyz", alive, "Check whether the server is ready.", open=True),
]
