"""The log: events about connections and messages, and their output.

The engine passes events of :mod:`txsmtpd.log.events` to a :class:`~txsmtpd.log.session.SessionLog`, which passes them
to a sink. :class:`~txsmtpd.log.sinks.TwistedSink` makes :mod:`twisted.logger` events, for programs that embed the
factory. :class:`~txsmtpd.log.lines.Lines` writes lines, at a tenth of the cost, for the command line.
"""
