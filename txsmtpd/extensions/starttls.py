"""STARTTLS (RFC 3207): the client may turn the connection into TLS, where there is a certificate and no TLS yet."""

from __future__ import annotations

from typing import Any

from txsmtpd.extensions.base import Extension


class StartTLS(Extension):
    keyword = "STARTTLS"

    def parameter(self, server: Any) -> str | None:
        return "" if server.can_start_tls else None
