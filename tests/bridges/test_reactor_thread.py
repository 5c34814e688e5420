"""A loop and its reactor in a separate thread."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

import txsmtpd
from txsmtpd.bridges.reactor_thread import ReactorThread, ReactorThreadError, wait_for_reactor
from txsmtpd.bridges.reactors import call_in_pool, current_reactor


def run_program(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a user's program in a separate process. It must end by itself, within a limited time."""
    return subprocess.run(
        [sys.executable, *arguments, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(txsmtpd.__file__).parent.parent)},
    )


def reactor_threads() -> list[threading.Thread]:
    """The threads that run a reactor of this package."""
    return [thread for thread in threading.enumerate() if thread.name == "reactor"]


def descriptors() -> int:
    """Return the number of open descriptors of this process, after a garbage collection."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


class ReactorThreadTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.thread = ReactorThread()
        self.thread.start()
        self.addCleanup(self.thread.stop)


class CallTests(ReactorThreadTestCase):
    """Calls from other threads."""

    def test_result(self) -> None:
        """A function is called in the thread with its arguments, and its result is returned."""

        def work(number: int, *, name: str) -> tuple[int, str, threading.Thread]:
            return number, name, threading.current_thread()

        self.assertEqual(self.thread.run(work, 1, name="a"), (1, "a", self.thread.thread))

    def test_waits(self) -> None:
        """It waits for the results of coroutines and Deferreds. A coroutine may await asyncio and Twisted."""

        async def work() -> str:
            await asyncio.sleep(0)
            return await deferLater(self.thread.reactor, 0, lambda: "later")

        self.assertEqual(self.thread.run(work), "later")
        self.assertEqual(self.thread.run(deferLater, self.thread.reactor, 0, lambda: "later"), "later")

    def test_exception(self) -> None:
        """An exception of the function is raised to the caller, even if it is a TimeoutError."""

        def work() -> None:
            raise LookupError("not there")

        async def waits() -> None:
            raise TimeoutError("mine")

        self.assertEqual(str(self.assertRaises(LookupError, self.thread.run, work)), "not there")
        self.assertEqual(str(self.assertRaises(TimeoutError, self.thread.run, waits)), "mine")

    def test_timeout(self) -> None:
        """A call that takes too long is cancelled."""
        cancelled = threading.Event()
        error = self.assertRaises(
            TimeoutError, self.thread.run, lambda: Deferred(lambda _: cancelled.set()), timeout=0.01
        )
        self.assertIn("within 0.01 seconds", str(error))
        self.thread.run(int)
        self.assertTrue(cancelled.is_set())

    def test_ownThread(self) -> None:
        """In the thread itself, a call that would wait raises an exception immediately."""
        for function in (self.thread.stop, lambda: self.thread.run(int)):
            self.assertIn("own thread", str(self.assertRaises(ReactorThreadError, self.thread.run, function)))

    def test_manyThreads(self) -> None:
        """Any thread may call, even at the same time."""
        found: list[int] = []

        def caller() -> None:
            found.extend(self.thread.run(int, number) for number in range(10))

        threads = [threading.Thread(target=caller) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(found), sorted([*range(10)] * 5))

    def test_interrupted(self) -> None:
        """Exceptions with which asyncio stops a loop do not end the thread."""

        def fails(kind: Any) -> None:
            raise kind

        for kind in (KeyboardInterrupt, SystemExit):
            self.thread.loop.call_soon_threadsafe(fails, kind)
            self.assertEqual(self.thread.run(int), 0)
            self.assertEqual(len(self.flushLoggedErrors(kind)), 1)

    def test_currentReactor(self) -> None:
        """In the thread, its reactor is the current one, and has its own thread pool."""
        self.assertIs(self.thread.run(current_reactor), self.thread.reactor)
        self.assertIsNot(current_reactor(), self.thread.reactor)
        thread = self.thread.run(call_in_pool, threading.current_thread)
        self.assertNotIn(thread, (threading.current_thread(), self.thread.thread))
        self.assertTrue(thread.daemon)


class EndTests(SynchronousTestCase):
    """The end of a thread."""

    def test_nothingIsLeft(self) -> None:
        """At the end, tasks are cancelled, threads and descriptors are gone, and *finish* is called."""
        before, others = descriptors(), set(threading.enumerate())
        ends: list[str] = []

        async def waits() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ends.append("task")

        async def finish() -> None:
            await asyncio.sleep(0)
            ends.append("finish")

        async def begin() -> None:
            self.task = asyncio.create_task(waits())
            await asyncio.to_thread(int)
            await call_in_pool(int)
            thread.reactor.addSystemEventTrigger("during", "shutdown", ends.append, "shutdown")

        thread = ReactorThread(finish=finish)
        thread.start()
        thread.run(begin)
        thread.stop()
        self.assertEqual(ends, ["finish", "task", "shutdown"])
        self.assertTrue(thread.loop.is_closed())
        self.assertEqual(set(threading.enumerate()) - others, set())
        self.assertLessEqual(descriptors(), before)
        thread.stop()

    def test_loopStopped(self) -> None:
        """Stopping the loop in any way ends the thread in the same order. Later calls raise an exception."""
        ends: list[str] = []
        thread = ReactorThread(finish=lambda: ends.append("finish"))
        thread.start()
        thread.run(thread.loop.stop)
        thread.thread.join(30)
        self.assertEqual(ends, ["finish"])
        self.assertIn("stopped", str(self.assertRaises(ReactorThreadError, thread.run, int)))
        thread.stop()

    def test_whoWaits(self) -> None:
        """A caller that waits when the thread ends gets an exception, and does not wait forever."""
        thread = ReactorThread()
        thread.start()
        thread.loop.call_soon_threadsafe(thread.loop.call_later, 0.05, thread.loop.stop)
        self.assertRaises(CancelledError, thread.run, Deferred)

    def test_givenLoop(self) -> None:
        """It runs the loop that is passed, once. A loop that is closed or running is refused."""
        loop = asyncio.new_event_loop()
        thread = ReactorThread(loop)
        thread.start()
        self.assertIs(thread.run(asyncio.get_running_loop), loop)
        self.assertIn("runs already", str(self.assertRaises(RuntimeError, ReactorThread, loop)))
        thread.stop()
        self.assertIn("closed", str(self.assertRaises(RuntimeError, ReactorThread, loop)))


class OtherReactorTests(TestCase):
    """Calls to a reactor that other code runs."""

    async def test_waits(self) -> None:
        """From another thread, calls reach the running reactor. In the reactor's own thread they are refused."""
        from twisted.internet import reactor

        await deferLater(reactor, 0)  # type: ignore[arg-type]
        main = threading.current_thread()
        self.assertIs(await deferToThread(wait_for_reactor, reactor, threading.current_thread), main)
        self.assertRaises(ReactorThreadError, wait_for_reactor, reactor, int)

        def work() -> None:
            wait_for_reactor(reactor, Deferred, timeout=0.01)

        with self.assertRaises(TimeoutError):
            await deferToThread(work)

    def test_doesNotRun(self) -> None:
        """It does not wait for a reactor that does not run."""
        from twisted.internet.selectreactor import SelectReactor

        reactor = SelectReactor()
        self.addCleanup(reactor.waker.connectionLost, None)
        self.assertIn("stopped", str(self.assertRaises(ReactorThreadError, wait_for_reactor, reactor, int)))


class ProgramTests(SynchronousTestCase):
    """Whole programs."""

    def run_program(self, code: str) -> str:
        done = run_program(f"from txsmtpd.bridges.reactor_thread import *\n{code}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_ends(self) -> None:
        """A program that does not stop its thread still ends, and the thread ends in order. The global reactor is not
        used."""
        code = """
import sys
thread = ReactorThread(finish=lambda: print("finished"))
thread.start()
thread.run(thread.reactor.addSystemEventTrigger, "before", "shutdown", print, "shut down")
thread.reactor.callInThread(int)
print("done", "twisted.internet.reactor" in sys.modules)
"""
        self.assertEqual(self.run_program(code), "done False\nfinished\nshut down\n")

    def test_fork(self) -> None:
        """A child process that is forked while one runs does not use it, and can have its own. The parent's
        continues."""
        code = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads, too
thread = ReactorThread()
thread.start()
def child():
    thread.stop()
    try:
        thread.run(int)
    except ReactorThreadError as error:
        print(error)
    own = ReactorThread()
    own.start()
    print(own.run(int, "7"), flush=True)
    own.stop()
if os.fork():
    os.wait()
    print(thread.run(int, "8"))
else:
    try:
        child()
    finally:
        os._exit(0)
"""
        self.assertEqual(
            self.run_program(code), "this process was forked from the one in which the reactor runs\n7\n8\n"
        )

    def test_besideAnotherReactor(self) -> None:
        """A program may install and run any reactor of Twisted while such a thread runs."""
        for name in ("asyncio", "select", "epoll"):
            code = f"""
thread = ReactorThread()
thread.start()
from twisted.internet import {name}reactor
{name}reactor.install()
from twisted.internet import reactor
from twisted.python.threadable import isInIOThread
def work():
    print(thread.run(int, "7"), isInIOThread())
    reactor.stop()
reactor.callLater(0, work)
reactor.run()
thread.stop()
"""
            self.assertEqual(self.run_program(code), "7 True\n", name)
