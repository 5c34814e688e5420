"""Certificates from PEM files: selected by the name that the client requests, and reloaded while the server runs.

Pass a :class:`Certificates` as ``tls_context``. To renew a certificate, replace its file; the next handshake uses the
new one. Open sessions are not affected, and no reload command is needed.
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

LOOK_AGAIN = 1.0  # minimum seconds between checks of the files, however many clients connect
DEFAULT = "default"  # the certificate in a directory for clients that request no name or an unknown one

Stamp = tuple[int, int, int, int]
Signature = tuple[Stamp | None, ...]


class BadCertificate(ValueError):
    """A certificate, its key or its file is not usable. The message says which and why."""


class Unreadable(BadCertificate):
    """A file cannot be read. This may be temporary, and may end without a change of the file."""


class Files(NamedTuple):
    """The files of one certificate."""

    certificate: Path  #: the certificate, followed by its chain
    key: Path | None = None  #: the key, unless it is in the certificate's file
    client_ca: Path | None = None  #: the authorities of the clients' certificates

    @property
    def name(self) -> str:
        """The name of the files in their directory."""
        path = self.certificate
        return path.parent.name if path.name == "fullchain.pem" else path.stem

    def signature(self) -> Signature:
        """A value that changes when a file is changed."""
        return tuple(_stamp(path) for path in self)


class Loaded(NamedTuple):
    """A certificate that is ready for use."""

    options: CertificateOptions
    names: frozenset[str]  #: the DNS names that it is for, in lower case


class _Entry:
    """The last good version of a certificate, and the signature of its files when they were last read."""

    def __init__(self, signature: Signature, loaded: Loaded | None) -> None:
        self.signature = signature
        self.loaded = loaded
        self.told: set[str] = set()  # the errors logged since it was last good
        self.is_bad = False  # whether the current files cannot be used, so that an earlier version is served


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The server's certificates, from files that may be replaced at any time.

    Files are checked when a client connects, at most once a second. If a file is incomplete, or its key does not match,
    the previous certificate stays in use and a message is logged, once for each change of the file. An unreadable file
    is tried again at each check. The minimum version is TLS 1.2.

    :param path: a PEM file with the certificate, followed by its chain, and optionally its key. Or a directory of them:
        each ``NAME.pem`` has its key inside or in ``NAME.key``, and each directory ``NAME`` has ``fullchain.pem`` and
        ``privkey.pem``. The server uses the one whose DNS names match the name that the client requests (SNI, RFC 6066
        3), or else the one called ``default``, or else the first by name. A directory that has ``fullchain.pem`` and
        ``privkey.pem`` itself is one certificate.
    :param key: the PEM file of the key, if it is not in the certificate's file.
    :param client_ca: a PEM file with the authorities for clients' certificates.
    :param require_client_certificate: True: the handshake fails if the client has no certificate.
    :param clock: returns the time in seconds.
    :raises BadCertificate: if a file is not usable.
    :raises ValueError: if the parameters contradict each other.
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
            raise ValueError("require_client_certificate needs client_ca, the authorities of client certificates")
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
            raise ValueError(f"{path} is a directory, which contains the keys, too; do not give a key")
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
            raise BadCertificate(f"{path}: there is no certificate in this directory")
        self._look_again = clock() + LOOK_AGAIN
        self._arrange()

    def __repr__(self) -> str:
        return f"<Certificates of {self._path}>"

    def reload(self) -> bool:
        """Read the files now. Errors are logged again.

        :return: whether the current versions of all files are served.
        """
        self._cannot_list.clear()
        for entry in self._entries.values():
            if entry.is_bad:
                entry.signature = ()
                entry.told.clear()
        self._look()
        return not self._cannot_list and not any(entry.is_bad for entry in self._entries.values())

    # Called by Twisted and OpenSSL

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """Return the connection for the next handshake, with the current certificates."""
        if self._clock() >= self._look_again:
            self._look()
        return SSL.Connection(self._default.getContext())

    def _context_for(self, server_name: bytes | None) -> SSL.Context | None:
        """Return the context for the name that a client requests, or None for the default."""
        if server_name is None:
            return None
        name = server_name.decode("ascii", "replace").lower().rstrip(".")
        # RFC 6125 6.4.3: a wildcard matches exactly one label.
        options = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        return None if options is None else options.getContext()

    # Checking the files

    def _list_files(self) -> tuple[list[Files], dict[Path, str]]:
        """Return the existing files, and the paths that cannot be read with the reason."""
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
        self._look_again = self._clock() + LOOK_AGAIN
        found, unreadable = self._list_files()
        for reason in sorted(set(unreadable.values()) - self._cannot_list):
            log.error("{error}; its certificates stay in use", error=reason)
        self._cannot_list = set(unreadable.values())
        # Files that cannot be seen at present are not treated as removed.
        hidden = {path for path in self._entries if not unreadable.keys().isdisjoint((path, *path.parents))}
        changed = self._drop_all_but({files.certificate for files in found} | hidden)
        try:
            for files in found:
                changed = self._look_at(files) or changed
        finally:
            if changed:
                self._arrange()

    def _drop_all_but(self, there: set[Path]) -> bool:
        """Drop the certificates whose files are gone, unless no good one would be left. Return True if one was
        dropped."""
        gone = self._entries.keys() - there
        if not gone or all(entry.loaded is None for path, entry in self._entries.items() if path in there):
            return False
        for path in gone:
            del self._entries[path]
        return True

    def _look_at(self, files: Files) -> bool:
        """Read the files if they have changed. Return True if there is a new certificate."""
        signature = files.signature()
        entry = self._entries.setdefault(files.certificate, _Entry((), None))
        if entry.signature == signature:
            return False
        try:
            entry.loaded = self._load(files)
        except Unreadable as error:
            # They may become readable without a change, so they are tried again; but the error is logged once.
            entry.signature = ()
            if str(error) not in entry.told:
                log.error("{error}; the previous certificate stays in use", error=str(error))
            entry.told.add(str(error))
            entry.is_bad = True
            return False
        except BadCertificate as error:
            entry.signature = signature  # do not read them again before they change
            entry.is_bad = True
            log.error("{error}; the previous certificate stays in use", error=str(error))
            return False
        entry.signature = signature
        entry.is_bad = False
        entry.told.clear()
        log.info("{path} is in use now", path=str(files.certificate))
        return True

    def _load(self, files: Files) -> Loaded:
        context_for = self._context_for if self._is_directory else None
        return load(files, self._require_client_certificate, contextForServerName=context_for)

    def _arrange(self) -> None:
        """Update the tables that handshakes use."""
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

    :param options: further options for ``CertificateOptions``.
    :raises BadCertificate: if a file cannot be read or is not valid, or the key does not match the certificate.
    """
    try:
        return _load(files, require_client_certificate, options)
    except BadCertificate:
        raise
    except Exception as error:  # invalid certificates cause exceptions that are documented nowhere
        raise BadCertificate(f"{files.certificate}: {_reason(error)}") from error


def _load(files: Files, require_client_certificate: bool, options: dict[str, Any]) -> Loaded:
    pem = _read(files.certificate)
    chain = _parse(files.certificate, "certificate", x509.load_pem_x509_certificates, pem)
    key_path = files.certificate if b"PRIVATE KEY-----" in pem else files.key
    if key_path is None or not os.path.lexists(key_path):
        beside = "" if key_path is None else f", and no file {key_path}"
        raise BadCertificate(f"{files.certificate}: it contains no private key{beside}")
    key = _parse(key_path, "private key", _load_key, _read(key_path))
    if key.public_key() != chain[0].public_key():
        raise BadCertificate(f"{files.certificate}: the private key in {key_path} does not match the first certificate")
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

    :raises BadCertificate: if it cannot be read or is not valid.
    """
    found: list[x509.Certificate] = _parse(
        Path(path), "certificate", x509.load_pem_x509_certificates, _read(Path(path))
    )
    return found


def dns_names(certificate: x509.Certificate) -> frozenset[str]:
    """Return the DNS names of a certificate, in lower case."""
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
    except Exception as error:  # cryptography raises several, which change between versions
        reason = str(error).partition(". See ")[0]
        raise BadCertificate(f"{path}: no {what} can be read: {reason}") from error


def _reason(error: Exception) -> str:
    """Return the text of an exception. Those of OpenSSL have a list of (library, function, reason) instead."""
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return ", ".join(str(each[-1]) for each in error.args[0]) or "TLS cannot use it"
    return str(error) or type(error).__name__


def _mode(path: Path) -> int:
    """Return the mode of a file, or 0 if it does not exist.

    :raises OSError: if that cannot be determined.
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
    # Includes the inode's change time, which changes with the owner or the mode.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _warn_if_open(key: Path) -> None:
    with suppress(OSError):
        if stat.S_IMODE(key.stat().st_mode) & stat.S_IROTH:
            log.warn("{key}: all users of this host can read this private key", key=str(key))


def _warn_if_expired(path: Path, certificate: x509.Certificate) -> None:
    end = certificate.not_valid_after_utc
    if end < datetime.datetime.now(datetime.UTC):
        log.warn("{path}: the certificate has expired on {day}", path=str(path), day=f"{end:%Y-%m-%d}")
