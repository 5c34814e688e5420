"""The pages for people."""

from __future__ import annotations

from html import escape

from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTML, Response
from txsmtpd.inbox.web.routes import Route


async def messages(call: Call) -> Response:
    page = await call.store.page(call.scope)
    rows = [
        f'<li><a href="{escape(call.url(f"/view/{message.id}.txt"))}">{escape(message.subject or "(no subject)")}</a>'
        for message in page.messages
    ]
    text = f"<!doctype html><title>Inbox</title><h1>Inbox</h1><ul>{''.join(rows)}</ul>"
    return Response(text.encode("utf-8", "replace"), HTML)


ROUTES = [Route("GET", "/", messages)]
