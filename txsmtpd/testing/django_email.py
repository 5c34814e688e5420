"""An SMTP backend for Django that trusts the authority of a catcher, for which Django has no setting.

``MailCatcher.django_settings()`` selects it if the catcher has TLS. Only this module needs Django.
"""

from __future__ import annotations

import ssl

from django.core.mail.backends import smtp  # type: ignore[import-untyped]
from django.utils.functional import cached_property  # type: ignore[import-untyped]


class EmailBackend(smtp.EmailBackend):  # type: ignore[misc]
    """Verifies the server's certificate with the authority in the file named by the setting ``TXSMTPD_CA_FILE``."""

    @cached_property  # type: ignore[untyped-decorator]
    def ssl_context(self) -> ssl.SSLContext:
        from django.conf import settings  # type: ignore[import-untyped]  # raises for whatever is asked of it too early

        context: ssl.SSLContext = super().ssl_context
        context.load_verify_locations(settings.TXSMTPD_CA_FILE)
        return context
