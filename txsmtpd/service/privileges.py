"""Whose rights the server will have: ``twistd --uid --gid`` gives up root's only after the options were read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def of_the_server(launcher: Mapping[str, Any] | None) -> Iterator[None]:
    """Act with the rights that the server will have, so that what is made belongs to it, and what fails fails now.

    :param launcher: the options of twist or twistd; those of twistd may have a uid and a gid.
    """
    uid, gid = (launcher or {}).get("uid"), (launcher or {}).get("gid")
    if os.geteuid() != 0 or (uid is None and gid is None):
        yield
        return
    root_gid = os.getegid()
    if gid is not None:
        os.setegid(gid)
    if uid is not None:
        os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(root_gid)
