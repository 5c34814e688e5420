"""SMTPChannel: the commands of one connection, with the names and replies of the old module.

Subclasses override ``smtp_VERB(arg)`` methods, which push their replies. The state of the client and the transaction is
in the underlying connection; its old names are properties here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar
from warnings import warn

from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Session
from txsmtpd.smtpd.connection import ChannelProtocol, debug
from txsmtpd.wire import grammar

DATA_SIZE_DEFAULT = 33554432  # octets: 32 MiB

MAIL_PARAMETERS = " [SP <mail-parameters>]"
SYNTAX = {
    "EHLO": "EHLO hostname",
    "HELO": "HELO hostname",
    "MAIL": "MAIL FROM: <address>",
    "RCPT": "RCPT TO: <address>",
    "DATA": "DATA",
    "RSET": "RSET",
    "NOOP": "NOOP",
    "QUIT": "QUIT",
    "VRFY": "VRFY <address>",
}
COMMANDS = f"Supported commands: {' '.join(SYNTAX)}"

# The old texts of refusals of MAIL and RCPT. For other 501 and 553 replies, the text is the syntax.
BODY = Reply(501, "5.5.4", "BODY must be one of 7BIT, 8BITMIME")
REFUSALS: Mapping[Reply, str] = {
    BODY: "501 Error: BODY can only be one of 7BIT, 8BITMIME",
    Reply(501, "5.5.4", "SMTPUTF8 takes no value"): "501 Error: SMTPUTF8 takes no arguments",
    Reply(552, "5.3.4", "Message size exceeds the limit"): (
        "552 Error: message size exceeds fixed maximum message size"
    ),
}

# Methods of asyncore and asynchat for reading. An override would never be called here.
NEVER_CALLED = {
    *("collect_incoming_data", "found_terminator", "initiate_send", "refill_buffer"),
    *("handle_expt", "handle_read", "handle_write", "readable", "recv", "send", "writable"),
}


def _of_envelope(name: str, meaning: str) -> Any:
    """Return a property for an attribute of the underlying connection's envelope."""

    def get(channel: SMTPChannel) -> Any:
        return getattr(channel._connection.envelope, name)

    def put(channel: SMTPChannel, value: Any) -> None:
        setattr(channel._connection.envelope, name, value)

    return property(get, put, doc=meaning)


class SMTPChannel:
    """One connection of a :class:`~txsmtpd.smtpd.SMTPServer`.

    :param server: the server.
    :param conn: the connection, as passed to ``handle_accepted``.
    :param addr: the client's address and port.
    :param data_size_limit: maximum size of a message in octets, on this connection. The parameters after it are only
        stored; the connection has the values of the server.
    :raises TypeError: if *conn* is something else, such as a socket.
    """

    COMMAND: ClassVar[int] = 0
    DATA: ClassVar[int] = 1

    command_size_limit: ClassVar[int] = (
        512  #: maximum length of a command line in octets, without CRLF; subclasses may change it
    )

    smtp_server: Any  #: the server
    conn: Any  #: the connection; it has ``getpeername()``, ``getsockname()`` and ``close()``
    addr: tuple[str, int]  #: the client's address and port
    peer: tuple[str, int]  #: the same
    fqdn: str  #: the server's name in the greeting
    received_lines: list[bytes]  #: always empty: methods are called with complete lines
    received_data: bytes | str  #: the last message, as passed to ``process_message``

    def __init__(
        self,
        server: Any,
        conn: Any,
        addr: Any,
        data_size_limit: int | None = DATA_SIZE_DEFAULT,
        map: Any = None,
        enable_SMTPUTF8: bool = False,
        decode_data: bool = False,
    ) -> None:
        if not isinstance(conn, ChannelProtocol):
            raise TypeError(f"conn must be the argument of handle_accepted() or the result of accept(), not {conn!r}")
        if enable_SMTPUTF8 and decode_data:
            raise ValueError("decode_data and enable_SMTPUTF8 cannot be set to True at the same time")
        self.smtp_server = server
        self.conn = conn
        self.addr = addr
        self.peer = conn.getpeername()
        self.fqdn = conn.hostname
        self._connection = conn
        self.data_size_limit = data_size_limit
        self.enable_SMTPUTF8 = enable_SMTPUTF8
        self.received_lines = []
        self.received_data = ""
        self._map = map
        self._decode_data = decode_data
        conn.attach(self)
        debug("Peer:", self.peer)
        self.push(f"220 {self.fqdn} {conn.settings.ident}".rstrip())

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in sorted(NEVER_CALLED & vars(cls).keys()):
            raise TypeError(
                f"{cls.__name__}.{name} would never be called: the channel does not read lines. Override smtp_VERB"
                " methods; for TLS and AUTH give the server tls_context= and authenticator="
            )

    # State

    @property
    def session(self) -> Session:
        """The client's session, with attributes such as ``session.ssl`` and ``session.authenticated``."""
        return self._connection.session

    @property
    def seen_greeting(self) -> str:
        """The argument of HELO or EHLO; empty before them."""
        return self._connection.session.host_name or ""

    @seen_greeting.setter
    def seen_greeting(self, hostname: Any) -> None:
        self._connection.session.host_name = str(hostname) if hostname else None

    @property
    def extended_smtp(self) -> bool:
        """True if the client has sent EHLO."""
        return self._connection.session.extended_smtp

    @extended_smtp.setter
    def extended_smtp(self, extended: bool) -> None:
        self._connection.session.extended_smtp = bool(extended)

    @property
    def mailfrom(self) -> str | None:
        """The reverse-path, ``<>`` if it is null. None: no transaction is open."""
        path = self._connection.envelope.mail_from
        return "<>" if path == "" else path

    @mailfrom.setter
    def mailfrom(self, path: str | None) -> None:
        self._connection.envelope.mail_from = "" if path == "<>" else path

    rcpttos = _of_envelope("rcpt_tos", "The accepted recipients.")
    mail_options = _of_envelope("mail_options", "The parameters of MAIL, in upper case.")
    rcpt_options = _of_envelope("rcpt_options", "The parameters of RCPT, in upper case.")
    require_SMTPUTF8 = _of_envelope("smtp_utf8", "Whether MAIL said SMTPUTF8.")

    @property
    def smtp_state(self) -> int:
        """:attr:`DATA` from the reply 354 until the reply to the message, else :attr:`COMMAND`.

        Setting it to DATA starts reading a message, which ends with the final dot. Setting it to COMMAND has no effect.
        """
        return self.DATA if self._connection.reads_data else self.COMMAND

    @smtp_state.setter
    def smtp_state(self, state: int) -> None:
        if state == self.DATA and not self._connection.reads_data:
            self._connection.read_message()

    @property
    def num_bytes(self) -> int:
        """The number of octets of the message so far."""
        return self._connection.octets_read

    @property
    def command_size_limits(self) -> Mapping[str, int]:
        """Maximum length of command lines in octets by verb, if not :attr:`command_size_limit`. Read-only."""
        limits = self._connection.settings.line_limits
        return MappingProxyType({verb.decode("ascii"): limit for verb, limit in limits.items()})

    @property
    def max_command_size_limit(self) -> int:
        """The highest of these limits."""
        return self._connection.settings.longest_line

    @property
    def data_size_limit(self) -> int | None:
        """Maximum size of a message in octets; None: no limit. A new value applies to the next message."""
        limit: int | None = self._connection.data_size_limit
        return limit

    @data_size_limit.setter
    def data_size_limit(self, limit: int | None) -> None:
        if (limit or None) != self._connection.data_size_limit:
            self._connection.data_size_limit = limit or None

    # Methods for commands

    def push(self, msg: str) -> None:
        """Send one line of a reply, without its CRLF.

        :raises ValueError: if it does not begin with a reply code.
        """
        self._connection.push(msg)

    def close_when_done(self) -> None:
        """Close the connection after the reply."""
        self._connection.close_when_done()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def handle_close(self) -> None:
        """Called when the connection is closed."""
        self.close()

    def set_terminator(self, term: bytes | int | None) -> None:
        """Do nothing. Old versions of ``smtp_DATA`` call it; the underlying connection finds the ends of messages."""

    def _set_post_data_state(self) -> None:
        """End the transaction."""
        self._connection.reset_transaction()

    def _set_rset_state(self) -> None:
        """End the transaction, and forget the message before it."""
        self._connection.reset_transaction()
        self.received_data = ""
        self.received_lines = []

    # Commands

    def smtp_HELO(self, arg: str | None) -> Any:
        if self._greet("HELO", arg):
            self.push(f"250 {self.fqdn}")

    def smtp_EHLO(self, arg: str | None) -> Any:
        if self._greet("EHLO", arg):
            self.extended_smtp = True
            for line in (self.fqdn, *self._connection.extension_lines()[:-1]):
                self.push(f"250-{line}")
            self.push("250 HELP")

    def _greet(self, verb: str, arg: str | None) -> bool:
        if not arg:
            self.push(f"501 Syntax: {SYNTAX[verb]}")
        elif self.seen_greeting:
            self.push("503 Duplicate HELO/EHLO")
        else:
            self._set_rset_state()
            self.seen_greeting = arg
            return True
        return False

    def smtp_NOOP(self, arg: str | None) -> Any:
        self.push("501 Syntax: NOOP" if arg else "250 OK")

    def smtp_QUIT(self, arg: str | None) -> Any:
        self.push("221 Bye")
        self.close_when_done()

    def smtp_HELP(self, arg: str | None) -> Any:
        verb = (arg or "").upper()
        if not verb:
            self.push(f"250 {COMMANDS}")
        elif verb in SYNTAX:
            self.push(f"250 {self._syntax(verb)}")
        else:
            self.push(f"501 {COMMANDS}")

    def smtp_VRFY(self, arg: str | None) -> Any:
        if not arg:
            self.push(f"501 Syntax: {SYNTAX['VRFY']}")
            return
        try:
            grammar.parse_vrfy(arg)
        except Refused:
            self.push(f"502 Could not VRFY {arg}")
        else:
            self.push("252 Cannot VRFY user, but will accept message and attempt delivery")

    def smtp_EXPN(self, arg: str | None) -> Any:
        self.push("502 EXPN not implemented")

    def smtp_MAIL(self, arg: str | None) -> Any:
        if not self._was_greeted():
            return
        debug("===> MAIL", arg)
        try:
            self._connection.parse_mail(arg)  # as in the old module, syntax errors are reported before others
            if self.mailfrom is not None:
                self.push("503 Error: nested MAIL command")
                return
            self._connection.begin_mail(arg)
        except Refused as refused:
            self._refuse("MAIL", refused.reply)
            return
        self.mail_options = [option.upper() for option in self.mail_options]
        debug("sender:", self.mailfrom)
        self.push("250 OK")

    def smtp_RCPT(self, arg: str | None) -> Any:
        if not self._was_greeted():
            return
        debug("===> RCPT", arg)
        if self.mailfrom is None:
            self.push("503 Error: need MAIL command")
            return
        try:
            self._connection.add_rcpt(arg)
        except Refused as refused:
            self._refuse("RCPT", refused.reply)
            return
        self.rcpt_options = [option.upper() for option in self.rcpt_options]
        debug("recips:", self.rcpttos)
        self.push("250 OK")

    def smtp_RSET(self, arg: str | None) -> Any:
        if arg:
            self.push("501 Syntax: RSET")
            return
        self._set_rset_state()
        self.push("250 OK")

    def smtp_DATA(self, arg: str | None) -> Any:
        if not self._was_greeted():
            return
        if not self.rcpttos:
            self.push("503 Error: need RCPT command")
        elif arg:
            self.push("501 Syntax: DATA")
        else:
            self.smtp_state = self.DATA
            self.push("354 End data with <CR><LF>.<CR><LF>")

    def _was_greeted(self) -> bool:
        if not self.seen_greeting:
            self.push("503 Error: send HELO first")
            return False
        return True

    def _syntax(self, verb: str) -> str:
        extended = self.extended_smtp and verb in ("MAIL", "RCPT")
        return f"Syntax: {SYNTAX[verb]}{MAIL_PARAMETERS if extended else ''}"

    def _refuse(self, verb: str, reply: Reply) -> None:
        """Push a rejection of MAIL or RCPT with the old module's text, if it had one."""
        if reply in REFUSALS:
            self.push(REFUSALS[reply])
        elif reply.code in (501, 553) and not self._needs_utf8(reply):
            self.push(f"501 {self._syntax(verb)}")
        elif reply.code == 555:
            target = "MAIL FROM" if verb == "MAIL" else "RCPT TO"
            self.push(f"555 {target} parameters not recognized or not implemented")
        else:
            self.push(str(reply))

    @staticmethod
    def _needs_utf8(reply: Reply) -> bool:
        return reply.status == "5.6.7"


def _deprecated(old: str, name: str) -> property:
    """Return a property with the attribute's old private name, such as ``_SMTPChannel__line``."""

    def get(channel: SMTPChannel) -> Any:
        warn(f"{old} of an SMTPChannel is now called {name}", DeprecationWarning, stacklevel=2)
        return getattr(channel, name)

    def put(channel: SMTPChannel, value: Any) -> None:
        warn(f"{old} of an SMTPChannel is now called {name}", DeprecationWarning, stacklevel=2)
        setattr(channel, name, value)

    return property(get, put)


for _old, _name in {
    "server": "smtp_server",
    "line": "received_lines",
    "state": "smtp_state",
    "greeting": "seen_greeting",
    "mailfrom": "mailfrom",
    "rcpttos": "rcpttos",
    "data": "received_data",
    "fqdn": "fqdn",
    "peer": "peer",
    "conn": "conn",
    "addr": "addr",
}.items():
    setattr(SMTPChannel, f"_SMTPChannel__{_old}", _deprecated(f"__{_old}", _name))
