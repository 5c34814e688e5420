"""The engine under :class:`txsmtpd.smtp.SMTP`: command lines, replies, time, TLS, authentication and message data.

Nothing here is public. Applications use :mod:`txsmtpd.smtp` and the handler interfaces.
"""
