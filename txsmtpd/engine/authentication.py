"""The command AUTH (RFC 4954), and what a server class offers to those who write mechanisms as methods.

What is said to the client and what is known of it afterwards is decided here; how a mechanism speaks is in
:mod:`txsmtpd.auth`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from twisted.internet.task import deferLater

from txsmtpd.auth.exchange import Exchange, decode_answer
from txsmtpd.auth.methods import methods_of_class
from txsmtpd.auth.results import INVALID, MISSING, AuthResult
from txsmtpd.command import Rule, syntax
from txsmtpd.engine.dispatcher import Dispatcher, log
from txsmtpd.reply import Refused, Reply, parse_status

SUCCESSFUL = Reply(235, "2.7.0", "Authentication successful")
TOO_MANY_FAILURES = Reply(421, "4.7.0", "Too many failed authentications, goodbye")
TOO_MANY_ATTEMPTS = Reply(421, "4.7.0", "Too many attempts to authenticate, goodbye")
NO_MECHANISM = Reply(501, "5.5.4", "Not enough value: AUTH needs a mechanism")
TOO_MANY_WORDS = Reply(501, "5.5.4", "Too many values: AUTH takes a mechanism and an initial response")
UNKNOWN_MECHANISM = Reply(504, "5.5.4", "Unrecognized authentication type")

_BLANKS = re.compile("[ \t]+")

authorized = Rule(
    lambda smtp, arg: bool(smtp.session.authenticated or not smtp.settings.auth_required),
    Reply(530, "5.7.0", "Authentication required"),
)
_offered = Rule(
    lambda smtp, arg: bool(smtp.settings.mechanisms), Reply(502, "5.5.1", "Nobody can authenticate on this server")
)
_greeted = Rule(
    lambda smtp, arg: smtp.session.host_name is not None,
    Reply(503, "5.5.1", "Send EHLO first"),
)
_extended = Rule(lambda smtp, arg: smtp.session.extended_smtp, Reply(500, "5.5.1", "AUTH needs EHLO instead of HELO"))
_protected = Rule(
    lambda smtp, arg: smtp.session.ssl is not None or not smtp.settings.auth_require_tls,
    Reply(538, "5.7.11", "Encryption required for requested authentication mechanism"),
)
_not_yet = Rule(lambda smtp, arg: not smtp.session.authenticated, Reply(503, "5.5.1", "Already authenticated"))
_no_transaction = Rule(
    lambda smtp, arg: smtp.envelope.mail_from is None,
    Reply(503, "5.5.1", "AUTH is not permitted during a mail transaction"),
)


class Authentication(Dispatcher):
    """A dispatcher with the command AUTH."""

    mechanisms: ClassVar[Mapping[str, Any]] = {}  #: those that are methods ``auth_MECHANISM`` of the class

    AuthLoginUsernameChallenge = "User Name\0"  #: the first challenge of LOGIN
    AuthLoginPasswordChallenge = "Password\0"  #: the second

    _attempts = 0
    _failures = 0
    _gave_up = False  # whether the client was told that this attempt is over
    _at_end: tuple[Callable[[], Any], ...] = ()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.mechanisms = methods_of_class(cls, Authentication)

    @property
    def offers_auth(self) -> bool:
        """Whether AUTH can be of any use to this client now."""
        return not self.session.authenticated and bool(self.offered_mechanisms())

    def offered_mechanisms(self) -> list[str]:
        """The names of the mechanisms that this client may use now."""
        if not _protected.holds(self, None):
            return []
        return [name for name, mechanism in self.settings.mechanisms.items() if self._is_available(mechanism)]

    def _is_available(self, mechanism: Any) -> bool:
        available = getattr(mechanism, "available", None)
        if available is None:
            return True
        try:
            return bool(available(self.session))
        except Exception:
            log.failure(
                "{session} {name} is not offered: nobody knows whether it is available",
                session=self.session.id,
                name=mechanism.name,
            )
            return False

    @syntax(
        "AUTH <mechanism>",
        extended=" [initial-response]",
        when="offers_auth",
        needs=[_offered, _greeted, _extended, _protected, _not_yet, _no_transaction],
    )
    async def smtp_AUTH(self, arg: str | None) -> Reply | None:
        exchange = self._begin_exchange(arg)
        if "AUTH" in self.settings.hooks:
            status = await self.ask_hook("AUTH", exchange.words)
            if status is not MISSING:
                return status if status is None and self._pushed else self.final(status, "AUTH")
        return await self._concluded(exchange, await self._result_of(exchange))

    def _begin_exchange(self, arg: str | None) -> Exchange:
        limit = self.settings.auth_attempt_limit
        self._attempts += 1
        if limit is not None and self._attempts > limit:
            raise Refused(TOO_MANY_ATTEMPTS)
        words = _BLANKS.split(arg) if arg else []
        if not words:
            raise Refused(NO_MECHANISM)
        if len(words) > 2:
            raise Refused(TOO_MANY_WORDS)
        mechanism = words[0].upper()
        # In capitals, letters of other alphabets may become those of ASCII.
        if not words[0].isascii() or mechanism not in self.offered_mechanisms():
            raise Refused(UNKNOWN_MECHANISM)
        self._gave_up = False
        return Exchange(self, mechanism, words[1] if len(words) == 2 else None)

    async def _result_of(self, exchange: Exchange) -> AuthResult | None:
        """What the mechanism, and who decides, say of the client. None: the mechanism has dealt with everything."""
        self.session.authenticated = False
        try:
            result = await self.settings.mechanisms[exchange.mechanism].authenticate(exchange)
            if result is None or isinstance(result, AuthResult):
                return result
            return await exchange.decide(result)
        except Refused as refused:
            if refused.reply.code != INVALID.code:
                raise
            return AuthResult(success=False, message=refused.reply)

    async def _concluded(self, exchange: Exchange, result: AuthResult | None) -> Reply | None:
        """Keep in mind what became of the exchange, and word the reply, unless it was pushed."""
        if result is None:
            if self._pushed:
                return None
            result = AuthResult(success=False)
        if result.success and not self._gave_up:
            reply = self._worded(result, SUCCESSFUL)
            self._succeeded(exchange, result.auth_data)
        else:
            exchange.failed()
            reply = self._worded(result, INVALID)
            limit = self.settings.auth_failure_limit
            too_many = limit is not None and self._failures >= limit
            delay = self.settings.auth_failure_delay
            if delay:
                await deferLater(self, delay)  # type: ignore[arg-type]  # it has callLater, which is all that is used
            if too_many:
                self._last_turn = True
                reply = TOO_MANY_FAILURES
        if self._pushed:
            return None
        self._said = reply
        return reply

    def authentication_failed(self, exchange: Exchange) -> None:
        """Count and log a failure: at once, so that a client does not escape that by leaving."""
        self._failures += 1
        log.info(
            "{session} authentication by {mechanism} failed for {login} from {peer}",
            session=self.session.id,
            mechanism=exchange.mechanism,
            login=_name_shown(exchange.login),
            peer=_peer_shown(self.session.peer),
        )

    def _worded(self, result: AuthResult, usual: Reply) -> Reply:
        """The reply that the result wants, if it says the same as the usual one."""
        if result.message is None:
            return usual
        try:
            reply = parse_status(result.message)
        except (TypeError, ValueError):
            reply = None
        if reply is not None and reply.code // 100 in ((2,) if usual.positive else (4, 5)):
            return reply
        log.error("{session} AuthResult has a message that is no reply to it", session=self.session.id)
        return usual

    def _succeeded(self, exchange: Exchange, auth_data: Any) -> None:
        session = self.session
        session.authenticated = True
        session.auth_data = auth_data
        session.login_data = getattr(auth_data, "login", auth_data)
        session.auth_mechanism = exchange.mechanism
        log.info("{session} authenticated by {mechanism}", session=session.id, mechanism=exchange.mechanism)

    # For mechanisms that are methods

    async def challenge_auth(
        self, challenge: str | bytes, encode_to_b64: bool = True, log_client_response: bool = False
    ) -> Any:
        """Send a challenge, and await the client's answer.

        :param encode_to_b64: whether the challenge is still to be encoded; if not, it must not have line ends.
        :param log_client_response: without effect; answers are never logged.
        :return: the octets that the client has answered; or ``MISSING``, if it gave up or sent something else than
            base64: then it has been told so, and the attempt is over.
        """
        if log_client_response:
            warnings.warn("log_client_response has no effect: what clients answer is never logged", stacklevel=2)
        octets = challenge.encode("utf-8") if isinstance(challenge, str) else challenge
        try:
            if encode_to_b64:
                return await Exchange(self, "").challenge(octets)
            return decode_answer(await self.ask(octets))
        except Refused as refused:
            self._gave_up = True
            if refused.reply.code == 421:
                raise
            self.push(refused.reply)
            return MISSING

    async def check_auth_needed(self, caller: str) -> bool:
        """Whether a client must still authenticate for the command *caller*; it has been told so then."""
        if authorized.holds(self, None):
            return False
        self.push(authorized.refusal)
        return True

    # Whoever has to know when the connection is over

    def at_end(self, function: Callable[[], Any]) -> None:
        """Call the function when the connection is gone."""
        self._at_end = (*self._at_end, function)

    def ended(self, cause: BaseException) -> None:
        for function in self._at_end:
            try:
                function()
            except Exception:
                log.failure("{session} {function!r} failed", session=self.session.id, function=function)
        self._at_end = ()
        super().ended(cause)


def _name_shown(login: str | bytes | None) -> str:
    """A user name, fit for a log: it may hold anything."""
    if login is None:
        return "nobody in particular"
    return ascii(login if isinstance(login, str) else login.decode("utf-8", "backslashreplace"))[:200]


def _peer_shown(peer: Any) -> str:
    return f"[{peer[0]}]:{peer[1]}" if isinstance(peer, tuple) else "a local client"
