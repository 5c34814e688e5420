"""The plugin for ``twist`` and ``twistd``: their subcommand ``smtpd``.

Twisted imports this module whenever it looks for plugins. Therefore it imports nothing of txsmtpd. Twisted imports
``txsmtpd.service`` only if the subcommand is used.
"""

from twisted.application.service import ServiceMaker

smtpd = ServiceMaker("txsmtpd", "txsmtpd.service", "An SMTP server.", "smtpd")
