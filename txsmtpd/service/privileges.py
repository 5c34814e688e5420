"""The privileges of the server: ``twistd --uid --gid`` drops those of root only after the options were read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def server_privileges(launcher: Mapping[str, Any] | None) -> Iterator[None]:
    """Run a block with the user and group that the server will have, so that it owns the files that the block creates,
    and missing permissions are found at once.

    :param launcher: the options of twist or twistd; those of twistd may have ``uid`` and ``gid``.
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
