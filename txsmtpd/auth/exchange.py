"""The exchange of challenges and responses between a mechanism and the client (RFC 4954 4).

It handles base64, the initial response and cancellation by the client, so that mechanisms need not. It also counts and
logs failures.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any

from txsmtpd.auth.decision import decide
from txsmtpd.auth.results import AuthResult
from txsmtpd.log import events
from txsmtpd.log.events import client_text
from txsmtpd.reply import Refused, Reply

ABORTED = Reply(501, "5.7.0", "Authentication aborted")
NOT_BASE64 = Reply(501, "5.5.2", "Invalid base64")
NO_INITIAL_RESPONSE = Reply(501, "5.7.0", "This mechanism takes no initial response")


class Exchange:
    """One attempt of a client to authenticate.

    :param server: the protocol of the connection.
    :param mechanism: the mechanism's name.
    :param initial: the initial response, in base64; None if there was none.
    """

    def __init__(self, server: Any, mechanism: str, initial: str | None = None) -> None:
        self.server = server
        self.mechanism = mechanism
        self._initial = initial
        self.login: str | bytes | None = None  #: the user name, as soon as it is known
        self._has_failed = False

    def __repr__(self) -> str:
        return f"<Exchange {self.mechanism} {self.server.session!r}>"

    @property
    def session(self) -> Any:
        """The client's session; ``session.ssl`` is None without TLS."""
        return self.server.session

    async def challenge(self, octets: bytes = b"") -> bytes:
        """Send a challenge and wait for the client's response.

        If the client sent an initial response, the first call returns it and sends nothing.

        :raises Refused: if the client cancels the exchange, or its response is not valid.
        """
        if self._initial is not None:
            initial, self._initial = self._initial, None
            return decode_initial(initial)
        return decode_answer(await self.server._dispatcher.send_challenge(binascii.b2a_base64(octets, newline=False)))

    def begin(self) -> None:
        """Start a mechanism in which the server sends the first message.

        :raises Refused: if the client sent an initial response.
        """
        if self._initial is not None:
            raise Refused(NO_INITIAL_RESPONSE)

    @property
    def words(self) -> list[str]:
        """The words after AUTH."""
        return [self.mechanism] if self._initial is None else [self.mechanism, self._initial]

    async def decide(self, credentials: Any, authenticator: Callable[..., Any] | None = None) -> AuthResult:
        """Call the authenticator, by default the server's. For mechanisms that send a message after its decision.

        :raises Refused: with 454 if its result is not valid.
        """
        self.login = getattr(credentials, "login", None) or self.login
        settings = self.server.settings
        authenticator = settings.in_asyncio(authenticator) if authenticator else settings.authenticator
        if authenticator is None:
            return AuthResult(success=False)
        return await decide(authenticator, self.server, self.mechanism, credentials)

    def failed(self) -> None:
        """Count and log a failed login, once. A mechanism that sends more messages after the failure calls this first,
        so that a client cannot avoid it by disconnecting.
        """
        if self._has_failed:
            return
        self._has_failed = True
        server = self.server
        server._auth.failures += 1
        server._dispatcher.log(
            events.AUTH_FAILED,
            mechanism=self.mechanism,
            login=name_shown(self.login, "an unknown user"),
            client=client_text(server.session.peer),
        )


def name_shown(login: object, unknown: str) -> str:
    """Return a user name in a form that is safe in a log; it may contain anything.

    :param unknown: what is returned if there is none.
    """
    if isinstance(login, bytes):
        login = login.decode("utf-8", "backslashreplace")
    return ascii(login)[:200] if isinstance(login, str) and login else unknown


def decode_initial(word: str) -> bytes:
    """Decode an initial response; ``=`` means empty (RFC 4954 4).

    :raises Refused: with 501 if it is not base64.
    """
    return b"" if word == "=" else _decoded(word.encode("utf-8"))


def decode_answer(line: bytes) -> bytes:
    """Decode a response.

    :raises Refused: with 501 if the client cancels (``*``), or it is not base64.
    """
    if line == b"*":
        raise Refused(ABORTED)
    return _decoded(line)


def _decoded(octets: bytes) -> bytes:
    try:
        return binascii.a2b_base64(octets, strict_mode=True)
    except binascii.Error:
        raise Refused(NOT_BASE64) from None
