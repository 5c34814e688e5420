"""Measure a server with several workers: how they scale, what they cost, how evenly they are loaded, and what is lost.

    python benchmarks/workers.py                         # five minutes
    python benchmarks/workers.py --seconds 3 --only scaling,cost

Each figure is printed with its target. Server and client share the machine. Therefore messages per second are compared
only if the handler takes most of the time, and processor time otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import cpu_seconds, free_port

HERE = Path(__file__).parent
LETTER = "Subject: hello\r\n\r\nHello!\r\n"
START_TIME = 60.0
HANDLERS = '''
import os, time
from txsmtpd.handlers import Mailbox

class Told:
    """Names the process in the reply to MAIL."""

    async def handle_MAIL(self, server, session, envelope, address, mail_options):
        if address.startswith("hang"):
            time.sleep(5)
        envelope.mail_from = address
        return f"250 2.1.0 process {os.getpid()}"

    async def handle_DATA(self, server, session, envelope):
        return "250 OK"

class Burning(Told):
    async def handle_DATA(self, server, session, envelope):
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        return "250 OK"

class Storing(Mailbox):
    handle_MAIL = Told.handle_MAIL
'''


class Server:
    """The command, with its log in a file."""

    def __init__(self, workers: int, handler: str, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="workers-"))
        (self.folder / "handlers.py").write_text(HANDLERS)
        self.port = free_port()
        self.log = self.folder / "log"
        words = ["-m", "twisted", "smtpd", f"--handler={handler}", f"--workers={workers}", "--log-file=log", *options]
        words.append(f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=1024")
        environ = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{self.folder}"}
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.wait_for("is ready" if workers > 1 else "listening on", workers)

    def wait_for(self, pattern: str, times: int = 1) -> None:
        deadline = time.monotonic() + START_TIME
        while not self.log.exists() or len(re.findall(pattern, self.log.read_text())) < times:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"the server does not say {pattern!r}; see {self.log}")
            time.sleep(0.05)

    def pids(self) -> list[int]:
        """The workers that have become ready, in order."""
        return [int(each) for each in re.findall(r"\(process (\d+)\) is ready", self.log.read_text())]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(START_TIME)


@contextlib.contextmanager
def serving(workers: int, handler: str, *options: str) -> Iterator[Server]:
    server = Server(workers, handler, *options)
    try:
        yield server
    finally:
        server.stop()


def send(port: int, messages: int, sessions: int = 40, rate: float | None = None) -> float:
    """Send messages over reused connections. Return the elapsed seconds.

    :param rate: messages per second. None: no limit.
    """
    words = [sys.executable, str(HERE / "client.py"), "pipelined" if rate is None else "paced", f"--port={port}"]
    words += [f"--messages={messages}", f"--sessions={sessions}", *([] if rate is None else [f"--rate={rate}"])]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600)
    return float(json.loads(done.stdout)["seconds"])


def connect(port: int) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port, timeout=30)
    client.ehlo("client.example.com")
    return client


def process_of(client: smtplib.SMTP) -> int:
    client.rset()
    _, text = client.mail("a@example.com")
    return int(text.split()[-1])


def tell(name: str, value: str, bar: str) -> None:
    print(f"{name:<58} {value:>22}   {bar}", flush=True)


# What is measured


def scaling(seconds: float) -> None:
    with serving(1, "handlers.Burning") as one, serving(2, "handlers.Burning") as two:
        count = int(seconds * 300)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for server in (one, two):
            send(server.port, 200)
        for _ in range(3):
            rates[1].append(count / send(one.port, count))
            rates[2].append(2 * count / send(two.port, 2 * count))
    first, second = (statistics.median(rates[workers]) for workers in (1, 2))
    tell("handler of 2 ms: messages a second, 1 and 2 workers", f"{first:.0f}, {second:.0f}", "")
    tell("  2 workers / 1", f"{second / first:.2f}", ">= 1.85")


def cost(seconds: float) -> None:
    """Processor time of all processes per message.

    The time per message depends on the load of a process: a busy process handles several messages in one iteration of
    the reactor, and does not sleep between them. Therefore the compared processes have the same load each. If the total
    load were the same, each of two workers would have half of it, and use more time per message.
    """
    each = 750.0  # messages a second
    with serving(1, "sink") as one, serving(2, "sink") as two:
        for server in (one, two):
            send(server.port, int(seconds * 1500))
        for name, first, second, bar in (
            ("one at a time", (one, 1, None), (two, 1, None), "<= 1.03"),
            ("at the same rate for each process", (one, 20, each), (two, 40, 2 * each), "<= 1.03"),
            ("of 40 connections, without a pause", (one, 40, None), (two, 40, None), ""),
        ):
            used = [(used_by(seconds, *first), used_by(seconds, *second)) for _ in range(7)]
            medians = ", ".join(f"{statistics.median(column):.1f}" for column in zip(*used, strict=True))
            tell(f"sink, messages {name}: us of processor, 1 and 2 workers", medians, "")
            ratio = statistics.median(b / a for a, b in used)
            tell("  2 workers / 1, all processes together", f"{ratio:.3f}", bar)


def used_by(seconds: float, server: Server, sessions: int, rate: float | None) -> float:
    """Processor time per message in microseconds."""
    count = int(seconds * (min(1500, 500 * sessions) if rate is None else rate))
    before = cpu_seconds(server.process.pid)
    send(server.port, count, sessions, rate)
    return (cpu_seconds(server.process.pid) - before) / count * 1e6


def fairness(seconds: float) -> None:
    def evenness(split: Counter[int]) -> str:
        return f"{max(split.values()) / (sum(split.values()) / 2):.2f}"

    with serving(2, "handlers.Told") as server:
        for name, pause in (("in a burst", 0.0), ("one every 20 ms", 0.02)):
            clients = []
            for _ in range(40):
                clients.append(connect(server.port))
                time.sleep(pause)
            tell(f"40 kept connections, {name}: max/mean", evenness(Counter(map(process_of, clients))), "<= 1.10")
            for client in clients:
                client.close()
        for threads in (1, 4, 20):
            split: Counter[int] = Counter()

            def run(split: Counter[int] = split, threads: int = threads) -> None:
                for _ in range(400 // threads):
                    with connect(server.port) as client:
                        split[process_of(client)] += 1

            in_threads(run, threads)
            tell(f"400 new connections, {threads} at a time: max/mean", evenness(split), "<= 1.25")


def reloads(seconds: float) -> None:
    """Reload every 3 seconds and kill a worker every 5 seconds, while clients send without retrying."""
    refused: list[str] = []
    broken: list[int | None] = []
    killed: set[int] = set()
    delivered = 0
    lock = threading.Lock()
    end = time.monotonic() + max(seconds, 20.0) * 3

    def run() -> None:
        nonlocal delivered
        while time.monotonic() < end:
            process = None
            try:
                with connect(server.port) as client:
                    process = process_of(client)
                    client.rset()
                    for _ in range(5):
                        client.sendmail("a@example.com", "b@example.com", LETTER)
                        with lock:
                            delivered += 1
            except ConnectionRefusedError as error:
                refused.append(str(error))
            except OSError:
                broken.append(process)

    with serving(2, "handlers.Storing:mail") as server:

        def disturb() -> None:
            start = time.monotonic()
            hangups = kills = 1
            while (now := time.monotonic()) < end:
                if now >= start + 3 * hangups:
                    hangups += 1
                    server.process.send_signal(signal.SIGHUP)
                if now >= start + 5 * kills:
                    kills += 1
                    for pid in reversed(server.pids()):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                            killed.add(pid)
                            break
                time.sleep(0.05)

        disturber = threading.Thread(target=disturb)
        disturber.start()
        in_threads(run, 20)
        disturber.join()
        stored = len(os.listdir(server.folder / "mail/new"))
    others = [each for each in broken if each is not None and each not in killed]
    tell("reloads and deaths: messages, processes, killed", f"{delivered}, {len(server.pids())}, {len(killed)}", "")
    tell("  connections refused", str(len(refused)), "0")
    tell("  messages lost after 250", str(max(0, delivered - stored)), "0")
    tell("  sessions of other workers broken", str(len(others)), "0")
    unknown = sum(each is None for each in broken)
    tell("  of the killed ones; of one not known yet", f"{len(broken) - len(others) - unknown}, {unknown}", "")


def drain(seconds: float) -> None:
    grace = 5.0
    with serving(2, "handlers.Storing:mail", f"--grace={grace:.0f}") as server:
        idle = [connect(server.port) for _ in range(20)]
        slow = []
        for _ in range(50):
            client = connect(server.port)
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            client.docmd("DATA")
            slow.append(client)
        started = time.monotonic()
        server.process.terminate()
        late = 0.0
        for client in idle:
            assert client.sock is not None
            if client.sock.recv(3) != b"421":
                raise SystemExit("an idle client was not told 421")
            late = max(late, time.monotonic() - started)
        time.sleep(1)
        finished = 0
        for client in slow[:25]:
            assert client.sock is not None
            client.sock.sendall(LETTER.encode() + b".\r\n")
            finished += client.getreply()[0] == 250
        server.process.wait(60)
        tell("drain: 25 of 50 messages that end within the grace", str(finished), "25")
        tell("  421 to idle clients after ms", f"{late * 1000:.0f}", "<= 100")
        tell(f"  seconds until the end, with a grace of {grace:.0f}", f"{time.monotonic() - started:.2f}", "<= 6")


def blocking(seconds: float) -> None:
    """One worker blocks for 5 seconds."""
    with serving(2, "handlers.Told", "--metrics=tcp:0:interface=127.0.0.1") as server:
        clients = [connect(server.port) for _ in range(10)]
        victim = clients[0]
        blocked = process_of(victim)
        others = [client for client in clients if process_of(client) != blocked]
        for client in others:
            client.rset()

        def latencies(duration: float) -> tuple[float, float]:
            times, fresh = [], []
            until = time.monotonic() + duration
            while time.monotonic() < until:
                for client in others:
                    start = time.perf_counter()
                    client.sendmail("a@example.com", "b@example.com", LETTER)
                    times.append(time.perf_counter() - start)
                start = time.perf_counter()
                connect(server.port).close()
                fresh.append(time.perf_counter() - start)
                time.sleep(0.005)
            return p99(times), p99(fresh)

        calm = latencies(4)
        victim.rset()
        victim.putcmd("mail", "FROM:<hang@example.com>")
        hung = latencies(4)
        for place, name in enumerate(("of a message on a kept connection", "of a new connection and EHLO")):
            value = f"{calm[place] * 1e3:.1f}, {hung[place] * 1e3:.1f}"
            tell(f"one worker blocks: p99 ms {name}, before and now", value, "alike")
        time.sleep(3)  # until it has resumed and reported this
        tell("  seconds that its reactor was late, according to the metrics", f"> {lag(server):g}", "> 2")


def lag(server: Server) -> float:
    """The highest lower bound of the measured delays of the reactor."""
    [port] = re.findall(r"metrics and health on 127\.0\.0\.1:(\d+)", server.log.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        found = re.findall(r'reactor_lag_seconds_bucket{le="(.*?)"} (\S+)', answer.read().decode())
    most = float(found[-1][1])
    return max((float(bound) for bound, count in found if float(count) < most), default=0.0)


TWISTED = """
from twisted.application import service
from twisted.application.twist._twist import Twist
from twisted.internet import endpoints, reactor
from twisted.protocols import amp
"""


def memory(seconds: float) -> None:
    """Resident, proportional and private memory. Proportional memory counts shared pages in part."""
    words = [sys.executable, "-c", f"{TWISTED}\nprint(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
        assert bare.stdout is not None
        bare.stdout.readline()
        tell("twist, its reactor and AMP: MB", sizes_text(bare.pid), "")
        bare.communicate(b"\n")
    with serving(2, "sink", "--connection-limit-per-network=none") as server:
        workers = server.pids()
        for name, pid, bar in (("master", server.process.pid, "<= 35"), ("worker", workers[0], "<= 45")):
            tell(f"{name}: MB", sizes_text(pid), bar)
        before = sum(private(pid) for pid in workers)
        clients = [connect(server.port) for _ in range(2000)]
        grown = sum(private(pid) for pid in workers) - before
        tell("  KB for each of 2,000 idle connections", f"{grown * 1024 / len(clients):.1f}", "<= 3")
        for client in clients:
            client.close()


def sizes_text(pid: int) -> str:
    """Resident, proportional and private memory of a process, as text."""
    return f"{memory_of(pid, 'Rss'):.0f}, {memory_of(pid, 'Pss'):.0f}, {private(pid):.0f}"


def private(pid: int) -> float:
    return memory_of(pid, "Private_Clean") + memory_of(pid, "Private_Dirty")


def memory_of(pid: int, key: str) -> float:
    """MB of memory of one kind."""
    found = re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def in_threads(run: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


PARTS = {each.__name__: each for each in (scaling, cost, fairness, reloads, drain, blocking, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long a run of each should take")
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts, separated by commas")
    told = parser.parse_args()
    for name in told.only.split(","):
        PARTS[name](told.seconds)


if __name__ == "__main__":
    socket.setdefaulttimeout(60)
    main()
