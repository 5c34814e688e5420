"""Declarations of options, one row for each, in groups; and the interface of the command line for groups.

A new group of options is a new module with a :class:`Group`, and its name in ``GROUPS`` (in ``parser``). What an option
is called, how its value is read, where it goes and what ``--help`` says of it stand in one row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from twisted.python import usage

from txsmtpd.service.exit_status import described
from txsmtpd.service.options.values import text, yes_or_no
from txsmtpd.settings import Settings


class Asked(NamedTuple):
    """A value given for an option."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}={self.text}"


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of the command line, and of the environment."""

    name: str
    help: str
    metavar: str | None = None
    """The placeholder of the value in the help. None: a flag without a value."""

    short: str | None = None
    """A letter."""

    many: bool = False
    """Whether it may be given several times."""

    separator: str | None = None
    """What separates the values of a repeatable option in the environment. None: white space."""

    setting: str | None = None
    """The option of :class:`~txsmtpd.settings.Settings` that it is."""

    read: Callable[[str], Any] = text
    """Converts the text to the value. Raises ValueError."""

    action: Callable[[], None] | None = None
    """What it does at once, such as to print a list; then the process ends."""

    default: str = ""
    """What the help calls the default."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Options that belong together."""

    title: str
    options: tuple[Option, ...]
    read: Callable[[Chosen], None] = lambda chosen: None
    """Checks what was chosen, and puts it where the server looks. Groups are read in their order."""

    finish: Callable[[Chosen], None] = lambda chosen: None
    """Does what has effects, such as to open a file, once nothing is wrong with any group."""


class Chosen(usage.Options):
    """What the command line and the environment chose. The command line wins; an empty variable counts as none."""

    environ: Mapping[str, str]
    table: Mapping[str, Option]

    @property
    def settings(self) -> dict[str, Any]:
        """The options of :class:`~txsmtpd.settings.Settings` so far."""
        settings: dict[str, Any] = self["settings"]
        return settings

    def one(self, option: str) -> Asked | None:
        """The value of an option; None: nobody gave one."""
        if self[option] is not None:
            return Asked(f"--{option}", self[option])
        variable = variable_of(option)
        value = self.environ.get(variable)
        return Asked(variable, value) if value else None

    def all(self, option: str, default: str | None = None) -> list[Asked]:
        """The values of an option that may be repeated."""
        if self[option]:
            return [Asked(f"--{option}", value) for value in self[option]]
        variable = variable_of(option)
        values = self.environ.get(variable, "").split(self.table[option].separator)
        found = [Asked(variable, value.strip()) for value in values if value.strip()]
        return found or ([] if default is None else [Asked(f"--{option}", default)])

    def flag(self, option: str) -> Asked | None:
        """What asked for an option that takes no value; None: nothing did."""
        asked = self.one(option)
        if asked is None:
            return None
        with refusing(asked):
            return asked if yes_or_no(asked.text) else None

    def value(self, option: str, default: Any = None) -> Any:
        """The value of an option as its row reads it."""
        asked = self.one(option)
        if asked is None:
            return default
        with refusing(asked):
            return self.table[option].read(asked.text)


def read_settings(chosen: Chosen, options: tuple[Option, ...]) -> None:
    """Read those options that are options of Settings."""
    for option in options:
        asked = chosen.one(option.name) if option.setting is not None else None
        if option.setting is not None and asked is not None:
            with refusing(asked):
                value = option.read(asked.text)
                check_setting(option.setting, value)
                chosen.settings[option.setting] = value


def variable_of(option: str) -> str:
    """The option's name in the environment."""
    return f"TXSMTPD_{option.upper().replace('-', '_')}"


@contextmanager
def refusing(asked: Asked) -> Iterator[None]:
    """Whatever is raised in here is the fault of this value."""
    try:
        yield
    except (usage.UsageError, TypeError, ValueError) as error:
        raise usage.UsageError(f"{asked}: {error}") from error
    except Exception as error:
        raise usage.UsageError(f"{asked}: {described(error)}") from error


def need_extra(extra: str, module: str) -> None:
    """Reject an option whose optional dependency is missing.

    :raises ValueError: with what to install.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{module} is missing; install it by: pip install 'txsmtpd[{extra}]'")


def check_setting(keyword: str, value: object) -> None:
    """Let Settings check one value.

    :raises ValueError: with its words, but without its name for the option, which the user does not know.
    """
    try:
        Settings.make(None, {keyword: value})
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).removeprefix(f"{keyword} ")) from error
