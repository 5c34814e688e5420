"""The declaration of options in groups, and the interface through which groups read their options.

To add a group, write a module with a :class:`Group`, and add it to ``GROUPS`` in ``parser``. An :class:`Option` holds
everything about one option: its name, its converter, the setting that it sets, and its help.
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


class Given(NamedTuple):
    """A value given for an option."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}={self.text}"


class GivenFlag(Given):
    """A flag given on the command line, where it has no value."""

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of the command line, and of the environment."""

    name: str
    help: str
    metavar: str | None = None
    """The placeholder of the value in the help. None: a flag without a value."""

    short: str | None = None
    """The one-letter form."""

    many: bool = False
    """True if it may be given several times."""

    separator: str | None = None
    """What separates the values of a repeatable option in the environment. None: white space."""

    setting: str | None = None
    """The option of :class:`~txsmtpd.settings.Settings` that it sets."""

    read: Callable[[str], Any] = text
    """Converts the text to the value. Raises ValueError."""

    action: Callable[[], None] | None = None
    """A function that is called at once, for example to print a list; then the process ends."""

    default: str = ""
    """The default, as ``--help`` shows it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Options that belong together."""

    title: str
    options: tuple[Option, ...]
    read: Callable[[Chosen], None] = lambda chosen: None
    """Checks the options of the group, and stores their values. Groups are read in their order."""

    finish: Callable[[Chosen], None] = lambda chosen: None
    """Does what has side effects, such as opening a file, after all groups have been read without an error."""


class Chosen(usage.Options):
    """The values from the command line and the environment. The command line wins; an empty variable is ignored."""

    environ: Mapping[str, str]
    table: Mapping[str, Option]

    @property
    def settings(self) -> dict[str, Any]:
        """The options of :class:`~txsmtpd.settings.Settings` that were set so far."""
        settings: dict[str, Any] = self["settings"]
        return settings

    def one(self, option: str) -> Given | None:
        """Return the value of an option, or None."""
        if self[option] is not None:
            given = Given if self.table[option].metavar else GivenFlag
            return given(f"--{option}", self[option])
        variable = variable_of(option)
        value = self.environ.get(variable)
        return Given(variable, value) if value else None

    def all(self, option: str, default: str | None = None) -> list[Given]:
        """Return the values of an option that may be repeated."""
        if self[option]:
            return [Given(f"--{option}", value) for value in self[option]]
        variable = variable_of(option)
        values = self.environ.get(variable, "").split(self.table[option].separator)
        found = [Given(variable, value.strip()) for value in values if value.strip()]
        return found or ([] if default is None else [Given(f"--{option}", default)])

    def flag(self, option: str) -> Given | None:
        """Return where an option without a value was given, or None."""
        given = self.one(option)
        if given is None:
            return None
        with refusing(given):
            return given if yes_or_no(given.text) else None

    def value(self, option: str, default: Any = None) -> Any:
        """Return the converted value of an option, or *default*."""
        given = self.one(option)
        if given is None:
            return default
        with refusing(given):
            return self.table[option].read(given.text)


def read_settings(chosen: Chosen, options: tuple[Option, ...]) -> None:
    """Read the options that set options of Settings."""
    for option in options:
        given = chosen.one(option.name) if option.setting is not None else None
        if option.setting is not None and given is not None:
            with refusing(given):
                value = option.read(given.text)
                check_setting(option.setting, value)
                chosen.settings[option.setting] = value


def variable_of(option: str) -> str:
    """Return the name of an option's environment variable."""
    return f"TXSMTPD_{option.upper().replace('-', '_')}"


@contextmanager
def refusing(given: Given) -> Iterator[None]:
    """Turn exceptions of the block into a UsageError that names this value."""
    try:
        yield
    except (usage.UsageError, TypeError, ValueError) as error:
        raise usage.UsageError(f"{given}: {error}") from error
    except Exception as error:
        raise usage.UsageError(f"{given}: {described(error)}") from error


def need_extra(extra: str, module: str) -> None:
    """Reject an option whose optional dependency is missing.

    :raises ValueError: with the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{module} is missing; install it by: pip install 'txsmtpd[{extra}]'")


def check_setting(keyword: str, value: object, **others: object) -> Settings:
    """Check one value as Settings does.

    :param others: settings that it depends on.
    :raises ValueError: with the text of Settings, but without the keyword, which users of the command line do not know.
    """
    try:
        return Settings.make(None, {keyword: value, **others})
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).removeprefix(f"{keyword} ")) from error
