"""Profile a server in Python in one scenario.

python benchmarks/hotspots.py reuse [--calls] [--server floor] [--top 40]
"""

from __future__ import annotations

import argparse
import json
import pstats
import shutil
import signal
import tempfile
import time
from pathlib import Path

from measure import cpu_seconds, free_port, send, serving, warm_up
from peers import PEERS
from prepare import HERE, Tools, prepare
from run import chosen, default_cache, say
from scenarios import SCENARIOS, Scenario


def samples(file: Path, top: int, used: float, messages: int) -> None:
    """Print the samples as microseconds per message."""
    total, own, with_callees, lines = json.loads(file.read_text())
    each = used / messages * 1e6
    print(f"{messages} messages, {each:,.1f} us of CPU each, {total} samples")
    for title, counts in (
        ("own time, us a message", own),
        ("with what it calls, us a message", with_callees),
        ("lines, own time, us a message", lines),
    ):
        print(f"\n{title}")
        for name, count in sorted(counts.items(), key=lambda item: -item[1])[:top]:
            print(f"{count / total * each:10,.1f} {count / total:6.1%}  {name}")


def profile(scenario: Scenario, tools: Tools, told: argparse.Namespace, folder: Path) -> None:
    """Load the server, and print its profile."""
    (peer,) = chosen(told.server, PEERS)
    port, file = free_port(), folder / "profile"
    command = peer.command(tools, port, scenario, folder / "Maildir")
    if command is None or command[0] != tools.python or scenario.client == "idle":
        raise SystemExit("only servers in Python can be looked at, and only under load")
    kind = "calls" if told.calls else "samples"
    command = [command[0], HERE / "servers" / "profiled.py", kind, str(file), *command[1:]]
    with serving(command, tools, port) as server:
        messages = scenario.messages or warm_up(tools, port, scenario, told.seconds, 120)
        server.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        before = cpu_seconds(server.pid)
        send(tools, port, scenario, messages, 600)
        used = cpu_seconds(server.pid) - before
        server.send_signal(signal.SIGUSR2)
        while not file.exists() and server.poll() is None:
            time.sleep(0.05)
    if told.calls:
        print(f"{messages} messages")
        pstats.Stats(str(file)).sort_stats("tottime").print_stats(told.top)
    else:
        samples(file, told.top, used, messages)


def main() -> None:
    parser = argparse.ArgumentParser(description="See where a server spends its time.")
    parser.add_argument("scenario")
    parser.add_argument("--server", default="txsmtpd")
    parser.add_argument("--calls", action="store_true", help="count calls, with cProfile, instead of sampling")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--top", type=int, default=30)
    parser.add_argument("--cache", type=Path)
    told = parser.parse_args()
    (scenario,) = chosen(told.scenario, SCENARIOS)
    tools = prepare((told.cache or default_cache()).resolve(), say)
    folder = Path(tempfile.mkdtemp(prefix="profile-", dir=tools.folder))
    try:
        profile(scenario, tools, told, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
