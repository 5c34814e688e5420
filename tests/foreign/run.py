"""Run the tests of other projects with txsmtpd: those of aiosmtpd and of two plugins for pytest that use it, with only
the import changed; those of Python 3.11 for its module smtpd; and the fixtures for pytest together with other plugins.

    python tests/foreign/run.py [FOLDER]

They are downloaded from the registry into a temporary folder, or the given one, and are not kept. Tests that may fail
are in ``known.txt``, each with its row in a table of the documentation. If another test fails, the exit status is 1.
Tests of aiosmtpd that are not black-box tests (``black_box.py``) are not counted and may fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RELEASE = "aiosmtpd==1.4.6"
# Plugins for pytest: the module to load, and the tests. With aiosmtpd itself, all tests pass.
SUITES = {
    "smtpdfix==0.5.3": ("smtpdfix", "tests"),
    "pytest-localserver==0.10.0.post0": ("pytest_localserver.plugin", "tests/test_smtp.py"),
}
NEEDED = ("cryptography", "portpicker", "werkzeug", "pytest", "pytest-asyncio", "pytest-mock", "pytest-timeout")
BESIDE = ("anyio", "crochet", "pytest-twisted", "trio")
# The plugins of each run of the tests of the fixtures. pytest loads other installed plugins as well.
KIT = {
    ("with_twisted.py",): ("txsmtpd", "twisted"),
    ("with_twisted.py", "--reactor=asyncio"): ("txsmtpd", "twisted"),
    ("with_asyncio.py",): ("txsmtpd", "asyncio", "anyio"),
    ("with_crochet.py",): ("txsmtpd",),
}
PLUGINS = {
    "txsmtpd": "pytest_txsmtpd",
    "twisted": "pytest_twisted",
    "asyncio": "pytest_asyncio.plugin",
    "anyio": "anyio.pytest_plugin",
}
MODULES = (
    "handlers",
    "lmtp",
    "main",
    "misc",
    "proxyprotocol",
    "server",
    "smtp",
    "smtps",
    "smtpsmuggling",
    "starttls",
)
LIMIT = 300  # seconds for all of them
DOCS = HERE.parent.parent / "docs"
WHITE_BOX = "white box"  # the heading of white-box tests, which need no row in the table
# This test waits for a handshake timeout that the program sets in an override of _run.
DESELECTED = ("tests/test_controller.py::test_TLS_not_supported",)


def known() -> dict[str, str]:
    """The headings of tests that may fail, by patterns of their names."""
    headings: dict[str, str] = {}
    heading = ""
    for line in (HERE / "known.txt").read_text().splitlines():
        if line.startswith("["):
            heading = line[1:-1]
        elif line and not line.startswith("#"):
            headings[line] = heading
    return headings


def heading_of(name: str, headings: dict[str, str]) -> str | None:
    return next((each for pattern, each in headings.items() if fnmatchcase(name, pattern.replace("[", "[[]"))), None)


def rows_missing() -> list[str]:
    """Return the headings that are not a row of the page that they name."""
    missing = []
    for heading in sorted(set(known().values()) - {WHITE_BOX}):
        page, _, row = heading.partition(": ")
        path = DOCS / f"{page}.rst"
        if not row or not path.exists() or not any(begins_row(line, row) for line in path.read_text().splitlines()):
            missing.append(heading)
    return missing


def begins_row(line: str, row: str) -> bool:
    """Return True if a line is the first line of a row in a table of reStructuredText, of either kind."""
    return line == f"   * - {row}" or line.startswith(f"{row}  ")


def fetch(folder: Path) -> list[Path]:
    """The folders of the sources: of aiosmtpd, and of SUITES."""
    pip = [sys.executable, "-m", "pip", "-q"]
    releases = [RELEASE, *SUITES]
    sources = [word for name in releases for word in ("--no-binary", name.partition("==")[0])]
    subprocess.run([*pip, "download", "--no-deps", *sources, "-d", str(folder), *releases], check=True)
    subprocess.run([*pip, "install", "--target", str(folder / "needed"), *NEEDED, *BESIDE], check=True)
    found = []
    for release in releases:
        (archive,) = folder.glob(f"{release.partition('==')[0].replace('-', '[-_]')}-*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        found.append(archive.with_name(archive.name.removesuffix(".tar.gz")))
    return found


def run(source: Path, folder: Path) -> dict[str, Any]:
    """Run the tests, and return their results."""
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    results = folder / "results.json"
    command = [sys.executable, "-m", "pytest", "-p", "as_aiosmtpd", "-q", "--tb=no", "-W", "ignore", "--timeout=10"]
    command += ["-c", "pytest.ini", "-p", "no:cacheprovider", "--import-mode=importlib", "--pyargs"]
    environment = {
        **os.environ,
        "AIOSMTPD_SOURCE": str(source),
        "AIOSMTPD_RESULTS": str(results),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(folder / "needed")]),
    }
    with (folder / "output").open("w") as output:
        subprocess.run(
            [*command, *(f"aiosmtpd.tests.test_{name}" for name in MODULES)],
            cwd=folder,
            env=environment,
            timeout=LIMIT,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not results.exists():
        sys.exit((folder / "output").read_text()[-3000:])
    found: dict[str, Any] = json.loads(results.read_text())
    return found


def run_suite(source: Path, folder: Path, release: str) -> int:
    """Run the tests of a plugin that imports aiosmtpd."""
    plugin, tests = SUITES[release]
    results = folder / f"{plugin}.json"
    environment = {
        **os.environ,
        "AIOSMTPD_RESULTS": str(results),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(map(str, [HERE, folder / "needed", source, HERE.parent.parent])),
    }
    loaded = [
        word for name in ("as_aiosmtpd", plugin, "pytest_asyncio.plugin", "pytest_timeout") for word in ("-p", name)
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *loaded,
        "-q",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
    ]
    skipped = [f"--deselect={name}" for name in DESELECTED]
    done = subprocess.run(
        [*command, "-o", "asyncio_mode=auto", *skipped, tests],
        cwd=source,
        env=environment,
        timeout=LIMIT,
        capture_output=True,
        text=True,
        check=False,
    )
    if not results.exists():
        sys.exit(done.stdout + done.stderr)
    found: dict[str, str] = json.loads(results.read_text())["results"]
    failed = [name for name, outcome in found.items() if outcome == "failed"]
    print(f"{release}: {len(found) - len(failed)} of {len(found)} pass")
    return _faults(failed)


def _faults(failed: list[str]) -> int:
    """Print the tests that must not fail. Return the exit status."""
    headings = known()
    faults = [name for name in failed if heading_of(name, headings) is None]
    for name in faults:
        print(f"FAILED {name}")
    return 1 if faults else 0


def run_kit(folder: Path) -> int:
    """Run the fixtures together with other plugins."""
    status = 0
    path = os.pathsep.join([str(folder / "needed"), str(HERE / "kit"), str(HERE.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for words, plugins in KIT.items():
        loaded = [word for name in plugins for word in ("-p", PLUGINS[name])]
        command = [sys.executable, "-m", "pytest", *loaded, "-q", "-W", "ignore", "-p", "no:cacheprovider", *words]
        done = subprocess.run(
            command, cwd=HERE / "kit", env=environment, timeout=LIMIT, capture_output=True, text=True, check=False
        )
        print(" ".join(words), (done.stdout.splitlines() or [done.stderr])[-1])
        if done.returncode:
            print(done.stdout, done.stderr)
            status = 1
    return status


def run_smtpd(folder: Path) -> int:
    """Run the tests of this Python, if it has the module smtpd."""
    if sys.version_info >= (3, 12):
        print("test_smtpd: no Python from 3.12 on has it; run this with Python 3.11")
        return 0
    status = 0
    for module in ("test_smtpd", "test_smtplib"):
        results = folder / f"{module}.json"
        command = [sys.executable, "-W", "ignore", str(HERE / "as_smtpd.py"), module, str(results)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
        done = subprocess.run(
            command, cwd=folder, env=environment, timeout=LIMIT, capture_output=True, text=True, check=False
        )
        if not results.exists():
            sys.exit(done.stdout + done.stderr)
        found: dict[str, str] = json.loads(results.read_text())
        failed = [name for name, outcome in found.items() if outcome == "failed"]
        print(f"{module}: {len(found) - len(failed)} of {len(found)} pass")
        status = max(status, _faults(failed))
    return status


def report(found: dict[str, Any]) -> int:
    results, white = found["results"], found["white"]
    counted = {name: outcome for name, outcome in results.items() if name not in white and outcome != "skipped"}
    passed = {name for name, outcome in counted.items() if outcome == "passed"}
    of_white = Counter(results.get(name) for name in white)
    print(
        f"{RELEASE}: {len(passed)} of {len(counted)} black-box tests pass, {len(passed) / len(counted):.2%};"
        f" {len(passed & set(found['documented']))} of them see a code or an extension of the table of differences"
    )
    print(f"Of {len(white)} others, {of_white['passed']} pass.")
    return _faults(sorted(counted.keys() - passed))


def main() -> int:
    for heading in rows_missing():
        sys.exit(f"known.txt: there is no row for {heading}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        folder.mkdir(exist_ok=True)
        source, *suites = fetch(folder)
        status = report(run(source, folder))
        for release, suite in zip(SUITES, suites, strict=True):
            status = max(status, run_suite(suite, folder, release))
        return max(status, run_smtpd(folder), run_kit(folder))


if __name__ == "__main__":
    sys.exit(main())
