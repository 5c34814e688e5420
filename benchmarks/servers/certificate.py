"""The certificate of the servers on Twisted."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from twisted.internet.ssl import CertificateOptions


def tls_context(certificate: str, key: str) -> CertificateOptions:
    with open(certificate, "rb") as pem, open(key, "rb") as secret:
        return CertificateOptions(
            certificate=load_pem_x509_certificate(pem.read()),  # type: ignore[arg-type]
            privateKey=load_pem_private_key(secret.read(), None),  # type: ignore[arg-type]
        )
