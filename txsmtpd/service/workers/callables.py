"""Object references such as ``"module:callable"``, from which each process makes its own factory."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from txsmtpd.factory import SMTPFactory

EXAMPLE = 'the name of a callable that returns the handler or the SMTPFactory, such as "mail.server:make_factory"'


def find_callable(reference: str) -> Callable[[], Any]:
    """Import the callable that a reference names.

    :raises TypeError: if *reference* is not a string, or names something that cannot be called.
    :raises ValueError: if it names nothing, or other processes could not import it.
    :raises Exception: as raised by the import of the module.
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
    """Call the callable that a reference names, and return its factory, or a factory for its handler.

    :param options: options of the factory, if the callable returns a handler.
    """
    made = find_callable(reference)()
    return made if isinstance(made, SMTPFactory) else SMTPFactory(made, **options)
