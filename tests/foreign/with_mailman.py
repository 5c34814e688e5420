"""Run the tests of Mailman's LMTP runner with txsmtpd in aiosmtpd's place, in all of its processes.

    python tests/foreign/with_mailman.py [FOLDER]

It is not part of ``run.py``, since Mailman needs many packages. Source and packages are downloaded from the registry
into a temporary folder, or the given one.
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
RELEASE = "mailman==3.3.10"
NEEDED = (RELEASE, "nose2", "flufl.testing", "pytest", str(HERE.parent.parent))
LIMIT = 300  # seconds


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        # Mailman starts programs from the folder of its Python.
        venv.create(folder / "env", with_pip=True)
        python = str(folder / "env/bin/python")
        pip = [python, "-m", "pip", "-q"]
        words = ["--no-deps", "--no-binary", "mailman", "-d", str(folder), RELEASE]
        subprocess.run([*pip, "download", *words], check=True)
        subprocess.run([*pip, "install", *NEEDED], check=True)
        with tarfile.open(next(folder.glob("mailman-*.tar.gz"))) as files:
            files.extractall(folder, filter="data")
        (folder / "sitecustomize.py").write_text("import as_aiosmtpd\n")
        return subprocess.run(
            [python, "-m", "nose2", "-v", "-P", "lmtp"],
            cwd=next(folder.glob("mailman-*/")),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(HERE)])},
            timeout=LIMIT,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
