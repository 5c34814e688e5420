"""Sum the results in trial's last lines: ``count.py --check LOG`` for one run, ``count.py FOLDER`` for all runs.

A skipped test counts as failed, because CI installs everything that tests need. A job that failed otherwise counts as
failed too. In portable runs, those with the second and further Pythons, skipped tests do not count: tests with real
programs are skipped there.
"""

import re
import sys
from pathlib import Path

SUMMARY = re.compile(r"^(?:PASSED|FAILED) \((.*)\)$", re.MULTILINE)
PASSED = ("successes", "expectedFailures")


def counted(log: Path) -> tuple[int, int]:
    """Return the numbers of tests that passed and that did not."""
    summaries = SUMMARY.findall(log.read_text(errors="replace"))
    if not summaries:
        return 0, 0
    numbers = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", summaries[-1])}
    passed = sum(numbers.get(name, 0) for name in PASSED)
    skipped = numbers.get("skips", 0) if log.stem.endswith("portable") else 0
    return passed, sum(numbers.values()) - passed - skipped


def check(log: Path) -> int:
    passed, failed = counted(log)
    print(f"{log.stem}: {passed} tests passed, {failed} did not")
    return 0 if passed and not failed else 1


def total(folder: Path) -> int:
    passed = failed = 0
    for log in sorted(folder.glob("*.trial")):
        more_passed, more_failed = counted(log)
        passed += more_passed
        failed += more_failed
    jobs_failed = [status.stem for status in sorted(folder.glob("*.status")) if status.read_text().strip() != "0"]
    if jobs_failed:
        print("Failed:", ", ".join(jobs_failed))
        # A suite that failed is already counted by its tests, unless it did not finish.
        failed += sum(1 for name in jobs_failed if counted_failures(folder / f"{name}.trial") == 0)
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


def counted_failures(log: Path) -> int:
    return counted(log)[1] if log.exists() else 0


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[2])) if sys.argv[1] == "--check" else total(Path(sys.argv[1])))
