"""The interfaces that a hand-off uses: a target for messages, and a store for large ones."""

# The methods of interfaces have no self.
# mypy: disable-error-code="no-untyped-def, override"

from __future__ import annotations

from zope.interface import Attribute, Interface


class IHandoff(Interface):
    """Another system that messages are handed to: a broker, a web hook, or the application's own.

    A target may also have

    * ``max_size``: the maximum size of a message, in bytes; None, or no such attribute: unlimited;
    * ``check()``: called before a message is read. It raises :class:`~txsmtpd.handoff.NotTaken` if no message can be
      accepted now. It returns None or an awaitable, which may raise the same;
    * :class:`~txsmtpd.interfaces.IReadiness`, for health checks;
    * :class:`twisted.application.service.IService`, to be started and stopped with the server.
    """

    def hand_off(message):
        """Hand a message over. May be called concurrently for several messages.

        Returning means that the other system has taken responsibility for the message. Raise
        :class:`~txsmtpd.handoff.NotTaken`, or :class:`~txsmtpd.reply.Refused` with your own reply, if it certainly has
        not. Any other exception, or a cancellation after the timeout, means that the outcome is unknown.

        :param message: a :class:`~txsmtpd.handoff.HandoffMessage`.
        :return: an awaitable, or None. Its result is None, or what ``handle_DATA`` may return: a status, or a status
            for each recipient.
        """


class IMessageStore(Interface):
    """A store for large messages. The target gets a reference to the stored message (claim check)."""

    part = Attribute("How many octets are written at a time; only the last ones of a message may be fewer.")

    def open(name, when):
        """Start to store a message.

        :param name: the message's id.
        :param when: when it arrived: a :class:`datetime.datetime` in UTC.
        :return: an :class:`IUpload`.
        """


class IUpload(Interface):
    """An upload of one message to a store. One call at a time; :meth:`finish` or :meth:`abort` is the last."""

    def write(octets):
        """Store the next part of the message.

        :return: a Deferred that fires when the next part can be written.
        """

    def finish(octets):
        """Complete the message with these last bytes, possibly none.

        :return: a Deferred that fires with its URI once the store has confirmed the message.
        """

    def abort():
        """Delete what was stored of the message, even after :meth:`finish`. Never raises; its Deferred never fails."""
