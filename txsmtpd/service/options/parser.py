"""``Options``: the parser of ``twist smtpd``, ``twistd smtpd`` and ``txsmtpd``. ``GROUPS`` declares the options."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from twisted.application.reactors import NoSuchReactor, getReactorTypes
from twisted.cred.strcred import AuthOptionMixin
from twisted.internet.error import ReactorAlreadyInstalledError
from twisted.python import usage

from txsmtpd._version import __version__
from txsmtpd.service.checkers import INTERFACES
from txsmtpd.service.exit_status import EX_USAGE, Exit, complain
from txsmtpd.service.handlers import BUILT_IN
from txsmtpd.service.options import (
    auth,
    filters,
    inbox,
    limits,
    listening,
    log,
    mail,
    monitoring,
    rates,
    testing,
    tls,
    workers,
)
from txsmtpd.service.options.help import describe, unknown_option, unknown_variables
from txsmtpd.service.options.table import Chosen, Group, Option, read_settings
from txsmtpd.service.topics import describe_checkers
from txsmtpd.service.workers.inheritance import inherited


def _print_version() -> None:
    print(f"txsmtpd {__version__}")


# These options have methods below; they are declared here for --help.
_METHODS = (
    Option(name="help-auth", help="List the password checkers and exit."),
    Option(name="help-auth-type", metavar="TYPE", help="Describe a password checker and exit."),
    Option(name="reactor", metavar="NAME", help="Twisted reactor, such as asyncio, for handlers that need it."),
    Option(name="help", help="Print this help and exit."),
)
_GENERAL = Group(
    title="General",
    options=(*_METHODS, Option(name="version", help="Print the version and exit.", action=_print_version)),
)

GROUPS: tuple[Group, ...] = (
    mail.GROUP,
    filters.GROUP,
    workers.GROUP,
    listening.GROUP,
    tls.GROUP,
    auth.GROUP,
    limits.GROUP,
    rates.GROUP,
    log.GROUP,
    monitoring.GROUP,
    testing.GROUP,
    inbox.GROUP,
    _GENERAL,
)
"""All options. A group may use the values of the groups before it."""

SHOWN = (
    mail.GROUP,
    inbox.GROUP,
    listening.GROUP,
    tls.GROUP,
    auth.GROUP,
    filters.GROUP,
    log.GROUP,
    testing.GROUP,
    monitoring.GROUP,
    workers.GROUP,
    limits.GROUP,
    rates.GROUP,
    _GENERAL,
)
"""All options in the order of --help: those that new users need come first."""

TABLE: Mapping[str, Option] = {option.name: option for group in GROUPS for option in group.options}
# The handler is made first: --tls=auto and transcripts write files, which should not remain if it fails.
FINISHING_ORDER = (mail.GROUP, *(group for group in GROUPS if group not in (mail.GROUP, tls.GROUP)), tls.GROUP)


@contextmanager
def _printing() -> Iterator[None]:
    """Let a program that reads what is printed, such as head, stop reading before the end."""
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes the rest when it exits
        raise SystemExit(0) from None


class Options(Chosen, AuthOptionMixin):
    """The parsed options.

    After parsing, it has the items that :func:`~txsmtpd.service.makeService` needs, such as ``handler``, ``settings``,
    ``endpoints``, ``tls_endpoints`` and ``lmtp_endpoints`` (pairs of a label and an endpoint), ``faults``,
    ``transcript`` and ``grace``.
    """

    synopsis = "[options]"
    longdesc = (
        "Receive mail over SMTP. By default, the server listens on port 8025 of this machine only, and prints each"
        " message."
    )
    optParameters = [
        [option.name, option.short, None, option.help]
        for option in TABLE.values()
        if option.metavar is not None and not option.many and option not in _METHODS
    ]
    compData = usage.Completions(
        optActions={"handler": usage.CompleteList([maker.name for maker in BUILT_IN])},
        multiUse=[option.name.replace("-", "_") for option in TABLE.values() if option.many],
    )
    supportedInterfaces = INTERFACES
    environ = os.environ
    table = TABLE

    def __init__(self) -> None:
        super().__init__()
        for option in TABLE.values():
            if option.many:
                self[option.name] = []
            elif option.metavar is None:
                self[option.name] = None
        self.authOutput = sys.stdout

    def opt_help_auth(self) -> None:
        """List the password checkers."""
        print(describe_checkers())
        raise SystemExit(0)

    def opt_reactor(self, name: str) -> None:
        """Install a reactor at once, before anything imports the default one."""
        launcher: Any = self.parent
        if not hasattr(launcher, "installReactor"):
            raise usage.UsageError("--reactor: pass it to twistd, before smtpd")
        try:
            launcher["reactor"] = launcher.installReactor(name)
        except NoSuchReactor:
            known = ", ".join(sorted(each.shortName for each in getReactorTypes()))
            raise usage.UsageError(f"--reactor={name}: there is no such reactor; there are {known}") from None
        except ReactorAlreadyInstalledError:
            raise usage.UsageError(f"--reactor={name}: another reactor is installed already") from None
        launcher["reactorName"] = name

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        self["words"] = [*(options or ())]  # for workers, which serve with the same options
        self["worker"] = worker = inherited(self.environ)
        try:
            self._check_environment()
            reactor = self.environ.get("TXSMTPD_REACTOR")
            if reactor and not any(word.startswith("--reactor") for word in options or ()):
                self.opt_reactor(reactor)
            with _printing():
                super().parseOptions(options)
        except usage.UsageError as error:
            # Otherwise twist would print the whole help before the error.
            reason = self._explained(str(error))
            complain(reason, sys.stderr)
            if worker is not None:
                workers.tell_master(worker, reason)
            raise Exit(EX_USAGE, reason) from None

    def _check_environment(self) -> None:
        wrong, odd = unknown_variables(self.environ, TABLE)
        if wrong:
            raise usage.UsageError(wrong[0])
        for each in odd:
            complain(each, sys.stderr)

    def _explained(self, reason: str) -> str:
        """Return a more helpful text for an error of getopt."""
        if unknown := re.fullmatch(r"option -(?:-(?P<long>.*)|(?P<short>.)) not recognized", reason):
            return unknown_option(unknown["long"] or unknown["short"], TABLE)
        if bare := re.fullmatch(r"option (-\w|--[\w-]+) requires argument", reason):
            return f"option {bare[1]} needs a value; see --help"
        if valued := re.fullmatch(r"option (--[\w-]+) must not have an argument", reason):
            return f"option {valued[1]} takes no value"
        if checker := re.fullmatch(r"Invalid auth type: (.*)", reason, re.DOTALL):
            return f"--help-auth-type={checker[1]}: there is no such checker; see --help-auth"
        return reason

    def parseArgs(self, *args: str) -> None:
        if args:
            raise usage.UsageError(
                f"unexpected argument {args[0]!r}; only options are allowed, and values with spaces need quotes"
            )

    def postOptions(self) -> None:
        self["settings"] = {}
        self["reopen"] = []  # functions to call on SIGHUP that reopen files, which may have been renamed
        self["reload"] = []  # functions to call on SIGHUP that read changed files
        for group in GROUPS:
            read_settings(self, group.options)
            group.read(self)
        for group in FINISHING_ORDER:
            group.finish(self)

    def __str__(self) -> str:
        return describe(SHOWN, self.longdesc)


def _method_of(option: Option) -> Callable[..., None]:
    """Return the method by which :class:`~twisted.python.usage.Options` handles an option that is not a plain value."""
    if option.action is not None:

        def act(self: Options) -> None:
            assert option.action is not None
            option.action()
            raise SystemExit(0)

        return act
    if option.many:

        def append(self: Options, value: str) -> None:
            self[option.name].append(value)

        return append

    def switch_on(self: Options) -> None:
        self[option.name] = "yes"

    return switch_on


def _add_methods(options: type[Any]) -> None:
    for option in TABLE.values():
        if option in _METHODS or (option.metavar is not None and not option.many):
            continue
        method = _method_of(option)
        method.__doc__ = option.help
        for name in filter(None, (option.name, option.short)):
            setattr(options, f"opt_{name.replace('-', '_')}", method)


_add_methods(Options)
