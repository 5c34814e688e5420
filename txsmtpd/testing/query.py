"""What mail is asked for: criteria, and the values that a mail has for them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from txsmtpd.testing.mail import Mail

CRITERIA = ("to", "domain", "sender", "user", "subject", "header", "match")  # of a Query

Key = tuple[str, str]


class Query:
    """What mail is asked for. Each criterion that is given has to hold.

    :param to: a recipient.
    :param domain: the domain of a recipient.
    :param sender: the reverse-path.
    :param user: who has authenticated.
    :param subject: the subject; or a compiled pattern, to be found in it.
    :param header: fields of the header and their values.
    :param match: a function that takes a :class:`Mail` and tells. A LookupError that it raises means no, as for mail
        without the header field or the attachment that it looks at.

    :raises TypeError: for a criterion that there is not, with the nearest that there is; or one that is no string.

    Addresses, domains and names of fields are the same in upper and lower case.
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
            hint = f"is {near[0]} meant?" if near else f"there are {', '.join(CRITERIA)}"
            raise TypeError(f"{name} is no criterion; {hint}")
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
        """Whether the mail is what is asked for."""
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
    """What a mail has under the name of a criterion."""
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
    """What two queries ask for."""

    def __init__(self, first: Query, second: Query) -> None:
        super().__init__(match=lambda mail: first.matches(mail) and second.matches(mail))
        self.keys = first.keys + second.keys
        self._words = ", ".join(filter(None, (str(first), str(second))))

    def __str__(self) -> str:
        return self._words
