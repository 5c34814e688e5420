"""Measure txsmtpd and its peers, in turn on the same core, and print one table.

    python benchmarks/run.py --quick --only reuse,connect

The first run installs the servers in a folder (``--cache``). ``README.md`` describes what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import table
from measure import Failed, Unavailable, measure
from peers import PEERS, Peer
from prepare import HERE, Tools, add_packages, prepare
from scenarios import SCENARIOS, Scenario

Named = TypeVar("Named", Scenario, Peer)


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def chosen(names: str | None, among: Iterable[Named]) -> list[Named]:
    """The objects with these names, or all."""
    by_name = {each.name: each for each in among}
    if not names:
        return list(by_name.values())
    unknown = set(names.split(",")) - set(by_name)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")
    return [each for name, each in by_name.items() if name in names.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure txsmtpd and its peers.")
    parser.add_argument("--quick", action="store_true", help="two short runs of each, for a first look")
    parser.add_argument("--only", metavar="SCENARIO,...", help=", ".join(each.name for each in SCENARIOS))
    parser.add_argument("--servers", metavar="SERVER,...", help=", ".join(each.name for each in PEERS))
    parser.add_argument("--runs", type=int, help="of each server in each scenario (5)")
    parser.add_argument("--seconds", type=float, help="that a run's load should last (2)")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a run's load may last at most (600)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (.svg, .png)")
    parser.add_argument("--cache", type=Path, help="folder for what is installed")
    told = parser.parse_args()
    told.runs = told.runs or (2 if told.quick else 5)
    told.seconds = told.seconds or (0.5 if told.quick else 2.0)
    return told


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "txsmtpd-benchmarks"


def compare(scenarios: list[Scenario], peers: list[Peer], tools: Tools, told: argparse.Namespace) -> table.Runs:
    """Do all runs. Each round runs all servers, so that gradual changes of the machine affect all of them alike."""
    runs: table.Runs = {}
    for scenario in scenarios:
        able = list(peers)
        results = runs[scenario.name] = {peer.name: [] for peer in peers}
        for turn in range(told.runs if scenario.figure == "cpu" else min(told.runs, 3)):
            for peer in list(able):
                try:
                    figures = measure(peer, scenario, tools, told.seconds, told.limit)
                except Unavailable:
                    able.remove(peer)
                    continue
                except Failed as failure:
                    say(f"{scenario.name}: {peer.name} failed: {failure}")
                    able.remove(peer)
                    continue
                results[peer.name].append(figures)
                shown = ", ".join(f"{name} {table.number(value)}" for name, value in figures.items())
                say(f"{scenario.name} {turn + 1}: {peer.name}: {shown}")
    return runs


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {"system": f"{platform.system()} {platform.machine()}", "processor": cpu, "cores": os.cpu_count()}


def _ended(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)  # through every `finally`


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError


def main() -> None:
    told = arguments()
    scenarios, peers = chosen(told.only, SCENARIOS), chosen(told.servers, PEERS)
    signal.signal(signal.SIGTERM, _ended)
    signal.signal(signal.SIGALRM, _too_long)
    tools = prepare((told.cache or default_cache()).resolve(), say)
    started = time.strftime("%Y-%m-%d", time.gmtime())
    runs = compare(scenarios, peers, tools, told)
    print(table.report(runs))
    of = table.medians(runs)
    record = {
        "date": started,
        "machine": machine(),
        "versions": tools.versions(),
        "medians": of,
        "ratios": table.ratios(of),
        "runs": runs,
    }
    if told.json:
        told.json.write_text(json.dumps(record, indent=1) + "\n")
    if told.plot:
        add_packages(tools, "matplotlib")
        plot = [str(tools.python), str(HERE / "plot.py"), str(told.plot)]
        subprocess.run(plot, input=json.dumps(record), text=True, check=True)


if __name__ == "__main__":
    main()
