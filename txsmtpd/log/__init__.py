"""The log: what is told of connections and messages, and how it gets there.

The engine tells a :class:`~txsmtpd.log.session.SessionLog` of an event of :mod:`txsmtpd.log.events`. It hands the event
to a sink: :class:`~txsmtpd.log.sinks.TwistedSink` makes an event of :mod:`twisted.logger` of it, for programs that have
the factory in them; :class:`~txsmtpd.log.lines.Lines` makes a line of it, which costs a tenth of that, for the command.
"""
