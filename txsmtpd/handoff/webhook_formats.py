"""The request bodies of web hooks, in formats that existing applications understand. No I/O.

``raw`` is the message itself, with the envelope in header fields; ``json`` is one document with both. ``sendgrid`` and
``mailgun`` are the forms that those services post. Frameworks decode form fields as text, so messages that are not
ASCII are re-encoded first.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from txsmtpd.handoff.bindings import http_headers
from txsmtpd.handoff.message import HandoffMessage
from txsmtpd.handoff.seven_bit import in_seven_bits


@dataclass(frozen=True)
class Request:
    """A request to post.

    :ivar id: the same if the request is sent again.
    """

    id: str
    body: bytes = field(repr=False)
    headers: list[tuple[str, str]]


def raw(message: HandoffMessage, key: bytes | None, timestamp: int) -> list[Request]:
    """Post the message as it is, with the envelope as header fields."""
    return [Request(message.id, message.content, http_headers(message))]


def json_document(message: HandoffMessage, key: bytes | None, timestamp: int) -> list[Request]:
    """Post a JSON document with the envelope, and the message in base64."""
    document = {
        "envelope": message.envelope,
        "content_type": message.content_type,
        "message": base64.b64encode(message.content).decode("ascii"),
    }
    return [Request(message.id, json.dumps(document).encode("ascii"), [("Content-Type", "application/json")])]


def sendgrid(message: HandoffMessage, key: bytes | None, timestamp: int) -> list[Request]:
    """Post the form of SendGrid's Inbound Parse with "send raw"."""
    envelope = message.envelope
    fields = [
        ("email", in_seven_bits(message.content)),
        ("envelope", json.dumps({"to": message.rcpt_tos, "from": envelope["mail_from"]}).encode("ascii")),
        ("to", _octets(", ".join(message.rcpt_tos))),
        ("from", _octets(envelope["mail_from"])),
        ("sender_ip", _octets(envelope["client"]["address"] or "")),
        ("charsets", b'{"to": "UTF-8", "from": "UTF-8"}'),
    ]
    return [_form(message.id, fields)]


def mailgun(message: HandoffMessage, key: bytes | None, timestamp: int) -> list[Request]:
    """Post the form of a Mailgun route that forwards MIME, once for each recipient."""
    content = in_seven_bits(message.content)
    requests = []
    for number, path in enumerate(message.rcpt_tos):
        identifier = f"{message.id}-{number}"
        token = hashlib.sha256(identifier.encode("ascii")).hexdigest()[:50]
        fields = [
            ("recipient", _octets(path)),
            ("sender", _octets(message.envelope["mail_from"])),
            ("timestamp", str(timestamp).encode("ascii")),
            ("token", token.encode("ascii")),
            ("body-mime", content),
        ]
        if key is not None:
            digest = hmac.new(key, f"{timestamp}{token}".encode("ascii"), hashlib.sha256).hexdigest()
            fields.append(("signature", digest.encode("ascii")))
        requests.append(_form(identifier, fields))
    return requests


FORMATS = {"raw": raw, "json": json_document, "sendgrid": sendgrid, "mailgun": mailgun}
"""Formats by name. Each takes the message, the first secret or None, and the seconds since the epoch."""


def _form(identifier: str, fields: Iterable[tuple[str, bytes]]) -> Request:
    """Make a form as multipart/form-data (RFC 7578)."""
    fields = list(fields)
    digest = hashlib.sha256(identifier.encode("ascii"))
    boundary = f"txsmtpd-{digest.hexdigest()[:40]}".encode("ascii")
    while any(boundary in value for _, value in fields):  # if the message contains an earlier request
        digest.update(b"again")
        boundary = f"txsmtpd-{digest.hexdigest()[:40]}".encode("ascii")
    pieces = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, name.encode("ascii"), value)
        for name, value in fields
    ]
    body = b"".join([*pieces, b"--", boundary, b"--\r\n"])
    content_type = f"multipart/form-data; boundary={boundary.decode('ascii')}"
    return Request(identifier, body, [("Content-Type", content_type)])


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
