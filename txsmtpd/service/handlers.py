"""Makes handlers from values of ``--handler``: ``NAME[:ARG...]``.

``NAME`` is a built-in handler, a plugin (:class:`~txsmtpd.interfaces.IHandlerMaker`), or the dotted name of a class.
Colons separate the arguments; a backslash escapes the next character. Each error is a
:class:`~twisted.python.usage.UsageError`.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from twisted.plugin import getPlugins
from twisted.python.usage import UsageError
from zope.interface import implementer

from txsmtpd.interfaces import IHandlerMaker, IStreamingHandler
from txsmtpd.service.exit_status import described
from txsmtpd.settings import find_hooks

# Exceptions of foreign code while it is imported or called. SystemExit: the module may be a program.
Raised = (Exception, SystemExit)


class HandlerParser:
    """The first argument of a handler's ``from_cli``, through which it rejects the others."""

    def error(self, message: str) -> NoReturn:
        """Reject the arguments.

        :raises UsageError: always.
        """
        raise UsageError(message)


def make_handler(spec: str, rights: AbstractContextManager[None] | None = None) -> object:
    """Return the handler that a value of ``--handler`` describes.

    :param rights: a context manager, entered to make the handler, after its module has been imported.
    :raises UsageError: if there is no such handler, or it rejects the arguments.
    """
    name, arguments = parse_spec(spec)
    maker = find_maker(name)
    if isinstance(maker, Dotted):
        maker.find()
    try:
        with rights or nullcontext():
            return maker.make_handler(HandlerParser(), *arguments)
    except UsageError:
        raise
    except Raised as error:
        raise UsageError(f"creating it raised {described(error)}") from error


# The form of the value


def parse_spec(spec: str) -> tuple[str, list[str]]:
    """Split ``NAME:ARG:ARG`` into the name and the arguments."""
    fields = [""]
    characters = iter(spec)
    for character in characters:
        if character == ":":
            fields.append("")
        elif character == "\\":
            fields[-1] += _escaped(characters)
        else:
            fields[-1] += character
    return fields[0], fields[1:]


def _escaped(characters: Iterator[str]) -> str:
    for character in characters:
        return character
    raise UsageError("nothing follows the backslash at the end")


def quote_argument(argument: str) -> str:
    """Return an argument with the backslashes that it needs in ``NAME:ARG:ARG``."""
    return argument.replace("\\", "\\\\").replace(":", "\\:")


# Where handlers come from


@implementer(IHandlerMaker)
@dataclass(frozen=True)
class Dotted:
    """Makes a handler from a dotted name, which it imports only then."""

    name: str
    usage: str = ""
    description: str = ""
    path: str = ""
    variable: str = ""  # the environment variable that may give an argument
    listen: str = ""  # the default of --listen

    def find(self) -> Any:
        """Import the object that the name refers to."""
        return find_object(self.path or self.name)

    def make_handler(self, parser: HandlerParser, *args: str) -> object:
        maker = self.find()
        from_cli = getattr(maker, "from_cli", None)
        if from_cli is not None:
            _check_arguments(from_cli, parser, args)
            return from_cli(parser, *args)
        if args:
            raise UsageError(f"{self.name} takes no arguments, because it has no from_cli")
        if isinstance(maker, ModuleType):
            raise UsageError(f"{self.name} is a module; name the class in it")
        handler = maker() if callable(maker) else maker
        # Without hooks, it would accept all mail and drop it.
        if not find_hooks(handler) and not IStreamingHandler.providedBy(handler):
            raise UsageError(f"{self.name} is not a handler: it has no method such as handle_DATA")
        return handler


BUILT_IN = [
    Dotted(
        "amqp",
        "amqp:[URL:]queue=NAME[:OPTION...]",
        "Publish each message to RabbitMQ.",
        "txsmtpd.handoff.AMQPHandoff",
        "TXSMTPD_AMQP_URL",
    ),
    Dotted(
        "debugging",
        "debugging[:stdout|stderr][:raw|summary]",
        "Print each message: on a terminal a summary, elsewhere its source.",
        "txsmtpd.handlers.Debugging",
    ),
    Dotted(
        "inbox",
        "inbox[:FILE]",
        "Show messages in a browser, and to tests over HTTP; kept in FILE, or until the server stops.",
        "txsmtpd.inbox.handler.InboxHandler",
        listen="tcp:1025:interface=127.0.0.1",
    ),
    Dotted(
        "kafka",
        "kafka:BROKERS:topic=NAME[:OPTION...]",
        "Publish each message to Kafka.",
        "txsmtpd.handoff.KafkaHandoff",
        "TXSMTPD_KAFKA_BROKERS",
    ),
    Dotted("mailbox", "mailbox:DIR", "Store each message in the Maildir DIR.", "txsmtpd.handlers.Mailbox"),
    Dotted(
        "proxy",
        "proxy:HOST:PORT[:OPTION...]",
        "Relay each message to another server.",
        "txsmtpd.handlers.Proxy",
    ),
    Dotted("sink", "sink", "Accept each message and discard it.", "txsmtpd.handlers.Sink"),
    Dotted(
        "smtpd",
        "smtpd:CLASS[:HOST:PORT]",
        "Run a server class written for the old smtpd module; HOST:PORT is its remote address.",
        "txsmtpd.smtpd.commandline.Served",
    ),
    Dotted(
        "webhook",
        "webhook:URL[:OPTION...]",
        "Post each message to an application over HTTP.",
        "txsmtpd.handoff.WebhookHandoff",
        "TXSMTPD_WEBHOOK_URL",
    ),
]


VARIABLES = {maker.variable for maker in BUILT_IN if maker.variable}


def makers() -> dict[str, Any]:
    """Return the makers of handlers by name: the built-in ones and plugins."""
    # A plugin cannot replace a built-in handler: otherwise installing a package could redirect mail.
    found = {plugin.name: plugin for plugin in getPlugins(IHandlerMaker)}
    return {**found, **{maker.name: maker for maker in BUILT_IN}}


def default_listen(spec: str) -> str:
    """Return where a built-in handler listens by default, or ``""`` if it has no default of its own."""
    name = spec.partition(":")[0]
    return next((maker.listen for maker in BUILT_IN if maker.name == name), "")


def find_maker(name: str) -> Any:
    """Return the maker of the handler with this name."""
    known = makers()
    if name in known:
        return known[name]
    if "." in name:
        return Dotted(name)
    near = difflib.get_close_matches(name.lower(), known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}, and dotted names"
    raise UsageError(f"no handler is called {name!r}; {hint}")


# Dotted names


def find_object(path: str) -> Any:
    """Return the object that a dotted name refers to, and import the modules that it names."""
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UsageError(f"{path!r} is not a dotted name")
    found: Any = _import(parts[0])
    if found is None:
        raise UsageError(f"there is no module {parts[0]}{_hint_at_folder(parts[0])}")
    for count, part in enumerate(parts[1:], 1):
        found = _member(found, ".".join(parts[:count]), part)
    return found


def _member(owner: Any, path: str, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        pass
    module = _import(f"{path}.{name}") if hasattr(owner, "__path__") else None
    if module is None:
        near = difflib.get_close_matches(name, dir(owner), 1)
        raise UsageError(f"{path} has no {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return module


def _import(path: str) -> ModuleType | None:
    """Import a module. Return None if there is no module of this name."""
    try:
        return import_module(path)
    except Raised as error:
        if isinstance(error, ModuleNotFoundError) and error.name == path:
            return None
        raise UsageError(f"importing {path} raised {described(error)}") from error


def _hint_at_folder(module: str) -> str:
    """Return a hint if the module is in the current folder, which ``twist``, unlike ``python``, does not search."""
    here = os.getcwd()
    if here not in sys.path and (os.path.exists(f"{module}.py") or os.path.isdir(module)):
        return "; for modules in the current folder, set PYTHONPATH=."
    return ""


def _check_arguments(from_cli: Any, parser: HandlerParser, arguments: Sequence[str]) -> None:
    try:
        signature = inspect.signature(from_cli)
    except (TypeError, ValueError):  # it has no signature; the call will show
        return
    try:
        signature.bind(parser, *arguments)
    except TypeError as error:
        raise UsageError(f"invalid arguments: {error}") from None
