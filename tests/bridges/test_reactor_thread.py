"""The reactor in a thread of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

import txsmtpd
from txsmtpd.bridges.reactor_thread import ReactorThreadError, hold_reactor, run_in_reactor


def run_program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a user's, in a process of its own; it must end by itself, soon."""
    return subprocess.run(
        [sys.executable, *arguments, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(txsmtpd.__file__).parent.parent)},
    )


def reactor_threads() -> list[threading.Thread]:
    """The threads that run the reactor for us."""
    return [thread for thread in threading.enumerate() if thread.name == "reactor"]


class CallTests(SynchronousTestCase):
    """Calls from a thread that is not the reactor's."""

    def test_result(self) -> None:
        """A function is called in the reactor's thread, with its arguments; its result comes back."""

        def work(number: int, *, name: str) -> tuple[int, str, bool]:
            return number, name, threading.current_thread() is threading.main_thread()

        self.assertEqual(run_in_reactor(work, 1, name="a"), (1, "a", False))

    def test_deferred(self) -> None:
        """The results of Deferreds and coroutines are waited for."""
        from twisted.internet import reactor

        async def work() -> str:
            return await deferLater(reactor, 0, lambda: "later")  # type: ignore[arg-type]

        self.assertEqual(run_in_reactor(work), "later")
        self.assertEqual(run_in_reactor(deferLater, reactor, 0, lambda: "later"), "later")

    def test_exception(self) -> None:
        """What the function raises is raised to the caller."""

        def work() -> None:
            raise LookupError("not there")

        async def waits() -> None:
            work()

        for function in (work, waits):
            self.assertIn("not there", str(self.assertRaises(LookupError, run_in_reactor, function)))

    def test_ownTimeoutError(self) -> None:
        """A TimeoutError that the function raises is none of ours."""

        def work() -> None:
            raise TimeoutError("mine")

        self.assertEqual(str(self.assertRaises(TimeoutError, run_in_reactor, work)), "mine")

    def test_timeout(self) -> None:
        """What takes too long is cancelled."""
        cancelled = threading.Event()
        error = self.assertRaises(
            TimeoutError, run_in_reactor, lambda: Deferred(lambda _: cancelled.set()), timeout=0.01
        )
        self.assertIn("within 0.01 seconds", str(error))
        run_in_reactor(int)
        self.assertTrue(cancelled.is_set())

    def test_runsWhileHeld(self) -> None:
        """The reactor runs as long as there is a hold, in one thread; then it is let go, for whoever wants it next."""
        with hold_reactor() as first:
            (thread,) = reactor_threads()
            with hold_reactor() as second:
                second.run(int)
                self.assertEqual(reactor_threads(), [thread])
            second.release()  # again, which counts for nothing
            first.run(int)
            self.assertEqual(reactor_threads(), [thread])
            self.assertTrue(thread.daemon)
        self.assertEqual(reactor_threads(), [])

    def test_ownThread(self) -> None:
        """In the reactor's thread, nothing waits for the reactor: it is told at once, and what to do instead."""

        def work() -> None:
            run_in_reactor(int)

        with hold_reactor() as held:
            for function in (work, hold_reactor, held.release):
                self.assertIn("SMTPService", str(self.assertRaises(ReactorThreadError, held.run, function)))

    def test_manyThreads(self) -> None:
        """Any thread may call, all at once."""
        found: list[int] = []

        def caller() -> None:
            found.extend(run_in_reactor(int, number) for number in range(10))

        threads = [threading.Thread(target=caller) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(found), sorted([*range(10)] * 5))
        self.assertEqual(reactor_threads(), [])


class TrialTests(TestCase):
    """In a test that has the reactor."""

    async def test_refused(self) -> None:
        """A test that runs in the reactor is told at once, before it waits for itself."""
        from twisted.internet import reactor

        await deferLater(reactor, 0)  # type: ignore[arg-type]
        self.assertRaises(ReactorThreadError, run_in_reactor, int)
        self.assertRaises(ReactorThreadError, hold_reactor)

    def test_beforeTheReactor(self) -> None:
        """A test that does not wait has no reactor yet, and is given ours; trial has it back afterwards."""
        self.assertEqual(run_in_reactor(int), 0)
        self.assertEqual(self.flushWarnings(), [])

    async def test_otherThread(self) -> None:
        """From another thread, the reactor that runs is used as it is, and goes on after the last hold."""
        main = threading.current_thread()

        def work() -> Any:
            with hold_reactor() as held:
                return held.run(threading.current_thread)

        for _ in range(2):
            self.assertIs(await deferToThread(work), main)


class ProgramTests(SynchronousTestCase):
    """Whole programs."""

    def run_program(self, code: str) -> str:
        done = run_program(f"from txsmtpd.bridges.reactor_thread import *\n{code}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_ends(self) -> None:
        """A program ends although it never lets go, and the reactor shuts down in order."""
        code = """
held = hold_reactor()
from twisted.internet import reactor
held.run(reactor.addSystemEventTrigger, "before", "shutdown", print, "shut down")
reactor.callInThread(int)  # its thread would keep the process alive
print("done")
"""
        self.assertEqual(self.run_program(code), "done\nshut down\n")

    def test_stopped(self) -> None:
        """A reactor that somebody has stopped lets nobody wait, and says that it cannot run again."""
        code = """
held = hold_reactor()
from twisted.internet import reactor
from twisted.internet.defer import Deferred
def stop():
    reactor.callLater(0, reactor.stop)
    return Deferred()
for function in (lambda: held.run(stop), lambda: held.run(int), hold_reactor):
    try:
        function()
    except ReactorThreadError as error:
        print(error)
held.release()
"""
        self.assertEqual(
            self.run_program(code).splitlines(),
            [*["the reactor has been stopped"] * 2, "the reactor of this process was stopped, and cannot run again"],
        )

    def test_loopStopped(self) -> None:
        """Stopping the loop that the reactor is made of does not stop the reactor, before it runs or while it does."""
        code = """
import asyncio
def loop():
    return asyncio.get_running_loop()
for _ in range(3):
    with hold_reactor() as held:
        running = held.run(loop)
        running.call_soon_threadsafe(running.stop)
        print(held.run(int, timeout=10))
    running.stop()
"""
        self.assertEqual(self.run_program(code), "0\n0\n0\n")

    def test_interrupted(self) -> None:
        """What asyncio lets out of its loop does not end the reactor, and nobody waits for ever."""
        code = """
import asyncio, logging
logging.disable()
async def fails(kind):
    raise kind
def begin(kind):
    asyncio.get_running_loop().create_task(fails(kind))
for kind in (KeyboardInterrupt, SystemExit):
    with hold_reactor() as held:
        held.run(begin, kind)
        print(held.run(int, timeout=10))
"""
        self.assertEqual(self.run_program(code), "0\n0\n")

    def test_firstFromManyThreads(self) -> None:
        """Threads that all want the reactor first get one reactor."""
        code = """
import threading
barrier = threading.Barrier(8)
def want():
    barrier.wait()
    run_in_reactor(print, end="x")
threads = [threading.Thread(target=want) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
"""
        self.assertEqual(self.run_program(code), "x" * 8)

    def test_trial(self) -> None:
        """Where there may be tests of trial's, the reactor is the one that they expect."""
        code = """
import sys, twisted.trial.unittest
run_in_reactor(int)
from twisted.internet import reactor
print("asyncio" in type(reactor).__name__.lower())
"""
        self.assertEqual(self.run_program(code), "False\n")

    def test_fork(self) -> None:
        """A fork of a process that has used the reactor has none, and is told so."""
        code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads, too
run_in_reactor(int)
if os.fork():
    os.wait()
else:
    try:
        hold_reactor()
    except ReactorThreadError as error:
        print(error, flush=True)
    os._exit(0)
"""
        self.assertIn("spawn", self.run_program(code))

    def test_otherReactors(self) -> None:
        """It works with the other reactors."""
        for name in ("asyncio", "select", "poll"):
            code = f"""
from twisted.internet import {name}reactor
{name}reactor.install()
for _ in range(3):
    print(run_in_reactor(int))
"""
            self.assertEqual(self.run_program(code), "0\n0\n0\n", name)
