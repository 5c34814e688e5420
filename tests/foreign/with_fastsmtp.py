"""Run the tests of fastsmtp that use SMTP with txsmtpd in aiosmtpd's place.

    python tests/foreign/with_fastsmtp.py [FOLDER]

It needs Python 3.12 or newer, and PostgreSQL. The folder of PostgreSQL's programs is that of Debian's package, or the
value of the environment variable PG_BIN. It is not part of ``run.py``, since fastsmtp needs many packages. Source and
packages are downloaded from the registry into a temporary folder, or the given one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).parent
RELEASE = "fastsmtp==0.8.1"
NEEDED = (RELEASE, "aiosmtplib", "aiosqlite", "pytest", "pytest-asyncio", "pytest-timeout", "testcontainers[postgres]")
TESTS = (
    "delivery_cancellation",
    "e2e_smtp_flow",
    "raw_message_preservation",
    "smtp_integration",
    "smtp_s3_integration",
    "smtp_server",
    "smtp_server_extended",
    "smtp_tls",
    "smtp_validation",
)
LIMIT = 600  # seconds
# A plugin for pytest: a server on this host instead of a container. PostgreSQL does not run as root.
POSTGRES = """
import os, socket, subprocess, tempfile
import testcontainers.community.postgres as containers

class PostgresContainer:
    def __init__(self, image):
        self.folder = tempfile.mkdtemp(dir="/tmp")
        os.chmod(self.folder, 0o777)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def run(self, words):
        words = f"{os.environ['PG_BIN']}/{words}"
        command = ["su", "postgres", "-s", "/bin/sh", "-c", words] if os.geteuid() == 0 else ["sh", "-c", words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def __enter__(self):
        data = f"-D {self.folder}/data"
        self.run(f"initdb {data} -U test --auth=trust -E UTF8")
        self.run(f"pg_ctl {data} -o '-p {self.port} -k {self.folder} -c fsync=off' -w -l {self.folder}/log start")
        self.run(f"createdb -h 127.0.0.1 -p {self.port} -U test test")
        return self

    def __exit__(self, *exception):
        self.run(f"pg_ctl -D {self.folder}/data -m immediate stop")

    def get_connection_url(self):
        return f"postgresql+psycopg2://test:test@127.0.0.1:{self.port}/test"

containers.PostgresContainer = PostgresContainer
"""


def main() -> int:
    programs = os.environ.get("PG_BIN") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin")), "")
    if sys.version_info < (3, 12) or not programs:
        sys.exit("this needs Python 3.12 and PostgreSQL")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        venv.create(folder / "env", with_pip=True)
        pip = [str(folder / "env/bin/python"), "-m", "pip", "-q"]
        words = ["--no-deps", "--no-binary", "fastsmtp", "-d", str(folder), RELEASE]
        subprocess.run([*pip, "download", *words], check=True)
        subprocess.run([*pip, "install", *NEEDED, str(HERE.parent.parent)], check=True)
        with tarfile.open(next(folder.glob("fastsmtp-*.tar.gz"))) as files:
            files.extractall(folder, filter="data")
        (folder / "local_postgres.py").write_text(POSTGRES)
        plugins = ["-p", "as_aiosmtpd", "-p", "local_postgres", "-p", "no:cacheprovider"]
        return subprocess.run(
            [pip[0], "-W", "ignore", "-m", "pytest", *plugins, "-q", *(f"tests/test_{name}.py" for name in TESTS)],
            cwd=next(folder.glob("fastsmtp-*/")),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(HERE)]), "PG_BIN": programs},
            timeout=LIMIT,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
