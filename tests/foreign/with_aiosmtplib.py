"""Run aiosmtplib's tests with aiosmtpd, and then with txsmtpd. Print those that fail only with txsmtpd.

    python tests/foreign/with_aiosmtplib.py [FOLDER]

Tests that may fail are in ``known.txt``. The server class of these tests overrides private methods of aiosmtpd. In
``ported_server.py``, it uses what the documentation recommends instead. Source and packages are downloaded from the
registry into a temporary folder, or the given one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from run import HERE, heading_of, known

RELEASE = "aiosmtplib==5.1.3"
NEEDED = ("aiosmtpd==1.4.6", "hypothesis", "pytest", "pytest-asyncio", "pytest-timeout", "trustme")
LIMIT = 300  # seconds for each run


def failed(python: Path, source: Path, *plugins: str) -> set[str]:
    """Run the tests, and return those that fail."""
    words = [word for plugin in (*plugins, "no:cacheprovider") for word in ("-p", plugin)]
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "pytest", *words, "-q", "-rfE", "--tb=no", "--timeout=30", "tests"],
        cwd=source,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", str(HERE)])},
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    print(lines[-1] if lines else done.stderr)
    return {line.split(" ")[1] for line in lines if line.startswith(("FAILED tests", "ERROR tests"))}


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        venv.create(folder / "env", with_pip=True)
        python = folder / "env/bin/python"
        pip = [python, "-m", "pip", "-q"]
        words = ["--no-deps", "--no-binary", "aiosmtplib", "-d", str(folder), RELEASE]
        subprocess.run([*pip, "download", *words], check=True)
        subprocess.run([*pip, "install", *NEEDED, str(HERE.parent.parent)], check=True)
        with tarfile.open(next(folder.glob("aiosmtplib-*.tar.gz"))) as files:
            files.extractall(folder, filter="data")
        source = next(folder.glob("aiosmtplib-*/"))
        headings = known()
        faults = failed(python, source, "ported_server") - failed(python, source)
        faults = {name for name in faults if heading_of(name, headings) is None}
        print("\n".join(f"FAILED {name}" for name in sorted(faults)))
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
