"""AUTH (RFC 4954): the command, the mechanisms that a client may use, and the AUTH parameter of MAIL.

This module decides on the replies and on the session's state after a login. The mechanisms are in :mod:`txsmtpd.auth`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any

from twisted.internet.task import deferLater

from txsmtpd.auth.exchange import Exchange, name_shown
from txsmtpd.auth.results import INVALID, MISSING, AuthResult
from txsmtpd.command import Rule, syntax
from txsmtpd.extensions.base import Extension
from txsmtpd.limits.pace import growing_delay
from txsmtpd.log import events
from txsmtpd.log.events import client_text
from txsmtpd.reply import Refused, Reply, parse_status
from txsmtpd.session import Envelope
from txsmtpd.wire.grammar import decode_xtext

SUCCESSFUL = Reply(235, "2.7.0", "Authentication successful")
TOO_MANY_FAILURES = Reply(421, "4.7.0", "Too many failed authentications, closing connection")
TOO_MANY_ATTEMPTS = Reply(421, "4.7.0", "Too many authentication attempts, closing connection")
NO_MECHANISM = Reply(501, "5.5.4", "Not enough value: AUTH needs a mechanism")
TOO_MANY_WORDS = Reply(501, "5.5.4", "Too many values: AUTH takes a mechanism and an initial response")
UNKNOWN_MECHANISM = Reply(504, "5.5.4", "Unrecognized authentication type")
NOT_MAILBOX = Reply(501, "5.5.4", "AUTH must be a mailbox in xtext, or <>")

LONGEST_DELAY = 10.0  # seconds by which the reply is delayed, at most, for names that fail again and again
_BLANKS = re.compile("[ \t]+")

_offered = Rule(lambda smtp, arg: bool(smtp.settings.mechanisms), Reply(502, "5.5.1", "AUTH not available"))
_greeted = Rule(lambda smtp, arg: smtp.session.host_name is not None, Reply(503, "5.5.1", "Send EHLO first"))
_extended = Rule(lambda smtp, arg: smtp.session.extended_smtp, Reply(500, "5.5.1", "AUTH requires EHLO"))
_protected = Rule(
    lambda smtp, arg: smtp.session.ssl is not None or not smtp.settings.auth_require_tls,
    Reply(538, "5.7.11", "Encryption required for requested authentication mechanism"),
)
_not_yet = Rule(lambda smtp, arg: not smtp.session.authenticated, Reply(503, "5.5.1", "Already authenticated"))
_no_transaction = Rule(
    lambda smtp, arg: smtp.envelope.mail_from is None,
    Reply(503, "5.5.1", "AUTH is not permitted during a mail transaction"),
)


class Attempts:
    """The login attempts of a session."""

    __slots__ = ("commands", "failures", "gave_up", "mechanism")

    def __init__(self) -> None:
        self.commands = 0  #: AUTH commands, whatever their result
        self.failures = 0  #: credentials that were refused
        self.mechanism = ""  #: the last one used
        self.gave_up = False  #: True if the client has cancelled this attempt, or sent an invalid response


def offers_auth(server: Any) -> bool:
    """Return True if AUTH is offered to this client now."""
    return not server.session.authenticated and bool(offered_mechanisms(server))


def offered_mechanisms(server: Any) -> list[str]:
    """Return the names of the mechanisms that this client may use now."""
    if not _protected.holds(server, None):
        return []
    return [name for name, each in server.settings.mechanisms.items() if _is_available(each, server)]


def _is_available(mechanism: Any, server: Any) -> bool:
    available = getattr(mechanism, "available", None)
    if available is None:
        return True
    try:
        return bool(available(server.session))
    except BaseException as error:
        server._dispatcher.log.failure(events.FAILED, error, where=mechanism.name, why="; the mechanism is not offered")
        return False


@syntax(
    "AUTH <mechanism>",
    extended=" [initial-response]",
    when=offers_auth,
    needs=[_offered, _greeted, _extended, _protected, _not_yet, _no_transaction],
    rate="auth",
)
async def smtp_AUTH(server: Any, arg: str | None) -> Reply | None:
    """Authenticate the client: with the hook AUTH, or with the mechanism that it requests."""
    dispatcher = server._dispatcher
    exchange = _begin_exchange(server, arg)
    if "AUTH" in server.settings.hooks:
        status = await dispatcher.result_of_hook("AUTH", exchange.words)
        if status is not MISSING:
            return status if status is None and dispatcher.pushed else dispatcher.reply_from_hook(status, "AUTH")
    result = await _result_of(exchange)
    if result is None:  # the mechanism has already replied
        if dispatcher.pushed:
            return None
        result = AuthResult(success=False)
    reply = await _conclude(server, exchange, result)
    if dispatcher.pushed:  # a method auth_MECHANISM may reply itself and return a result, too
        return None
    dispatcher.default_reply = reply
    return reply


def _begin_exchange(server: Any, arg: str | None) -> Exchange:
    attempts: Attempts = server._auth
    limit = server.settings.auth_attempt_limit
    attempts.commands += 1
    if limit is not None and attempts.commands > limit:
        raise Refused(TOO_MANY_ATTEMPTS)
    words = _BLANKS.split(arg) if arg else []
    if not words:
        raise Refused(NO_MECHANISM)
    if len(words) > 2:
        raise Refused(TOO_MANY_WORDS)
    mechanism = words[0].upper()
    # upper() may turn letters of other alphabets into ASCII letters.
    if not words[0].isascii() or mechanism not in offered_mechanisms(server):
        raise Refused(UNKNOWN_MECHANISM)
    attempts.gave_up = False
    attempts.mechanism = mechanism
    return Exchange(server, mechanism, words[1] if len(words) == 2 else None)


async def _result_of(exchange: Exchange) -> AuthResult | None:
    """Run the mechanism and the authenticator. Return None if the mechanism has already replied."""
    server = exchange.server
    server.session.authenticated = False
    try:
        result = await server.settings.mechanisms[exchange.mechanism].authenticate(exchange)
        if result is None or isinstance(result, AuthResult):
            return result
        return await exchange.decide(result)
    except Refused as refused:
        if refused.reply.code != INVALID.code:
            raise
        return AuthResult(success=False, message=refused.reply)


async def _conclude(server: Any, exchange: Exchange, result: AuthResult) -> Reply:
    """Update the session with the result of the exchange, and return the reply."""
    settings, attempts = server.settings, server._auth
    if result.success and not attempts.gave_up:
        reply = _worded(server, result, SUCCESSFUL)
        session = server.session
        session.authenticated = True
        session.auth_data = result.auth_data
        session.login_data = getattr(result.auth_data, "login", result.auth_data)
        session.auth_mechanism = exchange.mechanism
        server._dispatcher.log(
            events.AUTHENTICATED,
            mechanism=exchange.mechanism,
            login=name_shown(exchange.login or getattr(result.auth_data, "login", None), "a user without a name"),
            client=client_text(session.peer),
        )
        return reply
    exchange.failed()
    failures = await _record_failure(server, exchange.login)
    reply = _worded(server, result, INVALID)
    too_many = settings.auth_failure_limit is not None and attempts.failures >= settings.auth_failure_limit
    delay = growing_delay(failures, settings.auth_failure_delay, LONGEST_DELAY)
    if delay:
        await deferLater(settings.clock(), delay)
    if too_many:
        server._dispatcher.closes_after_reply = True  # even if the mechanism has pushed its own reply
        return TOO_MANY_FAILURES
    return reply


async def _record_failure(server: Any, login: str | bytes | None) -> int:
    """Record a failed login under the client's network and the user name.

    :return: the number of recent failures under this user name, including this one.
    """
    if login is None:
        return 1
    name = login if isinstance(login, str) else login.decode("utf-8", "backslashreplace")
    failures = server.settings.admission.auth_failed(server.session, name)
    return await failures if isinstance(failures, Awaitable) else failures  # type: ignore[no-any-return]


def _worded(server: Any, result: AuthResult, usual: Reply) -> Reply:
    """Return the reply in the result's message. If it is missing, or contradicts the result, return the usual reply."""
    if result.message is None:
        return usual
    try:
        reply = parse_status(result.message)
    except (TypeError, ValueError):
        reply = None
    if reply is not None and reply.code // 100 in ((2,) if usual.positive else (4, 5)):
        return reply
    server._dispatcher.log(events.NO_REPLY, source="the authenticator", value="a text that may hold a secret", hint="")
    return usual


def _warn_of_no_tls(server: Any) -> None:
    """Log, once, that AUTH is not offered because it requires TLS, and there is none. An endpoint may provide TLS, so
    this is not known before a client has connected."""
    settings = server.settings
    needs_tls = settings.mechanisms and settings.tls_context is None and not _protected.holds(server, None)
    if needs_tls and "auth" not in settings.warned:
        settings.warned.add("auth")
        server._dispatcher.log(events.AUTH_NEEDS_TLS)


class Auth(Extension):
    """AUTH. The command is a method of every server. The server refuses it if there is no mechanism.

    To trust some clients' AUTH parameter of MAIL, override :meth:`trusts`.
    """

    keyword = "AUTH"
    mail_growth = 500  # RFC 4954 3, item 6

    def parameter(self, server: Any) -> str | None:
        offered = offered_mechanisms(server)
        if not offered:
            _warn_of_no_tls(server)
        return " ".join(offered) or None

    def submitter(self, envelope: Envelope, value: str | None) -> str:
        """RFC 4954 5: the value from a client that is not trusted is replaced by ``<>``, which means unknown."""
        if not value:
            raise Refused(NOT_MAILBOX)
        if value == "<>":
            return value
        # The xtext is kept encoded: decoded line ends have been used to inject lines into programs.
        return value if self.trusts(envelope, decode_xtext(value)) else "<>"

    def trusts(self, envelope: Envelope, mailbox: str) -> bool:
        """Return True if the client is trusted to state that this mailbox submitted the message. Default: False."""
        return False

    mail_parameters = {"AUTH": submitter}
