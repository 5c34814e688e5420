"""The counts agree with the replies to clients, and show what decided."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

import txsmtpd
from tests.filters.support import StreamingKeeper
from tests.filters.test_chain import Filter
from tests.support import GREETING, TRANSACTION, Client, LoggingTestCase, Waiting, codes, handler
from txsmtpd import LMTP, Refused, Reply, SMTPFactory
from txsmtpd.command import Rule
from txsmtpd.filters import FilterError
from txsmtpd.limits import Limits
from txsmtpd.observe.counters import FAMILIES, Counters
from txsmtpd.observe.metrics import _BY_CODE, _BY_STATUS, _BY_TEXT, Metrics, decided_by

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

SESSION = GREETING + TRANSACTION + b"DATA\r\nSubject: x\r\n\r\nx\r\n.\r\n"


def other(number: int) -> IPv4Address:
    return IPv4Address("TCP", f"192.0.2.{number}", 4321)


class MetricsTestCase(LoggingTestCase):
    """A factory with metrics, and the counts."""

    def factory(self, handler: Any = None, **options: Any) -> SMTPFactory:
        self.metrics = Metrics("tcp:25")
        return SMTPFactory(handler, metrics=self.metrics, **options)

    def counted(self, family: str) -> dict[Any, Any]:
        """The values of a family by its labels: a tuple, or the only label."""
        series = self.metrics.counters.snapshot()[family]
        return {tuple(labels) if len(labels) > 1 else "".join(labels): value for labels, value in series if value}

    def session(self, *octets: bytes, **more: Any) -> Client:
        client = Client(**more)
        for each in octets:
            client.talk(each)
        return client


class SessionTests(MetricsTestCase):
    """One session after the other."""

    def test_message(self) -> None:
        """An accepted message, and all related counts."""
        factory = self.factory()
        client = Client(factory=factory)
        self.assertEqual(self.counted("connections_open"), {"tcp:25": 1})
        client.talk(GREETING + TRANSACTION + b"RCPT TO:<c@example.com>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n")
        self.assertEqual(self.counted("messages_total"), {("tcp:25", "accepted"): 1})
        self.assertEqual(self.counted("message_octets_total"), {"tcp:25": 7})
        self.assertEqual(self.counted("recipients_total"), {"accepted": 2})
        self.assertEqual(self.counted("connections_total"), {("tcp:25", "accepted"): 1})
        self.assertEqual(self.counted("disconnects_total"), {("tcp:25", "quit"): 1})
        self.assertEqual(self.counted("connections_open"), {})
        self.assertEqual(self.counted("refusals_total"), {})
        self.assertEqual(
            self.counted("commands_total"),
            {
                ("greeting", "2"): 1,
                ("EHLO", "2"): 1,
                ("MAIL", "2"): 1,
                ("RCPT", "2"): 2,
                ("DATA", "3"): 1,
                ("DATA", "2"): 1,
                ("QUIT", "2"): 1,
            },
        )
        for family in "session_seconds", "data_seconds":
            self.assertEqual(sum(self.counted(family)[""][:-1]), 1)

    def test_dataSeconds(self) -> None:
        """The time for data is that from the reply 354 to the last octet, by the clock of the connection. Chunks have
        no such time."""
        factory = self.factory()
        client = Client(factory=factory)
        client.talk(GREETING + TRANSACTION)
        client.wait(1)
        client.talk(b"DATA\r\n")
        client.wait(3)
        client.talk(b"x\r\n")
        client.wait(4)
        client.talk(b".\r\n")
        client.talk(TRANSACTION + b"BDAT 3 LAST\r\nx\r\n")
        self.assertEqual(self.counted("messages_total"), {("tcp:25", "accepted"): 2})
        self.assertEqual(self.counted("data_seconds"), {"": [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7.0]})

    def test_agreesWithClients(self) -> None:
        """The numbers of accepted, refused, aborted and timed-out messages agree with the replies to clients."""
        replies = iter(["250 OK", "550 5.7.1 No", "451 4.3.0 Later", "250 OK", "250 OK"] * 10)

        async def data(server: Any, session: Any, envelope: Any) -> str:
            return next(replies)

        factory = self.factory(handler(DATA=data), timeout=60)
        seen: list[int] = []
        for number in range(50):
            client = Client(factory=factory, peer=other(number))
            seen += codes(client.talk(GREETING + TRANSACTION + b"DATA\r\nx\r\n.\r\nQUIT\r\n"))[-2:-1]
        for _ in range(3):  # bare newlines
            client = Client(factory=factory)
            seen += codes(client.talk(GREETING + TRANSACTION + b"DATA\r\nx\ny\r\n.\r\n"))[-1:]
            client.vanish()
        idle = [Client(factory=factory) for _ in range(4)]
        for client in idle:
            client.talk(GREETING + TRANSACTION + b"DATA\r\nhalf a mess")
        clients = [Client(factory=factory) for _ in range(2)]
        for client in clients:
            client.talk(GREETING + TRANSACTION + b"DATA\r\nhalf a mess")
            client.vanish(ConnectionLost())
        for client in idle:
            client.wait(60)
        self.assertEqual(
            self.counted("messages_total"),
            {
                ("tcp:25", "accepted"): seen.count(250),
                ("tcp:25", "refused_4"): seen.count(451),
                ("tcp:25", "refused_5"): seen.count(550),
                ("tcp:25", "aborted"): 6,
            },
        )
        self.assertEqual(self.counted("refusals_total"), {("DATA", "hook"): 20, ("DATA", "content"): 3})
        self.assertEqual(
            self.counted("disconnects_total"),
            {("tcp:25", "quit"): 50, ("tcp:25", "lost"): 5, ("tcp:25", "idle"): 4},
        )

    def test_whoDecided(self) -> None:
        """Each refusal has its stage and what decided."""

        def rcpt(server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
            if address.startswith("b"):
                raise Refused(Reply(550, "5.1.1", "No such user"))
            envelope.rcpt_tos.append(address)
            return "250 OK"

        for octets, stage, by in [
            (GREETING + TRANSACTION, "RCPT", "hook"),
            (b"MAIL FROM:<a@x.test>\r\n", "MAIL", "sequence"),
            (GREETING + b"MAIL FROM:<a@@x.test>\r\n", "MAIL", "address"),
            (GREETING + b"MAIL FROM:<a@x.test> SIZE=99999999\r\n", "MAIL", "size"),
            (GREETING + b"MAIL FROM:<a@x.test> X=1\r\n", "MAIL", "syntax"),
            (b"FOO\r\n", "unknown", "syntax"),
            (b"\xff\xfe\r\n", "unknown", "syntax"),
            (b"NOOP\n", "unknown", "syntax"),
            (b"x" * 3000 + b"\r\n", "unknown", "syntax"),
            (b"\r\n", "unknown", "syntax"),
            (b"GET / HTTP/1.1\r\n", "unknown", "protocol"),
            (b"AUTH PLAIN\r\n", "AUTH", "sequence"),
            (
                GREETING + b"MAIL FROM:<a@x.test>\r\nRCPT TO:<c@x.test>\r\nRCPT TO:<c@x.test>\r\n",
                "RCPT",
                "recipients",
            ),
        ]:
            factory = self.factory(handler(RCPT=rcpt), recipient_limit=1)
            Client(factory=factory).talk(octets)
            self.assertEqual(self.counted("refusals_total"), {(stage, by): 1}, octets)

    def test_ends(self) -> None:
        """Why connections ended."""
        slow = {"timeout": 30, "command_timeout": 30}
        for options, octets, wait, expected in [
            ({}, b"QUIT\r\n", 0, "quit"),
            (slow, b"", 30, "idle"),
            (slow | {"timeout": 300}, b"NO", 30, "deadline"),
            ({"error_limit": 1}, b"FOO\r\n", 0, "errors"),
            ({"junk_command_limit": 0}, b"NOOP\r\n", 0, "junk"),
            ({"session_timeout": 30}, b"", 30, "session_time"),
            ({}, b"GET / HTTP/1.1\r\n", 0, "protocol"),
            ({"rates": {"connections": "1/day,burst=1"}}, b"QUIT\r\n", 0, "quit"),
        ]:
            client = Client(factory=self.factory(**options))
            client.talk(octets)
            client.wait(wait)
            client.settle()
            self.assertEqual(self.counted("disconnects_total"), {("tcp:25", expected): 1})
        client = Client(factory=self.factory())
        client.stop_reading()
        client.say(b"QUIT\r\n")
        # The client resets the connection instead of closing it, as many clients do in TLS.
        client.server.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.counted("disconnects_total"), {("tcp:25", "quit"): 1})
        factory = self.factory(rates={"connections": "1/day,burst=1"})
        for _ in range(3):
            Client(factory=factory).vanish()
        self.assertEqual(self.counted("disconnects_total"), {("tcp:25", "lost"): 1, ("tcp:25", "rate"): 2})
        self.assertEqual(self.counted("refusals_total"), {("greeting", "rate"): 2})
        self.assertEqual(self.counted("limiter_total"), {("connections", "admitted"): 1, ("connections", "refused"): 2})
        factory = self.factory()
        client = Client(factory=factory)
        factory.drain()
        client.settle()
        self.assertEqual(self.counted("disconnects_total"), {("tcp:25", "shutdown"): 1})

    def test_refusedConnections(self) -> None:
        """Rejected connections."""
        factory = self.factory(connection_limit=2, connection_limit_per_network=1)
        for number in (1, 1, 2, 3):
            Client(factory=factory, peer=other(number))
        self.assertEqual(
            self.counted("connections_total"),
            {("tcp:25", "accepted"): 2, ("tcp:25", "refused_network"): 1, ("tcp:25", "refused_full"): 1},
        )
        self.assertEqual(self.counted("stress"), {"": 1})

    def test_hooks(self) -> None:
        """The duration of hooks of each form, their failures and their timeouts."""

        async def waits(*arguments: Any) -> str:
            await Deferred()
            return ""

        def fails(*arguments: Any) -> str:
            raise LookupError

        factory = self.factory(handler(NOOP=lambda *_: "250 OK", RSET=fails, VRFY=waits), hook_timeout=10)
        client = Client(factory=factory)
        client.talk(b"NOOP\r\nRSET\r\nVRFY a\r\n")
        client.wait(10)
        self.assertEqual(
            {name: sum(value[:-1]) for name, value in self.counted("hook_seconds").items()},
            dict.fromkeys(["NOOP", "RSET", "VRFY"], 1),
        )
        self.assertEqual(self.counted("hook_failures_total"), {"RSET": 1})
        self.assertEqual(self.counted("hook_timeouts_total"), {"VRFY": 1})
        self.assertEqual(self.counted("refusals_total"), {("RSET", "failure"): 1, ("VRFY", "hook_timeout"): 1})
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_filters(self) -> None:
        """A refusal of a filter counts as the filter's, at each stage. So does a refusal because it has failed."""

        def fails(*arguments: Any) -> None:
            raise FilterError("down")

        for filter_, octets, expected in [
            (Filter(CONNECT=lambda *_: "554 5.7.1 No"), b"", ("greeting", "filter")),
            (Filter(RCPT=lambda *_: "550 5.1.1 No"), GREETING + TRANSACTION, ("RCPT", "filter")),
            (Filter(DATA=lambda *_: "550 5.7.1 No"), GREETING + TRANSACTION + b"DATA\r\n", ("DATA", "filter")),
            (Filter(headers=lambda *_: "550 5.7.1 Spam"), SESSION, ("DATA", "filter")),
            (Filter(message=lambda *_: "554 5.7.1 Spam"), SESSION, ("DATA", "filter")),
            (Filter(MAIL=fails), GREETING + b"MAIL FROM:<a@x.test>\r\n", ("MAIL", "filter_failure")),
            (Filter(message=fails), SESSION, ("DATA", "filter_failure")),
        ]:
            factory = self.factory(filters=[filter_])
            Client(factory=factory).talk(octets)
            self.assertEqual(self.counted("refusals_total"), {expected: 1}, octets)

    def test_handlerBehindFilters(self) -> None:
        """A refusal of the handler behind a filter counts as the handler's."""
        factory = self.factory(StreamingKeeper("550 5.7.1 No"), filters=[Filter(message=lambda *_: None)])
        Client(factory=factory).talk(SESSION)
        self.assertEqual(self.counted("refusals_total"), {("DATA", "hook"): 1})

    def test_streaming(self) -> None:
        """A streaming handler is measured, and decides, like one that gets whole messages."""

        class Opening(StreamingKeeper):
            def open_message(self, *arguments: Any) -> Any:
                raise Refused("452 4.3.1 No room")

        class Writing(StreamingKeeper):
            def open_message(self, *arguments: Any) -> Any:
                receiver = super().open_message(*arguments)
                receiver.write = self.refuse  # type: ignore[method-assign]  # a receiver that fails
                return receiver

            def refuse(self, octets: bytes) -> None:
                raise Refused("552 5.3.4 Too much")

        for streaming in StreamingKeeper("550 5.7.1 No"), Opening(), Writing():
            client = Client(factory=self.factory(streaming))
            client.talk(GREETING + TRANSACTION + b"BDAT 1 LAST\r\nx")
            self.assertEqual(self.counted("refusals_total"), {("BDAT", "hook"): 1})
        Client(factory=self.factory(StreamingKeeper())).talk(SESSION)
        self.assertEqual(self.counted("refusals_total"), {})
        timed = {name: sum(value[:-1]) for name, value in self.counted("hook_seconds").items()}
        self.assertEqual(timed, {"open_message": 1, "finish": 1})

    def test_hookThatWaits(self) -> None:
        """A hook that waits is measured, and works as without metrics."""
        hook = Waiting()
        client = Client(factory=self.factory(handler(NOOP=hook)))
        self.assertEqual(client.talk(b"NOOP\r\n"), b"")
        hook.fire()
        self.assertEqual(codes(client.talk(b"")), [250])

    def test_auth(self) -> None:
        """Logins, by mechanism and outcome."""

        def knows(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> bool:
            return bool(data.password == b"right")

        factory = self.factory(authenticator=knows, auth_require_tls=False, auth_failures_per_network="1/min")
        client = Client(factory=factory)
        client.talk(GREETING + b"AUTH PLAIN AGEAcmlnaHQ=\r\n")
        self.assertEqual(self.counted("auth_total"), {("PLAIN", "succeeded"): 1})
        client = Client(factory=factory)
        client.talk(GREETING + b"AUTH PLAIN AGEAd3Jvbmc=\r\n")
        client.wait(1)
        client.talk(b"AUTH LOGIN\r\nAUTH X\r\n")
        self.assertEqual(
            self.counted("auth_total"),
            {("PLAIN", "succeeded"): 1, ("PLAIN", "refused"): 1, ("PLAIN", "limited"): 2},
        )

    def test_chunks(self) -> None:
        """Messages in chunks are counted once each."""
        factory = self.factory()
        client = Client(factory=factory)
        client.talk(GREETING + TRANSACTION + b"BDAT 3\r\nx\r\nBDAT 3\r\ny\r\nBDAT 0 LAST\r\n")
        self.assertEqual(self.counted("messages_total"), {("tcp:25", "accepted"): 1})
        self.assertEqual(self.counted("message_octets_total"), {"tcp:25": 6})
        client.talk(TRANSACTION + b"BDAT 3\r\nx\r\n")
        client.vanish()
        self.assertEqual(self.counted("messages_total"), {("tcp:25", "accepted"): 1, ("tcp:25", "aborted"): 1})
        Client(factory=factory).talk(GREETING + TRANSACTION + b"BDAT 3\r\nx\r\nRSET\r\n" + TRANSACTION)
        self.assertEqual(self.counted("messages_total"), {("tcp:25", "accepted"): 1, ("tcp:25", "aborted"): 2})

    def test_lmtp(self) -> None:
        """A message for several recipients over LMTP counts as one message."""
        metrics = self.metrics = Metrics("unix")
        client = Client(factory=SMTPFactory(None, protocol=LMTP, metrics=metrics))
        client.talk(b"LHLO c\r\n" + TRANSACTION + b"RCPT TO:<c@x.test>\r\nDATA\r\nx\r\n.\r\n")
        self.assertEqual(self.counted("messages_total"), {("unix", "accepted"): 1})

    def test_shared(self) -> None:
        """Two listeners share the counters, with their own labels."""
        counters = Counters()
        limits = Limits({"messages": "1/min"})
        for name in "tcp:25", "tcp:587":
            client = Client(factory=SMTPFactory(metrics=Metrics(name, counters), limiter=limits), peer=other(1))
            client.talk(GREETING + TRANSACTION)
        values = counters.snapshot()
        self.assertEqual(values["connections_open"], [(["tcp:25"], 1), (["tcp:587"], 1)])
        self.assertEqual(values["limiter_total"], [(["messages", "admitted"], 1), (["messages", "refused"], 1)])

    def test_programWithARegistry(self) -> None:
        """A program registers them with its own registry."""
        self.factory()
        registry = CollectorRegistry()
        self.metrics.register(registry)
        Client(factory=SMTPFactory(metrics=self.metrics)).talk(b"QUIT\r\n")
        self.assertIn(b'txsmtpd_disconnects_total{cause="quit",listener="tcp:25"} 1.0', generate_latest(registry))

    def test_noSeriesOfClients(self) -> None:
        """Input from clients never becomes a label."""
        factory = self.factory(authenticator=lambda *_: False, auth_require_tls=False, error_limit=None, error_delay=0)
        client = Client(factory=factory)
        client.talk(GREETING)
        for number in range(100):
            client.talk(b"CMD%d\r\nAUTH M%d\r\nMAIL FROM:<a%d@x.test>\r\nRSET\r\n" % (number, number, number))
        series = self.metrics.counters.snapshot()
        self.assertLess(sum(map(len, series.values())), 40)
        self.assertNotRegex(json.dumps(series), "CMD|M[0-9]|x.test")


class DeciderTests(SynchronousTestCase):
    """What has decided, for each reply."""

    def test_engine(self) -> None:
        """For each refusal of the server itself, the label says what decided."""
        own = re.compile(r"txsmtpd\.(engine|extensions|auth|wire|smtp|lmtp|reply|settings)(\.|$)")
        checked = 0
        for each in pkgutil.walk_packages(txsmtpd.__path__, "txsmtpd."):
            if own.match(each.name):
                for reply in replies_in(vars(importlib.import_module(each.name)).values()):
                    checked += 1
                    self.assertNotEqual(decided_by(reply), "other", reply)
        self.assertGreater(checked, 40)

    def test_documented(self) -> None:
        """The documentation lists all metrics, and all values of the label."""
        page = (EXAMPLES.parent / "docs" / "metrics.rst").read_text()
        table = set(re.findall(r"\* - ``(\w+)``\n", page))
        self.assertEqual(table, {family.name for family in FAMILIES})
        named = {*_BY_STATUS.values(), *_BY_CODE.values(), *(by for _, by in _BY_TEXT), "filter", "filter_failure"}
        self.assertEqual({by for by in named | {"failure", "hook_timeout", "other"} if f"``{by}``" not in page}, set())


def replies_in(values: Iterable[Any]) -> Iterator[Reply]:
    """The refusals in these values, including nested ones."""
    for value in values:
        if isinstance(value, Reply) and value.code >= 400:
            yield value
        elif isinstance(value, dict):
            yield from replies_in(value.values())
        elif isinstance(value, Rule):
            yield value.refusal


class ExampleTests(LoggingTestCase):
    """The dashboard and the alerts in ``examples``."""

    def test_names(self) -> None:
        """They only use metrics, labels and values that exist."""
        names = {family.name: family for family in FAMILIES}
        for path in EXAMPLES / "grafana" / "txsmtpd.json", EXAMPLES / "prometheus" / "alerts.yml":
            text = path.read_text()
            found = set(re.findall(r"txsmtpd_(\w+?)(?:_bucket)?(?=[{\[ )(,])", text))
            self.assertTrue(found)
            self.assertEqual(found - set(names), set(), path)
            labels = {label for family in FAMILIES for label in family.labels} | {"le", "instance"}
            for group in re.findall(r"by \(([^)]*)\)", text):
                self.assertLessEqual(set(group.split(", ")), labels, path)

    def test_dashboardIsJSON(self) -> None:
        """Grafana can read it."""
        dashboard = json.loads((EXAMPLES / "grafana" / "txsmtpd.json").read_text())
        self.assertEqual(dashboard["title"], "txsmtpd")
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
        self.assertEqual(len(set(places)), len(places))
