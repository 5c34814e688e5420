"""Django's backend for SMTP, trusting the authority of a catcher. Django itself has no setting for that.

``MailCatcher.django_settings()`` names it where there is TLS. Django is needed for this module alone.
"""

from __future__ import annotations

import ssl

from django.core.mail.backends import smtp  # type: ignore[import-untyped]
from django.utils.functional import cached_property  # type: ignore[import-untyped]


class EmailBackend(smtp.EmailBackend):  # type: ignore[misc]
    """Verifies the server's certificate by the authority in the file that the setting ``TXSMTPD_CA_FILE`` names."""

    @cached_property  # type: ignore[untyped-decorator]
    def ssl_context(self) -> ssl.SSLContext:
        from django.conf import settings  # type: ignore[import-untyped]  # raises for whatever is asked of it too early

        context: ssl.SSLContext = super().ssl_context
        context.load_verify_locations(settings.TXSMTPD_CA_FILE)
        return context
