"""The formats of a message and its envelope for each kind of target: AMQP 0-9-1, Kafka, NATS, HTTP.

All four have the same content: the message (or a reference to it) is the body, the envelope is a JSON header, and
values that brokers and gateways route by have their own headers. The names for Kafka and HTTP are those of CloudEvents
1.0. No I/O and no client library: only bytes and strings.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from txsmtpd.handoff.message import REFERENCE, HandoffMessage

APPLICATION = "txsmtpd"
_CE_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')  # CloudEvents HTTP 3.1.3.2


def with_reference(message: HandoffMessage, uri: str, size: int, sha256: str) -> HandoffMessage:
    """Return the message with a reference in place of its content (claim check).

    :param uri: where the content is stored.
    :param size: its size in bytes.
    :param sha256: its digest, in hexadecimal.
    """
    reference = json.dumps({"uri": uri, "size": size, "sha256": sha256}).encode("ascii")
    return replace(message, content=reference, content_type=REFERENCE)


def domain_of(path: str) -> str:
    """Return the domain of a forward-path in lower case, or ``""``."""
    return path.rpartition("@")[2].lower() if "@" in path else ""


def routing_key(message: HandoffMessage) -> str:
    """Return ``mail.`` and the labels of the first recipient's domain in reverse order: ``mail.com.example.mx``.

    For topic exchanges. AMQP limits it to 255 bytes.
    """
    domain = domain_of(message.rcpt_tos[0]) if message.rcpt_tos else ""
    labels = domain.strip("[]").split(".") if domain else []
    return _cut(".".join(["mail", *reversed(labels)]), 255)


def amqp_properties(message: HandoffMessage) -> dict[str, Any]:
    """Return the basic properties of AMQP 0-9-1, by name. Messages are persistent."""
    return {
        "content_type": message.content_type,
        "delivery_mode": 2,
        "message_id": message.id,
        "timestamp": _seconds(message),
        "type": message.envelope["type"],
        "app_id": APPLICATION,
        "headers": {
            "envelope": message.envelope_json,
            "fingerprint": message.fingerprint,
            "mail_from": message.envelope["mail_from"],
            "rcpt_domain": domain_of(message.rcpt_tos[0]) if message.rcpt_tos else "",
        },
    }


def kafka_headers(message: HandoffMessage) -> list[tuple[str, bytes]]:
    """Return the headers of a Kafka message: CloudEvents' binary mode, and the envelope."""
    return [
        *((f"ce_{name}", value.encode("utf-8")) for name, value in _cloud_event(message)),
        ("content-type", message.content_type.encode("ascii")),
        ("fingerprint", message.fingerprint.encode("ascii")),
        ("envelope", message.envelope_json.encode("ascii")),
    ]


def nats_headers(message: HandoffMessage) -> dict[str, str]:
    """Return the headers of a NATS message. JetStream deduplicates by ``Nats-Msg-Id``."""
    return {
        "Nats-Msg-Id": message.fingerprint,
        "Content-Type": message.content_type,
        **{f"ce-{name}": value for name, value in _cloud_event(message)},
        "Envelope": message.envelope_json,
    }


def http_headers(message: HandoffMessage) -> list[tuple[str, str]]:
    """Return the headers of an HTTP request: CloudEvents' binary mode, ``Mail-From``, one ``Mail-Rcpt`` per recipient.

    Anything but printable ASCII is percent-encoded, as in CloudEvents.
    """
    return [
        ("Content-Type", message.content_type),
        *((f"ce-{name}", percent_encoded(value)) for name, value in _cloud_event(message)),
        ("Mail-From", percent_encoded(message.envelope["mail_from"])),
        *(("Mail-Rcpt", percent_encoded(path)) for path in message.rcpt_tos),
        ("Mail-Fingerprint", message.fingerprint),
    ]


def percent_encoded(text: str) -> str:
    """Encode text as the value of an HTTP header (CloudEvents' HTTP binding 3.1.3.2)."""
    return quote(text, safe=_CE_PRINTABLE, errors="surrogateescape")


def _cloud_event(message: HandoffMessage) -> list[tuple[str, str]]:
    envelope = message.envelope
    return [
        ("specversion", "1.0"),
        ("id", message.id),
        ("source", str(envelope["source"])),
        ("type", str(envelope["type"])),
        ("time", str(envelope["time"])),
    ]


def _seconds(message: HandoffMessage) -> int:
    """Return when the message arrived, in seconds since the epoch."""
    return int(datetime.fromisoformat(str(message.envelope["time"])).timestamp())


def _cut(text: str, octets: int) -> str:
    return text.encode("utf-8", "surrogateescape")[:octets].decode("utf-8", "ignore")
