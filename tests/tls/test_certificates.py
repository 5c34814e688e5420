"""Certificates from files: reading, selection, and reloading."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from tests.support import LoggingTestCase
from tests.support.programs import once
from tests.support.tls import TLSTestCase, authority, chain, combined, issue, secured, serial, trusting, write
from txsmtpd.tls import certificates
from txsmtpd.tls.certificates import BadCertificate, Certificates


def served(store: Certificates, name: str | None = None) -> int:
    """The serial number of the certificate that a client with this server name gets."""
    connection = store.serverConnectionForTLS(None)
    connection.set_accept_state()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    for _ in range(4):
        for shake in client.do_handshake, connection.do_handshake:
            with contextlib.suppress(ssl.SSLWantReadError, certificates.SSL.WantReadError):
                shake()
            if outgoing.pending:
                connection.bio_write(outgoing.read())
            with contextlib.suppress(certificates.SSL.WantReadError):
                incoming.write(connection.bio_read(65536))
    shown = client.getpeercert(binary_form=True)
    assert shown is not None
    return serial(shown)


def odd(*extensions: x509.ExtensionType, days: int = 1) -> bytes:
    """A self-signed certificate and its key. It is valid for a number of days, which may be negative."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd.test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=30))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


MALFORMED_NAMES = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x05garbage")


@contextlib.contextmanager
def failing(method: str, number: int, *paths: Path) -> Iterator[None]:
    """A method of these paths fails like the system call."""
    real = getattr(Path, method)

    def fails(path: Path, *arguments: Any, **more: Any) -> Any:
        if path in paths:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    with patch.object(Path, method, fails):
        yield


class StoreTestCase(LoggingTestCase):
    """A test case with a folder of certificates and a clock."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.clock = Clock()
        self.leaf = issue("mx.test")
        self.path = write(self.folder / "mx.pem", combined(self.leaf))

    def store(self, path: Path | None = None, key: Path | None = None, **options: Any) -> Certificates:
        return Certificates(path or self.path, key, clock=self.clock.seconds, **options)

    def refusal(self, path: Path | None = None, key: Path | None = None, **options: Any) -> str:
        """The error of the constructor."""
        return str(self.assertRaises(ValueError, self.store, path, key, **options))


class ReadingTests(StoreTestCase):
    """Valid files, and errors of invalid ones."""

    def test_combined(self) -> None:
        """One file with certificate, chain and key, in any order of key and certificate."""
        self.assertEqual(served(self.store()), serial(self.leaf))
        write(self.path, self.leaf.private_key_pem.bytes() + chain(self.leaf))
        self.assertEqual(served(self.store()), serial(self.leaf))

    def test_apart(self) -> None:
        """The key in a separate file."""
        certificate = write(self.folder / "a.crt", chain(self.leaf))
        key = write(self.folder / "a.key", self.leaf.private_key_pem.bytes())
        self.assertEqual(served(self.store(certificate, key)), serial(self.leaf))

    def test_missing(self) -> None:
        """A file that is not there."""
        gone = self.folder / "gone.pem"
        self.assertEqual(self.refusal(gone), f"{gone}: No such file or directory")

    def test_noKey(self) -> None:
        """A certificate without a key."""
        write(self.path, chain(self.leaf))
        self.assertEqual(self.refusal(), f"{self.path}: it contains no private key")
        missing = self.folder / "missing.key"
        self.assertIn(f"and no file {missing}", self.refusal(self.path, missing))

    def test_otherKey(self) -> None:
        """A key of another certificate."""
        key = write(self.folder / "other.key", issue("other.test").private_key_pem.bytes())
        write(self.path, chain(self.leaf))
        self.assertIn(f"the private key in {key} does not match", self.refusal(self.path, key))

    def test_noPEM(self) -> None:
        """Files that are not PEM, or are truncated."""
        for content in b"", b"hello", combined(self.leaf)[:300]:
            write(self.path, content)
            self.assertIn(f"{self.path}: no certificate can be read", self.refusal())

    def test_brokenKey(self) -> None:
        """A truncated key."""
        write(self.path, combined(self.leaf)[:-30])
        self.assertIn("no private key can be read", self.refusal())

    def test_encryptedKey(self) -> None:
        """An encrypted key."""
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(self.leaf.private_key_pem.bytes(), None)
        encrypted = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
        write(self.path, chain(self.leaf) + encrypted)
        self.assertIn("the key is encrypted", self.refusal())

    def test_directoryTakesNoKey(self) -> None:
        """A directory together with a key file is refused."""
        self.assertIn("do not give a key", self.refusal(self.folder, self.path))

    def test_emptyDirectory(self) -> None:
        """A directory without certificates."""
        self.path.unlink()
        self.assertIn("there is no certificate in this directory", self.refusal(self.folder))

    def test_clientAuthorities(self) -> None:
        """The authorities of clients must exist. They are required to require certificates."""
        self.assertIn("No such file", self.refusal(client_ca=self.folder / "ca"))
        self.assertIn("needs client_ca", self.refusal(require_client_certificate=True))

    def test_openKey(self) -> None:
        """A key that everybody can read is used, with a warning."""
        self.store()
        self.assertEqual(self.logged("warn"), [])
        self.path.chmod(0o644)
        self.store()
        self.assertEqual(self.logged("warn"), [f"{self.path}: all users of this host can read this private key"])

    def test_malformedNames(self) -> None:
        """A certificate whose names cannot be parsed."""
        write(self.path, odd(MALFORMED_NAMES))
        self.assertIn(f"{self.path}: ", self.refusal())
        self.assertRaises(BadCertificate, self.store)

    def test_expired(self) -> None:
        """An expired certificate is served, with one warning."""
        write(self.path, odd(days=-2))
        store = self.store()
        for _ in range(3):
            self.clock.advance(1)
            served(store)
        (line,) = self.logged("warn")
        self.assertIn(f"{self.path}: the certificate has expired on 20", line)

    def test_reasonOfOpenSSL(self) -> None:
        """An error of OpenSSL is shown as text, not as a list."""
        error = certificates.SSL.Error([("SSL routines", "", "ee key too small"), ("x", "y", "z")])
        with patch.object(certificates.CertificateOptions, "getContext", side_effect=error):
            self.assertEqual(self.refusal(), f"{self.path}: ee key too small, z")
        with patch.object(certificates.CertificateOptions, "getContext", side_effect=certificates.SSL.Error()):
            self.assertEqual(self.refusal(), f"{self.path}: Error")

    def test_directoryThatIsOne(self) -> None:
        """A directory of an ACME client for one name is one certificate."""
        one = self.folder / "one.test"
        one.mkdir()
        for name, content in {
            "fullchain.pem": chain(self.leaf),
            "privkey.pem": self.leaf.private_key_pem.bytes(),
            "cert.pem": chain(self.leaf),
            "chain.pem": authority().cert_pem.bytes(),
        }.items():
            write(one / name, content)
        store = self.store(one)
        self.assertEqual(served(store), serial(self.leaf))
        new = issue("one.test")
        write(one / "fullchain.pem", chain(new))
        write(one / "privkey.pem", new.private_key_pem.bytes())
        self.clock.advance(1)
        self.assertEqual(served(store), serial(new))
        self.assertIn("do not give a key", self.refusal(one, self.path))

    def test_unreadableAtTheStart(self) -> None:
        """At the start, all files must be readable."""
        (self.folder / "one.test").mkdir()
        with failing("stat", errno.EACCES, self.folder / "one.test" / "fullchain.pem"):
            self.assertEqual(self.refusal(self.folder), f"{self.folder / 'one.test'}: Permission denied")
        with failing("stat", errno.EACCES, self.path):
            self.assertEqual(self.refusal(), f"{self.path}: Permission denied")


class RenewalTests(StoreTestCase):
    """Files that change while the server runs."""

    def test_unreadable(self) -> None:
        """An unreadable file is tried again without a change. The error is logged once for each reason."""
        store = self.store()
        new = issue("mx.test")
        write(self.path, combined(new))
        for number in errno.EACCES, errno.EMFILE, errno.EACCES:
            with failing("read_bytes", number, self.path):
                for _ in range(3):
                    self.clock.advance(1)
                    self.assertEqual(served(store), serial(self.leaf))
        self.assertEqual(
            self.logged("error"),
            [
                f"{self.path}: {reason}; the previous certificate stays in use"
                for reason in ("Permission denied", "Too many open files")
            ],
        )
        self.clock.advance(1)
        self.assertEqual(served(store), serial(new))
        with patch.object(certificates, "_read", self.fail):
            self.clock.advance(1)
            served(store)
        write(self.path, combined(self.leaf))
        with failing("read_bytes", errno.EACCES, self.path):
            self.clock.advance(1)
            served(store)
        self.assertEqual(len(self.logged("error")), 3)

    def test_reload(self) -> None:
        """A reload returns whether all files are served, and logs the reasons each time."""
        store = self.store()
        self.assertTrue(store.reload())
        write(self.path, b"no certificate")
        for times in (1, 2):
            self.assertFalse(store.reload())
            self.assertEqual(len(self.logged("error")), times)
        write(self.path, combined(self.leaf))
        self.assertTrue(store.reload())

    def test_stamp(self) -> None:
        """A file that is overwritten with the same size and time counts as changed."""
        before = self.path.stat()
        stamp = certificates._stamp(self.path)
        content = self.path.read_bytes()
        for _ in range(100):
            time.sleep(0.001)  # the clock of a file system is coarse
            self.path.write_bytes(content)
            os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertNotEqual(certificates._stamp(self.path), stamp)
        self.assertEqual(self.path.stat().st_mtime_ns, before.st_mtime_ns)

    def test_replaced(self) -> None:
        """A replaced file is served within a second."""
        store = self.store()
        new = issue("mx.test")
        write(self.path, combined(new))
        self.assertEqual(served(store), serial(self.leaf))
        self.clock.advance(1)
        self.assertEqual(served(store), serial(new))
        self.assertEqual(self.logged("info"), [f"{self.path} is in use now"])

    def test_writtenInPlace(self) -> None:
        """So is an overwritten file."""
        store = self.store()
        new = issue("mx.test")
        self.path.write_bytes(combined(new) + b"\n")
        self.clock.advance(1)
        self.assertEqual(served(store), serial(new))

    def test_halfWritten(self) -> None:
        """With a partly written file, the old certificate stays in use, and the error is logged once. When the file is
        complete, it is served."""
        store = self.store()
        new = issue("mx.test")
        self.path.write_bytes(combined(new)[:400])
        for _ in range(3):
            self.clock.advance(1)
            self.assertEqual(served(store), serial(self.leaf))
        (line,) = self.logged("error")
        self.assertIn("no certificate can be read", line)
        self.assertIn("the previous certificate stays in use", line)
        self.path.write_bytes(combined(new)[:500])
        self.clock.advance(1)
        self.assertEqual(served(store), serial(self.leaf))
        self.assertEqual(len(self.logged("error")), 2)
        self.path.write_bytes(combined(new))
        self.clock.advance(1)
        self.assertEqual(served(store), serial(new))
        self.assertEqual(len(self.logged("error")), 2)

    def test_certificateBeforeKey(self) -> None:
        """If certificate and key are renewed one after the other, the old pair is served in between."""
        certificate = write(self.folder / "a.crt", chain(self.leaf))
        key = write(self.folder / "a.key", self.leaf.private_key_pem.bytes())
        store = self.store(certificate, key)
        new = issue("mx.test")
        write(certificate, chain(new))
        self.clock.advance(1)
        self.assertEqual(served(store), serial(self.leaf))
        self.assertIn("does not match", self.logged("error")[0])
        write(key, new.private_key_pem.bytes())
        self.clock.advance(1)
        self.assertEqual(served(store), serial(new))
        self.assertEqual(len(self.logged("error")), 1)

    def test_gone(self) -> None:
        """If a file is missing, its certificate stays in use, and the error is logged once."""
        store = self.store()
        self.path.unlink()
        for _ in range(3):
            self.clock.advance(1)
            self.assertEqual(served(store), serial(self.leaf))
        self.assertEqual(len(self.logged("error")), 1)

    def test_symbolicLink(self) -> None:
        """A link to another file counts as a change."""
        link = self.folder / "live"
        link.symlink_to(self.path.name)
        store = self.store(link)
        new = issue("mx.test")
        write(self.folder / "mx2.pem", combined(new))
        link.unlink()
        link.symlink_to("mx2.pem")
        self.clock.advance(1)
        self.assertEqual(served(store), serial(new))

    def test_clientAuthorities(self) -> None:
        """New authorities of clients are noticed like a new certificate."""
        authorities = write(self.folder / "ca.crt", authority().cert_pem.bytes())
        store = self.store(client_ca=authorities)
        write(authorities, authority().cert_pem.bytes() * 2)
        self.clock.advance(1)
        served(store)
        self.assertEqual(len(self.logged("info")), 1)

    def test_looksSeldom(self) -> None:
        """Files are checked at most once a second, and unchanged files are not read."""
        looks: list[Path | None] = []
        stamp, read = certificates._stamp, certificates._read
        store = self.store()
        with (
            patch.object(certificates, "_stamp", lambda path: looks.append(path) or stamp(path)),
            patch.object(certificates, "_read", self.fail),
        ):
            for _ in range(1000):
                store.serverConnectionForTLS(None)
            self.assertEqual(looks, [])
            self.clock.advance(1)
            for _ in range(1000):
                store.serverConnectionForTLS(None)
            self.assertEqual(looks.count(self.path), 1)
        self.assertIs(certificates._read, read)


class DirectoryTests(StoreTestCase):
    """A directory of certificates, selected by name."""

    def setUp(self) -> None:
        super().setUp()
        self.wild = issue("*.wild.test", "Other.Test")
        write(self.folder / "wild.pem", combined(self.wild))

    def test_names(self) -> None:
        """Exact names and wildcards, case-insensitively. Other names get the first file by name."""
        store = self.store(self.folder)
        for name, leaf in {
            "mx.test": self.leaf,
            "MX.Test": self.leaf,
            "other.test": self.wild,
            "a.wild.test": self.wild,
            "b.a.wild.test": self.leaf,  # the asterisk matches only one label
            "wild.test": self.leaf,
            "unknown.test": self.leaf,
            None: self.leaf,
        }.items():
            self.assertEqual(served(store, name), serial(leaf), name)

    def test_default(self) -> None:
        """A file called default.pem is used for other names."""
        other = issue("zzz.test")
        write(self.folder / "default.pem", combined(other))
        store = self.store(self.folder)
        self.assertEqual([served(store, "unknown.test"), served(store)], [serial(other)] * 2)
        self.assertEqual(served(store, "mx.test"), serial(self.leaf))

    def test_keysBeside(self) -> None:
        """Keys may be next to their certificates. Directories of ACME clients count, too."""
        apart, live = issue("apart.test"), issue("live.test")
        write(self.folder / "apart.pem", chain(apart))
        write(self.folder / "apart.key", apart.private_key_pem.bytes())
        (self.folder / "live.test").mkdir()
        write(self.folder / "live.test" / "fullchain.pem", chain(live))
        write(self.folder / "live.test" / "privkey.pem", live.private_key_pem.bytes())
        (self.folder / "README").write_text("no certificate")
        (self.folder / ".hidden.pem").write_text("no certificate")
        store = self.store(self.folder)
        self.assertEqual([served(store, name) for name in ("apart.test", "live.test")], [serial(apart), serial(live)])

    def test_bad(self) -> None:
        """At the start, every file must be valid."""
        bad = write(self.folder / "bad.pem", b"hello")
        self.assertIn(str(bad), self.refusal(self.folder))

    def test_renewed(self) -> None:
        """One of them is renewed."""
        store = self.store(self.folder)
        new = issue("mx.test")
        write(self.path, combined(new))
        self.clock.advance(1)
        self.assertEqual([served(store, "mx.test"), served(store, "a.wild.test")], [serial(new), serial(self.wild)])

    def test_comesAndGoes(self) -> None:
        """A new file is served. A removed one is not served any more, except the last one."""
        store = self.store(self.folder)
        new = issue("new.test")
        path = write(self.folder / "new.pem", combined(new))
        self.clock.advance(1)
        self.assertEqual(served(store, "new.test"), serial(new))
        path.unlink()
        self.clock.advance(1)
        self.assertEqual(served(store, "new.test"), serial(self.leaf))
        for each in self.folder.glob("*.pem"):
            each.unlink()
        self.clock.advance(1)
        self.assertEqual(served(store, "mx.test"), serial(self.leaf))

    def test_badNewcomer(self) -> None:
        """A new invalid file changes nothing, and the error is logged once."""
        store = self.store(self.folder)
        write(self.folder / "aaa.pem", b"hello")
        for _ in range(3):
            self.clock.advance(1)
            self.assertEqual(served(store), serial(self.leaf))
        self.assertEqual(len(self.logged("error")), 1)

    def test_badOneAmongOthers(self) -> None:
        """A certificate whose names cannot be parsed does not prevent the renewal of the others."""
        store = self.store(self.folder)
        before = write(self.folder / "aaa.pem", odd(MALFORMED_NAMES))
        behind = write(self.folder / "zzz.pem", odd(MALFORMED_NAMES))
        new = issue("mx.test")
        write(self.path, combined(new))
        for _ in range(3):
            self.clock.advance(1)
            self.assertEqual(served(store, "mx.test"), serial(new))
        told_before, told_behind = self.logged("error")
        self.assertIn(str(before), told_before)
        self.assertIn(str(behind), told_behind)

    def test_surpriseAmongOthers(self) -> None:
        """If reading one fails with any exception, those before it are served."""
        store = self.store(self.folder)
        new = issue("mx.test")
        write(self.path, combined(new))
        write(self.folder / "wild.pem", combined(self.wild))
        real = store._load

        def surprised(files: Any) -> Any:
            if files.certificate != self.path:
                raise MemoryError
            return real(files)

        self.clock.advance(1)
        with patch.object(store, "_load", surprised):
            self.assertRaises(MemoryError, served, store, "mx.test")
        self.assertEqual(served(store, "mx.test"), serial(new))

    def test_unreadableDirectoryAmongOthers(self) -> None:
        """If a directory cannot be accessed, its certificate is kept, and the error is logged once. Others are
        renewed."""
        hidden, live = self.folder / "live.test", issue("live.test")
        hidden.mkdir()
        write(hidden / "fullchain.pem", chain(live))
        write(hidden / "privkey.pem", live.private_key_pem.bytes())
        store = self.store(self.folder)
        new = issue("mx.test")
        write(self.path, combined(new))
        with failing("stat", errno.EACCES, hidden / "fullchain.pem"):
            for _ in range(3):
                self.clock.advance(1)
                self.assertEqual(served(store, "mx.test"), serial(new))
                self.assertEqual(served(store, "live.test"), serial(live))
        self.assertEqual(self.logged("error"), [f"{hidden}: Permission denied; its certificates stay in use"])

    def test_directoryGone(self) -> None:
        """If the directory cannot be read any more, everything is kept, and the error is logged once."""
        store = self.store(self.folder)
        self.folder.rename(f"{self.folder}.away")
        for _ in range(3):
            self.clock.advance(1)
            self.assertEqual(served(store, "a.wild.test"), serial(self.wild))
        self.assertEqual(len(self.logged("error")), 1)

    def test_floodOfUnknownNames(self) -> None:
        """Many unknown names cause no reading. The files are checked once a second."""
        store = self.store(self.folder)
        looks: list[Path | None] = []
        stamp = certificates._stamp
        with (
            patch.object(certificates, "_stamp", lambda path: looks.append(path) or stamp(path)),
            patch.object(certificates, "_read", self.fail),
        ):
            for n in range(300):
                if n % 100 == 99:
                    self.clock.advance(1)
                self.assertEqual(served(store, f"unknown{n}.test"), serial(self.leaf))
        self.assertEqual(looks.count(self.path), 3)


class ServerTests(TLSTestCase):
    """A directory in a server."""

    async def test_bothWays(self) -> None:
        """Two names with two certificates, with STARTTLS and with implicit TLS."""
        from tests.support.tls import from_the_first_octet

        folder = self.folder / "names"
        folder.mkdir()
        leaves = {name: issue(name) for name in ("one.test", "two.test")}
        for name, leaf in leaves.items():
            write(folder / f"{name}.pem", combined(leaf))

        def shown(port: int, connect: Any, name: str) -> int:
            client = connect(port, trusting(), name)
            certificate = client.socket.getpeercert(binary_form=True)
            client.ask("QUIT")
            client.close()
            return serial(certificate)

        for implicit, connect in (False, secured), (True, from_the_first_octet):
            port = await self.serve(tls_context=Certificates(folder), implicit_tls=implicit)
            for name, leaf in leaves.items():
                self.assertEqual(await self.run_client(shown, port, connect, name), serial(leaf))
        self.assertRaises(BadCertificate, Certificates, self.folder / "none")

    async def test_swappedAllTheTime(self) -> None:
        """While the file is replaced repeatedly, each handshake gets an old or a new certificate, and none fails."""
        once()
        leaves = [issue("localhost") for _ in range(3)]
        path = write(self.folder / "swapped.pem", combined(leaves[0]))
        # The clock jumps, so that each handshake checks the file.
        port = await self.serve(tls_context=Certificates(path, clock=iter(range(100_000)).__next__))
        done = threading.Event()

        def swap() -> int:
            swaps = 0
            while not done.wait(0.001):
                swaps += 1
                write(path, combined(leaves[swaps % len(leaves)]))
            return swaps

        def shake() -> list[int]:
            shown = []
            try:
                for _ in range(60):
                    client = secured(port, trusting())
                    shown.append(serial(client.socket.getpeercert(binary_form=True)))  # type: ignore[attr-defined]
                    client.ask("QUIT")
                    client.close()
            finally:
                done.set()
            return shown

        swapping = deferToThread(swap)
        shown = await self.run_client(shake)
        self.assertGreater(await swapping, 10)
        self.assertEqual(len(shown), 60)
        self.assertEqual(set(shown), {serial(leaf) for leaf in leaves})
