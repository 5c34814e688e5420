"""Web hook signatures as in the Standard Webhooks specification: HMAC-SHA256 over id, time and body. No I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"


class Secrets:
    """The keys that requests are signed with; several during key rotation.

    :param secrets: ``whsec_`` and the key in base64, or any other text, whose bytes are the key.
    :raises ValueError: if there is none, or one is not base64.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets:
            raise ValueError("there is no secret")
        self._keys = [_key(secret) for secret in secrets]
        self.first = self._keys[0]

    def headers(self, identifier: str, timestamp: int, body: bytes) -> list[tuple[str, str]]:
        """Return ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.

        :param timestamp: seconds since the epoch.
        """
        signatures = " ".join(signed(key, identifier, timestamp, body) for key in self._keys)
        return [
            ("webhook-id", identifier),
            ("webhook-timestamp", str(timestamp)),
            ("webhook-signature", signatures),
        ]

    def __repr__(self) -> str:
        return f"<{len(self._keys)} secrets>"


def signed(key: bytes, identifier: str, timestamp: int, body: bytes) -> str:
    """Return ``v1,`` and the signature in base64."""
    digest = hmac.new(key, b"%s.%d.%s" % (identifier.encode("utf-8"), timestamp, body), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode('ascii')}"


def lines_of(text: str) -> list[str]:
    """Return the secrets in a file: one per line. Empty lines and comments (#) are ignored."""
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def _key(secret: str) -> bytes:
    if not secret.startswith(PREFIX):
        return secret.encode("utf-8")
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"a secret that begins with {PREFIX} must continue in base64") from None
    if not key:
        raise ValueError("a secret is empty")
    return key
