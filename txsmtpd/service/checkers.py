"""Makes a portal from values of ``--auth`` such as ``file:/path``, with Twisted's strcred plugins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.portal import Portal
from twisted.cred.strcred import ICheckerFactory, InvalidAuthType, findCheckerFactories, makeChecker

from txsmtpd.auth import FirstOf, InThread, NameRealm

INTERFACES = (IUsernamePassword,)
BLOCKING = ("file", "unix")  # these checkers read files and hash passwords, so they run in a thread


def make_checker(description: str) -> ICredentialsChecker:
    """Return the checker of this description.

    :raises ValueError: if the checker is unknown, or does not check passwords. The text quotes no password.
    """
    kind, _, rest = description.partition(":")
    if kind == "file":
        _check_file(rest)
    if kind == "unix" and find_spec("crypt") is None:
        raise ValueError("passwords cannot be checked, because this Python has no module crypt")
    try:
        checker: ICredentialsChecker = makeChecker(description)
    except InvalidAuthType:
        raise ValueError("unknown password checker; see --help-auth") from None
    if IUsernamePassword not in checker.credentialInterfaces:
        raise ValueError("it does not check passwords; see --help-auth")
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        if not checker.users:
            raise ValueError("no users; write memory:NAME:PASSWORD")
        # Clients send octets, so that the names and passwords must be bytes, too.
        checker.users = {_octets(name): _octets(password) for name, password in checker.users.items()}
        return checker
    return InThread(checker) if kind in BLOCKING else checker


def checker_factories() -> Iterator[ICheckerFactory]:
    """Yield the plugins that make checkers of passwords."""
    for factory in findCheckerFactories():
        if any(interface in INTERFACES for interface in factory.credentialInterfaces):
            yield factory


def _check_file(path: str) -> None:
    """Check a file of users; the checker ignores lines that it does not understand."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if b":" not in line and line.strip() and not line.startswith(b"#"):
                    raise ValueError(f"{path}: line {number} is not a user, such as name:password")
    except OSError as error:
        raise ValueError(f"{path or 'no file'}: {error.strerror}") from error


def _octets(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def portal_of(checkers: Sequence[ICredentialsChecker]) -> Portal:
    """Return a portal that asks the checkers in turn. Its avatars are user names."""
    return Portal(NameRealm(), [FirstOf(checkers)])
