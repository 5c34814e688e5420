"""Release: sends a stored message to the configured relay, and to no other server.

The request can choose recipients, but never a server.
"""

from __future__ import annotations

from collections.abc import Sequence

from txsmtpd.inbox.message import Message
from txsmtpd.inbox.web.request import Call
from txsmtpd.inbox.web.response import HTTPError
from txsmtpd.reply import Refused, Reply
from txsmtpd.wire import grammar

MOST = 100  # recipients


async def release_message(call: Call, message: Message, recipients: Sequence[str]) -> None:
    """Send a message to the relay.

    :param recipients: forward-paths.
    :raises HTTPError: if there is no relay, a recipient is invalid, or the relay rejects the message.
    """
    relay = call.settings.relay
    if relay is None:
        raise HTTPError(400, "there is no relay: start the server with --web-relay=HOST:PORT")
    if not 0 < len(recipients) <= MOST:
        raise HTTPError(400, f"To must have 1 to {MOST} recipients")
    for path in recipients:
        try:
            grammar.parse_rcpt(f"TO:<{path}>")
        except Refused:
            raise HTTPError(400, f"{path[:100]!r} is not an address such as ann@example.com") from None
    content = await call.store.content(message)
    try:
        replies: Sequence[Reply] = await relay.send(message.envelope.mail_from, list(recipients), content)
    except Refused as refused:
        raise HTTPError(502, f"the relay rejected it: {refused.reply}") from None
    refused_by = [f"{path}: {reply}" for path, reply in zip(recipients, replies, strict=False) if reply.code >= 400]
    if refused_by:
        raise HTTPError(502, f"the relay rejected it: {'; '.join(refused_by)[:1000]}")
