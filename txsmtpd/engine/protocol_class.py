"""The metaclass of protocols, and their attributes: support for changes to a class or an object at run time.

Programs that were written for aiosmtpd, and tests with mocks, replace commands of a class or of an object, and set
options as attributes. Nothing in this module is called for a command or a reply.
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
    """The metaclass of protocols. A command that is set or deleted later takes effect for new connections."""

    def __setattr__(cls, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name.startswith(_METHODS):
            cls.find_methods()

    def __delattr__(cls, name: str) -> None:
        super().__delattr__(name)
        if name.startswith(_METHODS):
            cls.find_methods()

    def find_methods(cls) -> None:
        """Update the tables of commands and mechanisms, of the class and its subclasses."""
        own: Any = cls
        own.commands = commands_of(cls)
        base = next(each for each in reversed(cls.__mro__) if isinstance(each, ProtocolClass))
        own._mechanisms = {} if base is cls else methods_of_class(cls, base)
        subclasses: list[Any] = cls.__subclasses__()
        for each in subclasses:
            each.find_methods()


def with_own_commands(server: Any) -> Mapping[bytes, Command]:
    """Return the commands of a protocol, including those that are attributes of the object."""
    commands = dict(server.commands)
    for name, function in vars(server).items():
        verb = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and callable(function) and verb.isascii() and verb == verb.upper():
            octets = verb.encode("ascii")
            commands[octets] = _own_command(verb, function, commands.get(octets))
    return commands


def _own_command(verb: str, function: Callable[[Any], Any], known: Command | None) -> Command:
    """Create a command from an attribute of the object. It inherits the rules of the class's command."""
    declared = getattr(function, "__smtp_syntax__", None)
    method = partial(_call_without_server, function)
    if known is not None:
        return replace(known, method=method, syntax=declared or known.syntax)
    if declared is not None:
        return Command(verb, method, declared.needs, declared, declared.junk, declared.payload, declared.rate)
    return Command(verb, method, (), None, False, None)


def _call_without_server(function: Callable[[Any], Any], server: Any, arg: Any) -> Any:
    return function(arg)


class SizeLimits(dict[str, int]):
    """The maximum length of a protocol's command lines by verb, in octets. Setting one affects only that connection."""

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


def setting(name: str, description: str) -> Any:
    """Create an attribute that returns the value of an option. Setting it changes the option for this connection only.

    :param name: the name of the option in :class:`~txsmtpd.settings.Settings`.
    """

    def get(server: Any) -> Any:
        return getattr(server.settings, name)

    def put(server: Any, value: Any) -> None:
        server.settings = replace(server.settings, **{name: value})

    return property(get, put, doc=description)
