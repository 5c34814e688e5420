"""Methods ``auth_MECHANISM(server, args)`` of a handler or of the server's class, taken for mechanisms."""

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
    """A method that holds the whole exchange, with ``server.challenge_auth``, and decides as well."""

    def __init__(self, name: str, method: Callable[..., Any]) -> None:
        self.name = name
        self.method = method

    async def authenticate(self, exchange: Exchange) -> AuthResult | None:
        """What the method says. None: it has dealt with everything."""
        result = self.method(exchange.server, exchange.words)
        if isinstance(result, Awaitable):
            result = await result
        if result is None:
            return None
        if isinstance(result, AuthResult):
            if isinstance(result.success, bool):
                return result
        elif not result:  # MISSING and False, and what is no name of anybody
            return AuthResult(success=False)
        elif not isinstance(result, Awaitable):  # a coroutine that nobody awaited is no user
            return AuthResult(success=True, auth_data=result)
        raise undecided(exchange.server, f"the method of {self.name}", result)


def methods_of_handler(
    handler: object, called: Callable[[Any], Callable[..., Any]] = lambda method: method
) -> dict[str, MethodMechanism]:
    """The mechanisms that a handler's methods are. What is called ``auth_...`` and is no method is none.

    :param called: what to call in place of a method.
    """
    found = {name: getattr(handler, name) for name in dir(handler) if name.startswith(PREFIX)}
    methods = {name: method for name, method in found.items() if inspect.isroutine(method)}
    return _mechanisms({name: (method, called(method)) for name, method in methods.items()})


def methods_of_class(cls: type, but: type) -> dict[str, MethodMechanism]:
    """The mechanisms that the methods of a server's class are, those of the class *but* left out."""
    classes = [each for each in cls.__mro__ if each not in but.__mro__]
    names = {name for each in classes for name in vars(each) if name.startswith(PREFIX)}
    methods = {name: method for name in names if inspect.isroutine(method := getattr(cls, name))}
    return _mechanisms({name: (method, _bound(name)) for name, method in methods.items()})


def _mechanisms(methods: dict[str, tuple[Any, Callable[..., Any]]]) -> dict[str, MethodMechanism]:
    """Mechanisms by their names.

    :param methods: by the method's name, the method itself, which may say another, and what to call.
    """
    mechanisms = {}
    for name, (method, call) in methods.items():
        said = getattr(method, "__auth_mechanism_name__", None)
        with suppress(ValueError):  # a method whose name cannot be that of a mechanism is none
            mechanism = said or mechanism_name(name.removeprefix(PREFIX).replace("__", "-"))
            mechanisms[mechanism] = MethodMechanism(mechanism, call)
    return mechanisms


def _bound(name: str) -> Callable[..., Any]:
    def method(server: Any, args: list[str]) -> Any:
        return getattr(server, name)(server, args)

    return method
