"""Two columns of text for a terminal: names, and their descriptions."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

COLUMN = 32  # where descriptions start


def width() -> int:
    """Return how many columns text may have."""
    return min(max(shutil.get_terminal_size().columns, 60), 110)


def two_columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return the lines of a table. A name that is too long for its column has a line to itself.

    :param rows: pairs of a name, with its indentation, and a description.
    """
    lines = []
    space = width() - COLUMN
    for name, description in rows:
        if len(name) >= COLUMN:
            lines.append(name)
            name = ""
        for text in textwrap.wrap(description, space, break_on_hyphens=False):
            lines.append(name.ljust(COLUMN) + text)
            name = ""
    return lines
