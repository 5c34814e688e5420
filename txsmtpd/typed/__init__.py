"""What type checkers and editors are told: options by name, and the hooks of a handler. Nothing here does anything."""

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
