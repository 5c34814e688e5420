"""The options of the command line: from words and the environment to checked values.

Each option can be given as ``TXSMTPD_<OPTION>`` in the environment; the command line wins, and an empty variable counts
as none. Whatever is wrong ends the process with one line and status 64 before anything listens.
"""

from txsmtpd.service.options.parser import Options

__all__ = ["Options"]
