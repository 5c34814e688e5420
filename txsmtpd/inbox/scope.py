"""What messages are filed under, and scopes: the part of the mail that one of several inboxes shows.

A message is filed under its envelope (``to``, ``domain``, ``sender`` and ``user``), under its subject, and under the
values of configured header fields. Matches are exact, never substrings: ``to=bob@example.com`` does not match
``notbob@example.com``. Addresses and domains are case-insensitive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from txsmtpd.inbox.message import Message, Parsed

ENVELOPE = ("to", "domain", "sender", "user")
HEADERS = ("X-Test",)  # the default header fields whose values messages are filed under
LONGEST = 500  # characters of a value
MAX_KEYS = 10  # of a scope

Key = tuple[str, str]


def make_key(name: str, value: str, headers: Iterable[str] = HEADERS) -> Key:
    """Return a criterion and its value, as messages are filed under it.

    :param name: ``to``, ``domain``, ``sender``, ``user``, ``subject``, or one of the header fields.
    :raises ValueError: for another name (the message lists the valid ones), or an empty value.
    """
    name = name.strip().lower()
    known = [*ENVELOPE, "subject", *headers]
    if name not in [each.lower() for each in known]:
        raise ValueError(f"{name[:50]!r} is not a criterion; there are {', '.join(known)}")
    value = value.strip()
    if not value and name not in ("sender", "subject"):  # a bounce has an empty reverse-path
        raise ValueError(f"{name} needs a value")
    return name, value[:LONGEST].lower() if name in ("to", "domain", "sender") else value[:LONGEST]


def filed_under(parsed: Parsed, headers: Sequence[str] = HEADERS) -> tuple[Key, ...]:
    """Return everything that a message is filed under."""
    message = parsed.message
    envelope = message.envelope
    found: dict[Key, None] = {}
    for path in envelope.rcpt_tos:
        found["to", path.lower()[:LONGEST]] = None
        found["domain", path.rpartition("@")[2].lower()[:LONGEST]] = None
    found["sender", envelope.mail_from.lower()[:LONGEST]] = None
    if envelope.user:
        found["user", envelope.user[:LONGEST]] = None
    found["subject", message.subject.strip()[:LONGEST]] = None
    for name in headers:
        for value in parsed.values(name.lower()):
            found[name.lower(), value.strip()[:LONGEST]] = None
    return tuple(found)


_PATHS = re.compile(r"(MAIL FROM|RCPT TO):\s*<([^<>]*)>", re.IGNORECASE)


def named_in(transcript: str) -> set[Key]:
    """Return what a message would be filed under, according to the MAIL and RCPT commands of a transcript."""
    found: set[Key] = set()
    for command, path in _PATHS.findall(transcript):
        path = path.replace('\\"', '"').lower()[:LONGEST]  # a transcript is stored as JSON
        if command[0] in "Mm":
            found.add(("sender", path))
        else:
            found |= {("to", path), ("domain", path.rpartition("@")[2])}
    return found


@dataclass(frozen=True, slots=True)
class Scope:
    """The mail that is filed under all of the keys; without keys, all mail."""

    keys: tuple[Key, ...] = ()

    def within(self, *keys: Key) -> Scope:
        """Return a scope within this one.

        :raises ValueError: if there are too many keys.
        """
        if len(self.keys) + len(keys) > MAX_KEYS:
            raise ValueError(f"there are more than {MAX_KEYS} criteria")
        return Scope(tuple(dict.fromkeys([*self.keys, *keys])))

    @property
    def label(self) -> str:
        """The name under which a store records what is hidden in the scope."""
        return "\n".join(f"{name}={value}" for name, value in self.keys)

    @property
    def labels(self) -> list[str]:
        """Return its own label and those of the enclosing scopes: what is hidden there is hidden here too."""
        return [Scope(self.keys[: count + 1]).label for count in range(len(self.keys))]

    def has(self, message: Message) -> bool:
        """Return True if a message belongs here."""
        return all(key in message.filed for key in self.keys)

    def alone_has(self, message: Message) -> bool:
        """Return True if a message in this scope is in no other scope of the same kind, so that deleting it here
        deletes it entirely."""
        names = {name for name, _ in self.keys}
        return all(key in self.keys for key in message.filed if key[0] in names)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value!r}" for name, value in self.keys)


EVERYTHING = Scope()
