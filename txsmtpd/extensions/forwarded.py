"""XCLIENT and XFORWARD (Postfix): commands with which a proxy or a filter tells the server who the client is.

A client that may use them can claim any identity, so both are offered only to trusted networks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

from txsmtpd.command import syntax
from txsmtpd.extensions.base import Extension
from txsmtpd.reply import OK, Refused, Reply
from txsmtpd.wire.forwarded import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    XClientData,
    parse_xclient,
    parse_xforward,
)
from txsmtpd.wire.networks import Network, Networks

NOT_TRUSTED = Reply(550, "5.7.0", "Not authorized to use this command")
IN_TRANSACTION = Reply(503, "5.5.1", "A mail transaction is in progress")


class FromTrusted(Extension):
    """An extension for clients in trusted networks only."""

    attributes: tuple[str, ...] = ()

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = Networks(self.keyword, networks)

    def parameter(self, server: Any) -> str | None:
        return " ".join(self.attributes) if self.trusts(server) else None

    def trusts(self, server: Any) -> bool:
        """Return True if the client may use the command. The peer of the connection counts, regardless of XCLIENT."""
        session = server.session
        if session.connection_peer == "" and session.proxy_peer:  # the Unix socket is on the proxy's host
            return False
        return session.connection_peer in self._networks

    def check(self, server: Any) -> None:
        """:raises Refused: unless the client may use this now."""
        if not self.trusts(server):
            raise Refused(NOT_TRUSTED)
        if server.envelope.mail_from is not None:
            raise Refused(IN_TRANSACTION)


class XClient(FromTrusted):
    """XCLIENT: the session restarts at the greeting as if the client had connected itself.

    Its attributes are in ``session.xclient``. From then on ``session.peer`` is the client; with LOGIN the client counts
    as authenticated, and with HELO it has sent its greeting.

    :param networks: trusted addresses and networks, as strings or objects of :mod:`ipaddress`, and ``"unix"`` for
        clients on Unix sockets.
    :raises TypeError: if it is not a list of them.
    :raises ValueError: if a string is not a network.
    """

    keyword = "XCLIENT"
    attributes = XCLIENT_ATTRIBUTES

    @syntax("XCLIENT attribute=value [...]", argument=True, junk=True)
    async def smtp_XCLIENT(self, server: Any, arg: str) -> Any:
        self.check(server)
        before = server.session
        said = parse_xclient(arg, before.xclient or XClientData(said_by=before.peer, peer=before.peer))
        server._reset_session()
        session = server.session
        session.ssl = before.ssl  # TLS stays on
        session.xclient = said
        session.peer = said.peer
        if said.login is not None:
            session.authenticated = True
            session.auth_data = session.login_data = said.login
        if said.helo is not None:
            session.host_name = said.helo
        session.extended_smtp = said.proto == "ESMTP" or server.lmtp
        greeting = server._greet()
        return await greeting if isinstance(greeting, Awaitable) else greeting


class XForward(FromTrusted):
    """XFORWARD: the origin of the next message, for logs. It only sets ``envelope.xforward``, until the end of the
    transaction.

    :param networks: as for :class:`XClient`.
    """

    keyword = "XFORWARD"
    attributes = XFORWARD_ATTRIBUTES

    @syntax("XFORWARD attribute=value [...]", argument=True)
    def smtp_XFORWARD(self, server: Any, arg: str) -> Reply:
        self.check(server)
        server.envelope.xforward = parse_xforward(arg, server.envelope.xforward)
        return OK
