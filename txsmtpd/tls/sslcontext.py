"""Lets Twisted's TLS, which uses pyOpenSSL, work with an :class:`ssl.SSLContext`.

The key of an :class:`ssl.SSLContext` cannot be read, so the context cannot be converted to one of pyOpenSSL. Instead,
:class:`MemoryConnection` wraps an :class:`ssl.SSLObject` in the interface of pyOpenSSL's connections. Both libraries
can encrypt from memory to memory, without a socket.
"""

from __future__ import annotations

import ssl
from typing import Any, NoReturn

from cryptography import x509
from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer


@implementer(IOpenSSLServerConnectionCreator)
class SSLContextAdapter:
    """Makes the TLS connections of a server from an :class:`ssl.SSLContext`.

    :param context: a server context (``ssl.Purpose.CLIENT_AUTH``) with a certificate.
    :raises ValueError: if it is a client context.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        try:
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
        except ssl.SSLError as error:
            raise ValueError("an ssl.SSLContext for a server needs ssl.Purpose.CLIENT_AUTH, not SERVER_AUTH") from error
        self.context = context

    def serverConnectionForTLS(self, tlsProtocol: object) -> Any:
        """Return the connection for one client."""
        return MemoryConnection(self.context)


class MemoryConnection:
    """The part of the interface of :class:`OpenSSL.SSL.Connection` that a server needs."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def set_accept_state(self) -> None:
        """Do nothing: it is always the server's end."""

    def set_app_data(self, data: object) -> None:
        """Do nothing: the data are not used."""

    def do_handshake(self) -> None:
        """Continue the handshake.

        :raises WantReadError: if more data from the client is needed. Other methods raise it too.
        :raises Error: if it fails.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLError as error:
            _translate(error)

    def recv(self, size: int) -> bytes:
        """Return decrypted data from the client.

        :raises ZeroReturnError: if the client has ended TLS.
        """
        try:
            data = self._tls.read(size)
        except ssl.SSLError as error:
            _translate(error)
        if not data:
            raise ZeroReturnError
        return data

    def send(self, data: bytes) -> int:
        """Encrypt data, and return how many bytes of it were encrypted."""
        try:
            return self._tls.write(data)
        except ssl.SSLError as error:
            _translate(error)

    def shutdown(self) -> bool:
        """End TLS. Return True if the client has ended it too."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            _translate(error)
        return True

    # The buffers between TLS and the transport

    def bio_read(self, size: int) -> bytes:
        """Return encrypted data to send to the client."""
        data = self._outgoing.read(size)
        if not data:
            raise WantReadError
        return data

    def bio_write(self, data: bytes) -> int:
        """Take encrypted data received from the client."""
        return self._incoming.write(data)

    def bio_shutdown(self) -> None:
        """Signal that the client will send nothing more."""
        self._incoming.write_eof()

    # Properties of the connection

    def get_protocol_version_name(self) -> str | None:
        """Return the TLS version."""
        return self._tls.version()

    def get_cipher_name(self) -> str | None:
        """Return the cipher."""
        cipher = self._tls.cipher()
        return cipher and cipher[0]

    def get_peer_certificate(self, *, as_cryptography: bool = True) -> x509.Certificate | None:
        """Return the client's certificate, if one was requested and is valid."""
        certificate = self._tls.getpeercert(binary_form=True)
        return None if certificate is None else x509.load_der_x509_certificate(certificate)

    def get_servername(self) -> bytes | None:
        """Return None: the standard library passes the server name that the client requests only to a callback."""
        return None

    def get_alpn_proto_negotiated(self) -> bytes:
        """Return the protocol negotiated with ALPN."""
        return (self._tls.selected_alpn_protocol() or "").encode("ascii")


def _translate(error: ssl.SSLError) -> NoReturn:
    if isinstance(error, ssl.SSLWantReadError):
        raise WantReadError from None
    if isinstance(error, ssl.SSLZeroReturnError):
        raise ZeroReturnError from None
    # In the form of pyOpenSSL: library, function, reason.
    reason = "unexpected eof" if isinstance(error, ssl.SSLEOFError) else (error.reason or "").replace("_", " ").lower()
    raise Error([(error.library or "", "", reason)]) from error
