"""The options of the command line: arguments and environment variables become checked values.

Each option can be set as ``TXSMTPD_<OPTION>`` in the environment. The command line takes precedence, and an empty
variable is ignored. Any error ends the process with one line and status 64 before anything listens.
"""

from txsmtpd.service.options.parser import Options

__all__ = ["Options"]
