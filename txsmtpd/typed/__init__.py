"""Definitions for type checkers and editors: options by name, and the hooks of a handler. No run-time behaviour."""

from txsmtpd.typed.handler import Handler, HookResult, Status
from txsmtpd.typed.options import ControllerOptions, FactoryOptions, Options, UnixSocketControllerOptions

__all__ = [
    "ControllerOptions",
    "FactoryOptions",
    "Handler",
    "HookResult",
    "Options",
    "Status",
    "UnixSocketControllerOptions",
]
