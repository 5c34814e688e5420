"""Queries for mail: criteria, and the values of a mail for them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from txsmtpd.testing.mail import Mail

CRITERIA = ("to", "domain", "sender", "user", "subject", "header", "match")  # parameters of a Query

Key = tuple[str, str]


class Query:
    """Selects mail. All given criteria must match.

    :param to: a recipient.
    :param domain: the domain of a recipient.
    :param sender: the reverse-path.
    :param user: the authenticated user.
    :param subject: the subject; or a compiled pattern, to search in it.
    :param header: a mapping from header field names to values.
    :param match: a function of a :class:`Mail` that returns whether it matches. If it raises LookupError, as for a
        missing header field or attachment, the mail does not match.

    :raises TypeError: if a criterion is unknown (the message suggests the closest one), or is not a string.

    Addresses, domains and field names are case-insensitive.
    """

    def __init__(
        self,
        *,
        to: str | None = None,
        domain: str | None = None,
        sender: str | None = None,
        user: str | None = None,
        subject: str | re.Pattern[str] | None = None,
        header: Mapping[str, str] | None = None,
        match: Callable[[Mail], object] | None = None,
        **unknown: object,
    ) -> None:
        for name in unknown:
            near = difflib.get_close_matches(name, CRITERIA, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CRITERIA)}"
            raise TypeError(f"{name} is not a criterion; {hint}")
        named = {"to": to, "domain": domain, "sender": sender}
        strings = {
            **named,
            "user": user,
            "subject": None if isinstance(subject, re.Pattern) else subject,
            **(header or {}),
        }
        for name, value in strings.items():
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name} must be a string, not {value!r}")
        keys: list[Key] = [(name, value.lower()) for name, value in named.items() if value is not None]
        if user is not None:
            keys.append(("user", user))
        if isinstance(subject, str):
            keys.append(("subject", subject))
        keys += [(f"header {name.lower()}", value) for name, value in (header or {}).items()]
        self.keys = tuple(keys)
        self.pattern = subject if isinstance(subject, re.Pattern) else None
        self.match = match

    def matches(self, mail: Mail) -> bool:
        """Return True if the mail matches."""
        if not all(value in values_of(mail, name) for name, value in self.keys):
            return False
        if self.pattern is not None and not self.pattern.search(mail.subject):
            return False
        try:
            return self.match is None or bool(self.match(mail))
        except LookupError:
            return False

    def __str__(self) -> str:
        words = [f"{name} {value!r}" for name, value in self.keys]
        if self.pattern is not None:
            words.append(f"subject like {self.pattern.pattern!r}")
        if self.match is not None:
            words.append(f"that {getattr(self.match, '__name__', 'the function')} matches")
        return ", ".join(words)


def values_of(mail: Mail, name: str) -> Iterable[str]:
    """Return the values of a mail for a criterion."""
    if name == "to":
        return {path.lower() for path in mail.rcpt_tos}
    if name == "domain":
        return {path.rpartition("@")[2].lower() for path in mail.rcpt_tos}
    if name == "sender":
        return (mail.mail_from.lower(),)
    if name == "user":
        return () if mail.user is None else (mail.user,)
    if name == "subject":
        return (mail.subject,)
    return set(mail.headers.get_all(name.removeprefix("header ")))


class Both(Query):
    """Matches mail that matches both queries."""

    def __init__(self, first: Query, second: Query) -> None:
        super().__init__(match=lambda mail: first.matches(mail) and second.matches(mail))
        self.keys = first.keys + second.keys
        self._words = ", ".join(filter(None, (str(first), str(second))))

    def __str__(self) -> str:
        return self._words
