"""Credentials of clients, and results of authentication. No exchange, no policy.

The ``repr`` and ``str`` of these objects never show passwords or tokens.
"""

from __future__ import annotations

import enum
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.internet.defer import Deferred
from zope.interface import implementer

from txsmtpd.bridges.reactors import call_in_pool
from txsmtpd.reply import Refused, Reply

F = TypeVar("F", bound=Callable[..., Any])

INVALID = Reply(535, "5.7.8", "Authentication credentials invalid")
UNDECIDED = Reply(454, "4.7.0", "Temporary authentication failure")  # RFC 4954 6

# Control characters, and others that some programs take for line ends.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MECHANISM_NAME = re.compile(r"[A-Z0-9_-]{1,20}")  # RFC 4422 3.1


class _Missing(enum.Enum):
    MISSING = object()

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing.MISSING
"""Returned by a method ``auth_MECHANISM``: the credentials are refused. Returned by ``challenge_auth``: the client has
cancelled, and has got a reply. Returned by ``handle_AUTH``: continue with the mechanisms."""


@dataclass(frozen=True, kw_only=True)
class AuthResult:
    """The result of an authentication.

    :param success: True if the client is authenticated.
    :param handled: kept for compatibility, without effect: the server replies unless a reply was pushed.
    :param message: the status to reply; None: the usual 235 or 535.
    :param auth_data: data about the user, for ``session.auth_data``.
    """

    success: bool
    handled: bool = True
    message: Any = None
    auth_data: Any = None

    def __repr__(self) -> str:
        said = f"success={self.success!r}, handled={self.handled!r}, message={self.message!r}"
        return f"AuthResult({said}, auth_data=...)"  # it may contain a password


@implementer(IUsernamePassword)
class LoginPassword(NamedTuple):
    """A user name and a password, as the client sent them. They are also credentials for twisted.cred."""

    login: bytes
    password: bytes

    @property
    def username(self) -> bytes:
        """The login, under its name in twisted.cred."""
        return self.login

    def checkPassword(self, password: bytes) -> bool:
        """Compare the password in constant time."""
        return hmac.compare_digest(self.password, password)

    def __repr__(self) -> str:
        return f"LoginPassword(login={self.login.decode('utf-8', 'backslashreplace')!a}, password=...)"

    def __str__(self) -> str:
        return repr(self)


@implementer(IUsernameHashedPassword)
@dataclass(frozen=True)
class ChallengeResponse:
    """A user name, and the proof that the client knows its password (RFC 2195)."""

    login: bytes
    challenge: bytes = field(repr=False)
    response: bytes = field(repr=False)

    @property
    def username(self) -> bytes:
        """The login, under its name in twisted.cred."""
        return self.login

    def checkPassword(self, password: bytes) -> bool:
        """Return True if the client's proof matches this password."""
        return hmac.compare_digest(hmac.new(password, self.challenge, "md5").hexdigest().encode(), self.response)


@dataclass(frozen=True)
class ProvedLogin:
    """The name of a user whose identity the mechanism itself has verified."""

    login: str


def login_password(login: bytes, password: bytes) -> LoginPassword:
    """Make credentials that are safe to pass to an authenticator.

    :raises Refused: with 535 if the password is empty, or the login is not a valid name (see :func:`user_name`). Some
        directories accept an empty password as an anonymous login (RFC 4513 5.1.2), and a line end in a name could be
        used to inject a command into another protocol.
    """
    user_name(login)
    if not password:
        raise Refused(INVALID)
    return LoginPassword(login, password)


def user_name(octets: bytes) -> str:
    """Decode a user name that is safe to pass to an authenticator.

    :raises Refused: with 535 if it is empty, not UTF-8, or has control characters or line ends of any kind.
    """
    try:
        name = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(INVALID) from None
    if not name or _CONTROL.search(name):
        raise Refused(INVALID)
    return name


def mechanism_name(name: str) -> str:
    """Return the name in upper case.

    :raises ValueError: if it is not valid (RFC 4422 3.1).
    """
    upper = name.upper()
    if not _MECHANISM_NAME.fullmatch(upper):
        raise ValueError(f"Invalid AUTH mechanism name: {upper}")
    return upper


def auth_mechanism(actual_name: str) -> Callable[[F], F]:
    """Set the mechanism's name for a method ``auth_...``, if the name cannot be part of the method's name.

    :raises ValueError: if it is not a valid name of a mechanism.

    >>> class Handler:
    ...     @auth_mechanism("X-TOKEN")
    ...     async def auth_token(self, server, args):
    ...         return AuthResult(success=False)
    """
    name = mechanism_name(actual_name)

    def declare(method: F) -> F:
        method.__auth_mechanism_name__ = name  # type: ignore[attr-defined]
        return method

    return declare


def in_thread(authenticator: Callable[..., Any]) -> Callable[..., Deferred[Any]]:
    """Run an authenticator that blocks, such as one that hashes passwords, in a thread of the reactor's pool.

    There it may only read the server, the session and the envelope.
    """

    def decide(*arguments: Any) -> Deferred[Any]:
        return call_in_pool(authenticator, *arguments)

    return decide
