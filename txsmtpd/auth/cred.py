"""The bridge to twisted.cred: a portal checks the credentials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import LoginFailed, UnauthorizedLogin, UnhandledCredentials
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from txsmtpd.auth.results import AuthResult, ProvedLogin
from txsmtpd.bridges.reactors import call_in_pool


class PortalAuthenticator:
    """An authenticator that logs in to a :class:`~twisted.cred.portal.Portal`. The avatar becomes
    ``session.auth_data``.

    Checkers get the credentials unchanged: a password as IUsernamePassword, with bytes. For a user whose name the
    mechanism has proved already, the avatar is requested from the realm directly. The avatar is logged out when the
    connection ends.

    :param portal: the portal.
    :param interfaces: the avatar must provide one of these interfaces; without any, every avatar is accepted.
    """

    def __init__(self, portal: Portal, *interfaces: type[Interface]) -> None:
        self.portal = portal
        self.interfaces = interfaces or (Interface,)

    def takes(self, credentials: type) -> bool:
        """Return True if the portal has a checker for credentials of this class."""
        return any(each.implementedBy(credentials) for each in self.portal.listCredentialsInterfaces())

    async def __call__(self, server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        try:
            if isinstance(auth_data, ProvedLogin):
                name = auth_data.login.encode("utf-8")
                found = await maybeDeferred(self.portal.realm.requestAvatar, name, None, *self.interfaces)
            else:
                found = await self.portal.login(auth_data, None, *self.interfaces)
        except UnhandledCredentials:
            raise  # also a LoginFailed, but caused by the server
        except LoginFailed:
            return AuthResult(success=False)
        _, avatar, logout = found
        server.at_end(logout)
        return AuthResult(success=True, auth_data=avatar)


@implementer(ICredentialsChecker)
class FirstOf:
    """Tries several checkers in turn, until one accepts the credentials.

    :param checkers: the checkers. A portal allows only one for each kind of credentials.
    """

    def __init__(self, checkers: Sequence[ICredentialsChecker]) -> None:
        self.checkers = checkers
        self.credentialInterfaces = tuple(
            dict.fromkeys(each for checker in checkers for each in checker.credentialInterfaces)
        )

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """Return the name of the user.

        :raises UnauthorizedLogin: if no checker accepts the credentials.
        """
        return Deferred.fromCoroutine(self._ask(credentials))

    async def _ask(self, credentials: Any) -> Any:
        for checker in self.checkers:
            if any(each.providedBy(credentials) for each in checker.credentialInterfaces):
                try:
                    return await maybeDeferred(checker.requestAvatarId, credentials)
                except LoginFailed:
                    pass
        raise UnauthorizedLogin


@implementer(ICredentialsChecker)
class InThread:
    """Runs a checker that blocks, such as one that hashes passwords, in a thread of the reactor's pool."""

    def __init__(self, checker: ICredentialsChecker) -> None:
        self.checker = checker
        self.credentialInterfaces = checker.credentialInterfaces

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """Return a Deferred of the name of the user."""
        return call_in_pool(self._ask, credentials)

    def _ask(self, credentials: Any) -> Any:
        result: Any = self.checker.requestAvatarId(credentials)
        if not isinstance(result, Deferred):
            return result
        # A checker that blocks has a result when it returns, even if it returns a Deferred.
        results: list[Any] = []
        result.addBoth(results.append)
        if not results:
            raise TypeError(f"{self.checker!r} does not block, and does not need a thread")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]


@implementer(IRealm)
class NameRealm:
    """A realm whose avatars are the names of the users, as strings."""

    def requestAvatar(
        self, avatarId: bytes | tuple[()], mind: object, *interfaces: type[Interface]
    ) -> tuple[type[Interface], str, Callable[[], None]]:
        """Return the name as the avatar; there is nothing to do on logout."""
        name = avatarId.decode("utf-8", "replace") if isinstance(avatarId, bytes) else str(avatarId)
        return interfaces[0], name, lambda: None
