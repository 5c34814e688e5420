"""Limits that hosts share: the algorithms with a real Redis, and a Redis that is slow or down."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.support import LoggingTestCase
from tests.support.programs import program
from txsmtpd.limits import Limits, Retry, shared
from txsmtpd.limits.breaker import Breaker
from txsmtpd.limits.shared import SharedLimits, connect, connection_options


class BreakerTests(SynchronousTestCase):
    """When a failed service is tried again."""

    def test_life(self) -> None:
        """After three failures there is a pause, and then one attempt. Success ends it."""
        breaker = Breaker()
        self.assertEqual([breaker.failed(0), breaker.failed(0), breaker.failed(0)], [False, False, True])
        self.assertFalse(breaker.allows(4.9))
        self.assertTrue(breaker.allows(5.0))
        self.assertFalse(breaker.allows(5.0))
        self.assertFalse(breaker.failed(5.0))
        self.assertFalse(breaker.allows(9.9))
        self.assertTrue(breaker.allows(10.0))
        self.assertTrue(breaker.succeeded())
        self.assertFalse(breaker.succeeded())
        self.assertTrue(breaker.allows(10.0))

    def test_notInARow(self) -> None:
        """Failures with successes in between cause no pause."""
        breaker = Breaker()
        for now in range(10):
            breaker.failed(now)
            breaker.failed(now)
            breaker.succeeded()
            self.assertTrue(breaker.allows(now))


class URLTests(SynchronousTestCase):
    """The address of Redis."""

    def test_forms(self) -> None:
        """Host, port, database, user and password. A password may have any characters."""
        self.assertEqual(connection_options("redis://h")["port"], 6379)
        found = connection_options("redis://u:p%40%2F@[::1]:7000/3")
        self.assertEqual(
            [found[name] for name in ("host", "port", "dbid", "username", "password")], ["::1", 7000, 3, "u", "p@/"]
        )

    def test_malformed(self) -> None:
        """An invalid URL is refused, without its password in the message."""
        for url in "", "localhost", "http://h", "redis://", "redis://u:secret@h:x", "redis://h/x", "redis://h:99999":
            error = self.assertRaises(ValueError, connection_options, url)
            self.assertEqual(str(error), "must be redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]")


class Unanswering:
    """A connection whose responses never arrive, or that fails."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.asked = 0

    def eval(self, script: str, keys: list[str], arguments: list[object]) -> Deferred[Any]:
        self.asked += 1
        return Deferred() if self.result is None else self.result()


class FailOpenTests(LoggingTestCase):
    """If Redis is down, no client is rejected because of that, or delayed for long."""

    def limits(self, connection: Unanswering) -> SharedLimits:
        self.clock = Clock()
        local = Limits({"messages": "1/min"}, "2/min", clock=self.clock.seconds)
        return SharedLimits(local, lambda: connection, self.clock, seconds=self.clock.seconds)

    def test_slow(self) -> None:
        """A decision takes at most 50 ms. After that, the limits of this process decide."""
        limits = self.limits(Unanswering())
        waiting = maybeDeferred(limits.admit, "messages", "login:fred")
        self.clock.advance(0.049)
        self.assertNoResult(waiting)
        self.clock.advance(0.001)
        self.assertIsNone(self.successResultOf(waiting))
        self.assertEqual(limits.errors, 1)

    def test_breaker(self) -> None:
        """After three failures, Redis is not asked for five seconds. The limits of this process decide."""
        connection = Unanswering(lambda: fail(ConnectionError("gone")))
        limits = self.limits(connection)
        answers = [self.successResultOf(maybeDeferred(limits.admit, "messages", "login:fred")) for _ in range(10)]
        self.assertIsNone(answers[0])
        self.assertEqual({type(each) for each in answers[1:]}, {Retry})
        self.assertEqual((connection.asked, limits.errors), (3, 10))
        self.assertEqual(limits.auth_failed("192.0.2.7", "fred"), 1)
        self.assertEqual(limits.auth_failed("192.0.2.7", "fred"), 2)
        self.clock.advance(5)
        connection.result = lambda: succeed(None)
        self.assertIsNone(self.successResultOf(maybeDeferred(limits.admit, "messages", "login:fred")))
        self.assertEqual(len(self.logged("warn")), 1)
        self.assertIn("Redis is available again", self.logged("info")[0])

    def test_reason(self) -> None:
        """The log has the reason why Redis is not used."""
        timed_out = self.limits(Unanswering())
        for _ in range(3):
            maybeDeferred(timed_out.admit, "messages", "login:fred")
            self.clock.advance(0.05)
        refusing = self.limits(Unanswering(lambda: fail(RuntimeError("NOAUTH Authentication required."))))
        for _ in range(3):
            maybeDeferred(refusing.admit, "messages", "login:fred")
        late, refused = self.logged("warn")
        self.assertIn("Redis is not available (no answer within 50 ms); each host", late)
        self.assertIn("Redis is not available (NOAUTH Authentication required.)", refused)

    def test_wrongResults(self) -> None:
        """A result that the script cannot have returned is a failure: the limits of this process decide."""
        for result in [], ["a", "b"], "OK", {}:
            limits = self.limits(Unanswering(lambda result=result: succeed(result)))
            self.assertIsNone(self.successResultOf(maybeDeferred(limits.admit, "messages", "login:fred")))
            self.assertIsNone(self.successResultOf(maybeDeferred(limits.admit, "auth", "192.0.2.7")))
            self.assertEqual(self.successResultOf(maybeDeferred(limits.auth_failed, "192.0.2.7", "fred")), 1)
            self.assertEqual(limits.errors, 3)

    def test_local(self) -> None:
        """Each host counts networks for itself. Kinds without a limit cause no request."""
        connection = Unanswering()
        limits = self.limits(connection)
        self.assertIsNone(limits.admit("messages", "192.0.2.7"))
        self.assertIsInstance(limits.admit("messages", "192.0.2.7"), Retry)
        self.assertIsNone(limits.admit("recipients", "login:fred"))
        unlimited = SharedLimits(Limits(), lambda: connection, self.clock)
        self.assertIsNone(unlimited.admit("auth", "192.0.2.7"))
        self.assertEqual(unlimited.auth_failed("192.0.2.7", "fred"), 1)
        self.assertEqual(connection.asked, 0)


class RedisTests(TestCase):
    """The real server."""

    timeout = 120

    def setUp(self) -> Any:
        redis = program("redis-server", "redis-server")
        self.patch(shared, "PATIENCE", 30)  # on a busy machine, an answer may take longer than the default
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.server = subprocess.Popen(
            [redis, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        self.addCleanup(self.end)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "redis-server does not listen"
        self.connections = [connect(f"redis://127.0.0.1:{port}/1") for _ in range(2)]
        for connection in self.connections:
            self.addCleanup(connection.disconnect)
        return self.connections[0].ping().addCallback(lambda _: self.connections[1].ping())

    def end(self) -> None:
        self.server.kill()
        self.server.wait()

    def hosts(self, rate: str = "3/min", names: str = "2/min") -> list[SharedLimits]:
        """Two hosts with shared limits."""
        one, other = self.connections
        return [
            SharedLimits(Limits({"messages": rate}, names), lambda: one, reactor),
            SharedLimits(Limits({"messages": rate}, names), lambda: other, reactor),
        ]

    async def test_rate(self) -> None:
        """A login has one rate on all hosts."""
        one, other = self.hosts("3/hour")
        asked = [await host.admit("messages", "login:fred") for host in (one, other, one, other)]
        self.assertEqual(asked[:3], [None] * 3)
        self.assertTrue(0 < asked[3].seconds <= 1200)
        self.assertIsNone(await one.admit("messages", "login:anna"))
        self.assertEqual((one.errors, other.errors), (0, 0))

    async def test_retry(self) -> None:
        """A login that waits for the given time is admitted."""
        one, other = self.hosts("2/s")
        refused = None
        while refused is None:  # on a slow machine, both may be admitted
            for host in one, other:
                refused = await host.admit("messages", "login:fred") or refused
        self.assertTrue(0 < refused.seconds <= 0.5)
        await deferLater(reactor, refused.seconds + 0.002)
        self.assertIsNone(await one.admit("messages", "login:fred"))

    async def test_names(self) -> None:
        """Distinct failed names are counted over all hosts, and so are the failures of each name."""
        one, other = self.hosts()
        counts = [await host.auth_failed("192.0.2.7", "fred") for host in (one, other, one)]
        self.assertEqual(counts, [1, 2, 3])
        self.assertIsNone(await other.admit("auth", "192.0.2.7"))
        await other.auth_failed("192.0.2.7", "anna")
        self.assertIsInstance(await one.admit("auth", "192.0.2.7"), Retry)
        self.assertIsNone(await one.admit("auth", "192.0.2.8"))

    async def test_bounded(self) -> None:
        """Keys expire, and no key or value keeps a name, neither of a user nor one that was tried."""
        one, other = self.hosts()
        self.assertIsNone(await one.admit("messages", "login:secret"))
        self.assertIsNone(await other.admit("messages", "login:\ud800secret"))  # no UTF-8
        for number in range(10):
            await one.auth_failed("192.0.2.7", f"secret{number}")
        redis = self.connections[0]
        keys = await redis.keys("*")
        self.assertEqual(sum(":login:" in key for key in keys), 2, keys)
        self.assertNotIn("secret", str([*keys, *await redis.zrange("txsmtpd:names:192.0.2.7", 0, -1)]))
        self.assertEqual(await redis.zcard("txsmtpd:names:192.0.2.7"), 2)
        for key in keys:
            self.assertTrue(0 < await redis.ttl(key) <= 60, key)

    async def test_stopped(self) -> None:
        """While Redis hangs, a decision takes about 50 ms, and then no time. Afterwards limits are shared again."""
        one, _ = self.hosts()
        await one.admit("messages", "login:fred")
        os.kill(self.server.pid, signal.SIGSTOP)
        self.patch(shared, "PATIENCE", 0.05)
        answers = [await maybeDeferred(one.admit, "messages", "login:bart") for _ in range(3)]
        self.assertEqual(answers, [None] * 3)
        at_once = [maybeDeferred(one.admit, "messages", "login:bart") for _ in range(100)]
        for answer in at_once:
            self.assertIsInstance(self.successResultOf(answer), Retry)
        self.assertEqual(one.errors, 103)
        os.kill(self.server.pid, signal.SIGCONT)

    async def test_killed(self) -> None:
        """If Redis is down, no client is rejected because of that."""
        one, _ = self.hosts()
        await one.admit("messages", "login:fred")
        self.end()
        self.patch(shared, "PATIENCE", 0.05)
        answers = [await maybeDeferred(one.admit, "messages", f"login:{number}") for number in range(50)]
        self.assertEqual(answers, [None] * 50)
