"""Mechanisms made from methods ``auth_MECHANISM(server, args)`` of a handler or of the server's class."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from zope.interface import implementer

from txsmtpd.auth.decision import undecided
from txsmtpd.auth.exchange import Exchange
from txsmtpd.auth.results import AuthResult, mechanism_name
from txsmtpd.interfaces import IAuthMechanism

PREFIX = "auth_"


@implementer(IAuthMechanism)
class MethodMechanism:
    """A method that does the whole exchange, with ``server.challenge_auth``, and checks the credentials itself."""

    def __init__(self, name: str, method: Callable[..., Any]) -> None:
        self.name = name
        self.method = method

    async def authenticate(self, exchange: Exchange) -> AuthResult | None:
        """Call the method. Return its result, or None if the method has already replied."""
        result = self.method(exchange.server, exchange.words)
        if isinstance(result, Awaitable):
            result = await result
        if result is None:
            return None
        if isinstance(result, AuthResult):
            if isinstance(result.success, bool):
                return result
        elif not result:  # MISSING, False, and empty names
            return AuthResult(success=False)
        elif not isinstance(result, Awaitable):  # a coroutine that was not awaited is not a user
            return AuthResult(success=True, auth_data=result)
        raise undecided(exchange.server, f"the method of {self.name}", result)


def methods_of_handler(
    handler: object, called: Callable[[Any], Callable[..., Any]] = lambda method: method
) -> dict[str, MethodMechanism]:
    """Return the mechanisms that a handler's methods define. Attributes ``auth_...`` that are not methods are ignored.

    :param called: returns the function to call instead of a method.
    """
    found = {name: getattr(handler, name) for name in dir(handler) if name.startswith(PREFIX)}
    methods = {name: method for name, method in found.items() if inspect.isroutine(method)}
    return _mechanisms({name: (method, called(method)) for name, method in methods.items()})


def methods_of_class(cls: type, but: type) -> dict[str, MethodMechanism]:
    """Return the mechanisms that the methods of a server's class define, except those of the class *but*."""
    classes = [each for each in cls.__mro__ if each not in but.__mro__]
    names = {name for each in classes for name in vars(each) if name.startswith(PREFIX)}
    methods = {name: method for name in names if inspect.isroutine(method := getattr(cls, name))}
    return _mechanisms({name: (method, _bound(name)) for name, method in methods.items()})


def _mechanisms(methods: dict[str, tuple[Any, Callable[..., Any]]]) -> dict[str, MethodMechanism]:
    """Return mechanisms by name.

    :param methods: by the method's name: the method itself, which may declare another name, and the function to call.
    """
    mechanisms = {}
    for name, (method, call) in methods.items():
        said = getattr(method, "__auth_mechanism_name__", None)
        with suppress(ValueError):  # ignore methods whose names are not valid for a mechanism
            mechanism = said or mechanism_name(name.removeprefix(PREFIX).replace("__", "-"))
            mechanisms[mechanism] = MethodMechanism(mechanism, call)
    return mechanisms


def _bound(name: str) -> Callable[..., Any]:
    def method(server: Any, args: list[str]) -> Any:
        return getattr(server, name)(server, args)

    return method
