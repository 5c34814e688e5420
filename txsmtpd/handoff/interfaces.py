"""What a hand-off asks of others: a target for messages, and a store for those that are large."""

# The methods of interfaces have no self.
# mypy: disable-error-code="no-untyped-def, override"

from __future__ import annotations

from zope.interface import Attribute, Interface


class IHandoff(Interface):
    """Another system that messages are handed to: a broker, a web hook, an application's own.

    A target may also have

    * ``max_size``: the most octets that a message may have; None, or no such attribute: any number;
    * ``check()``: called before a message is read. It raises :class:`~txsmtpd.handoff.NotTaken` if none can be taken
      now, or returns None, or an awaitable that does so;
    * :class:`~txsmtpd.interfaces.IReadiness`, for health checks;
    * :class:`twisted.application.service.IService`, to be started and stopped with the server.
    """

    def hand_off(message):
        """Hand a message over. Called with several messages at one time.

        Returning means that the other system has taken responsibility. Raise :class:`~txsmtpd.handoff.NotTaken`, or
        :class:`~txsmtpd.reply.Refused` with a reply of your own, if it certainly has not. Any other exception, and a
        cancellation after the time that is allowed, means that nobody knows.

        :param message: a :class:`~txsmtpd.handoff.HandoffMessage`.
        :return: an awaitable, or None. Its result is None, or what ``handle_DATA`` may return: a status, or statuses
            for each recipient.
        """


class IMessageStore(Interface):
    """Where large messages are put, so that the target is given a reference (claim check)."""

    part = Attribute("How many octets are written at a time; only the last ones of a message may be fewer.")

    def open(name, when):
        """Begin to store a message.

        :param name: the message's id.
        :param when: a :class:`datetime.datetime` in UTC: when it came.
        :return: an :class:`IUpload`.
        """


class IUpload(Interface):
    """One message on its way into a store. One call at a time; :meth:`finish` or :meth:`abort` is the last."""

    def write(octets):
        """Store more of the message.

        :return: a Deferred that fires once more is wanted.
        """

    def finish(octets):
        """The message is complete, with these last octets, which may be none.

        :return: a Deferred of its URI, once the store has confirmed that it keeps the message.
        """

    def abort():
        """Leave nothing of the message, also after :meth:`finish`. Does not raise, nor does its Deferred fail."""
