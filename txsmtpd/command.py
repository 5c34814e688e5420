"""SMTP commands: methods named ``smtp_VERB``, with a syntax and the rules that must hold before they run.

Rules are declared together with the syntax, each with its own refusal, and are inherited: a subclass that overrides a
command keeps its rules, whether it declares a syntax or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from txsmtpd.reply import Reply

F = TypeVar("F", bound=Callable[..., Any])
PREFIX = "smtp_"


class Rule(NamedTuple):
    """A precondition of a command: a function of the server and the argument, and the reply if it returns false."""

    holds: Callable[[Any, str | None], bool]
    refusal: Reply


# Rules shared by several commands. A rule that only one command needs is defined next to that command.

greeted = Rule(
    lambda smtp, arg: smtp.session.host_name is not None,
    Reply(503, "5.5.1", "Send HELO or EHLO first"),
)
authorized = Rule(
    lambda smtp, arg: bool(smtp.session.authenticated or not smtp.settings.auth_required),
    Reply(530, "5.7.0", "Authentication required"),
)
no_transaction = Rule(lambda smtp, arg: smtp.envelope.mail_from is None, Reply(503, "5.5.1", "Nested MAIL command"))
transaction = Rule(lambda smtp, arg: smtp.envelope.mail_from is not None, Reply(503, "5.5.1", "Need MAIL command"))
recipients = Rule(lambda smtp, arg: smtp._has_recipients(), Reply(503, "5.5.1", "Need RCPT command"))


class Syntax(NamedTuple):
    """The values passed to :func:`syntax`."""

    text: str
    extended: str | None = None
    when: str | Callable[[Any], object] | None = None
    needs: tuple[Rule, ...] = ()
    argument: bool | None = None
    junk: bool = False
    payload: Callable[[bytes], int] | None = None
    rate: str | None = None


def syntax(
    text: str,
    extended: str | None = None,
    when: str | Callable[[Any], object] | None = None,
    *,
    needs: Iterable[Rule] = (),
    argument: bool | None = None,
    junk: bool = False,
    payload: Callable[[bytes], int] | None = None,
    rate: str | None = None,
) -> Callable[[F], F]:
    """Declare the syntax of a command, which HELP shows, and the rules it needs.

    :param text: the syntax, such as ``"PING [ignored]"``.
    :param extended: text to append to it after EHLO.
    :param when: the name of an attribute of the server, or a function of the server. HELP lists the command if its
        value is true.
    :param needs: rules that must hold, checked in this order.
    :param argument: True if the command requires an argument, False if it takes none. A command that violates
        this is refused with 501 and the syntax.
    :param junk: whether the command counts towards ``junk_command_limit``, because it does not help to deliver mail.
    :param payload: a function that takes the argument, and returns the number of octets that follow the command. If the
        command is refused, the server reads and discards these octets.
    :param rate: what the command counts as for rate limits (``rates``), such as ``"messages"``.
    """

    def declare(method: F) -> F:
        method.__smtp_syntax__ = Syntax(text, extended, when, tuple(needs), argument, junk, payload, rate)  # type: ignore[attr-defined]
        return method

    return declare


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a class: its method, and what the class and its base classes declare for it."""

    verb: str
    method: Callable[..., Any]
    rules: tuple[Rule, ...]
    syntax: Syntax | None  #: None: HELP does not list it
    junk: bool
    payload: Callable[[bytes], int] | None
    rate: str | None = None

    def is_listed(self, server: Any) -> bool:
        """Return True if HELP lists the command at present."""
        if self.syntax is None:
            return False
        when = self.syntax.when
        return when is None or bool(when(server) if callable(when) else getattr(server, when, None))

    def without(self, rule: Rule) -> Command:
        """Return a copy of the command without this rule."""
        return replace(self, rules=tuple(each for each in self.rules if each is not rule))

    def help(self, extended_smtp: bool) -> str:
        """Return the syntax of the command, as HELP shows it."""
        if self.syntax is None:
            return self.verb
        return self.syntax.text + (self.syntax.extended or "" if extended_smtp else "")


def commands_of(cls: type) -> dict[bytes, Command]:
    """Return the commands of a class by verb: its methods ``smtp_VERB``, including inherited ones.

    ``smtp_VERB = None`` removes a command.
    """
    names = {name for each in cls.__mro__ for name in vars(each) if name.startswith(PREFIX)}
    commands = {}
    for name in names:
        method = getattr(cls, name)
        verb = name.removeprefix(PREFIX)
        if callable(method) and verb.isascii() and verb == verb.upper():
            commands[verb.encode("ascii")] = _command(cls, name, verb, method)
    return commands


def commands_of_extension(extension: Any) -> dict[bytes, Command]:
    """Return the commands of an extension by verb: its methods ``smtp_VERB(server, arg)``.

    HELP lists them while the server offers the extension.
    """

    def is_offered(server: Any) -> bool:
        return extension.parameter(server) is not None

    return {
        verb: replace(
            command,
            method=getattr(extension, PREFIX + command.verb),
            syntax=command.syntax and command.syntax._replace(when=command.syntax.when or is_offered),
        )
        for verb, command in commands_of(type(extension)).items()
    }


def _command(cls: type, name: str, verb: str, method: Callable[..., Any]) -> Command:
    methods = [vars(each)[name] for each in cls.__mro__ if name in vars(each)]
    declared = [found for found in (getattr(each, "__smtp_syntax__", None) for each in methods) if found]
    nearest = declared[0] if declared else None
    rules: dict[Rule, None] = {}
    for each in reversed(declared):
        rules.update(dict.fromkeys(each.needs))
    wanted = next((each.argument for each in declared if each.argument is not None), None)
    if nearest is not None and wanted is not None:
        refusal = Reply(501, "5.5.4", f"Syntax: {nearest.text}")
        rules[Rule(lambda server, arg: (arg is not None) is wanted, refusal)] = None
    junk = any(each.junk for each in declared)
    payload = next((each.payload for each in declared if each.payload), None)
    rate = next((each.rate for each in declared if each.rate), None)
    return Command(verb, method, tuple(rules), nearest, junk, payload, rate)
