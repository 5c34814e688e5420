"""The JSON objects of Mailpit's API, with exactly its keys: some clients compare them for equality."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from txsmtpd._version import __version__
from txsmtpd.inbox.message import Message, Part, sent_at
from txsmtpd.inbox.store import Counts, Page, Store
from txsmtpd.mime import Address

VERSION = f"v1.30.5+txsmtpd.{__version__}"
STARTED = time.time()

_LINKS = re.compile(r"<([^<>\s]{1,2000})>")


def timestamp(seconds: float) -> str:
    """Return a time in RFC 3339 format."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def address(each: Address) -> dict[str, str]:
    return {"Name": each.name, "Address": each.address}


def addresses(found: Iterable[Address]) -> list[dict[str, str]]:
    return [address(each) for each in found]


def summary(message: Message) -> dict[str, Any]:
    """Return a message as in a list."""
    return {
        "ID": message.id,
        "MessageID": message.message_id,
        "Read": message.seen,
        "From": address(message.sender),
        "To": addresses(message.to),
        "Cc": addresses(message.cc),
        "Bcc": addresses(message.bcc),
        "ReplyTo": addresses(message.reply_to),
        "Subject": message.subject,
        "Created": timestamp(message.arrived),
        "Username": message.envelope.user,
        "Tags": list(message.tags),
        "Size": message.size,
        "Attachments": len(message.attachments),
        "Snippet": message.snippet,
    }


def summaries(page: Page, counts: Counts, tags: Iterable[str], start: int) -> dict[str, Any]:
    """Return a list of messages."""
    return {
        **totals(page, counts, len(page.messages), tags, start),
        "messages": [summary(message) for message in page.messages],
    }


def totals(page: Page, counts: Counts, length: int, tags: Iterable[str], start: int) -> dict[str, Any]:
    """Return a list's totals, without its messages."""
    return {
        "total": counts.total,
        "unread": counts.unread,
        "count": length,
        "messages_count": page.count,
        "messages_unread": page.unread,
        "start": start,
        "tags": sorted(tags),
    }


async def full(store: Store, message: Message) -> dict[str, Any]:
    """Return a message with its texts and parts."""
    fields = await store.fields(message)
    return {
        "ID": message.id,
        "MessageID": message.message_id,
        "From": address(message.sender),
        "To": addresses(message.to),
        "Cc": addresses(message.cc),
        "Bcc": addresses(message.bcc),
        "ReplyTo": addresses(message.reply_to),
        "ReturnPath": message.envelope.mail_from,
        "Subject": message.subject,
        "ListUnsubscribe": _list_unsubscribe(fields),
        "Date": sent_at(fields, message.arrived).isoformat().replace("+00:00", "Z"),
        "Tags": list(message.tags),
        "Username": message.envelope.user,
        "Text": await store.text(message),
        "HTML": await store.html(message),
        "Size": message.size,
        "Inline": [attachment(part) for part in message.inline],
        "Attachments": [attachment(part) for part in message.attachments],
    }


def attachment(part: Part) -> dict[str, Any]:
    return {
        "PartID": part.part_id,
        "FileName": part.name or part.content_id,
        "ContentType": part.content_type,
        "ContentID": part.content_id,
        "Size": part.size,
        "Checksums": {"MD5": part.md5, "SHA1": part.sha1, "SHA256": part.sha256},
    }


def _list_unsubscribe(fields: Sequence[tuple[str, str]]) -> dict[str, Any]:
    header = next((value for name, value in fields if name.lower() == "list-unsubscribe"), "")
    post = next((value for name, value in fields if name.lower() == "list-unsubscribe-post"), "")
    links = _LINKS.findall(header)
    wrong = [link for link in links if not re.match("(?:https?|mailto):", link, re.I)]
    errors = "no link in angle brackets" if header and not links else ""
    if wrong:
        errors = f"not a link of http or mailto: {wrong[0][:100]}"
    return {"Header": header, "Links": links, "Errors": errors, "HeaderPost": post}


def headers(fields: Iterable[tuple[str, str]], message: Message) -> dict[str, list[str]]:
    """Return the header fields by name, spelled as in Go. Bcc and Return-Path are derived from the envelope."""
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(canonical(name), []).append(value)
    if message.bcc:
        found["Bcc"] = [", ".join(map(str, message.bcc))]
    found["Return-Path"] = [f"<{message.envelope.mail_from}>"]
    return dict(sorted(found.items()))


def canonical(name: str) -> str:
    """Return a field name in Go's canonical form, such as ``Message-Id``."""
    return "-".join(word[:1].upper() + word[1:].lower() for word in name.split("-"))


async def info(store: Store, tags: Mapping[str, int]) -> dict[str, Any]:
    counts = await store.counts()
    done = store.totals
    return {
        "Version": VERSION,
        "LatestVersion": "disabled",
        "Database": store.where,
        "DatabaseSize": await store.octets(),
        "Messages": counts.total,
        "Unread": counts.unread,
        "Tags": dict(tags),
        "RuntimeStats": {
            "Uptime": int(time.time() - STARTED),
            "Memory": _memory(),
            "MessagesDeleted": done.deleted,
            "SMTPAccepted": done.accepted,
            "SMTPAcceptedSize": done.accepted_octets,
            "SMTPRejected": done.rejected,
            "SMTPIgnored": 0,
        },
    }


def _memory() -> int:
    """Return the memory of the process in bytes, or its peak where the system does not report the current value."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
