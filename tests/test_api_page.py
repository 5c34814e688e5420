"""The pages of the reference list every public name and option, and nothing else."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.service.options.parser import SHOWN
from txsmtpd.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"
DIRECTIVE = re.compile(r"^\.\. (auto\w+|py:\w+):: (\S+)((?:\n+ +:.*)*)", re.MULTILINE)
MEMBERS = re.compile(r":members:(.*)")
EXCLUDED = re.compile(r":exclude-members:(.*)")


def resolved(name: str) -> Any:
    """The object with a full name. AttributeError if there is none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def public_names(module: Any) -> list[str]:
    """The names that automodule documents with ``:members:``: ``__all__``, or those that the module defines and
    documents."""
    found = getattr(module, "__all__", None)
    if found is not None:
        return list(found)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def names_in(text: str) -> tuple[set[str], set[str]]:
    """The modules, and the full names of their members, that a page documents."""
    modules, names = set(), set()
    for kind, name, options in DIRECTIVE.findall(text):
        if kind != "automodule":
            names.add(name)
            continue
        modules.add(name)
        members = MEMBERS.search(options)
        if members is not None:
            listed = [each.strip() for each in members[1].split(",") if each.strip()]
            excluded = EXCLUDED.search(options)
            left_out = {each.strip() for each in excluded[1].split(",")} if excluded else set()
            names.update(
                f"{name}.{each}"
                for each in listed or public_names(importlib.import_module(name))
                if each not in left_out
            )
    return modules, names


class APIPageTests(SynchronousTestCase):
    """``docs/api.rst``, and the parts of it on other pages."""

    def setUp(self) -> None:
        self.modules: set[str] = set()
        self.names: set[str] = set()
        self.pages = [page.read_text("utf-8") for page in DOCS.glob("*.rst")]
        for page in self.pages:
            modules, names = names_in(page)
            self.modules |= modules
            self.names |= names

    def test_nothingElse(self) -> None:
        """Everything that is documented exists, under its documented name."""
        wrong = []
        for name in sorted(self.modules | {each for each in self.names if each.startswith("txsmtpd.")}):
            try:
                resolved(name)
            except AttributeError:
                wrong.append(name)
        self.assertEqual(wrong, [])

    def test_onlyPublic(self) -> None:
        """Everything that is documented is public: no part of its name starts with an underscore, and it is in
        ``__all__`` if its module has that."""
        wrong = []
        for name in self.names:
            module, _, own = name.rpartition(".")
            listed = getattr(resolved(module), "__all__", None) if module.startswith("txsmtpd") else None
            if "._" in name or (listed is not None and own not in listed):
                wrong.append(name)
        self.assertEqual(wrong, [])

    def test_everyName(self) -> None:
        """Every name that a documented module exports is documented, or named on a page that describes the module."""
        documented = {id(resolved(each)) for each in self.names if each.startswith("txsmtpd.")}
        missing = []
        for module in sorted({"txsmtpd", *self.modules}):
            found = resolved(module)
            text = "".join(page for page in self.pages if module in page)
            for name in getattr(found, "__all__", ()):
                named = re.search(rf"``{name}``|:: (\S+\.)?{name}$", text, re.MULTILINE)
                if not (name.startswith("__") or named or id(getattr(found, name)) in documented):
                    missing.append(f"{module}.{name}")
        self.assertEqual(missing, [])


class CommandLinePageTests(SynchronousTestCase):
    """``docs/commandline.rst`` lists the options of the command line."""

    def test_groups(self) -> None:
        """The page has a section for each group of ``--help``, in the same order, with the options of the group."""
        page = (DOCS / "commandline.rst").read_text("utf-8")
        sections = re.findall(r"^(\w[\w ]*)\n~+\n(.*?)(?=^\w[\w ]*\n[~-]{3,}\n)", page, re.MULTILINE | re.DOTALL)
        found = {
            title: set(re.findall(r"--([a-z0-9-]+)", " ".join(re.findall(r"^``--.*", text, re.MULTILINE))))
            for title, text in sections
        }
        self.assertEqual(list(found), [group.title for group in SHOWN])
        for group in SHOWN:
            self.assertEqual(found[group.title], {option.name for option in group.options}, group.title)


class OptionsPageTests(SynchronousTestCase):
    """``docs/options.rst`` lists the options of the factory."""

    def test_everyOption(self) -> None:
        """Each option is in exactly one of the sections."""
        page = (DOCS / "options.rst").read_text("utf-8")
        found = [name for names in re.findall(r"^\.\. options:: (.*)", page, re.MULTILINE) for name in names.split()]
        elsewhere = {"handler", "filters", "protocol_mechanisms"}  # options of the factory, or not for users
        self.assertEqual(sorted(found), sorted({each.name for each in fields(Settings) if each.init} - elsewhere))
