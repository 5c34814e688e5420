"""The milter filter with a milter in memory: its commands, the accepted responses, and invalid ones."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.filters.support import CONTINUE, Keeper, MilterInMemory
from tests.support import GREETING, MESSAGE, TRANSACTION, Client, codes
from txsmtpd import SMTPFactory
from txsmtpd.filters.milter import Milter
from txsmtpd.wire import milter
from txsmtpd.wire.milter import Steps, packet

DATA = TRANSACTION + b"DATA\r\n" + MESSAGE + b".\r\n"


def agreed(steps: int = 0, actions: int = milter.ALL_ACTIONS, version: int = 6, chosen: bytes = b"") -> bytes:
    """The response to a negotiation."""
    return packet(b"O", milter.NEGOTIATION.pack(version, actions, steps) + chosen)


class MilterTests(SynchronousTestCase):
    """A server with one milter."""

    def connect(self, answers: dict[bytes, Any] | None = None, **options: Any) -> Client:
        """A client of a server behind this milter."""
        self.milter = MilterInMemory(answers)
        return self.connect_to(self.milter, **options)

    def connect_to(self, endpoint: MilterInMemory, hook_timeout: float | None = None, **options: Any) -> Client:
        """A client of a server behind the milter at this endpoint."""
        self.handler = Keeper()
        clock = Clock()
        self.filter = Milter(endpoint, reactor=clock, **options)
        factory = SMTPFactory(
            self.handler, filters=[self.filter], hostname="mx.example.com", reactor=clock, hook_timeout=hook_timeout
        )
        client = Client(factory=factory)
        client.clock = clock
        return client

    def send(self, answers: dict[bytes, Any] | None = None, **options: Any) -> int:
        """Send a message through this milter. Return the reply's code."""
        client = self.connect(answers, **options)
        client.talk(GREETING)
        return codes(client.talk(DATA))[-1]


class DialogueTests(MilterTests):
    """What the milter receives."""

    def test_order(self) -> None:
        """The commands have the order of Postfix, with an abort between messages."""
        client = self.connect()
        client.talk(GREETING + DATA + DATA + b"QUIT\r\n")
        client.vanish(ConnectionDone())
        self.assertEqual(self.milter.commands, "OCH" + "MRTLNBEA" * 2 + "Q")
        self.assertEqual(self.handler.content, [MESSAGE, MESSAGE])
        self.assertTrue(self.milter.transports[0].gone)

    def test_values(self) -> None:
        """Names, addresses, parameters, fields and body are sent unchanged."""
        client = self.connect()
        client.talk(
            b"EHLO c.test\r\nMAIL FROM:<a@example.com> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
            b"One:no space\r\nTwo: one\r\n\ttwo\r\nThree:  two\r\n\r\nbody\r\n.\r\n"
        )
        for command, expected in (
            (b"C", [b"[192.0.2.7]\0" + b"4\x10\xe1" + b"192.0.2.7\0"]),
            (b"H", [b"c.test\0"]),
            (b"M", [b"<a@example.com>\0SIZE=10\0BODY=8BITMIME\0"]),
            (b"R", [b"<b@example.com>\0"]),
            (b"L", [b"One\0no space\0", b"Two\0one\n\ttwo\0", b"Three\0 two\0"]),
            (b"B", [b"body\r\n"]),
        ):
            self.assertEqual(self.milter.data_of(command), expected)

    def test_macros(self) -> None:
        """The macros of each stage are sent with it. The milter may choose others."""
        client = self.connect({b"O": agreed(chosen=b"\0\0\0\x02i {unknown} {color}\0")}, macros={"color": "blue"})
        client.talk(GREETING + DATA)
        told = {data[:1]: data[1:].split(b"\0")[:-1] for data in self.milter.data_of(milter.MACROS)}
        self.assertEqual(told[b"C"][:2], [b"j", b"mx.example.com"])
        self.assertEqual(told[b"C"][-2:], [b"_", b"[192.0.2.7] [192.0.2.7]"])
        identifier = told[b"T"][1]
        self.assertEqual(told[b"M"], [b"i", identifier, b"{color}", b"blue"])
        self.assertEqual(told[b"R"][2:4], [b"{rcpt_addr}", b"b@example.com"])
        self.assertEqual(told[b"E"], [b"i", identifier])

    def test_chunks(self) -> None:
        """A body is sent in chunks of 65,535 octets."""
        body = b"x" * 70 + b"\r\n"
        client = self.connect()
        client.talk(GREETING)
        client.send_message(b"\r\n" + body * 2000)
        sizes = [len(data) for data in self.milter.data_of(b"B")]
        self.assertEqual(sizes, [65535, 65535, 144000 - 2 * 65535])

    def test_steps(self) -> None:
        """Commands that the milter does not want are not sent. The server does not wait for responses that it does not
        send."""
        unwanted = Steps.NO_HELO | Steps.NO_RCPT | Steps.NO_BODY | Steps.NO_HEADERS | Steps.NO_DATA
        self.assertEqual(self.send({b"O": agreed(unwanted)}), 250)
        self.assertEqual(self.milter.commands, "OCMNEA")
        silent = Steps.SILENT_CONNECT | Steps.SILENT_HELO | Steps.SILENT_MAIL | Steps.SILENT_RCPT | Steps.SILENT_DATA
        silent |= Steps.SILENT_HEADER | Steps.SILENT_END_OF_HEADERS | Steps.SILENT_BODY
        mute = dict.fromkeys((b"C", b"H", b"M", b"R", b"T", b"L", b"N", b"B"), b"")
        self.assertEqual(self.send({b"O": agreed(silent), **mute}), 250)
        self.assertEqual(self.milter.commands, "OCHMRTLNBEA")

    def test_oldVersion(self) -> None:
        """A milter of version 2 gets only the commands of that version."""
        self.assertEqual(self.send({b"O": agreed(version=2)}), 250)
        self.assertEqual(self.milter.commands, "OCHMRLNBEA")

    def test_leadingSpace(self) -> None:
        """A milter that wants the space after the colon gets it, and sends it back."""
        end = packet(b"h", b"X\0\t1\0") + CONTINUE
        self.send({b"O": agreed(Steps.LEADING_SPACE), b"E": end})
        self.assertEqual(self.milter.data_of(b"L"), [b"Subject\0 test\0"])
        self.assertIn(b"X:\t1\r\n", self.handler.content[0])

    def test_skip(self) -> None:
        """A milter that skips the rest of the body gets no more of it, but the end of the message."""
        client = self.connect({b"B": packet(b"s")})
        client.talk(GREETING)
        client.send_message(b"\r\n" + b"x\r\n" * 50000)
        self.assertEqual(self.milter.commands, "OCHMRTNBEA")

    def test_rset(self) -> None:
        """RSET and a new greeting abort the message."""
        client = self.connect()
        client.talk(GREETING + TRANSACTION + b"RSET\r\n" + TRANSACTION + b"HELO c.test\r\n")
        self.assertEqual(self.milter.commands, "OCH" + "MRA" + "MRA" + "H")


class DecisionTests(MilterTests):
    """Decisions of the milter."""

    def test_refusals(self) -> None:
        """Refusals at each stage become replies."""
        for answer, code in (
            (packet(b"r"), 550),
            (packet(b"t"), 451),
            (packet(b"y", b"554 5.7.9 mine\0"), 554),
            (packet(b"4"), 421),
        ):
            for command in b"HMRTLNBE":
                with self.subTest(command=command, code=code):
                    client = self.connect({bytes([command]): answer})
                    replies = codes(client.talk(GREETING + DATA))
                    self.assertIn(code, replies)
                    self.assertEqual(self.handler.content, [])

    def test_connect(self) -> None:
        """A client that the milter rejects gets the reply immediately."""
        client = self.connect({b"C": packet(b"r")})
        self.assertEqual(codes(client.welcome), [554])
        self.assertEqual(codes(client.talk(GREETING)), [503])

    def test_accept(self) -> None:
        """A milter that accepts the client gets no more commands. One that accepts a message gets the next one."""
        for command, expected in (
            (b"C", "OCQ"),
            (b"H", "OCHQ"),
            (b"M", "OCHMAMAQ"),
            (b"R", "OCHMRAMRAQ"),
            (b"L", "OCHMRTLAMRTLAQ"),
            (b"E", "OCHMRTLNBEAMRTLNBEAQ"),
        ):
            client = self.connect({command: packet(b"a")})
            self.assertEqual(codes(client.talk(GREETING + DATA + DATA))[-1], 250)
            client.vanish(ConnectionDone())
            self.assertEqual((self.milter.commands, len(self.handler.content)), (expected, 2))

    def test_discard(self) -> None:
        """A message that the milter discards is accepted and dropped."""
        for command in b"MRTLNBE":
            self.assertEqual(self.send({bytes([command]): packet(b"d")}), 250)
            self.assertEqual(self.handler.content, [])

    def test_changes(self) -> None:
        """All changes, after progress responses."""
        changes = (
            (b"p", b""),
            (b"h", b"X-Last\0one\n two\0"),
            (b"i", b"\0\0\0\0X-Top\0" + b"1\0"),
            (b"i", b"\0\0\0\x01X-Next\0" + b"2\0"),
            (b"m", b"\0\0\0\x01subject\0changed\0"),
            (b"b", b"new "),
            (b"b", b"body\r\n"),
            (b"e", b"<>\0"),
            (b"+", b"<c@example.com>\0"),
            (b"2", b"<d@example.com>\0NOTIFY=NEVER\0"),
            (b"-", b"<b@example.com>\0"),
            (b"q", b"odd\0"),
            (b"c", b""),
        )
        self.assertEqual(self.send({b"E": b"".join(packet(*each) for each in changes)}), 250)
        header = b"X-Quarantine: odd\r\nX-Top: 1\r\nX-Next: 2\r\nSubject: changed\r\nX-Last: one\r\n two\r\n"
        self.assertEqual(self.handler.content, [header + b"\r\nnew body\r\n"])
        (envelope,) = self.handler.envelopes
        self.assertEqual((envelope.mail_from, envelope.rcpt_tos), ("", ["c@example.com", "d@example.com"]))
        self.assertEqual(envelope.filters["milter"].action, "quarantine")

    def test_twoChanges(self) -> None:
        """A removed field no longer counts when the next one is changed."""
        changes = packet(b"m", b"\0\0\0\x01A\0\0") + packet(b"m", b"\0\0\0\x01A\0\0") + CONTINUE
        client = self.connect({b"E": changes})
        client.talk(GREETING)
        client.send_message(b"A: 1\r\nA: 2\r\nA: 3\r\n\r\n")
        self.assertEqual(self.handler.content, [b"A: 3\r\n\r\n"])


class FaultTests(MilterTests):
    """Milters that are down, slow or broken."""

    def test_down(self) -> None:
        """If a milter is down, the reply is 421 immediately, or mail is accepted. After some failures, no connection is
        tried."""
        endpoint = MilterInMemory()
        endpoint.down = True
        self.assertEqual(codes(self.connect_to(endpoint).welcome), [421])
        client = self.connect_to(endpoint, on_failure="accept")
        client.talk(GREETING)
        for _ in range(10):
            self.assertEqual(codes(client.talk(DATA))[-1], 250)
        self.assertEqual(endpoint.attempts, 1 + 5)
        self.assertEqual(len(self.handler.content), 10)
        self.assertEqual(self.handler.envelopes[0].filters["milter"].action, "failed")

    def test_log(self) -> None:
        """The log has one line when a milter is down, and one when it works again."""
        endpoint = MilterInMemory()
        endpoint.down = True
        said: list[str] = []

        def observe(event: Any) -> None:
            if event["log_namespace"] == "txsmtpd.filters":
                said.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        client = self.connect_to(endpoint, on_failure="accept")
        client.talk(GREETING + DATA * 8)
        endpoint.down = False
        client.wait(11)
        client.talk(DATA + DATA)
        self.assertEqual(len(said), 2, said)
        self.assertIn("the filter milter failed: no connection to the milter: Connection was refused", said[0])
        self.assertEqual(said[1], "the filter milter works again")

    def test_upAgain(self) -> None:
        """A milter that is available again gets the commands that it missed in the same session."""
        client = self.connect()
        client.talk(GREETING + DATA)
        self.milter.transports[0].lose()
        self.milter.said.clear()
        self.assertEqual(codes(client.talk(DATA))[-1], 250)
        self.assertEqual(self.milter.commands, "OCHMRTLNBEA")

    def test_goneInTransaction(self) -> None:
        """If a milter is lost during a transaction, this one is refused temporarily, and the next one works."""
        client = self.connect()
        client.talk(GREETING + TRANSACTION)
        self.milter.transports[0].lose()
        self.assertEqual(codes(client.talk(b"RCPT TO:<c@example.com>\r\nDATA\r\nRSET\r\n")), [451, 451, 250])
        self.assertEqual(codes(client.talk(DATA))[-1], 250)

    def test_silent(self) -> None:
        """The timeout of a milter is 30 seconds for a command and 300 seconds for the content. Then its connection is
        closed."""
        for command, seconds in (b"M", 30), (b"E", 300), (b"L", 300), (b"O", 30), (b"C", 30):
            client = self.connect({command: b""})
            client.talk(GREETING + DATA)
            client.wait(seconds - 1, step=1)
            self.assertFalse(self.milter.transports[0].gone)
            client.wait(2, step=1)
            self.assertTrue(self.milter.transports[0].gone)
            self.assertEqual(self.handler.content, [])

    def test_silentAndAccepted(self) -> None:
        """The timeout of the milter is shorter than the server's, so that mail is accepted if on_failure says so."""
        client = self.connect({b"E": b""}, on_failure="accept", hook_timeout=300)
        client.talk(GREETING + DATA)
        self.assertEqual(client.wait(269, step=1), b"")
        self.assertEqual(codes(client.wait(2, step=1)), [250])
        self.assertEqual(self.handler.content, [MESSAGE])

    def test_noConnection(self) -> None:
        """The timeout for a connection is 30 seconds."""
        endpoint = MilterInMemory()
        endpoint.silent = True
        client = self.connect_to(endpoint)
        self.assertEqual(client.welcome + client.wait(29, step=1), b"")
        self.assertEqual(codes(client.wait(2, step=1)), [421])

    def test_endless(self) -> None:
        """A milter that only sends progress responses is disconnected after ten minutes."""
        client = self.connect({b"E": packet(b"p")}, on_failure="accept")
        client.talk(GREETING + DATA)
        self.assertEqual(self.handler.content, [])
        for _ in range(4):
            client.wait(200, step=50)
            if not self.milter.transports[0].gone:
                self.milter.transports[0].protocol.dataReceived(packet(b"p"))
        self.assertTrue(self.milter.transports[0].gone)

    def test_tooMuch(self) -> None:
        """A milter that sends too many changes is disconnected."""
        endless = (packet(b"h", b"X\0" + b"y" * 60000 + b"\0") * 40, packet(b"h", b"X\0y\0") * 10001)
        for answer in endless:
            self.assertEqual(self.send({b"E": answer}), 451)
            self.assertEqual(self.handler.content, [])

    def test_broken(self) -> None:
        """An invalid response is a failure, and the connection is closed."""
        for command, answer in (
            (b"O", b"\0\0\0\0"),
            (b"O", packet(b"c")),
            (b"O", agreed(version=7)),
            (b"M", packet(b"h", b"X\0y\0")),
            (b"M", packet(b"Z")),
            (b"M", CONTINUE + CONTINUE),
            (b"E", packet(b"y", b"hello\0")),
            (b"E", packet(b"f")),
            (b"E", struct.pack("!I", 2**31)),
            (b"E", None),
        ):
            with self.subTest(command=command, answer=answer):
                client = self.connect({command: answer}, on_failure="accept")
                client.talk(GREETING)
                self.assertEqual(codes(client.talk(DATA))[-1], 250)
                self.assertTrue(self.milter.transports[0].gone)
                self.assertEqual(self.handler.envelopes[0].filters["milter"].action, "failed")

    def test_notAgreed(self) -> None:
        """A milter may do only what it has negotiated."""
        only = agreed(actions=milter.Actions.CHANGE_BODY)
        self.assertEqual(self.send({b"O": only, b"E": packet(b"h", b"X\0y\0") + CONTINUE}), 451)

    def test_clientLeaves(self) -> None:
        """If a client disconnects while the milter works, the milter's connection is closed."""
        client = self.connect({b"E": b""})
        client.talk(GREETING + DATA)
        client.vanish(ConnectionDone())
        self.assertTrue(self.milter.transports[0].gone)
        self.filter.filter_RSET(client.server, None, None)
        self.assertEqual(self.filter._dialogues, {})
        self.flushLoggedErrors()

    def test_wrongEndpoint(self) -> None:
        """An invalid endpoint is refused when the filter is created."""
        for wrong in "/run/milter.sock", "inet:8891@localhost", "", "unix:":
            with self.assertRaisesRegex(ValueError, "is not an endpoint; write unix:"):
                Milter(wrong)

    @settings(deadline=None, max_examples=150)
    @given(
        st.sampled_from(b"OCHMRTLNBE"),
        st.one_of(
            st.binary(max_size=60),
            st.lists(st.tuples(st.sampled_from(b"acdrtyspf4him+2-beqlO"), st.binary(max_size=20)), max_size=6).map(
                lambda each: b"".join(packet(bytes([letter]), data) for letter, data in each)
            ),
        ),
        st.sampled_from(["tempfail", "accept"]),
        st.booleans(),
    )
    def test_anyOctets(self, command: int, octets: bytes, on_failure: str, cut: bool) -> None:
        """Arbitrary octets at any place result in a verdict or a failure in limited time, and the server continues."""

        def answer(data: bytes) -> bytes:
            if not cut:
                return octets
            transport = self.milter.transports[-1]
            for octet in octets[:-1]:
                if not transport.gone:
                    transport.protocol.dataReceived(bytes([octet]))
            return octets[-1:]

        client = self.connect({bytes([command]): answer}, on_failure=on_failure)
        replies = client.welcome + client.talk(GREETING + DATA)
        replies += client.wait(700, step=5)
        found = codes(replies)
        self.assertTrue(found)
        self.assertNotIn(500, found)
        if 354 in found:
            self.assertIn(found[found.index(354) + 1], (250, 450, 451, 421, 550, 554, *range(400, 560)))
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertLess(len(self.milter.transports), 4)
