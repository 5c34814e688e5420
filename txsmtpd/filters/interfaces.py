"""The interface of filters: one method for each stage.

All methods are optional and found by name, like the hooks of a handler. A filter need not declare the interface.
"""

# The methods of interfaces have no self.
# mypy: disable-error-code="no-untyped-def, override"

from __future__ import annotations

from zope.interface import Attribute, Interface


class IFilter(Interface):
    """Examines mail before the handler gets it.

    One object serves all connections. Each method may be a coroutine function, return a Deferred, or be a plain
    function, and returns

    * None: continue;
    * :data:`~txsmtpd.filters.ACCEPT`: do not call this filter again for the message (from ``filter_CONNECT`` and
      ``filter_HELO``: for the connection);
    * :data:`~txsmtpd.filters.DISCARD`: reply to the client that the message was accepted, but drop it;
    * its own :class:`~txsmtpd.filters.Verdict`, from ``filter_headers`` and ``filter_message``;
    * a status, such as ``"550 5.7.1 Not here"``: reject. It may raise :class:`~txsmtpd.reply.Refused` instead.

    Any other exception, or a timeout, is a failure: see *on_failure*.
    """

    name: str = Attribute("What the filter is called in envelope.filters and in the log. Default: its class's name.")
    on_failure: str = Attribute("'tempfail' (the default): refuse mail for now while the filter fails; or 'accept'.")
    command_timeout: float | None = Attribute("Seconds for each method but filter_message; None: no limit.")
    message_timeout: float | None = Attribute("Seconds for filter_message; None: no limit.")
    authserv_id: str | None = Attribute("The authserv-id in its Authentication-Results. Default: the server's name.")

    def filter_CONNECT(server, session, envelope):
        """A client has connected."""

    def filter_HELO(server, session, envelope, hostname):
        """HELO, EHLO or LHLO."""

    def filter_MAIL(server, session, envelope, address, mail_options):
        """MAIL, before the handler is asked; *address* is the reverse-path."""

    def filter_RCPT(server, session, envelope, address, rcpt_options):
        """RCPT, after the handler has accepted the recipient. If the filter rejects it, it is not added."""

    def filter_DATA(server, session, envelope):
        """The message is about to be sent."""

    def filter_headers(server, session, envelope, message):
        """The header has arrived.

        :param message: a :class:`~txsmtpd.filters.message.FilteredMessage`. Its body may or may not be available yet.
        """

    def filter_message(server, session, envelope, message):
        """The whole message has arrived.

        :param message: a :class:`~txsmtpd.filters.message.FilteredMessage`.
        """

    def filter_RSET(server, session, envelope):
        """The transaction is over, for any reason, or MAIL was refused. Called once for each call of filter_MAIL, or
        for each MAIL that it would have been called for. The result is ignored."""

    def filter_DISCONNECT(server, session, envelope, cause):
        """The connection is closed. *cause* is the exception that describes why. The result is ignored."""
