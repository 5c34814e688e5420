"""The bridge to twisted.cred: a portal decides."""

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
    """An authenticator that asks a :class:`~twisted.cred.portal.Portal`; the avatar becomes ``session.auth_data``.

    Credentials reach the checkers as they are: a password as IUsernamePassword, of bytes. Who has proved its name
    already gets its avatar from the realm. The avatar is logged out when the connection ends.

    :param portal: the portal.
    :param interfaces: the interfaces of which the avatar shall provide one; without any, all are welcome.
    """

    def __init__(self, portal: Portal, *interfaces: type[Interface]) -> None:
        self.portal = portal
        self.interfaces = interfaces or (Interface,)

    def takes(self, credentials: type) -> bool:
        """Whether a checker of the portal knows what to do with credentials of this class."""
        return any(each.implementedBy(credentials) for each in self.portal.listCredentialsInterfaces())

    async def __call__(self, server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> AuthResult:
        try:
            if isinstance(auth_data, ProvedLogin):
                name = auth_data.login.encode("utf-8")
                found = await maybeDeferred(self.portal.realm.requestAvatar, name, None, *self.interfaces)
            else:
                found = await self.portal.login(auth_data, None, *self.interfaces)
        except UnhandledCredentials:
            raise  # a LoginFailed too, but no fault of the client
        except LoginFailed:
            return AuthResult(success=False)
        _, avatar, logout = found
        server.at_end(logout)
        return AuthResult(success=True, auth_data=avatar)


@implementer(ICredentialsChecker)
class FirstOf:
    """Checkers asked in turn, until one knows the credentials.

    :param checkers: a portal takes one checker for each kind of credentials; this makes several into one.
    """

    def __init__(self, checkers: Sequence[ICredentialsChecker]) -> None:
        self.checkers = checkers
        self.credentialInterfaces = tuple(
            dict.fromkeys(each for checker in checkers for each in checker.credentialInterfaces)
        )

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """The name of the user.

        :raises UnauthorizedLogin: if no checker knows the credentials.
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
    """A checker that blocks, such as one that hashes passwords, at work in a thread of the reactor's pool."""

    def __init__(self, checker: ICredentialsChecker) -> None:
        self.checker = checker
        self.credentialInterfaces = checker.credentialInterfaces

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """The name of the user."""
        return call_in_pool(self._ask, credentials)

    def _ask(self, credentials: Any) -> Any:
        result: Any = self.checker.requestAvatarId(credentials)
        if not isinstance(result, Deferred):
            return result
        # A checker that blocks is done when it returns, even where it returns a Deferred.
        results: list[Any] = []
        result.addBoth(results.append)
        if not results:
            raise TypeError(f"{self.checker!r} does not block, and has no business in a thread")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]


@implementer(IRealm)
class NameRealm:
    """A realm whose avatars are the names of the users, as strings."""

    def requestAvatar(
        self, avatarId: bytes | tuple[()], mind: object, *interfaces: type[Interface]
    ) -> tuple[type[Interface], str, Callable[[], None]]:
        """The name; it needs no logout."""
        name = avatarId.decode("utf-8", "replace") if isinstance(avatarId, bytes) else str(avatarId)
        return interfaces[0], name, lambda: None
