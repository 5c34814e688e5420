"""Put everything that the benchmark needs into one folder, once.

Python packages are installed in a virtual environment, and smtp-server with npm. Postfix's two test programs, Go and
go-smtp are unpacked from Debian's packages without installing them. What is not available is skipped, with a message.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NODE_PACKAGE = "smtp-server@3.21"
POSTFIX_PACKAGES = ["postfix"]
GO_PACKAGES = [
    "golang-1.19-go",
    "golang-1.19-src",
    "golang-github-emersion-go-smtp-dev",
    "golang-github-emersion-go-sasl-dev",
]


@dataclass(frozen=True)
class Tools:
    """The paths of the tools. None: not available."""

    folder: Path
    python: Path
    certificate: Path
    key: Path
    smtp_source: Path | None
    smtp_sink: Path | None
    node_modules: Path | None
    go_server: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of each process of the benchmark."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": str(self.folder / "debian" / "usr" / "lib" / "postfix"),
        }
        if self.node_modules is not None:
            environment["NODE_PATH"] = str(self.node_modules)
        return environment

    def versions(self) -> dict[str, str]:
        """The versions of the compared servers."""
        ask = "import platform, importlib.metadata as m; print(platform.python_version(), *map(m.version, {!r}))"
        names = ["Twisted", "aiosmtpd", "pyOpenSSL", "cryptography"]
        answer = _output([self.python, "-c", ask.format(names)]).split()
        versions = dict(zip(["Python", *names], answer, strict=True))
        versions["txsmtpd"] = _output(["git", "-C", ROOT, "describe", "--always", "--dirty"])
        if self.node_modules is not None:
            versions["Node"] = _output(["node", "--version"])
            versions["smtp-server"] = NODE_PACKAGE.partition("@")[2]
        if self.go_server is not None:
            versions["Go"] = _output([self.folder / "debian/usr/lib/go-1.19/bin/go", "version"])
        return versions


def prepare(folder: Path, say: Callable[[str], None]) -> Tools:
    """Install what is missing."""
    folder.mkdir(parents=True, exist_ok=True)

    def attempt(make: Callable[[Path], Path]) -> Path | None:
        try:
            return make(folder)
        except (OSError, subprocess.SubprocessError) as error:
            say(f"left out: {make.__name__.lstrip('_')}: {error}")
            return None

    certificate, key = _certificate(folder)
    return Tools(
        folder=folder,
        python=_virtual_environment(folder),
        certificate=certificate,
        key=key,
        smtp_source=attempt(_smtp_source),
        smtp_sink=attempt(_smtp_sink),
        node_modules=attempt(_smtp_server),
        go_server=attempt(_go_smtp),
    )


def add_packages(tools: Tools, *packages: str) -> None:
    """Install additional Python packages."""
    _install(tools.python, *packages)


def _install(python: Path, *what: str) -> None:
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what])


def _run(command: list[str | Path], cwd: Path | None = None, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise OSError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")


def _output(command: list[str | Path]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _virtual_environment(folder: Path) -> Path:
    python = folder / "venv" / "bin" / "python"
    done = folder / "venv" / "complete"
    wanted = (HERE / "requirements.txt").read_text()
    if not done.exists() or done.read_text() != wanted:
        _run([sys.executable, "-m", "venv", "--clear", folder / "venv"])
        _install(python, "-r", str(HERE / "requirements.txt"))
        done.write_text(wanted)
    return python


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not certificate.exists():
        kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch", "-days", "3650"]
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        _run(["openssl", "req", *kind, *name, "-keyout", key, "-out", certificate])
    return certificate, key


def _unpacked(folder: Path, packages: list[str]) -> Path:
    """Unpack Debian's packages without installing them. This does not need root, and does not change the system."""
    target = folder / "debian"
    downloads = folder / "downloads"
    for package in packages:
        done = target / f".{package}"
        if not done.exists():
            downloads.mkdir(exist_ok=True)
            _run(["apt-get", "download", "-qq", package], cwd=downloads)
            for file in downloads.glob(f"{package}_*.deb"):
                _run(["dpkg", "-x", file, target])
            done.touch()
    return target


def _postfix_program(folder: Path, name: str) -> Path:
    installed = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Path(installed) if installed else _unpacked(folder, POSTFIX_PACKAGES) / "usr" / "sbin" / name


def _smtp_source(folder: Path) -> Path:
    return _postfix_program(folder, "smtp-source")


def _smtp_sink(folder: Path) -> Path:
    return _postfix_program(folder, "smtp-sink")


def _smtp_server(folder: Path) -> Path:
    place = folder / "node"
    if not (place / "node_modules" / "smtp-server").exists():
        place.mkdir(exist_ok=True)
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", place, NODE_PACKAGE])
    return place / "node_modules"


def _go_smtp(folder: Path) -> Path:
    source = HERE / "servers" / "gosmtp_server.go"
    program = folder / "gosmtp_server"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        debian = _unpacked(folder, GO_PACKAGES)
        root = debian / "usr" / "lib" / "go-1.19"
        _run(
            [root / "bin" / "go", "build", "-o", program, source],
            GOROOT=str(root),
            GOPATH=str(debian / "usr" / "share" / "gocode"),
            GOCACHE=str(folder / "go-build"),
            GO111MODULE="off",
            CGO_ENABLED="0",
        )
    return program
