"""The users of the command line: from ``--auth=file:/path`` to a portal, by Twisted's own plugins."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.portal import Portal
from twisted.cred.strcred import InvalidAuthType, makeChecker

from txsmtpd.auth import FirstOf, InThread, NameRealm

INTERFACES = (IUsernamePassword,)
BLOCKING = ("file", "unix")  # they read files, and hash passwords


def make_checker(description: str) -> ICredentialsChecker:
    """The checker of this description.

    :raises ValueError: if it is none, or not one for passwords. The text does not quote what may be a password.
    """
    kind, _, rest = description.partition(":")
    if kind == "file":
        _check_readable(rest)
    if kind == "unix" and find_spec("crypt") is None:
        raise ValueError("this Python has no module crypt, so no password could be checked")
    try:
        checker: ICredentialsChecker = makeChecker(description)
    except InvalidAuthType:
        raise ValueError("there is no such checker; see --help-auth") from None
    if IUsernamePassword not in checker.credentialInterfaces:
        raise ValueError("it does not check passwords; see --help-auth")
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        if not checker.users:
            raise ValueError("no users; write memory:NAME:PASSWORD")
        # Those of the command line are strings, and clients send octets.
        checker.users = {_octets(name): _octets(password) for name, password in checker.users.items()}
        return checker
    return InThread(checker) if kind in BLOCKING else checker


def _check_readable(path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ValueError(f"{path or 'no file'}: {error.strerror}") from error


def _octets(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def portal_of(checkers: Sequence[ICredentialsChecker]) -> Portal:
    """A portal that asks the checkers in turn; its avatars are names."""
    return Portal(NameRealm(), [FirstOf(checkers)])
