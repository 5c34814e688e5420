"""Each row of the table of limits is correct."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.engine.test_batches import Direct
from tests.limits.test_docs import PAGE, rows
from tests.support import GREETING, TRANSACTION, Answer, Client, LoggingTestCase, Waiting, answers, handler
from tests.support.auth import plain
from txsmtpd import SMTPFactory
from txsmtpd.engine import connection
from txsmtpd.testing.memory import PretendedTLS

LINE = b"x" * 70 + b"\r\n"
DATA = GREETING + TRANSACTION + b"DATA\r\n"


def cells() -> dict[str, str]:
    """The result of exceeding a limit, by the option's name."""
    return dict(
        re.findall(r"^   \* - ``([^`]+)``.*\n     - .*\n     - ((?:.*\n)+?)     - ", PAGE.read_text(), re.MULTILINE)
    )


def last(octets: bytes) -> Answer:
    return answers(octets)[-1]


def no(*arguments: Any) -> str:
    return "550 5.1.1 No such user"


def in_session(octets: bytes, *arguments: Any, **options: Any) -> Answer:
    """The last reply to these commands after EHLO."""
    return last(Client(*arguments, **options).talk(GREETING + octets))


def message(octets: bytes, **options: Any) -> Answer:
    """The reply to a message."""
    client = Client(**options)
    client.talk(GREETING)
    return client.send_message(octets)


def after(seconds: float, octets: bytes = b"", *arguments: Any, **options: Any) -> Answer:
    """The last reply to a client that sends this and then waits."""
    client = Client(*arguments, **options)
    client.talk(octets)
    return last(client.wait(seconds, step=1))


def second_client(**options: Any) -> Answer:
    """The output to the second of two clients, from another port of the same host."""
    factory = SMTPFactory(hostname="mx.test", **options)
    clients = [Client(factory=factory, peer=IPv4Address("TCP", "192.0.2.1", port)) for port in (1, 2)]
    return last(clients[1].transport.taken)


def fails(*arguments: Any) -> bool:
    return False


AUTH: dict[str, Any] = {"authenticator": fails, "auth_require_tls": False, "auth_failure_delay": 0, "error_delay": 0}


def auth(*logins: str) -> bytes:
    return b"".join(b"AUTH PLAIN " + plain(login, "wrong") + b"\r\n" for login in logins)


REPLIES: dict[str, Callable[[], Answer]] = {
    "command_size_limit": lambda: in_session(b"HELP " + b"x" * 600 + b"\r\n"),
    "data_size_limit": lambda: in_session(b"MAIL FROM:<a@b.example> SIZE=33554433\r\n"),
    "header_size_limit": lambda: message(b"X: y\r\n" + b" z\r\n" * 100, header_size_limit=100),
    "header_field_limit": lambda: message(b"X: y\r\n" * 11, header_field_limit=10),
    "line_length_limit": lambda: message(b"x" * 200 + b"\r\n", line_length_limit=100),
    "local_part_limit": lambda: in_session(b"MAIL FROM:<" + b"x" * 65 + b"@b.example>\r\n", local_part_limit=64),
    "recipient_limit": lambda: in_session(TRANSACTION + b"RCPT TO:<c@b.example>\r\n", recipient_limit=1),
    "error_limit": lambda: in_session(b"FOO\r\n" * 20, error_delay=0),
    "refusal_limit": lambda: in_session(
        b"MAIL FROM:<a@b.example>\r\n" + b"RCPT TO:<c@b.example>\r\n" * 200, handler(RCPT=no), error_delay=0
    ),
    "junk_command_limit": lambda: in_session(b"NOOP\r\n" * 101),
    "command_call_limit": lambda: in_session(b"NOOP\r\n" * 11, command_call_limit=10),
    "auth_failure_limit": lambda: in_session(auth("a", "b", "c"), **AUTH),
    "auth_attempt_limit": lambda: in_session(b"AUTH PLAIN\r\n*\r\n" * 11, **{**AUTH, "error_limit": None}),
    "auth_failures_per_network": lambda: in_session(
        auth("a", "b", "c"), **AUTH, auth_failures_per_network="2/h", auth_failure_limit=None
    ),
    "timeout": lambda: after(300),
    "command_timeout": lambda: after(30, b"NO", command_timeout=30),
    "data_rate_minimum": lambda: slow_data(),
    "session_timeout": lambda: after(50, session_timeout=50),
    "hook_timeout": lambda: after(300, GREETING + b"NOOP\r\n", handler(NOOP=Waiting())),
    "memory_limit": lambda: full_memory(),
    "connection_limit": lambda: second_client(connection_limit=1),
    "connection_limit_per_network": lambda: second_client(connection_limit_per_network=1),
    "connection_limit_per_host": lambda: second_client(connection_limit_per_host=1),
    'rates["connections"]': lambda: second_client(rates={"connections": "1/h"}),
    'rates["tls"]': lambda: second_session(),
    'rates["messages"]': lambda: in_session(
        b"MAIL FROM:<a@b.example>\r\nRSET\r\nMAIL FROM:<a@b.example>\r\n", rates={"messages": "1/h"}
    ),
    'rates["recipients"]': lambda: in_session(TRANSACTION + b"RCPT TO:<c@b.example>\r\n", rates={"recipients": "1/h"}),
}


def second_session() -> Answer:
    """The reply to the second STARTTLS of a host."""
    factory = SMTPFactory(hostname="mx.test", tls_context=PretendedTLS(), rates={"tls": "1/h"})
    return [last(Client(factory=factory).talk(GREETING + b"STARTTLS\r\n")) for _ in range(2)][1]


def slow_data() -> Answer:
    """A message of which ten octets arrive in each ten seconds."""
    client = Client()
    client.talk(DATA)
    for _ in range(40):
        client.say(b"x" * 8 + b"\r\n")
        client.wait(10, step=1)
    return last(client.heard() or client.transport.taken)


def full_memory() -> Answer:
    """A message without memory, because the handler uses it for another one."""
    waits = handler(DATA=lambda *arguments: Deferred())
    factory = SMTPFactory(waits, hostname="mx.test", memory_limit=10_000, data_size_limit=2500, hook_timeout=None)
    *others, client = [Client(factory=factory) for _ in range(6)]
    for other in others:
        other.talk(DATA + LINE * 33 + b".\r\n")
    client.talk(DATA + LINE * 33)
    return last(client.wait(61, step=1) + client.talk(b".\r\n"))


class RowTests(LoggingTestCase):
    """The table of limits."""

    def test_replies(self) -> None:
        """Exceeding a limit results in the reply that the table names."""
        told = cells()
        for name, exceed in REPLIES.items():
            reply = exceed()
            said = f"{reply.code} {reply.status}"
            self.assertIn(said if re.search(r"[0-9]{3} [0-9]\.", told[name]) else str(reply.code), told[name], name)

    def test_errorDelay(self) -> None:
        """``error_delay``: the tenth error is delayed by one second, and the next one by two. So is the 91st
        rejection."""
        errors, rejections = Client(), Client(handler(NOOP=no))
        errors.talk(b"FOO\r\n" * 9)
        rejections.talk(b"NOOP\r\n" * 90)
        for client, line, seconds in ((errors, b"FOO\r\n", 1), (errors, b"FOO\r\n", 2), (rejections, b"NOOP\r\n", 1)):
            self.assertEqual(client.talk(line), b"")
            self.assertEqual(client.wait(seconds - 0.5), b"")
            self.assertNotEqual(client.wait(0.5), b"")

    def test_authFailureDelay(self) -> None:
        """``auth_failure_delay``: a rejected login is delayed by one second, and the next one of the same name by
        two."""
        client = Client(**{**AUTH, "auth_failure_delay": 1.0})
        client.talk(GREETING)
        for seconds in (1, 2):
            self.assertEqual(client.talk(auth("fred")), b"")
            self.assertEqual(client.wait(seconds - 0.5), b"")
            self.assertEqual(last(client.wait(0.5)).code, 535)

    def test_handshake(self) -> None:
        """``tls_handshake_timeout``: a client that starts TLS and sends nothing more is disconnected after 30 seconds
        without a reply."""
        client = Client(tls_context=PretendedTLS(stalled=True))
        client.talk(GREETING + b"STARTTLS\r\n")
        client.wait(29)
        self.assertFalse(client.closed)
        self.assertEqual(client.wait(1), b"")
        self.assertTrue(client.closed)

    def test_linger(self) -> None:
        """``linger``: a client that does not read the last reply is disconnected after ten seconds."""
        client = Client()
        client.stop_reading()
        client.say(b"QUIT\r\n")
        client.wait(9)
        self.assertFalse(client.closed)
        client.wait(1)
        self.assertTrue(client.closed)

    def test_batch(self) -> None:
        """``batch_limit``: after 32 commands, or 8 if others wait, other clients are served."""
        self.patch(connection, "BATCH_TIME", 3600.0)  # on a busy machine, 32 commands may take longer than 4 ms
        factory = SMTPFactory(hostname="mx.test", junk_command_limit=None, reactor=Clock())
        first, second = Direct(factory), Direct(factory)
        for client, expected in ((first, 32), (second, 8)):
            client.say(b"NOOP\r\n" * 100)
            self.assertEqual(client.heard(), [250] * expected)

    def test_buffer(self) -> None:
        """``buffer_limit``: while a hook runs, 64 KiB are read ahead."""
        client = Client(handler(NOOP=Waiting()))
        client.say(b"NOOP\r\n" + b"x" * 65536)
        self.assertTrue(client.reading)
        client.say(b"x")
        self.assertFalse(client.reading)

    def test_whole(self) -> None:
        """Each row has a test here."""
        others = {"error_delay", "auth_failure_delay", "tls_handshake_timeout", "linger", "batch_limit", "buffer_limit"}
        elsewhere = {"log_limit", "--grace"}  # tests.log, tests.service
        self.assertEqual(set(cells()) - elsewhere, set(REPLIES) | others)
        self.assertEqual(set(cells()) - elsewhere, set(rows()) - elsewhere)
