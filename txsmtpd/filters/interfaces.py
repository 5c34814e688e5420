"""What a filter is: the stages at which it may look at mail, each a method of its own.

A filter provides as few of them as it likes; they are found by name, as the hooks of a handler are. Declaring the
interface is never needed.
"""

# The methods of interfaces have no self.
# mypy: disable-error-code="no-untyped-def, override"

from __future__ import annotations

from zope.interface import Attribute, Interface


class IFilter(Interface):
    """Looks at mail before the handler gets it.

    One object serves all connections. Each method may be a coroutine function, return a Deferred, or be a plain
    function, and returns

    * None: go on;
    * :data:`~txsmtpd.filters.ACCEPT`: this filter need not see more of the message (from ``filter_CONNECT`` and
      ``filter_HELO``: of the connection);
    * :data:`~txsmtpd.filters.DISCARD`: the client is told that the message was taken, and nobody gets it;
    * a :class:`~txsmtpd.filters.Verdict` of its own, from ``filter_headers`` and ``filter_message``;
    * a status, such as ``"550 5.7.1 Not here"``: refuse. It may raise :class:`~txsmtpd.reply.Refused` instead.

    Any other exception, and an answer that takes too long, is a failure: see *on_failure*.
    """

    name: str = Attribute("What the filter is called in envelope.filters and in the log. Default: its class's name.")
    on_failure: str = Attribute("'tempfail' (the default): refuse mail for now while the filter fails; or 'accept'.")
    command_timeout: float | None = Attribute("Seconds for each method but filter_message; None: no limit.")
    message_timeout: float | None = Attribute("Seconds for filter_message; None: no limit.")
    authserv_id: str | None = Attribute("By which it signs Authentication-Results. Default: the server's name.")

    def filter_CONNECT(server, session, envelope):
        """A client has connected."""

    def filter_HELO(server, session, envelope, hostname):
        """HELO, EHLO or LHLO."""

    def filter_MAIL(server, session, envelope, address, mail_options):
        """MAIL, before the handler is asked; *address* is the reverse-path."""

    def filter_RCPT(server, session, envelope, address, rcpt_options):
        """RCPT, once the handler has accepted the recipient; what is refused here is no recipient."""

    def filter_DATA(server, session, envelope):
        """The message is going to come."""

    def filter_headers(server, session, envelope, message):
        """The header has come.

        :param message: a :class:`~txsmtpd.filters.message.FilteredMessage`. If the body is there, too, is not said.
        """

    def filter_message(server, session, envelope, message):
        """The message has come.

        :param message: a :class:`~txsmtpd.filters.message.FilteredMessage`.
        """

    def filter_RSET(server, session, envelope):
        """The transaction is over, for whatever reason. May be called without one; the result is ignored."""

    def filter_DISCONNECT(server, session, envelope, cause):
        """The connection is gone; *cause* is the exception that tells why. The result is ignored."""
