"""The options of a server, checked once, and the tables derived from them. They are in one file because they are one
class.

The factory makes one :class:`Settings`, which all its connections share, so nothing in it changes.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import ssl
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from twisted.internet.interfaces import IOpenSSLContextFactory, IOpenSSLServerConnectionCreator

from txsmtpd.auth.cred import PortalAuthenticator
from txsmtpd.auth.decision import authenticator_from_callback
from txsmtpd.auth.login import Login
from txsmtpd.auth.methods import methods_of_handler
from txsmtpd.auth.plain import Plain
from txsmtpd.auth.results import mechanism_name
from txsmtpd.bridges.asyncio_bridge import in_asyncio, is_coroutine_function
from txsmtpd.bridges.reactors import clock_of, current_reactor
from txsmtpd.command import Command, authorized, commands_of_extension
from txsmtpd.extensions import (
    ENHANCEDSTATUSCODES,
    HELP,
    PIPELINING,
    SMTPUTF8,
    Auth,
    BinaryMIME,
    Chunking,
    EightBitMIME,
    Extension,
    Size,
    StartTLS,
)
from txsmtpd.interfaces import NO_HOOKS, IDiscardingHandler, IStreamingHandler, takes_responses
from txsmtpd.limits.admission import UNLIMITED, Admission
from txsmtpd.limits.limiter import Limits
from txsmtpd.limits.memory import Memory, default_limit
from txsmtpd.limits.networks import PREFIXES
from txsmtpd.limits.rate import Rate
from txsmtpd.log.session import LINES
from txsmtpd.log.sinks import TWISTED
from txsmtpd.log.warning import warn_program
from txsmtpd.reply import Reply
from txsmtpd.session import Envelope
from txsmtpd.tls.sslcontext import SSLContextAdapter
from txsmtpd.wire import grammar
from txsmtpd.wire.header import harmless_size
from txsmtpd.wire.networks import UNIX, Network, Networks

DATA_SIZE_DEFAULT = 2**25  # octets: 32 MiB
CALL_LIMIT_DEFAULT = 20
ERROR_LIMIT = 20
REFUSAL_LIMIT = 200
_KEYWORD = re.compile("[A-Za-z0-9][A-Za-z0-9-]*")
AUTH_LINE = 12288  # octets (RFC 4954 4)
# Options that may also be attributes of the protocol's class, where programs for older versions of aiosmtpd set them.
CLASS_OPTIONS = ("command_size_limit", "line_length_limit", "local_part_limit", "ident")
PROXY_TIMEOUT = 5.0  # seconds
ALL_CLIENTS = ("0.0.0.0/0", "::/0", UNIX)
SHORT_PROXY_TIMEOUT = 3.0  # seconds: the first retransmission of TCP comes after one, the second after three
AUTH_FAILURES = "20/10min"
IDENT = "ESMTP txsmtpd"  # without the version, which would mostly help attackers

F = TypeVar("F")

Parameters = Mapping[str, Callable[[Envelope, str | None], str | None]]
Check = Callable[[Any, str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Settings:
    """The options of a server. A limit of None means no limit, unless stated otherwise."""

    handler: Any
    """The object whose hooks are called."""

    hostname: str | None = None
    """The server's name in the greeting, in the reply to EHLO and in trace fields: a domain or an address literal.
    Default: the host name of the system, without a DNS lookup."""

    ident: str | None = None
    """Text after the name in the greeting. Default: ``ESMTP txsmtpd``, or ``LMTP txsmtpd``."""

    data_size_limit: int | None = DATA_SIZE_DEFAULT
    """Maximum size of a message in octets, without dot-stuffing (RFC 1870 5). 0 or None: no limit."""

    enable_SMTPUTF8: bool = False
    """Allow UTF-8 in addresses and header fields (RFC 6531)."""

    decode_data: bool = False
    """Decode ``envelope.content`` to str: as ASCII, or as UTF-8 with *enable_SMTPUTF8*."""

    extensions: Iterable[Extension] = ()
    """Your own or optional extensions. An extension with the keyword of a built-in one replaces it."""

    tls_context: Any = None
    """The certificate and the TLS configuration: an :class:`ssl.SSLContext`, a
    :class:`~txsmtpd.tls.certificates.Certificates`, a ``twisted.internet.ssl.CertificateOptions``, or another provider
    of IOpenSSLServerConnectionCreator. Enables STARTTLS (RFC 3207)."""

    implicit_tls: bool = False
    """Start TLS when the connection opens, before the greeting (RFC 8314 3.3). Requires *tls_context*."""

    require_starttls: bool = False
    """Without TLS, reject all commands except NOOP, EHLO, LHLO, STARTTLS and QUIT with 530. Requires *tls_context*."""

    tls_handshake_timeout: float = 30.0
    """Timeout of the TLS handshake in seconds."""

    timeout: float | None = 300.0
    """Idle timeout in seconds, after which the connection is closed with 421 (RFC 5321 4.5.3.2.7 requires at least
    300)."""

    command_timeout: float | None = 300.0
    """Maximum time in seconds from the first octet of a command line to its end; then 421. Also applies to each line
    that a client sends in AUTH. Unlike *timeout*, it does not restart when octets arrive."""

    data_rate_minimum: int | None = 500
    """Minimum rate of message data, in octets a second. The client starts with *timeout* seconds to send a message. It
    gains a second each time that it has sent this number of octets, but never has more than *timeout* seconds left.
    When no time is left, the reply is 421. Time in which the handler does not accept data is not counted. None: only
    *timeout* applies."""

    session_timeout: float | None = None
    """Maximum duration of a connection in seconds. Then it is closed with 421 at the end of the current transaction,
    but at most 300 seconds later."""

    hook_timeout: float | None = 300.0
    """Maximum time in seconds for a hook. Then it is cancelled, and the reply is 451. Clients wait at most 600 seconds
    for the reply to a message (RFC 5321 4.5.3.2.6), and then send it again."""

    linger: float = 10.0
    """Maximum time in seconds for the client to read the last replies. Then the connection is aborted."""

    command_size_limit: int = 512
    """Maximum length of a command line in octets, without CRLF (RFC 5321 4.5.3.1.4). Extensions increase it."""

    line_length_limit: int | None = None
    """Maximum length of a line of a message in octets, including CRLF. RFC 5321 4.5.3.1.6 allows a limit of 1000, but
    much mail exceeds it."""

    header_size_limit: int | None = 2**18
    """Maximum size of the header of a message in octets, since parsing a header takes time and memory."""

    header_field_limit: int | None = 2000
    """Maximum number of header fields in a message."""

    lenient_addresses: bool = False
    """Accept invalid addresses (RFC 5321 4.1.2) unchanged, such as ``<webmaster>``, ``<DOMAIN\\user>`` or
    ``<a..b@example.com>``. The handler decides about them. Control characters are never accepted."""

    bare_newlines: bool = False
    """Accept messages that contain bare CR or LF. They are kept, and never end a line or the message. If you relay
    such messages, other servers may be exposed to SMTP smuggling."""

    local_part_limit: int = 0
    """Maximum length of the local part of an address in characters (RFC 5321 4.5.3.1.1 allows a limit of 64). 0: no
    limit."""

    recipient_limit: int | None = 1000
    """Maximum number of recipients of a message (RFC 5321 4.5.3.1.8 requires at least 100)."""

    command_call_limit: int | Mapping[str, int] | None = None
    """How often a connection may send each command: a number for all commands, or a mapping from command to number,
    with ``"*"`` for the others (default 20)."""

    error_limit: int | None = ERROR_LIMIT
    """Number of malformed, unknown and misplaced commands after which a connection is closed with 421. None: no limit,
    neither for these nor for other rejections, except in stress mode."""

    refusal_limit: int | None = REFUSAL_LIMIT
    """Number of other rejections, such as of unknown recipients, after which a connection is closed with 421. Each of
    these also counts as a fraction of an error (*error_limit* divided by *refusal_limit*). So half of this limit and
    half of *error_limit* together also close the connection. 0 or None: such rejections do not count. If *error_limit*
    is None, this limit is disabled, too, except in stress mode."""

    error_delay: float = 1.0
    """Delay in seconds of the reply to the tenth error. The delay doubles with each further error, up to ten seconds.
    0: no delay."""

    junk_command_limit: int | None = 100
    """Number of commands that are not part of a mail transaction (NOOP, RSET, EHLO, ...) after which a connection is
    closed with 421. The count restarts with each message."""

    batch_limit: int = 32
    """Number of commands of a connection that are executed before other connections are served."""

    buffer_limit: int = 65536
    """Number of octets that are read ahead while a hook runs. When the buffer is full, the server stops reading."""

    memory_limit: int | str | Memory | None = "auto"
    """Maximum number of octets in memory for all messages that handlers receive whole. A message counts from its first
    octet until the handler is done with it. Above the limit, the server stops reading from clients; a message that
    waits for more than 60 seconds is refused with 452. ``"auto"``: a quarter of the memory of the machine or of the
    control group, but at least four times *data_size_limit*. A :class:`~txsmtpd.limits.Memory` can be passed to several
    factories."""

    log: Any = None
    """A :class:`~txsmtpd.log.session.Sink` that receives the events of connections. Default: :mod:`twisted.logger`."""

    log_limit: int | None = LINES
    """Number of log lines that a connection may cause at once, and in each minute. Accepted messages are always
    logged."""

    log_messages: bool = False
    """Log each accepted message and each end of a connection, at info level. Rejections are always logged."""

    auth_required: bool = False
    """Require AUTH: reject mail with 530 until the client has authenticated (RFC 4954 6)."""

    auth_require_tls: bool = True
    """Require TLS for AUTH."""

    auth_exclude_mechanism: Iterable[str] | None = None
    """Names of mechanisms to disable."""

    authenticator: Callable[..., Any] | None = None
    """Checks credentials: see :class:`~txsmtpd.interfaces.IAuthenticator`."""

    auth_callback: Callable[..., Any] | None = None
    """Deprecated: an authenticator ``f(mechanism, login, password)`` that returns True or False."""

    portal: Any = None
    """A :class:`twisted.cred.portal.Portal` that checks credentials, instead of an authenticator."""

    auth_mechanisms: Iterable[Any] = ()
    """Additional mechanisms: objects that provide :class:`~txsmtpd.interfaces.IAuthMechanism`. One with the name of a
    built-in mechanism replaces it."""

    auth_failure_limit: int | None = 3
    """Number of failed logins after which a connection is closed with 421."""

    auth_attempt_limit: int | None = 10
    """Number of AUTH commands, successful or not, after which a connection is closed with 421."""

    auth_failure_delay: float = 1.0
    """Delay in seconds of the reply to a failed login."""

    auth_failures_per_network: Rate | str | None = AUTH_FAILURES
    """Maximum rate of distinct user names with failed logins from one network, such as ``"20/10min"``. Above it, AUTH
    is rejected with 454 without checking the credentials. A repeated name does not count, since it may be a client
    with an outdated password; but the delay of its reply doubles each time, up to ten seconds."""

    rates: Mapping[str, Rate | str] | None = None
    """Rate limits for each client network, such as ``"100/min,burst=20"``, for ``"connections"`` (then 421),
    ``"messages"`` (450 to MAIL), ``"recipients"`` (450 to RCPT) or ``"tls"`` (454 to STARTTLS). For authenticated
    clients, messages and recipients are counted by user name instead."""

    limiter: Any = None
    """An :class:`~txsmtpd.interfaces.ILimiter` to use instead of *rates* and *auth_failures_per_network*. Factories
    with the same limiter share their limits."""

    unlimited_networks: Iterable[Network] = UNLIMITED
    """Networks that are exempt from limits for networks: addresses and networks, as strings or :mod:`ipaddress`
    objects, and ``"unix"`` for Unix sockets. Default: loopback and Unix sockets. Sessions of a proxy itself are always
    exempt."""

    network_prefixes: tuple[int, int] = PREFIXES
    """Prefix lengths of IPv4 and IPv6 networks that count as one client. Default: 32 and 64."""

    proxy_from: Iterable[Network] | None = None
    """Networks whose connections must start with a PROXY header (HAProxy's PROXY protocol, version 1 or 2), which
    contains the client's address: addresses and networks, as strings or :mod:`ipaddress` objects, and ``"unix"`` for
    all Unix sockets. Other connections are not checked for a header."""

    proxy_protocol_timeout: float | None = None
    """Timeout of the PROXY header in seconds. Default with *proxy_from*: 5. If you set a timeout without *proxy_from*,
    all connections must start with a header. The handler must then have a hook ``handle_PROXY`` that checks them."""

    protocol_mechanisms: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The methods ``auth_MECHANISM`` of the protocol's class, by the mechanism's name; found by the factory."""

    filters: Any = None
    """A :class:`~txsmtpd.filters.chain.Chain`, which the factory creates from its *filters*."""

    log_dialogue: bool = False
    """Log each command and each reply, at debug level."""

    asyncio: Any = False
    """Run coroutine functions as asyncio tasks: hooks, ``open_message``, ``finish`` of receivers, ``auth_MECHANISM``
    methods, authenticators, mechanisms, filters, targets of a hand-off, and commands of extensions. They run in the
    reactor's loop if it is an asyncio reactor, else in a thread. The value may be a loop that runs in another
    thread."""

    reactor: Any = None
    """The clock (IReactorTime). Default: the reactor that runs when a connection is made; that is the global reactor,
    except in a controller, a mail catcher or an asyncio loop."""

    warned: set[str] = field(init=False, repr=False, default_factory=set)
    """Warnings about the handler and the options that have been logged and need not be repeated."""

    hooks: Mapping[str, Callable[..., Any]] = field(init=False, repr=False)
    """The handler's hooks by name, without ``handle_``."""

    open_message: Callable[..., Any] | None = field(init=False, repr=False)
    """The handler's ``open_message``, or None if it receives whole messages."""

    streams: bool = field(init=False, repr=False)
    """True if the handler receives messages in pieces."""

    discards: bool = field(init=False, repr=False)
    """True if the handler ignores the contents of messages, so that they are not kept."""

    memory: Memory = field(init=False, repr=False)
    """Counts the octets of messages against *memory_limit*."""

    ehlo_takes_responses: bool = field(init=False, repr=False)
    offered: tuple[Extension, ...] = field(init=False, repr=False)
    """All extensions, in the order of the reply to EHLO."""

    commands: Mapping[bytes, Command] = field(init=False, repr=False)
    """The commands of extensions."""

    _all_commands: dict[type, tuple[Any, Mapping[bytes, Command]]] = field(init=False, repr=False, default_factory=dict)
    mail_parameters: Parameters = field(init=False, repr=False)
    rcpt_parameters: Parameters = field(init=False, repr=False)
    mail_checks: tuple[Check, ...] = field(init=False, repr=False)
    """Checks of extensions for each MAIL; *rcpt_checks* are those for RCPT."""

    rcpt_checks: tuple[Check, ...] = field(init=False, repr=False)
    line_limits: Mapping[bytes, int] = field(init=False, repr=False)
    """Maximum length of command lines in octets by verb, if it differs from *command_size_limit*."""

    longest_line: int = field(init=False, repr=False)
    harmless_size: int = field(init=False, repr=False)
    """Size of a message in octets up to which its header cannot exceed its limits."""

    mechanisms: Mapping[str, Any] = field(init=False, repr=False)
    """All mechanisms by name, whether or not they are available to a client."""

    admission: Admission = field(init=False, repr=False)
    """Applies the limits for networks."""

    proxies: Networks | None = field(init=False, repr=False)
    """Networks whose connections must start with a PROXY header, or None."""

    greeting: Reply = field(init=False, repr=False)
    call_limits: Mapping[str, int] = field(init=False, repr=False)
    call_limit_default: int | None = field(init=False, repr=False)
    limits_calls: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        hooks = find_hooks(self.handler)
        ehlo_takes_responses = "EHLO" not in hooks or _ehlo_takes_responses(hooks["EHLO"])
        if self.asyncio:
            hooks = {name: _in_asyncio(self, hook) for name, hook in hooks.items()}
        open_message = None
        if IStreamingHandler.providedBy(self.handler):
            open_message = _in_asyncio(self, self.handler.open_message)
        if self.filters is not None:
            wrap = partial(_in_asyncio, self)
            hooks, open_message = self.filters.compose(hooks, open_message, self.clock, wrap)
        authenticator = _authenticator(self)
        mechanisms = _mechanisms(self, authenticator, hooks)
        offered = _offered(self, mechanisms)
        call_limits, call_limit_default = _call_limits(self.command_call_limit)
        mail_limit = self.command_size_limit + sum(extension.mail_growth for extension in offered)
        rcpt_limit = self.command_size_limit + sum(extension.rcpt_growth for extension in offered)
        auth_limit = max(self.command_size_limit, AUTH_LINE) if mechanisms else self.command_size_limit
        hostname = self.hostname or grammar.own_host_name()
        ident = IDENT if self.ident is None else self.ident
        for name, value in {
            "hostname": hostname,
            "ident": ident,
            "data_size_limit": self.data_size_limit or None,
            "log": TWISTED if self.log is None else self.log,
            "hooks": MappingProxyType(hooks),
            "open_message": open_message,
            "streams": open_message is not None,
            "discards": _discards(self, hooks),
            "memory": _memory(self),
            "ehlo_takes_responses": ehlo_takes_responses,
            "tls_context": SSLContextAdapter(self.tls_context)
            if isinstance(self.tls_context, ssl.SSLContext)
            else self.tls_context,
            "extensions": tuple(self.extensions),
            "offered": offered,
            "authenticator": authenticator or self.authenticator,
            "auth_mechanisms": tuple(self.auth_mechanisms),
            "mechanisms": MappingProxyType(mechanisms),
            "commands": {
                verb: replace(each, method=_in_asyncio(self, each.method)) if self.asyncio else each
                for one in offered
                for verb, each in commands_of_extension(one).items()
            },
            "mail_parameters": _claimed(offered, "mail_parameters"),
            "rcpt_parameters": _claimed(offered, "rcpt_parameters"),
            "mail_checks": _checks(offered, "check_mail"),
            "rcpt_checks": _checks(offered, "check_rcpt"),
            "line_limits": {b"MAIL": mail_limit, b"RCPT": rcpt_limit, b"AUTH": auth_limit},
            "longest_line": max(self.command_size_limit, mail_limit, rcpt_limit, auth_limit),
            "harmless_size": harmless_size(self.header_size_limit, self.header_field_limit),
            "admission": _admission(self),
            "proxies": _proxies(self),
            "greeting": Reply(220, None, f"{hostname} {ident}".rstrip()),
            "call_limits": call_limits,
            "call_limit_default": call_limit_default,
            "limits_calls": self.command_call_limit is not None,
        }.items():
            object.__setattr__(self, name, value)

    def with_line_limit(self, verb: bytes, limit: int) -> Settings:
        """Return a copy with another maximum length of the command lines of a verb, after EHLO."""
        want_number("command_size_limits", limit, int)
        copy = replace(self)
        object.__setattr__(copy, "line_limits", {**self.line_limits, verb: limit})
        object.__setattr__(copy, "longest_line", max(self.longest_line, limit))
        return copy

    def in_asyncio(self, function: F) -> F | Callable[..., Any]:
        """Return the function to call instead of a function of the handler: with the option *asyncio*, coroutine
        functions run as asyncio tasks."""
        return _in_asyncio(self, function)

    def clock(self) -> Any:
        """Return the clock (IReactorTime)."""
        return clock_of(current_reactor() if self.reactor is None else self.reactor)

    def wrap_hooks(self, wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace each hook and ``open_message``. Call it before the first connection.

        :param wrap: called with a hook's name and the hook; returns the function to call instead.
        """
        hooks = {name: wrap(name, hook) for name, hook in self.hooks.items()}
        object.__setattr__(self, "hooks", MappingProxyType(hooks))
        if self.open_message is not None:
            object.__setattr__(self, "open_message", wrap("open_message", self.open_message))

    def commands_of(self, protocol: Any) -> Mapping[bytes, Command]:
        """Return the commands of a protocol class, and those of extensions. The result is kept."""
        known = self._all_commands.get(protocol)
        if known is None or known[0] is not protocol.commands:  # faults may have replaced the commands of the class
            found = {**protocol.commands, **self.commands}
            if not self.auth_required:  # do not check a rule that always holds
                found = {verb: command.without(authorized) for verb, command in found.items()}
            for verb, command in found.items():
                if (
                    command.rate is not None and command.rate not in self.admission.kinds
                ):  # there is no limit of this kind
                    found[verb] = replace(command, rate=None)
            known = self._all_commands[protocol] = protocol.commands, found
        return known[1]

    @classmethod
    def make(cls, handler: object, options: Mapping[str, Any], protocol: type | None = None) -> Settings:
        """Make the settings for a handler.

        :param options: by name.
        :param protocol: the protocol's class. Its methods may be mechanisms. The options in `CLASS_OPTIONS` default to
            its attributes with the same names.
        :raises TypeError: for an unknown option, with the most similar name, and for a value of a wrong type.
        :raises ValueError: for an invalid value.
        """
        check_names(options)
        of_class = {name: getattr(protocol, name) for name in CLASS_OPTIONS if hasattr(protocol, name)}
        of_class = {name: value for name, value in of_class.items() if not isinstance(value, property)}
        mechanisms = getattr(protocol, "_mechanisms", {})
        return cls(handler=handler, protocol_mechanisms=mechanisms, **{**of_class, **options})


def check_names(options: Iterable[str], *callables: Callable[..., Any]) -> None:
    """Check the names of options.

    :param callables: functions or classes. The names of their parameters are valid, too.
    :raises TypeError: for an unknown name, with the most similar one.
    """
    known = [each.name for each in fields(Settings) if each.init and each.name not in _NOT_OPTIONS]
    unknown = [name for name in options if name not in known]
    if not unknown:
        return
    for each in callables:
        parameters = inspect.signature(each).parameters
        known += [name for name, one in parameters.items() if one.kind in _BY_NAME and name != "self"]
    for name in unknown:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise TypeError(f"unknown option {name!r}{hint}")


class WrongHook(TypeError, RuntimeError):
    """A hook does not accept the arguments that it would be called with."""


def find_hooks(handler: object) -> dict[str, Callable[..., Any]]:
    """Return the hooks of a handler: methods ``handle_NAME`` by NAME, and ``process_message`` by its own name.

    :raises TypeError: if one is not callable, or the handler is a class instead of an object.
    """
    # Filter the names before getattr, which raises for some of the attributes that dir lists.
    names = [
        name
        for name in dir(handler)
        if (name.startswith("handle_") and name not in NO_HOOKS) or name == "process_message"
    ]
    hooks = {name.removeprefix("handle_"): getattr(handler, name) for name in names}
    for name, hook in hooks.items():
        if not callable(hook):
            raise TypeError(f"the hook {name} of {handler!r} is not a method but {hook!r}")
    if isinstance(handler, type):
        for name in names:
            if inspect.isfunction(inspect.getattr_static(handler, name)):
                raise TypeError(f"the handler must be an object, not its class; write {handler.__name__}(...)")
    if "process_message" in hooks:
        if "DATA" in hooks:
            del hooks["process_message"]
        else:
            warn_program("process_message is deprecated; implement handle_DATA", DeprecationWarning)
    return hooks


def _ehlo_takes_responses(hook: Callable[..., Any]) -> bool:
    if takes_responses(hook):
        return True
    try:
        inspect.signature(hook).bind("server", "session", "envelope", "hostname")
    except TypeError:
        raise WrongHook(
            "handle_EHLO must take (server, session, envelope, hostname, responses), or the same without responses"
        ) from None
    warn_program("handle_EHLO without the argument responses is deprecated; add it", DeprecationWarning)
    return False


def _authenticator(settings: Settings) -> Callable[..., Any] | None:
    """Return the authenticator, or None if there is none."""
    if settings.portal is not None:
        if isinstance(settings.authenticator, PortalAuthenticator):  # these settings were copied from others
            return settings.authenticator
        if settings.authenticator is not None:
            raise TypeError("portal and authenticator exclude each other")
        return PortalAuthenticator(settings.portal)
    if settings.authenticator is None and settings.auth_callback is not None:
        return authenticator_from_callback(_in_asyncio(settings, settings.auth_callback))
    return _in_asyncio(settings, settings.authenticator) if callable(settings.authenticator) else None


def _in_asyncio(settings: Settings, function: F) -> F | Callable[..., Any]:
    """Return the function to call instead of *function*: with the option *asyncio*, coroutine functions run as tasks.

    Functions of this package are not changed, since their coroutines await Deferreds.
    """
    if not settings.asyncio or not callable(function) or not is_coroutine_function(function):
        return function
    if str(getattr(function, "__module__", "")).startswith("txsmtpd."):
        return function
    return in_asyncio(function, None if settings.asyncio is True else settings.asyncio)


def _mechanisms(
    settings: Settings, authenticator: Callable[..., Any] | None, hooks: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the mechanisms whose credentials can be checked."""
    mechanisms: dict[str, Any] = {each.name: each for each in (Login(), Plain())}
    for mechanism in settings.auth_mechanisms:
        if not callable(getattr(mechanism, "authenticate", None)):
            raise TypeError(f"auth_mechanisms must provide IAuthMechanism; {mechanism!r} does not")
        mechanisms[mechanism_name(mechanism.name)] = _mechanism_in_asyncio(settings, mechanism)
    if "AUTH" not in hooks:  # the hook may check the credentials of any mechanism
        mechanisms = {name: each for name, each in mechanisms.items() if _has_decider(each, authenticator)}
    mechanisms |= settings.protocol_mechanisms
    mechanisms |= methods_of_handler(settings.handler, partial(_in_asyncio, settings))
    excluded = {name.upper() for name in settings.auth_exclude_mechanism or ()}
    return {name: mechanism for name, mechanism in sorted(mechanisms.items()) if name not in excluded}


class _MechanismInAsyncio:
    """A mechanism whose coroutine runs as an asyncio task."""

    def __init__(self, mechanism: Any, authenticate: Callable[..., Any]) -> None:
        self._mechanism = mechanism
        self.authenticate = authenticate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mechanism, name)


def _mechanism_in_asyncio(settings: Settings, mechanism: Any) -> Any:
    authenticate = _in_asyncio(settings, mechanism.authenticate)
    return mechanism if authenticate == mechanism.authenticate else _MechanismInAsyncio(mechanism, authenticate)


def _has_decider(mechanism: Any, authenticator: Callable[..., Any] | None) -> bool:
    """Return False if the mechanism declares the class of its credentials, but nothing can check such credentials."""
    credentials = getattr(mechanism, "credentials", None)
    if credentials is None or getattr(mechanism, "authenticator", None) is not None:
        return True
    if authenticator is None:
        return False
    takes = getattr(authenticator, "takes", None)
    return takes is None or bool(takes(credentials))


def _offered(settings: Settings, mechanisms: Mapping[str, Any]) -> tuple[Extension, ...]:
    built_in: list[Extension] = []
    if settings.data_size_limit:
        built_in.append(Size(settings.data_size_limit))
    if not settings.decode_data or settings.enable_SMTPUTF8:  # RFC 6531 3.1, item 8: SMTPUTF8 requires 8BITMIME
        built_in.append(EightBitMIME())
    if not settings.decode_data:
        built_in.append(BinaryMIME())
    if settings.enable_SMTPUTF8:
        built_in.append(SMTPUTF8())
    if mechanisms:
        built_in.append(Auth())
    built_in += [Chunking(), PIPELINING, ENHANCEDSTATUSCODES]
    if settings.tls_context is not None:
        built_in.append(StartTLS())
    own = list(settings.extensions)
    for extension in own:
        if not isinstance(extension, Extension):
            raise TypeError(f"extensions must be instances of Extension, not {extension!r}")
        if not _KEYWORD.fullmatch(getattr(extension, "keyword", "")):
            raise ValueError(f"{extension!r} needs a keyword of letters, digits and hyphens (RFC 5321 4.1.1.1)")
    by_keyword = {extension.keyword.upper(): extension for extension in [*built_in, *own]}
    by_keyword.setdefault("HELP", HELP)
    return tuple(by_keyword.values())


def _admission(settings: Settings) -> Admission:
    limiter = settings.limiter
    if limiter is None:
        try:
            seconds = time.monotonic if settings.reactor is None else settings.reactor.seconds
            limiter = Limits(settings.rates, settings.auth_failures_per_network, clock=seconds)
        except (TypeError, ValueError) as error:
            raise ValueError(f"rates and auth_failures_per_network must be rates: {error}") from error
    elif settings.rates:
        raise TypeError("limiter and rates exclude each other")
    elif not callable(getattr(limiter, "admit", None)) or not callable(getattr(limiter, "auth_failed", None)):
        raise TypeError(f"limiter must provide ILimiter, with admit and auth_failed; {limiter!r} does not")
    return Admission(limiter, settings.unlimited_networks, settings.network_prefixes)


def _discards(settings: Settings, hooks: Mapping[str, Any]) -> bool:
    if settings.decode_data:  # messages that cannot be decoded are refused
        return False
    return IDiscardingHandler.providedBy(settings.handler) and not {"DATA", "process_message"} & set(hooks)


def _memory(settings: Settings) -> Memory:
    limit, largest = settings.memory_limit, settings.data_size_limit or 0
    if isinstance(limit, Memory):
        return limit
    if limit == "auto":
        return Memory(max(default_limit(), 4 * largest))
    if isinstance(limit, str):
        raise TypeError(f"memory_limit must be an int, None or 'auto', not {limit!r}")
    if limit is not None:
        want_number("memory_limit", limit, int)
        if limit < max(4 * largest, 1):
            raise ValueError(
                f"memory_limit must be at least {4 * largest} octets, four times the size of the largest message"
            )
    return Memory(limit)


def _proxies(settings: Settings) -> Networks | None:
    if settings.proxy_from is not None:
        return Networks("proxy_from", settings.proxy_from) or None
    if settings.proxy_protocol_timeout is None:
        return None
    return Networks("proxy_from", ALL_CLIENTS)


def lacks_proxy_check(settings: Settings) -> bool:
    """Return True if each connection must start with a PROXY header, but neither *proxy_from* nor ``handle_PROXY``
    checks where the headers come from."""
    return settings.proxy_from is None and settings.proxies is not None and "PROXY" not in settings.hooks


def _claimed(extensions: Iterable[Extension], which: str) -> Parameters:
    return {
        keyword.upper(): partial(take, extension)
        for extension in extensions
        for keyword, take in getattr(extension, which).items()
    }


def _checks(extensions: Iterable[Extension], which: str) -> tuple[Check, ...]:
    """Return the checks of the extensions that override this method."""
    return tuple(
        getattr(each, which) for each in extensions if getattr(type(each), which) is not getattr(Extension, which)
    )


def _call_limits(limit: int | Mapping[str, int] | None) -> tuple[Mapping[str, int], int | None]:
    if limit is None:
        return {}, None
    if isinstance(limit, Mapping):
        for value in limit.values():
            want_number("command_call_limit", value, int)
        limits = {verb.upper(): value for verb, value in limit.items()}
        return limits, limits.pop("*", CALL_LIMIT_DEFAULT)
    return {}, limit


def want_number(name: str, value: object, kind: type[int] | type[float]) -> None:
    """Check that the value of an option is a number of at least 0.

    :raises TypeError: if it is not a number, or not an int and *kind* is int.
    :raises ValueError: if it is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise TypeError(f"{name} must be {'an int' if kind is int else 'a number of seconds'}, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, not {value!r}")


_NUMBERS: dict[str, type[int] | type[float]] = {
    "data_size_limit": int,
    "tls_handshake_timeout": float,
    "proxy_protocol_timeout": float,
    "timeout": float,
    "command_timeout": float,
    "data_rate_minimum": int,
    "session_timeout": float,
    "hook_timeout": float,
    "linger": float,
    "command_size_limit": int,
    "line_length_limit": int,
    "local_part_limit": int,
    "header_size_limit": int,
    "header_field_limit": int,
    "recipient_limit": int,
    "error_limit": int,
    "refusal_limit": int,
    "error_delay": float,
    "junk_command_limit": int,
    "log_limit": int,
    "batch_limit": int,
    "buffer_limit": int,
    "auth_failure_limit": int,
    "auth_attempt_limit": int,
    "auth_failure_delay": float,
}
_NEEDED = {
    "linger",
    "tls_handshake_timeout",
    "command_size_limit",
    "local_part_limit",
    "batch_limit",
    "buffer_limit",
    "auth_failure_delay",
    "error_delay",
}
_FLAGS = (
    "implicit_tls",
    "require_starttls",
    "enable_SMTPUTF8",
    "decode_data",
    "bare_newlines",
    "lenient_addresses",
    "auth_required",
    "auth_require_tls",
    "log_messages",
    "log_dialogue",
)
_NOT_OPTIONS = ("handler", "protocol_mechanisms")
_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_DECIDERS = ("authenticator", "auth_callback")
_OBJECTS = {  # options that are objects: a method that they need, and what they may be
    "log": ("emit", "a txsmtpd.log.session.Sink, such as txsmtpd.log.sinks.TWISTED"),
    "portal": ("login", "a twisted.cred.portal.Portal"),
    "limiter": ("admit", "an object that provides ILimiter, such as txsmtpd.limits.limiter.Limits()"),
    "reactor": ("seconds", "a reactor or a clock, such as twisted.internet.task.Clock()"),
}


def _without_port(hostname: str) -> str:
    """Return the host of ``host:port``, which some programs pass as *hostname*."""
    host, _, port = hostname.rpartition(":")
    return host if port.isdecimal() else hostname


def _check(settings: Settings) -> None:
    for name, kind in _NUMBERS.items():
        value = getattr(settings, name)
        if value is not None or name in _NEEDED:
            want_number(name, value, kind)
    if settings.batch_limit == 0:
        raise ValueError("batch_limit must be at least 1")
    for name in ("timeout", "command_timeout", "session_timeout", "hook_timeout", "proxy_protocol_timeout"):
        if getattr(settings, name) == 0:
            raise ValueError(f"{name} must be more than 0 seconds; None for no limit")
    if settings.data_rate_minimum == 0:
        raise ValueError("data_rate_minimum must be more than 0 octets a second; None for no limit")
    for name in _FLAGS:
        if not isinstance(getattr(settings, name), bool):
            raise TypeError(f"{name} must be True or False, not {getattr(settings, name)!r}")
    for name in ("hostname", "ident"):
        value = getattr(settings, name)
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be a string, not {value!r}")
    if settings.hostname and not (settings.hostname.isascii() and grammar.is_host(_without_port(settings.hostname))):
        raise ValueError(f"hostname must be a domain or an address literal in ASCII, not {settings.hostname!r}")
    if settings.ident and not (settings.ident.isascii() and settings.ident.isprintable()):
        raise ValueError(f"ident must be printable ASCII, not {settings.ident!r}")
    if not isinstance(settings.asyncio, bool | AbstractEventLoop):
        raise TypeError(f"asyncio must be True, False or an event loop, not {settings.asyncio!r}")
    _check_tls(settings)
    for name in _DECIDERS:
        if getattr(settings, name) is not None and not callable(getattr(settings, name)):
            if name == "authenticator" and methods_of_handler(settings.handler):
                continue  # the handler's own auth_MECHANISM methods may use it
            raise TypeError(f"{name} must be callable, not {getattr(settings, name)!r}")
    for name, (method, example) in _OBJECTS.items():
        value = getattr(settings, name)
        if value is not None and (isinstance(value, type) or not callable(getattr(value, method, None))):
            raise TypeError(f"{name} must be {example}, not {value!r}")
    if settings.rates is not None and not isinstance(settings.rates, Mapping):
        raise TypeError(f"rates must be a mapping, such as {{'messages': '100/min'}}, not {settings.rates!r}")
    if isinstance(settings.auth_exclude_mechanism, str):
        raise TypeError(f"auth_exclude_mechanism must be a list of names, not {settings.auth_exclude_mechanism!r}")
    if settings.auth_required and not settings.auth_require_tls:
        warn_program("Requiring AUTH while not requiring TLS can lead to security vulnerabilities!")
    if settings.proxy_protocol_timeout is not None and settings.proxy_protocol_timeout < SHORT_PROXY_TIMEOUT:
        warn_program("proxy_protocol_timeout < 3.0: a lost segment would be repeated too late")
    limit = settings.command_call_limit
    if limit is not None and not isinstance(limit, Mapping):
        want_number("command_call_limit", limit, int)


def _check_tls(settings: Settings) -> None:
    context = settings.tls_context
    if context is None:
        for name in ("implicit_tls", "require_starttls"):
            if getattr(settings, name):
                raise ValueError(f"{name} needs a tls_context")
        return
    if isinstance(context, ssl.SSLContext):
        return
    makes_contexts = IOpenSSLContextFactory.providedBy(context)
    if not makes_contexts and not IOpenSSLServerConnectionCreator.providedBy(context):
        raise TypeError(
            "tls_context must be an ssl.SSLContext, a txsmtpd.tls.certificates.Certificates, a CertificateOptions"
            f" or another provider of IOpenSSLServerConnectionCreator, not {context!r}"
        )
    if makes_contexts:
        try:
            context.getContext()  # raises now, not at the first connection, if the key does not match the certificate
        except Exception as error:
            raise ValueError(f"tls_context does not work: {error}") from error
