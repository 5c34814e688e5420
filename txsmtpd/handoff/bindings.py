"""How a message and its envelope are written for each kind of target: AMQP 0-9-1, Kafka, NATS, HTTP.

The four say the same: the message (or a reference to it) is the body, the envelope a header of JSON, and what brokers
and gateways choose by stands in headers of its own. CloudEvents 1.0 gives the names for Kafka and HTTP. Pure: octets
and strings, no client library.
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
    """The message with a reference in place of its octets (claim check).

    :param uri: where the octets are.
    :param size: how many there are.
    :param sha256: their digest, in hexadecimal.
    """
    reference = json.dumps({"uri": uri, "size": size, "sha256": sha256}).encode("ascii")
    return replace(message, content=reference, content_type=REFERENCE)


def domain_of(path: str) -> str:
    """The domain of a forward-path in lower case; empty if it has none."""
    return path.rpartition("@")[2].lower() if "@" in path else ""


def routing_key(message: HandoffMessage) -> str:
    """``mail.`` and the labels of the first recipient's domain, the top one first: ``mail.com.example.mx``.

    For topic exchanges; AMQP has room for 255 octets.
    """
    domain = domain_of(message.rcpt_tos[0]) if message.rcpt_tos else ""
    labels = domain.strip("[]").split(".") if domain else []
    return _cut(".".join(["mail", *reversed(labels)]), 255)


def amqp_properties(message: HandoffMessage) -> dict[str, Any]:
    """The basic properties of AMQP 0-9-1, by name. Each message is persistent."""
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
    """The headers of a Kafka message: CloudEvents' binary mode, and the envelope."""
    return [
        *((f"ce_{name}", value.encode("utf-8")) for name, value in _cloud_event(message)),
        ("content-type", message.content_type.encode("ascii")),
        ("fingerprint", message.fingerprint.encode("ascii")),
        ("envelope", message.envelope_json.encode("ascii")),
    ]


def nats_headers(message: HandoffMessage) -> dict[str, str]:
    """The headers of a NATS message. JetStream drops repeats by ``Nats-Msg-Id``."""
    return {
        "Nats-Msg-Id": message.fingerprint,
        "Content-Type": message.content_type,
        **{f"ce-{name}": value for name, value in _cloud_event(message)},
        "Envelope": message.envelope_json,
    }


def http_headers(message: HandoffMessage) -> list[tuple[str, str]]:
    """The headers of an HTTP request: CloudEvents' binary mode, ``Mail-From``, and ``Mail-Rcpt`` for each recipient.

    What is not printable ASCII is percent-encoded, as CloudEvents has it.
    """
    return [
        ("Content-Type", message.content_type),
        *((f"ce-{name}", percent_encoded(value)) for name, value in _cloud_event(message)),
        ("Mail-From", percent_encoded(message.envelope["mail_from"])),
        *(("Mail-Rcpt", percent_encoded(path)) for path in message.rcpt_tos),
        ("Mail-Fingerprint", message.fingerprint),
    ]


def percent_encoded(text: str) -> str:
    """The text as the value of an HTTP header (CloudEvents' HTTP binding 3.1.3.2)."""
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
    """When the message came, in seconds since the epoch."""
    return int(datetime.fromisoformat(str(message.envelope["time"])).timestamp())


def _cut(text: str, octets: int) -> str:
    return text.encode("utf-8", "surrogateescape")[:octets].decode("utf-8", "ignore")
