"""Interfaces that applications implement: one for each hook of a handler, and others for receivers of messages, AUTH
mechanisms, authenticators, plugins and limiters.

A handler may implement any of the hooks. The server finds hooks by name, so you need not declare their interfaces with
:func:`zope.interface.implementer`. In your tests, use :func:`verifyHandler` to check a handler.

The first arguments of each hook are ``server`` (the protocol of this connection), ``session`` and ``envelope``. A hook
may be a coroutine function, return a Deferred, or be a plain function. Unless its description says otherwise, it
returns a *status*: a string such as ``"250 2.0.0 OK"``, or a :class:`~txsmtpd.reply.Reply`. It may also raise
:class:`~txsmtpd.reply.Refused`. A status with the code 421 closes the connection after the reply. If a hook exists, it
replaces the default action of the server.
"""

# The methods of interfaces have no self.
# mypy: disable-error-code="no-untyped-def, override"

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from twisted.internet.interfaces import IConsumer
from zope.interface import Attribute, Interface
from zope.interface.exceptions import Invalid
from zope.interface.interface import InterfaceClass
from zope.interface.verify import verifyObject


class IConnectHook(Interface):
    def handle_CONNECT(server, session, envelope):
        """A client has connected. Called before the greeting.

        Return None for the default greeting, or a 220 status to change it. Any other status rejects the client:
        after 5yz the reply to every command except QUIT is 503 (RFC 5321 3.1), after 4yz the connection closes.
        """


class IDisconnectHook(Interface):
    def handle_DISCONNECT(server, session, envelope, cause):
        """The connection has ended. Called exactly once for each connection. The result is ignored.

        :param cause: the reason, an exception of :mod:`twisted.internet.error`: ``ConnectionDone`` (closed
            normally), ``TimeoutError`` (the client was idle for too long), ``ConnectionLost`` or
            ``ConnectionAborted``; or :class:`~txsmtpd.smtp.TLSSetupException` (the TLS handshake failed), or
            :class:`~txsmtpd.smtp.ProxyHeaderError` (the PROXY header was missing or invalid).
        """


class IHeloHook(Interface):
    def handle_HELO(server, session, envelope, hostname):
        """HELO (RFC 5321 4.1.1.1). The hook should set ``session.host_name``. If it does not, and its status is 2yz,
        the server does."""


class IEhloHook(Interface):
    def handle_EHLO(server, session, envelope, hostname, responses):
        """EHLO (RFC 5321 4.1.1.1). The hook should set ``session.host_name``. If it does not, and the reply is 2yz, the
        server does.

        :param responses: the default lines of the reply, such as ``"250-SIZE 1000"``.
        :return: the list of lines to send instead. The older form of the hook, without *responses*, returns a status;
            its text becomes the last line.
        """


class INoopHook(Interface):
    def handle_NOOP(server, session, envelope, arg):
        """NOOP. *arg* is the text after the verb, or None."""


class IQuitHook(Interface):
    def handle_QUIT(server, session, envelope):
        """QUIT. The connection is closed after the reply, whatever the status is."""


class IRsetHook(Interface):
    def handle_RSET(server, session, envelope):
        """RSET. *envelope* is already a new one."""


class IVrfyHook(Interface):
    def handle_VRFY(server, session, envelope, address):
        """VRFY (RFC 5321 3.5); *address* is a user name or a mailbox."""


class IMailHook(Interface):
    def handle_MAIL(server, session, envelope, address, mail_options):
        """MAIL. The hook should set ``envelope.mail_from``. If it does not, and its status is 2yz, the server does. Any
        other status ends the transaction.

        :param address: the reverse-path; ``""`` is the null reverse-path.
        :param mail_options: a list with ``KEYWORD`` or ``KEYWORD=value`` for each parameter.
        """


class IRcptHook(Interface):
    def handle_RCPT(server, session, envelope, address, rcpt_options):
        """RCPT. To accept a recipient, append it to ``envelope.rcpt_tos`` and return 2yz. If the hook returns 2yz but
        does not append it, the recipient does not get the message, and the server logs a warning, once. To do this on
        purpose, call ``envelope.drop(address)``.
        """


class IDataHook(Interface):
    def handle_DATA(server, session, envelope):
        """A complete message was received. It is in ``envelope.content``. The status is the reply to the message. With
        250, your program takes responsibility for it (RFC 5321 4.1.1.4). The transaction ends,
        whatever the status is.

        The hook may return a list or tuple of statuses, one for each of ``envelope.rcpt_tos``, or a mapping from
        recipients to statuses. LMTP clients receive all of them; for SMTP clients,
        :func:`~txsmtpd.recipient_replies.folded` combines them.
        """


class IExceptionHook(Interface):
    def handle_exception(error):
        """A command or a hook has raised *error*. The status is the reply; without the hook it is 451 4.3.0.

        Also called with a :class:`~txsmtpd.smtp.TLSSetupException` if a TLS handshake has failed. The connection is
        closed then, so the status is not sent.
        """


class IAuthHook(Interface):
    def handle_AUTH(server, session, envelope, args):
        """AUTH. Replaces the built-in mechanisms. *args* are the words after the verb."""


class IStarttlsHook(Interface):
    def handle_STARTTLS(server, session, envelope):
        """TLS has started, after STARTTLS or with implicit TLS. ``session.ssl`` describes it. After STARTTLS the
        session is new (RFC 3207 4.2) and keeps only ``id``, ``peer``, ``proxy_peer`` and ``proxy_data``.

        If the result is false, the server rejects all further commands except QUIT with 554 5.7.0 (RFC 3207 4.1).
        """


class IProxyHook(Interface):
    def handle_PROXY(server, session, envelope, proxy_data):
        """A PROXY header was received from a trusted network. If the result is true, the client is accepted. If it is
        false, or if the hook raises an exception, the connection is closed without a reply.

        In this hook, ``session.peer`` is the proxy's address. Afterwards the server sets it to the client's address,
        unless the hook has set it.

        :param proxy_data: a :class:`~txsmtpd.proxy_protocol.ProxyData`.
        """


class IQuarantineHook(Interface):
    def handle_QUARANTINE(server, session, envelope, reason):
        """A filter has put the message into quarantine. Called before the handler receives the message.

        :return: None to deliver the message as usual, with a field ``X-Quarantine``; a status to reply without
            delivering the message; or an :class:`IMessageReceiver` that receives the message instead of the handler.
        """


class IProcessMessage(Interface):
    def process_message(peer, mail_from, rcpt_tos, data):
        """Deprecated: called with the message of a transaction. None means 250."""


class IStreamingHandler(Interface):
    """A handler that receives messages in pieces as they arrive, instead of whole in ``handle_DATA``.

    It must declare that it provides this interface, with :func:`zope.interface.implementer` on its class.
    """

    def open_message(server, session, envelope):
        """A message starts: DATA, or the first BDAT, is valid.

        :return: an :class:`IMessageReceiver`, or an awaitable of one.
        :raises Refused: to reject the message before it is sent.
        """


class IMessageReceiver(IConsumer):
    """Receives one message. The connection is its push producer: ``pauseProducing`` of the producer passed to
    :meth:`registerProducer` slows the client down, and ``stopProducing`` rejects the message.

    Exactly one of :meth:`finish` and :meth:`abort` is called, exactly once. No method is called after it.
    """

    def write(data):
        """A piece of the message has arrived, without dot-stuffing."""

    def finish():
        """The message is complete. Return its status, or an awaitable of one, as ``handle_DATA`` does."""

    def abort(reason):
        """The message is incomplete, and no more of it will arrive.

        :param reason: the exception: :class:`~txsmtpd.reply.Refused` with the reply to the client, an exception that
            the receiver has raised, or the reason for the end of the connection.
        """


class IDiscardingHandler(Interface):
    """A handler without hooks, which accepts all mail and discards it."""


HOOKS: dict[str, InterfaceClass] = {
    next(iter(hook.names())): hook
    for hook in (
        IConnectHook, IDisconnectHook, IHeloHook, IEhloHook, INoopHook, IQuitHook, IRsetHook, IVrfyHook, IMailHook,
        IRcptHook, IDataHook, IExceptionHook, IAuthHook, IStarttlsHook, IProxyHook, IQuarantineHook,
        IProcessMessage,
    )
}  # fmt: skip
"""The interface of each hook, by the hook's name."""

NO_HOOKS = frozenset(["handle_message"])
"""Methods that look like hooks, but belong to the handlers that parse messages."""


class IAuthMechanism(Interface):
    """An AUTH mechanism (RFC 4954, RFC 4422): exchanges challenges and responses, and returns credentials.

    It may also have a method ``available(session)``. If that returns false, the mechanism is not offered to the client.
    """

    name: str = Attribute("The name of the mechanism, in upper case.")

    def authenticate(exchange: Any) -> Any:
        """Exchange messages with the client. A coroutine function, or a function that returns a Deferred.

        :param exchange: an :class:`~txsmtpd.auth.Exchange`; a new one for each attempt.
        :return: credentials, which the server passes to its authenticator; or the result of
            ``exchange.decide(credentials)``, or an :class:`~txsmtpd.auth.AuthResult`.
        :raises Refused: if the client's messages are invalid.
        """


class IAuthenticator(Interface):
    """Checks credentials: any callable with these parameters."""

    def __call__(server: Any, session: Any, envelope: Any, mechanism: str, auth_data: Any) -> Any:
        """Check the credentials. A plain function, a coroutine function, or a function that returns a Deferred.

        :param auth_data: the credentials: a :class:`~txsmtpd.auth.LoginPassword` for PLAIN and LOGIN.
        :return: an :class:`~txsmtpd.auth.AuthResult`, True or False. Any other value is a failure.
        """


class IHandlerMaker(Interface):
    """Creates a handler for the command line. An object in ``twisted/plugins`` that provides this interface and
    :class:`twisted.plugin.IPlugin` can be used as ``--handler=NAME:ARG:ARG``."""

    name: str = Attribute("The name of the handler, as in --handler=NAME:ARGS.")
    usage: str = Attribute("The syntax of the whole value, such as 'mailbox:DIR'.")
    description: str = Attribute("One line for --help-handlers.")

    def make_handler(parser: Any, *args: str) -> object:
        """Create the handler.

        :param parser: ``parser.error(text)`` rejects the arguments; it does not return.
        :param args: the arguments after the name, which are separated by colons.
        """


class IFactoryMaker(Interface):
    """A handler that creates the factory itself, because it needs its own protocol class."""

    def make_factory(**options: Any) -> Any:
        """Create a :class:`~txsmtpd.factory.SMTPFactory`.

        :param options: the factory's options besides the handler and the protocol.
        """


class ILimiter(Interface):
    """Decides whether clients exceed limits. The default is :class:`~txsmtpd.limits.Limits`, which counts within one
    process. An application can pass its own object."""

    def admit(kind: str, key: str) -> Any:
        """Decide whether the client may do something once more. If it may, count it.

        :param kind: ``"connections"``, ``"messages"``, ``"recipients"`` or ``"tls"``; or ``"auth"``, which only asks
            whether the network may try to log in.
        :param key: the key of the count: a network such as ``"192.0.2.7"`` or ``"2001:db8::/64"``; or ``"login:"``
            followed by the login of an authenticated client.
        :return: None if it may, or a :class:`~txsmtpd.limits.Retry`; or an awaitable that returns one of these.
        """

    def auth_failed(network: str, name: str) -> Any:
        """A client of the network has failed to log in with the name.

        :return: the number of recent failures of the name, including this one, or an awaitable of it.
        """


class IReadiness(Interface):
    """A handler, a filter or another part that can report whether it works. ``/readyz`` calls it."""

    def not_ready() -> str | None:
        """Return in one line why the server is not ready for clients, or None if it is. Called often: do not block."""


class InvalidHandler(Invalid):
    """A handler has a mistake in a hook. The message explains how to fix it."""


def takes_responses(hook: Any) -> bool:
    """Return True if a handle_EHLO has the parameter *responses*."""
    try:
        inspect.signature(hook).bind(*("server", "session", "envelope", "hostname", "responses"))
    except TypeError:
        return False
    return True


def verifyHandler(handler: object) -> bool:
    """Check a handler against the interfaces of its hooks. For use in the handler's tests.

    :return: True.
    :raises InvalidHandler: if a hook's name is unknown (the message suggests the closest one), if it is not callable,
        or if its parameters are wrong.
    """
    for name in dir(handler):
        if not name.startswith("handle_") or name in NO_HOOKS:
            continue
        if name not in HOOKS:
            hooks = {hook.lower(): hook for hook in HOOKS}
            near = difflib.get_close_matches(name.lower(), hooks, 1, 0)
            raise InvalidHandler(f"{name} is not a hook of {handler!r}; did you mean {hooks[near[0]]}?")
        _verify_hook(handler, name)
    if hasattr(handler, "open_message") and not IStreamingHandler.providedBy(handler):
        raise InvalidHandler(f"{handler!r} has open_message, but does not declare @implementer(IStreamingHandler)")
    if hasattr(handler, "process_message"):
        _verify_hook(handler, "process_message")
    return True


def _verify_hook(handler: object, name: str) -> None:
    hook = getattr(handler, name)
    parameters = HOOKS[name][name].getSignatureString()
    if not callable(hook):
        raise InvalidHandler(f"{name} of {handler!r} is not a method; it must be {name}{parameters}")
    if name == "handle_EHLO" and not takes_responses(hook):
        try:
            inspect.signature(hook).bind("server", "session", "envelope", "hostname")
        except TypeError:
            pass
        else:
            return
    try:
        verifyObject(HOOKS[name], handler, tentative=True)
    except Invalid:
        raise InvalidHandler(
            f"{name}{_parameters_of(hook)} of {_called(handler)} must be {name}{parameters}{_missing_self(hook)}"
        ) from None


def _parameters_of(hook: Callable[..., object]) -> str:
    try:
        return str(inspect.signature(hook))
    except (TypeError, ValueError):  # perhaps written in C
        return ""


def _missing_self(hook: Any) -> str:
    """Return a hint if the method's first parameter is ``server`` or ``session``, so that ``self`` may be missing."""
    code = getattr(getattr(hook, "__func__", None), "__code__", None)
    named = code is not None and code.co_varnames[: code.co_argcount][:1]
    return "; is self missing, its first parameter?" if named in (("server",), ("session",)) else ""


def check_handler(handler: object, verbs: Collection[str] = (), *, own_hooks: bool = False) -> None:
    """Check the handler of a server, so that a mistake in it does not silently accept and lose mail.

    :param verbs: the commands of the server; each may have a hook.
    :param own_hooks: whether the server may call hooks that are not in `HOOKS`.
    :raises TypeError: if it is not an object with hooks, if a hook is misspelt or has wrong parameters, or if it has no
        hooks.
    """
    if handler is None or IFactoryMaker.providedBy(handler):
        return
    _check_kind(handler)
    names = [name for name in dir(handler) if not name.startswith("_")]
    if "open_message" in names and not IStreamingHandler.providedBy(handler) and not _is_ours(handler.open_message):  # type: ignore[attr-defined]
        raise TypeError(
            f"{_called(handler)} has open_message, which is called only if its class is declared with"
            " @implementer(IStreamingHandler)"
        )
    hooks = [name for name in names if name in HOOKS]
    for name in names:
        known = name in hooks or name in NO_HOOKS or name == "open_message"
        if not known and name.removeprefix("handle_") not in verbs:
            _check_name(handler, name, own_hooks)
    for name in hooks:
        try:
            _verify_hook(handler, name)
        except InvalidHandler as problem:
            raise TypeError(str(problem)) from None
    discards = IDiscardingHandler.providedBy(handler) or (
        isinstance(handler, type) and IDiscardingHandler.implementedBy(handler)
    )
    others = any(name.startswith(("handle_", "auth_")) and name not in NO_HOOKS for name in names)
    if not (hooks or others or discards or IStreamingHandler.providedBy(handler)):
        raise TypeError(f"{_called(handler)} has no hook, such as handle_DATA{_advice(handler)}")


def _advice(handler: object) -> str:
    """Return what to do about a handler without hooks, as the end of a sentence."""
    if isinstance(handler, type):
        return f"; the handler must be an object, not its class, as in {handler.__name__}()"
    if hasattr(handler, "validateTo"):
        return "; handle_RCPT replaces validateTo: see Migrate from twisted.mail in the documentation"
    if hasattr(handler, "realm") and hasattr(handler, "login"):
        return "; pass the portal as the option portal, together with a handler"
    return "; all mail would be accepted and discarded. If this is intended, use txsmtpd.handlers.Sink()"


def _check_kind(handler: object) -> None:
    if inspect.isroutine(handler):
        raise TypeError(
            f"the handler must be an object with hooks, not the function {getattr(handler, '__name__', '')};"
            " a function can be its method handle_DATA(self, server, session, envelope)"
        )
    if isinstance(handler, str | bytes | int | float | complex | list | tuple | set | frozenset | dict):
        raise TypeError(f"the handler must be an object with hooks, such as handle_DATA, not {handler!r}")


def _check_name(handler: object, name: str, own_hooks: bool) -> None:
    """Raise TypeError if the name looks like a misspelt hook."""
    if name.startswith("handle_"):
        known = {hook.removeprefix("handle_").lower(): hook for hook in HOOKS}
        near = difflib.get_close_matches(name.removeprefix("handle_").lower(), known, 1, 0.7)
        if near:
            raise TypeError(f"{name} of {_called(handler)} is not a hook; did you mean {known[near[0]]}?")
        if name.removeprefix("handle_").isupper() and not own_hooks:
            raise TypeError(f"{name} of {_called(handler)} is not a hook, and there is no such command")
        return
    meant = _nearly_a_hook(name)
    if meant is not None and callable(inspect.getattr_static(handler, name, None)):
        raise TypeError(f"{name} of {_called(handler)} is not a hook; did you mean {meant}?")


@lru_cache(maxsize=1024)
def _nearly_a_hook(name: str) -> str | None:
    near = difflib.get_close_matches(name, [*HOOKS, "open_message"], 1, 0.85)
    return near[0] if near else None


def _is_ours(method: object) -> bool:
    """Return True for a method of a built-in handler: a subclass of a streaming handler need not be streaming."""
    return str(getattr(method, "__module__", "")).startswith("txsmtpd.")


def _called(handler: object) -> str:
    return f"the handler {(handler if isinstance(handler, type) else type(handler)).__name__}"
