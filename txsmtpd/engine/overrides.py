"""Checks subclasses of the protocol for overrides that would never be called, or would break the server. Has attributes
for the private names of aiosmtpd's protocol that programs use.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

# Methods that other frameworks call, and what to use instead.
NEVER_CALLED = {
    "connection_lost": "connectionLost",
    "data_received": "dataReceived",
    "eof_received": "readConnectionLost",
    "lineLengthExceeded": "the option command_size_limit",
    "max_command_size_limit": "the option command_size_limit",
    "_authenticate": "the option authenticator",
    "_call_handler_hook": "call_hook",
    "_client_connected_cb": "connectionMade",
    "_getaddr": "parse_mail and parse_rcpt",
    "_getparams": "an Extension with mail_parameters",
    "_handle_client": "lineReceived, or smtp_VERB methods",
    "_reset_timeout": "the option timeout",
    "_set_post_data_state": "reset_transaction",
    "_set_rset_state": "reset_transaction",
    "_strip_command_keyword": "parse_mail and parse_rcpt",
    "_syntax_available": "the parameter when of syntax",
    "_timeout_cb": "timeoutConnection",
}
# Private attributes of aiosmtpd's protocol that programs use, and what to use instead.
REPLACEMENTS = {
    **NEVER_CALLED,
    "_auth_methods": "settings.mechanisms",
    "_handler_coroutine": "transport.loseConnection",
    "_loop": "loop",
    "_reader": "challenge_auth",
    "_writer": "push, or transport.write",
}
OVERRIDABLE = {
    "_create_session",
    "_create_envelope",
    "_abc_impl",
}  # may be overridden, although their names start with an underscore
# Methods that the engine calls without awaiting the result.
NOT_ASYNC = (
    "_create_envelope",
    "_create_session",
    "add_recipient",
    "at_end",
    "begin_transaction",
    "parse_mail",
    "parse_rcpt",
    "push",
    "reset_transaction",
)


class Readable:
    """A private attribute that programs read. It has a value unless a subclass or the object sets the attribute.

    :param read: returns the value from the server.
    """

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __get__(self, server: Any, cls: Any = None) -> Any:
        return self if server is None else self._read(server)


class Missing:
    """An attribute that aiosmtpd's protocol has and ours does not. The exception names the replacement.

    The class has one for each name, and no ``__getattr__``, which would make all attributes of protocols slower.

    :param name: the name of the attribute.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, server: object, cls: type) -> Any:
        name = self._name
        raise AttributeError(
            f"{cls.__name__!r} object has no attribute {name!r}; use {REPLACEMENTS[name]}", name=name, obj=server
        )


def add_missing_attributes(cls: type) -> None:
    """Add the attributes of aiosmtpd's protocol that a class does not have."""
    for name in REPLACEMENTS:
        if not hasattr(cls, name):
            setattr(cls, name, Missing(name))


def check_overrides(cls: type, base: type) -> None:
    """Check a subclass of the framework's protocol. A ``smtp_STARTTLS`` that uses asyncio's TLS is removed, with a
    warning.

    :param base: the protocol's class.
    :raises TypeError: for a method that would never be called, for a private method of the server, and for a coroutine
        function that must be a plain function.
    """
    names = {*vars(base), *base.__annotations__}
    private = {name for name in names if name.startswith("_") and not name.endswith("__")}
    private -= OVERRIDABLE | REPLACEMENTS.keys()
    private -= {name for name, value in vars(base).items() if isinstance(value, Readable)}
    for each in cls.__mro__:
        was_checked = each is not cls and base in each.__mro__
        if was_checked or each in base.__mro__ or each.__module__.partition(".")[0] == "txsmtpd":
            continue
        for name, value in list(vars(each).items()):
            if name in NEVER_CALLED:
                raise TypeError(f"{cls.__name__}.{name} would never be called; write {NEVER_CALLED[name]}")
            if name in private:
                raise TypeError(f"{cls.__name__}.{name} is a name that {base.__name__} uses itself; choose another")
            if name == "smtp_STARTTLS" and "start_tls" in getattr(getattr(value, "__code__", None), "co_names", ()):
                # The override was written for a server on asyncio: start_tls works only with asyncio's own transports.
                warnings.warn(
                    f"{cls.__name__}.smtp_STARTTLS calls loop.start_tls(), which has no effect here; the server's own"
                    " STARTTLS is used instead",
                    stacklevel=4,
                )
                cls.smtp_STARTTLS = base.smtp_STARTTLS  # type: ignore[attr-defined]  # any protocol class
            if name in NOT_ASYNC and inspect.iscoroutinefunction(value):
                raise TypeError(f"{cls.__name__}.{name} must be a plain method, without async: nobody would await it")
