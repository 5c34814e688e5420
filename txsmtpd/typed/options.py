"""The options of a server, by name, for type checkers: ``SMTPFactory(handler, data_size_limit=10**7)``.

Their meanings and defaults are in :class:`~txsmtpd.settings.Settings`; a test checks that the two lists agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from txsmtpd.extensions import Extension
from txsmtpd.limits.memory import Memory
from txsmtpd.limits.rate import Rate
from txsmtpd.wire.networks import Network


class Common(TypedDict, total=False):
    """The options of each connection, except the server's name, which is a different argument in controllers."""

    ident: str | None
    data_size_limit: int | None
    enable_SMTPUTF8: bool
    decode_data: bool
    extensions: Iterable[Extension]
    tls_context: Any
    implicit_tls: bool
    require_starttls: bool
    tls_handshake_timeout: float
    timeout: float | None
    command_timeout: float | None
    data_rate_minimum: int | None
    session_timeout: float | None
    hook_timeout: float | None
    linger: float
    command_size_limit: int
    line_length_limit: int | None
    header_size_limit: int | None
    header_field_limit: int | None
    lenient_addresses: bool
    bare_newlines: bool
    local_part_limit: int
    recipient_limit: int | None
    command_call_limit: int | Mapping[str, int] | None
    error_limit: int | None
    refusal_limit: int | None
    error_delay: float
    junk_command_limit: int | None
    batch_limit: int
    buffer_limit: int
    memory_limit: int | str | Memory | None
    log: Any
    log_limit: int | None
    log_messages: bool
    auth_required: bool
    auth_require_tls: bool
    auth_exclude_mechanism: Iterable[str] | None
    authenticator: Callable[..., Any] | None
    auth_callback: Callable[..., Any] | None
    portal: Any
    auth_mechanisms: Iterable[Any]
    auth_failure_limit: int | None
    auth_attempt_limit: int | None
    auth_failure_delay: float
    auth_failures_per_network: Rate | str | None
    rates: Mapping[str, Rate | str] | None
    limiter: Any
    unlimited_networks: Iterable[Network]
    network_prefixes: tuple[int, int]
    proxy_from: Iterable[Network] | None
    proxy_protocol_timeout: float | None
    log_dialogue: bool
    asyncio: Any
    reactor: Any


class Options(Common, total=False):
    """The options of each connection."""

    hostname: str | None


class OfFactory(TypedDict, total=False):
    """The options of a factory only."""

    protocol: type
    connection_limit: int | None
    connection_limit_per_network: int | None
    connection_limit_per_host: int | None
    filters: Iterable[Any]
    faults: Any
    transcript: Any
    metrics: Any
    strict_handler: bool


class FactoryOptions(Options, OfFactory, total=False):
    """The options of a factory and of each connection."""


class ControllerOptions(Common, OfFactory, total=False):
    """The options of a Controller, of its factory and of each connection."""

    ssl_context: Any
    server_hostname: str | None
    server_kwargs: dict[str, Any] | None
    sock: Any
    ready_timeout: float


class UnixSocketControllerOptions(ControllerOptions, total=False):
    """The options of a controller on a Unix socket."""

    hostname: str | None
