"""Certificates from PEM files: chosen by the name that the client asks for, and renewed while the server runs.

A :class:`Certificates` is what ``tls_context`` takes. Whoever renews a certificate replaces its file; the next
handshake is served the new one. No session notices, and nobody needs to be told.
"""

from __future__ import annotations

import datetime
import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.logger import Logger
from zope.interface import implementer

log = Logger(namespace="txsmtpd")

LOOK_AGAIN = 1.0  # seconds between looks at the files: a renewal is seen soon, and a flood of clients costs no more
DEFAULT = "default"  # the certificate of a directory for clients that ask for no name, or for an unknown one

Stamp = tuple[int, int, int, int]
Signature = tuple[Stamp | None, ...]


class BadCertificate(ValueError):
    """A certificate, its key or its file will not do; the text says which and why."""


class Unreadable(BadCertificate):
    """The system does not let a file be read: for now, perhaps, and without a change of the file when it does again."""


class Files(NamedTuple):
    """The files that one certificate is made of."""

    certificate: Path  #: with the chain behind it
    key: Path | None = None  #: where the key is, unless it is in the certificate's own file
    client_ca: Path | None = None  #: the authorities of the clients' certificates

    @property
    def name(self) -> str:
        """What the files are called in their directory."""
        path = self.certificate
        return path.parent.name if path.name == "fullchain.pem" else path.stem

    def signature(self) -> Signature:
        """Differs once a file has changed."""
        return tuple(_stamp(path) for path in self)


class Loaded(NamedTuple):
    """A certificate that can be served."""

    options: CertificateOptions
    names: frozenset[str]  #: the DNS names that it is for, in lower case


class _Entry:
    """A certificate as it was last good, and how its files looked when they were last read."""

    def __init__(self, signature: Signature, loaded: Loaded | None) -> None:
        self.signature = signature
        self.loaded = loaded
        self.told: set[str] = set()  # why it could not be read, since it was last good


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The server's certificates, from files that may be replaced at any time.

    Files are looked at when a client comes, at most once a second. A file that is half written, or whose key does
    not fit, changes nothing: the certificate before it is kept, and the log tells so, once for each change of the file.
    One that may not be read is tried again at each look. TLS 1.2 is the least that is spoken.

    :param path: a PEM file with the certificate, its chain behind it, and perhaps its key. Or a directory of such: each
        ``NAME.pem`` with its key within or in ``NAME.key``, and each directory ``NAME`` with ``fullchain.pem`` and
        ``privkey.pem``. The client is given the one whose DNS names fit the name that it asks for (SNI, RFC 6066 3);
        the one called ``default``, or else the first by name, is for the others. A directory that has ``fullchain.pem``
        and ``privkey.pem`` itself is one certificate.
    :param key: the PEM file of the key, where it is not in the certificate's own.
    :param client_ca: a PEM file of the authorities whose certificates clients may show.
    :param require_client_certificate: whether a client that shows none fails the handshake.
    :param clock: tells the time in seconds.
    :raises BadCertificate: if a file will not do.
    :raises ValueError: if the parameters do not go together.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: str | os.PathLike[str] | None = None,
        *,
        client_ca: str | os.PathLike[str] | None = None,
        require_client_certificate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if require_client_certificate and client_ca is None:
            raise ValueError("client certificates cannot be required without the authorities that they may be from")
        self._path = Path(path)
        self._key = None if key is None else Path(key)
        self._client_ca = None if client_ca is None else Path(client_ca)
        self._require_client_certificate = require_client_certificate
        self._clock = clock
        try:
            self._is_directory = stat.S_ISDIR(_mode(self._path))
            own = self._path / "fullchain.pem", self._path / "privkey.pem"
            is_one = self._is_directory and all(_mode(each) for each in own)
        except OSError as error:
            raise Unreadable(f"{error.filename}: {error.strerror}") from error
        if self._is_directory and key is not None:
            raise ValueError(f"{path} is a directory, where each key lies beside its certificate: no key can be given")
        if is_one:
            self._is_directory = False
            self._path, self._key = own
        self._cannot_list: set[str] = set()
        self._entries: dict[Path, _Entry] = {}
        found, unreadable = self._list_files()
        for reason in unreadable.values():
            raise Unreadable(reason)
        for files in found:
            self._entries[files.certificate] = _Entry(files.signature(), self._load(files))
        if not self._entries:
            raise BadCertificate(f"{path}: no certificate is in this directory")
        self._look_again = clock() + LOOK_AGAIN
        self._arrange()

    def __repr__(self) -> str:
        return f"<Certificates of {self._path}>"

    def reload(self) -> None:
        """Look at the files now."""
        self._look_again = self._clock() + LOOK_AGAIN
        self._look()

    # What Twisted and OpenSSL ask for

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """The connection for the next handshake, with the certificates as they are now."""
        if self._clock() >= self._look_again:
            self.reload()
        return SSL.Connection(self._default.getContext())

    def _context_for(self, server_name: bytes | None) -> SSL.Context | None:
        """The context for the name that a client asks for; None: the default has to do."""
        if server_name is None:
            return None
        name = server_name.decode("ascii", "replace").lower().rstrip(".")
        # RFC 6125 6.4.3: the asterisk of a wildcard stands for one label.
        options = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        return None if options is None else options.getContext()

    # Looking at the files

    def _list_files(self) -> tuple[list[Files], dict[Path, str]]:
        """What there is, and what cannot be looked at, with the reason."""
        if not self._is_directory:
            return [Files(self._path, self._key, self._client_ca)], {}
        found: list[Files] = []
        unreadable: dict[Path, str] = {}
        try:
            paths = sorted(self._path.iterdir())
        except OSError as error:
            return found, {self._path: f"{self._path}: {error.strerror}"}
        for path in paths:
            if path.name.startswith("."):
                continue
            try:
                if path.suffix == ".pem" and not stat.S_ISDIR(_mode(path)):
                    found.append(Files(path, path.with_suffix(".key"), self._client_ca))
                elif _mode(path / "fullchain.pem"):
                    found.append(Files(path / "fullchain.pem", path / "privkey.pem", self._client_ca))
            except OSError as error:
                unreadable[path] = f"{path}: {error.strerror}"
        return found, unreadable

    def _look(self) -> None:
        found, unreadable = self._list_files()
        for reason in sorted(set(unreadable.values()) - self._cannot_list):
            log.error("{error}; the certificates there are kept as they were", error=reason)
        self._cannot_list = set(unreadable.values())
        # What cannot be seen just now is not gone.
        hidden = {path for path in self._entries if not unreadable.keys().isdisjoint((path, *path.parents))}
        changed = self._drop_all_but({files.certificate for files in found} | hidden)
        try:
            for files in found:
                changed = self._look_at(files) or changed
        finally:
            if changed:
                self._arrange()

    def _drop_all_but(self, there: set[Path]) -> bool:
        """Drop the certificates whose files are gone, unless nothing good would be left; whether any was dropped."""
        gone = self._entries.keys() - there
        if not gone or all(entry.loaded is None for path, entry in self._entries.items() if path in there):
            return False
        for path in gone:
            del self._entries[path]
        return True

    def _look_at(self, files: Files) -> bool:
        """Read the files if they have changed; whether there is a new certificate now."""
        signature = files.signature()
        entry = self._entries.setdefault(files.certificate, _Entry((), None))
        if entry.signature == signature:
            return False
        try:
            entry.loaded = self._load(files)
        except Unreadable as error:
            # The files need not change before they can be read, so they are tried again; but it is told once.
            entry.signature = ()
            if str(error) not in entry.told:
                log.error("{error}; what was served before is kept", error=str(error))
            entry.told.add(str(error))
            return False
        except BadCertificate as error:
            entry.signature = signature  # there is no use in reading them again as they are
            log.error("{error}; what was served before is kept", error=str(error))
            return False
        entry.signature = signature
        entry.told.clear()
        log.info("{path} is served from now on", path=str(files.certificate))
        return True

    def _load(self, files: Files) -> Loaded:
        context_for = self._context_for if self._is_directory else None
        return load(files, self._require_client_certificate, contextForServerName=context_for)

    def _arrange(self) -> None:
        """Put the certificates where a handshake looks for them."""
        good = [(path, entry.loaded) for path, entry in sorted(self._entries.items()) if entry.loaded is not None]
        by_name: dict[str, CertificateOptions] = {}
        for _, loaded in good:
            for name in loaded.names:
                by_name.setdefault(name, loaded.options)
        self._by_name: Mapping[str, CertificateOptions] = by_name
        named_default = [loaded for path, loaded in good if Files(path).name == DEFAULT]
        self._default = (named_default or [good[0][1]])[0].options


def load(files: Files, require_client_certificate: bool = False, **options: Any) -> Loaded:
    """Read a certificate with its chain and its key.

    :param options: further ones for ``CertificateOptions``.
    :raises BadCertificate: if a file cannot be read or will not do, or the key does not fit the certificate.
    """
    try:
        return _load(files, require_client_certificate, options)
    except BadCertificate:
        raise
    except Exception as error:  # a certificate can be wrong in more ways than are listed anywhere
        raise BadCertificate(f"{files.certificate}: {_reason(error)}") from error


def _load(files: Files, require_client_certificate: bool, options: dict[str, Any]) -> Loaded:
    pem = _read(files.certificate)
    chain = _parse(files.certificate, "certificate", x509.load_pem_x509_certificates, pem)
    key_path = files.certificate if b"PRIVATE KEY-----" in pem else files.key
    if key_path is None or not os.path.lexists(key_path):
        beside = "" if key_path is None else f", and no file {key_path}"
        raise BadCertificate(f"{files.certificate}: there is no private key in it{beside}")
    key = _parse(key_path, "private key", _load_key, _read(key_path))
    if key.public_key() != chain[0].public_key():
        raise BadCertificate(f"{files.certificate}: the private key in {key_path} does not fit the first certificate")
    if files.client_ca is not None:
        authorities = load_authorities(files.client_ca)
        options["verify"] = True
        options["caCerts"] = [crypto.X509.from_cryptography(each) for each in authorities]
        options["requireCertificate"] = require_client_certificate
    served = CertificateOptions(
        privateKey=key,
        certificate=chain[0],
        extraCertChain=chain[1:],
        raiseMinimumTo=TLSVersion.TLSv1_2,
        **options,
    )
    served.getContext()
    loaded = Loaded(served, dns_names(chain[0]))
    _warn_if_open(key_path)
    _warn_if_expired(files.certificate, chain[0])
    return loaded


def load_authorities(path: str | os.PathLike[str]) -> list[x509.Certificate]:
    """Read a file of certificates.

    :raises BadCertificate: if it cannot be read or will not do.
    """
    found: list[x509.Certificate] = _parse(
        Path(path), "certificate", x509.load_pem_x509_certificates, _read(Path(path))
    )
    return found


def dns_names(certificate: x509.Certificate) -> frozenset[str]:
    """The DNS names that a certificate is for, in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))


def _load_key(pem: bytes) -> Any:
    try:
        return serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError("the key is encrypted; use one without a passphrase") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def _parse(path: Path, what: str, parser: Callable[[bytes], Any], pem: bytes) -> Any:
    try:
        return parser(pem)
    except Exception as error:  # cryptography names several, and they change
        reason = str(error).partition(". See ")[0]
        raise BadCertificate(f"{path}: no {what} can be read: {reason}") from error


def _reason(error: Exception) -> str:
    """What an exception says; OpenSSL's have a list of (library, function, reason) instead of a text."""
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return ", ".join(str(each[-1]) for each in error.args[0]) or "TLS cannot use it"
    return str(error) or type(error).__name__


def _mode(path: Path) -> int:
    """The mode of a file; 0 if there is none.

    :raises OSError: if that cannot be told.
    """
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


def _stamp(path: Path | None) -> Stamp | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    # The time of the last change of the inode, too: it tells of a new owner or mode.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _warn_if_open(key: Path) -> None:
    with suppress(OSError):
        if stat.S_IMODE(key.stat().st_mode) & stat.S_IROTH:
            log.warn("{key}: everybody on this host can read this private key", key=str(key))


def _warn_if_expired(path: Path, certificate: x509.Certificate) -> None:
    end = certificate.not_valid_after_utc
    if end < datetime.datetime.now(datetime.UTC):
        log.warn("{path}: the certificate has expired on {day}", path=str(path), day=f"{end:%Y-%m-%d}")
