"""Calls an authenticator, and accepts only unambiguous results.

The result is awaited first if necessary. Only True, False and an :class:`~txsmtpd.auth.AuthResult` are valid, because
nearly every other object is true in Python.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.logger import Logger

from txsmtpd.auth.results import UNDECIDED, AuthResult, LoginPassword
from txsmtpd.reply import Refused

log = Logger(namespace="txsmtpd")


async def decide(authenticator: Callable[..., Any], server: Any, mechanism: str, credentials: Any) -> AuthResult:
    """Return the authenticator's decision.

    :raises Refused: with 454 if its result is not valid.
    """
    result = authenticator(server, server.session, server.envelope, mechanism, credentials)
    if isinstance(result, Awaitable):
        result = await result
    if isinstance(result, AuthResult) and isinstance(result.success, bool):
        return result
    if isinstance(result, bool):
        return AuthResult(success=result, auth_data=credentials if result else None)
    raise undecided(server, "the authenticator", result)


def undecided(server: Any, source: str, result: object) -> Refused:
    """Log that the result is not valid, and return the exception to raise."""
    kind = type(result).__name__
    if isinstance(result, AuthResult):
        kind = f"AuthResult whose success is a {type(result.success).__name__}"
    # Not its value, which may contain a password.
    log.error(
        "{session} {source} returned a {kind}, not an AuthResult, True or False",
        session=server.session.id,
        source=source,
        kind=kind,
    )
    return Refused(UNDECIDED)


def authenticator_from_callback(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Make an authenticator of a deprecated ``auth_callback``: ``f(mechanism, login, password)`` returns True or
    False."""

    async def authenticator(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> Any:
        if not isinstance(auth_data, LoginPassword):
            return False
        result = callback(mechanism, *auth_data)
        if isinstance(result, Awaitable):
            result = await result
        return False if result is None else result

    authenticator.takes = lambda credentials: issubclass(credentials, LoginPassword)  # type: ignore[attr-defined]
    return authenticator
