"""Object references such as ``"module:callable"``, by which each process makes its own factory."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from txsmtpd.factory import SMTPFactory

EXAMPLE = 'the name of a callable that returns the handler or the SMTPFactory, such as "mail.server:make_factory"'


def find_callable(reference: str) -> Callable[[], Any]:
    """Import the callable that a reference names.

    :raises TypeError: if it cannot be called, or *reference* is not a string.
    :raises ValueError: if there is nothing of this name, or other processes would not find it.
    :raises Exception: what the import of the module raises.
    """
    if not isinstance(reference, str):
        raise TypeError(f"each worker makes its own handler: give {EXAMPLE}, not {reference!r}")
    module, colon, name = reference.partition(":")
    if not (colon and module and name):
        raise ValueError(f"{reference!r} must be {EXAMPLE}")
    if module == "__main__":
        raise ValueError(f"{reference!r}: workers do not run the program again; put the callable into a module")
    found: Any = import_module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{reference!r}: there is no {part} in {getattr(found, '__name__', found)!s}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{reference!r} is {found!r}, which cannot be called")
    made: Callable[[], Any] = found
    return made


def make_factory(reference: str, **options: Any) -> SMTPFactory:
    """Call what a reference names, and return the factory that it makes.

    :param options: options of the factory, if the callable returns a handler.
    """
    made = find_callable(reference)()
    return made if isinstance(made, SMTPFactory) else SMTPFactory(made, **options)
