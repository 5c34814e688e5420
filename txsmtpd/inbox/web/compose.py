"""Composes a message from the JSON of Mailpit's ``/api/v1/send``."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Mapping
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import localtime, make_msgid
from typing import Any

from txsmtpd.inbox.web.response import HTTPError

_NAME = re.compile(r"[!-9;-~]{1,100}")
_OURS = ("from", "to", "cc", "bcc", "reply-to", "subject", "date", "mime-version")  # fields with their own JSON keys


def composed(body: Mapping[str, Any]) -> tuple[str, tuple[str, ...], bytes]:
    """Return the reverse-path, the forward-paths and the bytes of a message.

    :param body: the JSON object, with its keys in lower case.
    :raises HTTPError: if it does not describe a message; its text says why.
    """
    try:
        return _composed(body)
    except HTTPError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, UnicodeError) as error:
        raise HTTPError(400, f"not a message: {error}") from None


def _composed(body: Mapping[str, Any]) -> tuple[str, tuple[str, ...], bytes]:
    message = EmailMessage(SMTP.clone(max_line_length=998))
    sender = _address(body.get("from"), "From")
    recipients = {name: [_address(each, name) for each in _list(body, name)] for name in ("to", "cc", "replyto")}
    hidden = [_mailbox(each, "Bcc") for each in _list(body, "bcc")]
    message["From"] = sender
    for name, header in ("to", "To"), ("cc", "Cc"), ("replyto", "Reply-To"):
        if recipients[name]:
            message[header] = recipients[name]
    message["Subject"] = _text(body, "subject")
    message["Date"] = localtime()
    _add_headers(message, body)
    if "Message-ID" not in message:
        message["Message-ID"] = make_msgid(domain="localhost")
    tags = [str(tag) for tag in _list(body, "tags")]
    if tags:
        message["X-Tags"] = ", ".join(tags)
    _add_content(message, body)
    paths = [each.addr_spec for name in ("to", "cc") for each in recipients[name]] + hidden
    if not paths:
        raise HTTPError(400, "the message has no recipients: give To, Cc or Bcc")
    return sender.addr_spec, tuple(dict.fromkeys(paths)), message.as_bytes()


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name) or []
    if not isinstance(value, list):
        raise HTTPError(400, f"{name} must be a list")
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str):
        raise HTTPError(400, f"{name} must be a string")
    return value


def _keys(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HTTPError(400, f"{name} must be an object")
    return {str(key).lower(): each for key, each in value.items()}


def _address(value: Any, name: str) -> Address:
    facts = _keys(value, name)
    return Address(_text(facts, "name"), addr_spec=_mailbox(facts.get("email"), name))


def _mailbox(value: Any, name: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[^\s<>,;\"()\\]{1,200}@[^\s<>,;\"()\\@]{1,255}", value):
        raise HTTPError(400, f"{name} needs an address such as ann@example.com, not {str(value)[:100]!r}")
    return value


def _add_headers(message: EmailMessage, body: Mapping[str, Any]) -> None:
    headers = body.get("headers") or {}
    if not isinstance(headers, dict):
        raise HTTPError(400, "Headers must be an object")
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or name.lower() in _OURS or name.lower().startswith("content-"):
            raise HTTPError(400, f"{name[:100]!r} cannot be set by Headers")
        message[name] = " ".join(str(value).split("\n")).replace("\r", " ")


def _add_content(message: EmailMessage, body: Mapping[str, Any]) -> None:
    text, markup = _text(body, "text"), _text(body, "html")
    if text or not markup:
        message.set_content(text)
        if markup:
            message.add_alternative(markup, subtype="html")
    else:
        message.set_content(markup, subtype="html")
    inline = []
    for each in _list(body, "attachments"):
        facts = _keys(each, "an attachment")
        if _text(facts, "contentid"):
            inline.append(facts)
    document = next((part for part in message.walk() if part.get_content_type() == "text/html"), None)
    for facts in inline:
        _attach(document.add_related if document is not None else message.add_attachment, facts)
    for each in _list(body, "attachments"):
        facts = _keys(each, "an attachment")
        if not _text(facts, "contentid"):
            _attach(message.add_attachment, facts)


def _attach(add: Any, facts: Mapping[str, Any]) -> None:
    name = _text(facts, "filename")
    content_id = _text(facts, "contentid")
    guessed = mimetypes.guess_type(name)[0]
    content_type = _text(facts, "contenttype") or guessed or "application/octet-stream"
    main, _, sub = content_type.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+", content_type):
        raise HTTPError(400, f"ContentType must be a type such as image/png, not {content_type[:100]!r}")
    try:
        octets = base64.b64decode(_text(facts, "content"), validate=True)
    except binascii.Error as error:
        raise HTTPError(400, f"Content of {name[:100]!r} is not base64: {error}") from None
    options: dict[str, Any] = {"filename": name} if name else {}
    if content_id:
        options |= {"cid": f"<{content_id}>", "disposition": "inline"}
    add(octets, maintype=main, subtype=sub, **options)
