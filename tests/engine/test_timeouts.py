"""Timeouts of clients, and stress mode."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import TimeoutError

from tests.support import GREETING, TRANSACTION, Client, LoggingTestCase, Waiting, answers, codes, handler
from txsmtpd import SMTPFactory
from txsmtpd.engine.timeouts import CommandTooSlow, DataTooSlow, Idle, SessionTooLong

LOCAL = IPv4Address("TCP", "127.0.0.1", 4321)


class Causes:
    """A handler that records why sessions ended."""

    def __init__(self) -> None:
        self.causes: list[type] = []

    async def handle_DISCONNECT(self, server: Any, session: Any, envelope: Any, cause: Exception) -> None:
        self.causes.append(type(cause))


def in_data(handler: Any = None, **options: Any) -> Client:
    """A client that has received 354."""
    client = Client(handler, **options)
    assert codes(client.talk(GREETING + TRANSACTION + b"DATA\r\n"))[-1] == 354
    return client


def drip(client: Client, octets: bytes, pause: float, times: int) -> float:
    """Send the octets repeatedly, with a pause before each. Return the time until the client was disconnected."""
    waited = 0.0
    for _ in range(times):
        client.wait(pause, step=1)
        waited += pause
        if client.closed:
            return waited
        client.say(octets)
    raise AssertionError(f"still there after {waited} seconds")


class CommandTests(LoggingTestCase):
    """Command lines that do not end."""

    def test_octetBeforeEachTimeout(self) -> None:
        """A client that sends one octet of a command before each timeout is disconnected at its deadline."""
        causes = Causes()
        client = Client(causes)
        took = drip(client, b"x", 299, 100)
        self.assertLessEqual(took, 3 * 299)
        answer = answers(client.transport.taken)[-1]
        self.assertEqual((answer.code, answer.status), (421, "4.4.2"))
        self.assertEqual(answer.text, "4.4.2 Command took too long, closing connection")
        self.assertEqual(causes.causes, [CommandTooSlow])
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_longLine(self) -> None:
        """The same is true for a line that is too long and is not kept."""
        client = Client(command_timeout=30)
        client.say(b"x" * 13000)
        self.assertLessEqual(drip(client, b"x", 10, 100), 40)

    def test_wholeLines(self) -> None:
        """A client that sends complete lines has the whole time for each."""
        client = Client(timeout=30, command_timeout=30, junk_command_limit=None)
        for _ in range(20):
            client.wait(25, step=1)
            self.assertEqual(client.ask(b"NOOP").code, 250)

    def test_pipelined(self) -> None:
        """Lines that arrive together do not share their time."""
        hook = Waiting()
        client = Client(handler(NOOP=hook), timeout=30, command_timeout=30)
        client.say(b"NOOP\r\nNO")
        client.wait(200, step=10)
        hook.fire()
        client.wait(25)
        self.assertFalse(client.closed)
        client.say(b"OP\r\n")
        hook.fire()
        self.assertFalse(client.closed)
        client.say(b"NO")
        client.wait(31, step=1)
        self.assertTrue(client.closed)

    def test_answerInAuth(self) -> None:
        """A line that AUTH requests must be complete in time, too."""
        client = Client(command_timeout=30, auth_require_tls=False, authenticator=lambda *arguments: True)
        client.talk(GREETING + b"AUTH PLAIN\r\n")
        client.say(b"A")
        self.assertLessEqual(drip(client, b"A", 10, 10), 40)
        self.assertEqual(codes(client.transport.taken)[-1], 421)

    def test_none(self) -> None:
        """Without a deadline, one octet before each timeout is enough."""
        client = Client(command_timeout=None)
        self.assertRaises(AssertionError, drip, client, b"x", 299, 20)


class DataTests(LoggingTestCase):
    """Messages that arrive slowly."""

    def test_octetBeforeEachTimeout(self) -> None:
        """A client that sends an octet of a message before each timeout is disconnected soon after the first
        timeout."""
        causes = Causes()
        client = in_data(causes)
        self.assertLessEqual(drip(client, b"x", 299, 100), 2 * 299)
        self.assertEqual(
            answers(client.transport.taken)[-1].text, "4.4.2 Message data came too slowly, closing connection"
        )
        self.assertEqual(causes.causes, [DataTooSlow])

    def test_atTheRate(self) -> None:
        """A client at the minimum rate is never disconnected."""
        client = in_data(timeout=10)
        for _ in range(100):
            client.wait(5)
            client.say(b"x" * 2498 + b"\r\n")
        self.assertEqual(codes(client.talk(b".\r\n")), [250])

    def test_halfTheRate(self) -> None:
        """A client at half the rate uses up its reserve in twice the timeout."""
        client = in_data(timeout=10, data_rate_minimum=500)
        self.assertIn(drip(client, b"x" * 248 + b"\r\n", 1, 100), range(18, 22))

    def test_silence(self) -> None:
        """A client that sends nothing gets the idle timeout."""
        causes = Causes()
        client = in_data(causes, timeout=10)
        self.assertEqual(answers(client.wait(10))[-1].text, "4.4.2 Idle timeout, closing connection")
        self.assertEqual(causes.causes, [Idle])

    def test_chunks(self) -> None:
        """Small chunks, each within the timeout, are together one message that arrives too slowly."""
        client = Client(timeout=300)
        client.talk(GREETING + TRANSACTION)
        self.assertLessEqual(drip(client, b"BDAT 1\r\nx", 200, 100), 800)
        self.assertEqual(codes(client.transport.taken)[-1], 421)

    def test_chunksInTime(self) -> None:
        """Chunks that arrive fast enough do not affect the next message."""
        client = Client(timeout=30)
        client.talk(GREETING)
        for _ in range(10):
            client.talk(TRANSACTION)
            for _ in range(3):
                client.wait(5)
                self.assertEqual(codes(client.talk(b"BDAT 5000\r\n" + b"x" * 4998 + b"\r\n")), [250])
            self.assertEqual(codes(client.talk(b"BDAT 0 LAST\r\n")), [250])

    def test_whileHandlerPauses(self) -> None:
        """Time in which the handler does not accept data does not count."""
        client = in_data(timeout=10, hook_timeout=None)
        client.wait(8)
        client.server._connection.hold()
        client.wait(1000, step=10)
        self.assertFalse(client.closed)
        client.server._connection.release()
        client.wait(1)
        self.assertFalse(client.closed)
        client.wait(2)
        self.assertTrue(client.closed)


class SessionTests(LoggingTestCase):
    """The duration of a session."""

    def test_idle(self) -> None:
        """A session that has lasted too long ends immediately if no transaction is open."""
        causes = Causes()
        client = Client(causes, session_timeout=100)
        for _ in range(3):
            client.wait(30)
            client.talk(b"NOOP\r\n")
        answer = answers(client.wait(10))[-1]
        self.assertEqual((answer.code, answer.text), (421, "4.4.2 Session time limit exceeded, closing connection"))
        self.assertEqual(causes.causes, [SessionTooLong])
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_transaction(self) -> None:
        """An open transaction may be completed."""
        client = in_data(session_timeout=100)
        client.wait(100)
        self.assertFalse(client.closed)
        self.assertEqual(codes(client.talk(b"x\r\n.\r\n")), [250, 421])
        self.assertTrue(client.closed)

    def test_transactionWithoutEnd(self) -> None:
        """It must end within a limited time."""
        client = in_data(session_timeout=100)
        for _ in range(50):
            client.wait(10)
            client.say(b"x" * 10000)
        self.assertTrue(client.closed)
        self.assertEqual(client.clock.getDelayedCalls(), [])


class DelayTests(LoggingTestCase):
    """Replies to errors are delayed."""

    def test_grows(self) -> None:
        """From the tenth error on, the delay of each reply doubles, up to ten seconds."""
        client = Client(error_limit=15)
        waits = []
        for _ in range(14):
            said, waited = client.talk(b"FOO\r\n"), 0
            while not said:
                said, waited = client.wait(1), waited + 1
            waits.append(waited)
        self.assertEqual(waits, [0] * 9 + [1, 2, 4, 8, 10])
        self.assertEqual(codes(client.talk(b"FOO\r\n")), [421])

    def test_order(self) -> None:
        """Commands in the same segment after an error wait for its reply."""
        client = Client(error_limit=None)
        client.talk(b"FOO\r\n" * 9)
        client.say(b"FOO\r\nNOOP\r\nFOO\r\nNOOP\r\n")
        self.assertEqual(codes(client.wait(1)), [500, 250])
        self.assertEqual(codes(client.wait(2)), [500, 250])

    def test_leaves(self) -> None:
        """A client that disconnects before a delayed reply leaves nothing behind."""
        client = Client()
        client.talk(b"FOO\r\n" * 9)
        client.say(b"FOO\r\n")
        client.vanish()
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_unlimited(self) -> None:
        """Clients without limits get no delay."""
        self.assertEqual(codes(Client(peer=LOCAL).talk(b"FOO\r\n" * 19)), [500] * 19)

    def test_off(self) -> None:
        """No client gets a delay if the option is off."""
        self.assertEqual(codes(Client(error_delay=0).talk(b"FOO\r\n" * 19)), [500] * 19)


class StressTests(LoggingTestCase):
    """Stress mode."""

    def client(self, factory: SMTPFactory, number: int) -> Client:
        return Client(factory=factory, peer=IPv4Address("TCP", f"192.0.2.{number}", 1))

    def test_life(self) -> None:
        """From 80 % of the connections on, idle clients have only ten seconds. Below 60 %, they have the whole time
        again."""
        factory = SMTPFactory(connection_limit=10)
        clients = [self.client(factory, number) for number in range(7)]
        local = Client(factory=factory, peer=LOCAL)
        self.assertTrue(factory.stress.active)
        self.assertEqual(self.logged("warn"), ["stress mode begins: 8 of 10 connections are open"])
        for client in clients[:4]:
            client.wait(2)
            client.talk(b"NOOP\r\n")
        clients[0].wait(1)  # all clients of the factory have the same clock
        self.assertEqual([client.closed for client in clients], [False] * 7)
        clients[0].wait(1)
        for client in clients:
            client.settle()
        self.assertEqual([client.closed for client in clients], [False] * 4 + [True] * 3)
        self.assertFalse(factory.stress.active)
        self.assertEqual(len(self.logged("warn")), 2)
        local.wait(280)
        self.assertEqual([client.closed for client in [*clients[:4], local]], [False] * 5)

    def test_errors(self) -> None:
        """In stress mode, the first error ends a session immediately."""
        factory = SMTPFactory()
        client = self.client(factory, 1)
        client.talk(b"FOO\r\n" * 3)
        factory.reactor_late(0.3)
        self.assertEqual(codes(client.talk(b"FOO\r\n")), [421])

    def test_good(self) -> None:
        """Ordinary sessions are not affected."""
        factory = SMTPFactory(tls_context=None)
        factory.reactor_late(1)
        client = self.client(factory, 1)
        self.assertEqual(codes(client.talk(GREETING))[-1], 250)
        for _ in range(10):
            self.assertEqual(client.send_message().code, 250)
        factory.reactor_late(0.2)
        self.assertTrue(factory.stress.active)
        factory.reactor_late(0.1)
        self.assertFalse(factory.stress.active)

    def test_newcomers(self) -> None:
        """Clients that connect during stress mode have less time from the beginning. So have clients that send
        something before."""
        factory = SMTPFactory(timeout=None)
        before = self.client(factory, 1)
        factory.reactor_late(1)
        after = self.client(factory, 2)
        after.wait(9)
        for client in before, after:
            client.talk(b"NOOP\r\n")
        after.wait(9)
        self.assertFalse(before.closed or after.closed)
        after.wait(2)
        before.settle()
        self.assertTrue(before.closed and after.closed)

    def test_newcomerLeaves(self) -> None:
        """Clients that connect and disconnect during stress mode leave no timer behind."""
        factory = SMTPFactory()
        factory.reactor_late(1)
        client = self.client(factory, 1)
        client.wait(1)
        self.assertFalse(client.closed)
        client.vanish()
        self.assertEqual(client.clock.getDelayedCalls(), [])

    def test_lag(self) -> None:
        """A late reactor also causes stress mode."""
        factory = SMTPFactory()
        for lag in 0.2, 0.3, 0.3, 0.1:
            factory.reactor_late(lag)
        self.assertEqual(
            self.logged("warn"),
            [
                "stress mode begins: the reactor is 300 ms late",
                "stress mode ends: connections and the reactor's delay are low again",
            ],
        )

    def test_cause(self) -> None:
        """Idle clients are disconnected by timeouts, as always."""
        self.assertTrue(issubclass(Idle, TimeoutError))


class ProbeTests(LoggingTestCase):
    """Monitors that connect and disconnect."""

    def test_quiet(self) -> None:
        """The sessions of clients without limits that send nothing, or only QUIT, are logged at level debug; others at
        info."""
        for peer, octets, level in [
            (LOCAL, b"", "debug"),
            (LOCAL, b"QUIT\r\n", "debug"),
            (LOCAL, b"MAIL\r\n", "info"),
            (IPv4Address("TCP", "192.0.2.9", 1), b"QUIT\r\n", "info"),
        ]:
            self.events.clear()
            client = Client(peer=peer, log_messages=True)
            client.talk(octets)
            if not client.closed:
                client.vanish()
            self.assertEqual(len([line for line in self.logged(level) if "session ended" in line]), 1, (peer, octets))
            self.assertEqual(len([line for line in self.logged() if "session ended" in line]), 1)
