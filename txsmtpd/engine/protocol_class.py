"""What a class of protocols is: its tables follow its methods, and its attributes its settings.

Programs that were written for aiosmtpd, and tests with mocks, replace commands of a class or of an object, and set
options as attributes. Nothing here is called for a command or a reply.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from txsmtpd.auth.methods import methods_of_class
from txsmtpd.command import PREFIX, Command, commands_of

_METHODS = (PREFIX, "auth_")


class ProtocolClass(ABCMeta):
    """The class of protocol classes: a command that is set, or deleted, after the class was made takes effect for the
    connections that come."""

    def __setattr__(cls, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name.startswith(_METHODS):
            cls.find_methods()

    def __delattr__(cls, name: str) -> None:
        super().__delattr__(name)
        if name.startswith(_METHODS):
            cls.find_methods()

    def find_methods(cls) -> None:
        """Make the tables of the class, and of its subclasses, anew."""
        own: Any = cls
        own.commands = commands_of(cls)
        base = next(each for each in reversed(cls.__mro__) if isinstance(each, ProtocolClass))
        own._mechanisms = {} if base is cls else methods_of_class(cls, base)
        subclasses: list[Any] = cls.__subclasses__()
        for each in subclasses:
            each.find_methods()


def with_own_commands(server: Any) -> Mapping[bytes, Command]:
    """The commands of a protocol, with those that are attributes of the object itself."""
    commands = dict(server.commands)
    for name, function in vars(server).items():
        verb = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and callable(function) and verb.isascii() and verb == verb.upper():
            octets = verb.encode("ascii")
            commands[octets] = _own_command(verb, function, commands.get(octets))
    return commands


def _own_command(verb: str, function: Callable[[Any], Any], known: Command | None) -> Command:
    """A command that is an attribute of the object. What the class's command needs and counts as holds for it, too."""
    declared = getattr(function, "__smtp_syntax__", None)
    method = partial(_call, function)
    if known is not None:
        return replace(known, method=method, syntax=declared or known.syntax)
    if declared is not None:
        return Command(verb, method, declared.needs, declared, declared.junk, declared.payload, declared.rate)
    return Command(verb, method, (), None, False, None)


def _call(function: Callable[[Any], Any], server: Any, arg: Any) -> Any:
    return function(arg)


class SizeLimits(dict[str, int]):
    """The limits of a protocol's command lines by verb, in octets. Setting one changes it for that protocol alone."""

    def __init__(self, server: Any) -> None:
        super().__init__({verb.decode("ascii"): limit for verb, limit in server.settings.line_limits.items()})
        self._server = server

    def __missing__(self, verb: str) -> int:
        return self._server.command_size_limit  # type: ignore[no-any-return]  # any protocol

    def __setitem__(self, verb: str, limit: int) -> None:
        super().__setitem__(verb, limit)
        server = self._server
        server._own_size_limits = {**server._own_size_limits, verb: limit}
        server.settings = server.settings.with_line_limit(verb.upper().encode("ascii"), limit)


class Readable:
    """An attribute that is an option's value, unless the object has one of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, server: Any, cls: Any = None) -> Any:
        return self if server is None else getattr(server.settings, self.name)


def setting(name: str, description: str) -> Any:
    """An attribute that is an option's value. To set it changes the option for this connection alone.

    :param name: of the field of :class:`~txsmtpd.settings.Settings`.
    """

    def get(server: Any) -> Any:
        return getattr(server.settings, name)

    def put(server: Any, value: Any) -> None:
        server.settings = replace(server.settings, **{name: value})

    return property(get, put, doc=description)
