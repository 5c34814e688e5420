"""TLS without setup: a certificate authority in memory, its certificates, and trust in it for clients.

Keys and certificates are made when needed and stay in memory, except for the authority's own certificate if a client
needs it as a file. Certificates can be deliberately invalid. For tests and experiments.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from zope.interface import implementer

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
DAY = datetime.timedelta(days=1)
YEAR = datetime.timedelta(days=365)


class Authority:
    """A certificate authority that is trusted only by clients configured to do so.

    :param name: the name in its certificate.

    >>> authority = Authority()
    >>> authority.pem.splitlines()[0]
    b'-----BEGIN CERTIFICATE-----'
    """

    def __init__(self, name: str = "txsmtpd's authority for tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = _now()
        self.certificate: x509.Certificate = (
            _builder(self._name, self._name, self._key, now - DAY, now + 10 * YEAR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )  #: its own certificate, which clients need to trust it
        self.pem: bytes = self.certificate.public_bytes(serialization.Encoding.PEM)  #: the same in PEM

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the authority's certificate into a file, atomically."""
        folder, name = os.path.split(os.path.abspath(path))
        descriptor, new = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(self.pem)
                os.fchmod(file.fileno(), 0o644)
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise

    # For servers

    def issue(
        self,
        *names: str,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
    ) -> CertificateOptions:
        """Return a ``tls_context`` with a certificate for the names.

        :param names: domains and IP addresses; by default those of the local host.
        :param not_before: the start of its validity. Default: yesterday.
        :param not_after: the end of its validity. Default: in a year.
        """
        names = names or LOCAL_NAMES
        now = _now()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = (
            _builder(subject, self._name, key, not_before or now - DAY, not_after or now + YEAR)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        # Twisted passes these on to pyOpenSSL.
        pair: dict[str, Any] = {"privateKey": key, "certificate": certificate}
        return CertificateOptions(**pair, raiseMinimumTo=TLSVersion.TLSv1_2)

    def wrong(self, how: str) -> Any:
        """Return a ``tls_context`` that clients should reject.

        :param how: ``expired``, ``not-yet-valid``, ``wrong-name``, ``unknown-authority``, or ``stalled`` (a handshake
            that never ends).
        :raises ValueError: for anything else.
        """
        make = WRONG.get(how)
        if make is None:
            raise ValueError(f"how must be one of {', '.join(WRONG)}, not {how!r}")
        return make(self)

    # For clients

    def client_context(self) -> ssl.SSLContext:
        """Return a client context that verifies servers and trusts only this authority, for smtplib, asyncio etc."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode("ascii"))
        return context

    @cached_property
    def trust_root(self) -> Any:
        """Return a ``trustRoot`` with only this authority, for Twisted's ``optionsForClientTLS`` and others."""
        return trustRootFromCertificates([Certificate.loadPEM(self.pem)])

    def client_options(self, name: str = "localhost") -> Any:
        """Return the TLS options for a Twisted client.

        :param name: the server's name, which the client verifies.
        """
        return optionsForClientTLS(name, trustRoot=self.trust_root)


@cache
def authority() -> Authority:
    """Return the authority of this process. Tests share it because making one takes a moment."""
    return Authority()


@implementer(IOpenSSLServerConnectionCreator)
class StalledHandshake:
    """A ``tls_context`` whose handshakes start but never end."""

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return _Stalled(SSL.Context(SSL.TLS_METHOD))


class _Stalled(SSL.Connection):
    def do_handshake(self) -> NoReturn:
        raise SSL.WantReadError


def _expired(authority: Authority) -> Any:
    now = _now()
    return authority.issue(not_before=now - 2 * DAY, not_after=now - DAY)


def _not_yet_valid(authority: Authority) -> Any:
    now = _now()
    return authority.issue(not_before=now + DAY, not_after=now + 2 * DAY)


WRONG: Mapping[str, Callable[[Authority], Any]] = {
    "expired": _expired,
    "not-yet-valid": _not_yet_valid,
    "wrong-name": lambda authority: authority.issue("another.example"),
    "unknown-authority": lambda authority: Authority("nobody's authority").issue(),
    "stalled": lambda authority: StalledHandshake(),
}
"""The ways in which TLS can be wrong, with the functions that make each."""


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def share_certificate(options: CertificateOptions) -> int:
    """Write a certificate from :meth:`Authority.issue` into memory that other processes can inherit.

    :return: a file descriptor.
    """
    issued: Any = options
    pem = issued.privateKey.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + issued.certificate.public_bytes(serialization.Encoding.PEM)
    descriptor = os.memfd_create("txsmtpd certificate")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(pem)
    return descriptor


def shared_certificate(descriptor: int) -> CertificateOptions:
    """Return the ``tls_context`` that another process has shared."""
    pem = os.pread(descriptor, 2**20, 0)
    pair: dict[str, Any] = {
        "privateKey": serialization.load_pem_private_key(pem, None),
        "certificate": x509.load_pem_x509_certificate(pem),
    }
    return CertificateOptions(**pair, raiseMinimumTo=TLSVersion.TLSv1_2)
