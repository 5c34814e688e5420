"""What is said about a client that authenticates: its credentials, and what became of them. No conversation, no policy.

Nothing here shows a password or a token: neither ``repr`` nor ``str``, whatever octets it is made of.
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

# Besides the controls, what some programs take for the end of a line.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MECHANISM_NAME = re.compile(r"[A-Z0-9_-]{1,20}")  # RFC 4422 3.1


class _Missing(enum.Enum):
    MISSING = object()

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing.MISSING
"""From a method ``auth_MECHANISM``: the credentials are refused. From ``challenge_auth``: the client gave up, and knows
it. From ``handle_AUTH``: the mechanisms shall go on."""


@dataclass(frozen=True, kw_only=True)
class AuthResult:
    """What became of an authentication.

    :param success: whether the client is who it says.
    :param handled: kept for compatibility, without effect: the server replies unless a reply was pushed.
    :param message: the status to reply; None: 235 or 535 as usual.
    :param auth_data: what is to be known of the user from now on, as ``session.auth_data``.
    """

    success: bool
    handled: bool = True
    message: Any = None
    auth_data: Any = None

    def __repr__(self) -> str:
        said = f"success={self.success!r}, handled={self.handled!r}, message={self.message!r}"
        return f"AuthResult({said}, auth_data=...)"  # which may be a password


@implementer(IUsernamePassword)
class LoginPassword(NamedTuple):
    """A user name and a password, as the client sent them; credentials for twisted.cred as well."""

    login: bytes
    password: bytes

    @property
    def username(self) -> bytes:
        """The login, by the name that twisted.cred has for it."""
        return self.login

    def checkPassword(self, password: bytes) -> bool:
        """Whether this is the password; takes as long whatever it is."""
        return hmac.compare_digest(self.password, password)

    def __repr__(self) -> str:
        return f"LoginPassword(login={self.login.decode('utf-8', 'backslashreplace')!a}, password=...)"

    def __str__(self) -> str:
        return repr(self)


@implementer(IUsernameHashedPassword)
@dataclass(frozen=True)
class ChallengeResponse:
    """A user name, and the proof that the client knows the password to it (RFC 2195)."""

    login: bytes
    challenge: bytes = field(repr=False)
    response: bytes = field(repr=False)

    @property
    def username(self) -> bytes:
        """The login, by the name that twisted.cred has for it."""
        return self.login

    def checkPassword(self, password: bytes) -> bool:
        """Whether this is the password that the client knows."""
        return hmac.compare_digest(hmac.new(password, self.challenge, "md5").hexdigest().encode(), self.response)


@dataclass(frozen=True)
class ProvedLogin:
    """The name of a user who has proved to the mechanism itself who it is."""

    login: str


def login_password(login: bytes, password: bytes) -> LoginPassword:
    """The credentials, if an authenticator may see them.

    :raises Refused: 535 if the password is empty, or the login is no name (see :func:`user_name`). An empty password
        is success without any password for some directories (RFC 4513 5.1.2); a line end in a name becomes a command
        in somebody's protocol.
    """
    user_name(login)
    if not password:
        raise Refused(INVALID)
    return LoginPassword(login, password)


def user_name(octets: bytes) -> str:
    """The name in UTF-8, if an authenticator may see it.

    :raises Refused: 535 if it is empty, no UTF-8, or has control characters or line ends of any kind.
    """
    try:
        name = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(INVALID) from None
    if not name or _CONTROL.search(name):
        raise Refused(INVALID)
    return name


def mechanism_name(name: str) -> str:
    """The name in upper case.

    :raises ValueError: if it is none (RFC 4422 3.1).
    """
    upper = name.upper()
    if not _MECHANISM_NAME.fullmatch(upper):
        raise ValueError(f"Invalid AUTH mechanism name: {upper}")
    return upper


def auth_mechanism(actual_name: str) -> Callable[[F], F]:
    """Name the mechanism of a method ``auth_...`` whose own name cannot say it.

    :raises ValueError: if it is no name of a mechanism.

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
    """Let an authenticator that blocks, such as one that hashes passwords, do so in a thread of the reactor's pool.

    It must not touch the server, the session or the envelope there, beyond reading.
    """

    def decide(*arguments: Any) -> Deferred[Any]:
        return call_in_pool(authenticator, *arguments)

    return decide
