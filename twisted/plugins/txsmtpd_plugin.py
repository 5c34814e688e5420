"""Tells ``twist`` and ``twistd`` of their subcommand ``smtpd``.

Read whenever any plugin is looked for, so it imports nothing else: the module it names is imported when it is wanted.
"""

from twisted.application.service import ServiceMaker

smtpd = ServiceMaker("txsmtpd", "txsmtpd.service", "An SMTP server.", "smtpd")
