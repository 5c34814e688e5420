"""From ``"module:callable"`` to what it makes: a factory, in each process."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from txsmtpd.factory import SMTPFactory

EXAMPLE = 'the place of a callable that returns the handler or the SMTPFactory, such as "mail.server:make_factory"'


def find_callable(place: str) -> Callable[[], Any]:
    """The callable at this place.

    :raises TypeError: if it is none, or *place* is no string.
    :raises ValueError: if there is nothing of this name, or other processes would not find it.
    :raises Exception: whatever the import of the module raises.
    """
    if not isinstance(place, str):
        raise TypeError(f"each worker makes its own handler: give {EXAMPLE}, not {place!r}")
    module, colon, name = place.partition(":")
    if not (colon and module and name):
        raise ValueError(f"{place!r} must be {EXAMPLE}")
    if module == "__main__":
        raise ValueError(f"{place!r}: workers do not run the program again; put the callable into a module")
    found: Any = import_module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{place!r}: there is no {part} in {getattr(found, '__name__', found)!s}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{place!r} is {found!r}, which cannot be called")
    made: Callable[[], Any] = found
    return made


def make_factory(place: str, **options: Any) -> SMTPFactory:
    """Call what is at this place, and return the factory that it makes.

    :param options: of the factory, if what is made is a handler.
    """
    made = find_callable(place)()
    return made if isinstance(made, SMTPFactory) else SMTPFactory(made, **options)
