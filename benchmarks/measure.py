"""One run: start a server on one core, load it from another, measure it, and stop it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from peers import Command, Peer
from prepare import HERE, Tools
from scenarios import MB, Scenario

START_TIME = 20.0  # seconds that a server may take to greet
Figures = dict[str, float]


class Failed(Exception):
    """A run failed. The text states the reason."""


class Unavailable(Exception):
    """The server does not support the scenario."""


def cores() -> tuple[int, int]:
    """The server's core and the client's."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("the benchmark needs two cores: one for the server, one for the client")
    return usable[-1], usable[0]


_libc = ctypes.CDLL(None)


def pinned(command: Sequence[str | Path], core: int, **options: object) -> subprocess.Popen[str]:
    """Start a process on one core. It ends when this process ends, even if this process is killed."""

    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return subprocess.Popen([str(word) for word in command], preexec_fn=prepare, text=True, **options)  # type: ignore[call-overload, no-any-return]


def _family(pid: int) -> Iterator[int]:
    """The process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def cpu_seconds(pid: int) -> float:
    """The processor time, user and system, of a process and its descendants that are alive, to the nanosecond."""
    # The clock of another process, as in clock_getcpuclockid(3). /proc/PID/stat counts only hundredths of a second.
    return sum(time.clock_gettime(~each << 3 | 2) for each in _family(pid))


def memory(pid: int, which: str) -> float:
    """VmHWM (peak) or VmRSS (now) in MB, descendants included."""
    total = 0
    for each in _family(pid):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith(which + ":"):
                total += int(line.split()[1])
    return total / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(command: Command, tools: Tools, port: int) -> Iterator[subprocess.Popen[str]]:
    """Run a server until the end of the block. Yields it when it has sent its greeting."""
    core = cores()[0]
    with tempfile.TemporaryFile("w+") as errors:
        server = pinned(command, core, env=tools.environment, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL)
        try:
            _await_greeting(server, port)
            yield server
        except Failed as failure:
            errors.seek(0)
            raise Failed(f"{failure}\n{errors.read()[-2000:]}".strip()) from None
        finally:
            server.kill()
            server.wait()


def _await_greeting(server: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_TIME
    while time.monotonic() < deadline:
        if server.poll() is not None:
            if server.returncode == os.EX_UNAVAILABLE:
                raise Unavailable
            raise Failed(f"the server ended with {server.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                if client.recv(3) == b"220":
                    client.sendall(b"QUIT\r\n")
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise Failed("the server does not greet")


def _client(tools: Tools, port: int, scenario: Scenario, messages: int) -> Command:
    sessions = min(scenario.sessions, messages)
    if scenario.client != "smtp-source":
        command: Command = [tools.python, HERE / "client.py", scenario.client, f"--port={port}"]
        command += [f"--messages={messages}", f"--sessions={sessions}", f"--size={scenario.size}"]
        return [*command, f"--tls={tools.certificate}"] if scenario.tls else command
    if tools.smtp_source is None:
        raise Unavailable
    command = [tools.smtp_source, "-4", "-M", "client.example.com", "-f", "sender@example.com"]
    command += ["-t", "recipient@example.com", "-r", str(scenario.recipients), "-l", str(scenario.size)]
    command += ["-s", str(sessions), "-m", str(messages)]
    command += [] if scenario.reconnect else ["-d"]
    command += ["-L"] if scenario.lmtp else []
    return [*command, f"127.0.0.1:{port}"]


def send(tools: Tools, port: int, scenario: Scenario, messages: int, limit: float) -> float:
    """Send messages. Return the elapsed seconds."""
    start = time.perf_counter()
    client = pinned(
        _client(tools, port, scenario, messages),
        cores()[1],
        env=tools.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, errors = client.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failed(f"no end after {limit:.0f} seconds") from None
    finally:
        client.kill()
        client.wait()
    if client.returncode or "warning" in errors:
        raise Failed(f"the client says: {errors.strip()[-500:]}")
    elapsed = time.perf_counter() - start
    return float(json.loads(out)["seconds"]) if scenario.client != "smtp-source" else elapsed


def measure(peer: Peer, scenario: Scenario, tools: Tools, seconds: float, limit: float) -> Figures:
    """The figures of one run.

    :param seconds: how long the load should last.
    :param limit: how long it may last.
    :raises Unavailable: if the server does not support the scenario.
    :raises Failed: if the server or the client fails.
    """
    port = free_port()
    # Without fsync, use memory: a file system on disk would do its deferred work during any later run.
    folder = Path("/dev/shm") if scenario.maildir and not scenario.fsync else tools.folder
    maildir = Path(tempfile.mkdtemp(prefix="maildir-", dir=folder)) / "Maildir"
    try:
        command = peer.command(tools, port, scenario, maildir)
        if command is None:
            raise Unavailable
        with serving(command, tools, port) as server:
            if scenario.client == "idle":
                return _idle(server, scenario, tools, port, limit)
            messages = scenario.messages or warm_up(tools, port, scenario, seconds, limit)
            before = cpu_seconds(server.pid)
            elapsed = send(tools, port, scenario, messages, limit)
            time.sleep(0.02)  # the last connections are being closed
            used = cpu_seconds(server.pid) - before
            return {
                "cpu": used / messages * 1e6,
                "rate": messages / elapsed,
                "megabytes": messages * scenario.size / MB / elapsed,
                "busy": used / elapsed,
                "peak": memory(server.pid, "VmHWM"),
            }
    finally:
        if scenario.figure == "cpu":
            # Delete the files at exit: after many deletions, a file system may create files slowly for a while.
            atexit.register(shutil.rmtree, maildir.parent, ignore_errors=True)
        else:
            shutil.rmtree(maildir.parent, ignore_errors=True)


def warm_up(tools: Tools, port: int, scenario: Scenario, seconds: float, limit: float) -> int:
    """Send the first messages. Return how many more will take *seconds* seconds.

    This is done twice: some servers compile code while it runs, so the first messages are slower than the others.
    """
    messages = scenario.first
    for share in (0.5, 1.0):
        elapsed = send(tools, port, scenario, messages, limit)
        messages = max(scenario.sessions, min(int(messages * seconds * share / elapsed), 1000 * scenario.first))
    return messages


def _idle(server: subprocess.Popen[str], scenario: Scenario, tools: Tools, port: int, limit: float) -> Figures:
    """Memory per connection, from the growth between the first fifth of the connections and all of them."""
    client = pinned(
        _client(tools, port, scenario, scenario.sessions),
        cores()[1],
        env=tools.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert client.stdin is not None and client.stdout is not None
    held: list[tuple[int, float]] = []
    signal.alarm(int(limit))
    try:
        before = cpu_seconds(server.pid)
        for line in client.stdout:
            count = json.loads(line).get("held")
            if count is None:
                break
            held.append((count, memory(server.pid, "VmRSS")))
            if len(held) == 2:
                used = cpu_seconds(server.pid) - before
            client.stdin.write("\n")
            client.stdin.flush()
    except TimeoutError:
        raise Failed(f"no end after {limit:.0f} seconds") from None
    finally:
        signal.alarm(0)
        client.kill()
        client.wait()
    if len(held) != 2:
        raise Failed("the connections were not all held")
    (few, before_rss), (many, rss) = held
    return {
        "idle": (rss - before_rss) * 1024 / (many - few),
        "cpu": used / many * 1e6,
        "peak": memory(server.pid, "VmHWM"),
    }
