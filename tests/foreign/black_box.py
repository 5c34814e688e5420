"""Determine by a rule which tests of aiosmtpd are black-box tests.

A test is not a black-box test if it uses a name of aiosmtpd that starts with an underscore, or replaces an attribute of
a module of aiosmtpd or asyncio (``patch``, ``spy``, ``setattr``). The rule applies to the test, to its fixtures, to the
names in its markers, and to everything that these use from the test modules, whether the test passes or not.
"""

from __future__ import annotations

import dis
import inspect
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

REPLACES = {"patch", "setattr", "spy"}
MODULES = ("aiosmtpd.", "asyncio.")
GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not name.endswith("__")


def private_names(source: Path) -> set[str]:
    """The names that begin with an underscore in the modules of a folder."""
    return {
        token.string
        for module in source.glob("*.py")
        for token in tokenize.generate_tokens(io.StringIO(module.read_text()).readline)
        if token.type == tokenize.NAME and is_private(token.string)
    }


def reaches_into(item: Any, private: set[str]) -> str | None:
    """Return why a test is not a black-box test, or None."""
    for function in _functions_of(item):
        for code in _codes(function.__code__):
            names = set(code.co_names)
            used = sorted(names & private)
            if used:
                return f"{function.__qualname__} uses {used[0]}"
            texts = [each for each in code.co_consts if isinstance(each, str) and each.startswith(MODULES)]
            if texts and names & REPLACES:
                return f"{function.__qualname__} replaces {texts[0]}"
    return None


def _functions_of(item: Any) -> Iterator[FunctionType]:
    """The test's function, and all functions of the tests that it uses."""
    waiting: list[Any] = [item.function]
    waiting += [found[-1].func for found in item._fixtureinfo.name2fixturedefs.values()]
    for marker in item.iter_markers():
        waiting += [*marker.args, *marker.kwargs.values()]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        found = getattr(found, "fget", None) or getattr(found, "__func__", found)  # of a property or a method
        found = inspect.unwrap(found) if callable(found) else found
        if id(found) in seen or not _is_of_tests(found):
            continue
        seen.add(id(found))
        if inspect.isclass(found):
            waiting += vars(found).values()
        elif isinstance(found, FunctionType):
            yield found
            waiting += _used(found, item.cls)


def _used(function: FunctionType, cls: type | None) -> Iterable[Any]:
    for code in _codes(function.__code__):
        for step in dis.get_instructions(code):
            if step.opname in GLOBALS:
                yield function.__globals__.get(str(step.argval))
            elif cls is not None and isinstance(step.argval, str):
                yield inspect.getattr_static(cls, step.argval, None)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _is_of_tests(found: Any) -> bool:
    return str(getattr(found, "__module__", "")).startswith("aiosmtpd.tests.")


def white_boxes(items: dict[str, pytest.Item], source: Path) -> dict[str, str]:
    """Return the tests that are not black-box tests, with the reasons.

    :param source: the folder of aiosmtpd's modules.
    """
    private = private_names(source)
    found = {name: reaches_into(item, private) for name, item in items.items()}
    return {name: why for name, why in found.items() if why is not None}
