"""TLS by a context of the standard library, where Twisted's TLS wants OpenSSL connections of pyOpenSSL's kind.

An :class:`ssl.SSLContext` does not give its key away, so no other context can be made of it. But its connections can
pass for pyOpenSSL's: both encrypt from memory to memory.
"""

from __future__ import annotations

import ssl
from typing import Any, NoReturn

from cryptography import x509
from OpenSSL.SSL import Error, WantReadError, ZeroReturnError
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer


@implementer(IOpenSSLServerConnectionCreator)
class OfSSLContext:
    """What makes the TLS connections of a server from an :class:`ssl.SSLContext`.

    :param context: with a certificate, for a server (``ssl.Purpose.CLIENT_AUTH``).
    :raises ValueError: if it is for clients.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        try:
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
        except ssl.SSLError as error:
            raise ValueError("an ssl.SSLContext for a server is ssl.Purpose.CLIENT_AUTH, not SERVER_AUTH") from error
        self.context = context

    def serverConnectionForTLS(self, tlsProtocol: object) -> Any:
        """The connection for one client."""
        return MemoryConnection(self.context)


class MemoryConnection:
    """As much of :class:`OpenSSL.SSL.Connection` as a server needs."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def set_accept_state(self) -> None:
        """Be the server's end, as it is anyway."""

    def set_app_data(self, data: object) -> None:
        """Remember whose connection it is; nobody asks for it."""

    def do_handshake(self) -> None:
        """Go on with the handshake.

        :raises WantReadError: if the client must say more; so do all methods that need it to.
        :raises Error: if it fails.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLError as error:
            _translate(error)

    def recv(self, size: int) -> bytes:
        """What the client has said.

        :raises ZeroReturnError: if it has ended TLS.
        """
        try:
            data = self._tls.read(size)
        except ssl.SSLError as error:
            _translate(error)
        if not data:
            raise ZeroReturnError
        return data

    def send(self, data: bytes) -> int:
        """Encrypt; return how many octets of the data were."""
        try:
            return self._tls.write(data)
        except ssl.SSLError as error:
            _translate(error)

    def shutdown(self) -> bool:
        """End TLS; return whether the client has, too."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            _translate(error)
        return True

    # The memory that lies between TLS and the transport

    def bio_read(self, size: int) -> bytes:
        """What is to be sent to the client."""
        data = self._outgoing.read(size)
        if not data:
            raise WantReadError
        return data

    def bio_write(self, data: bytes) -> int:
        """What came from the client."""
        return self._incoming.write(data)

    def bio_shutdown(self) -> None:
        """Nothing more comes from the client."""
        self._incoming.write_eof()

    # What is known of the connection

    def get_protocol_version_name(self) -> str | None:
        """The version of TLS."""
        return self._tls.version()

    def get_cipher_name(self) -> str | None:
        """The cipher."""
        cipher = self._tls.cipher()
        return cipher and cipher[0]

    def get_peer_certificate(self, *, as_cryptography: bool = True) -> x509.Certificate | None:
        """The client's certificate, if it was asked for one and it is good."""
        certificate = self._tls.getpeercert(binary_form=True)
        return None if certificate is None else x509.load_der_x509_certificate(certificate)

    def get_servername(self) -> bytes | None:
        """The name by which the client asked for the server: the standard library tells it to a callback only."""
        return None

    def get_alpn_proto_negotiated(self) -> bytes:
        """The protocol that was agreed on by ALPN."""
        return (self._tls.selected_alpn_protocol() or "").encode("ascii")


def _translate(error: ssl.SSLError) -> NoReturn:
    if isinstance(error, ssl.SSLWantReadError):
        raise WantReadError from None
    if isinstance(error, ssl.SSLZeroReturnError):
        raise ZeroReturnError from None
    # As pyOpenSSL has it: library, function, reason.
    reason = "unexpected eof" if isinstance(error, ssl.SSLEOFError) else (error.reason or "").replace("_", " ").lower()
    raise Error([(error.library or "", "", reason)]) from error
