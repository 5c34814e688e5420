"""Large messages of a Proxy are forwarded as they arrive, as fast as the next server reads them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.relay import CLOSE, OFFERS, SILENT, Relayed, Script
from txsmtpd.handlers.proxy_stream import WHOLE
from txsmtpd.lmtp import LMTP
from txsmtpd.wire.outgoing import LineEnds, Stuffer, stuffed, with_crlf

LINE = b".a line of a message that is large" * 2 + b"\r\n"
UNLIMITED = OFFERS[1:]  # in size
HEADER = b"Subject: large\r\nX-Peer: forged\r\n\r\n"
LARGE = HEADER + LINE * (3 * WHOLE // len(LINE))


class StreamTests(SynchronousTestCase):
    """A message that is larger than the limit for collecting."""

    def begun(self, relayed: Relayed, *recipients: str, message: bytes = LARGE) -> None:
        """A transaction, and the whole message without its end."""
        relayed.begin(*recipients or ("b@upstream.test",))
        self.assertEqual(relayed.ask("DATA")[:3], "354")
        self.feed(relayed, message)

    def feed(self, relayed: Relayed, message: bytes) -> None:
        message = message.replace(b"\r\n.", b"\r\n..")
        for start in range(0, len(message), 50_000):
            self.assertEqual(relayed.hear(message[start : start + 50_000]), [])

    def end(self, relayed: Relayed, seconds: float = 0) -> list[str]:
        return [f"{each.code} {' / '.join(each.lines)}" for each in relayed.hear(b".\r\n", seconds)]

    def test_arrives(self) -> None:
        """It is forwarded like a short message: with its fields, dots and line ends, and the next server's reply."""
        relayed = Relayed(Script())
        self.begun(relayed)
        self.assertEqual(relayed.script.said("DATA"), ["DATA"])  # the client is still sending the message
        self.assertEqual(self.end(relayed), ["250 2.6.0 queued as 42"])
        (octets,) = relayed.script.messages
        self.assertTrue(octets.startswith(b"Received: from client.test"))
        _, _, rest = octets.partition(b"Subject:")
        expected = LARGE.replace(b"X-Peer: forged", b"X-Peer: 192.0.2.7")
        self.assertEqual(b"Subject:" + rest, expected.replace(b"\r\n.", b"\r\n.."))
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertEqual(relayed.script.connections, 1)  # one connection was used for both messages

    def test_binary(self) -> None:
        """BINARYMIME is forwarded in chunks, octet for octet."""
        message = HEADER + b"\r\r\n\n." * WHOLE
        relayed = Relayed(Script(offers=UNLIMITED))
        relayed.ask("MAIL FROM:<a@x> BODY=BINARYMIME")
        relayed.ask("RCPT TO:<b@x>")
        half = len(message) // 2
        for chunk, last in ((message[:half], b""), (message[half:], b" LAST")):
            relayed.client.say(b"BDAT %d%s\r\n" % (len(chunk), last) + chunk)
            heard = b""
            for _ in range(100):
                relayed.turn()
                heard += relayed.client.wait(0.001, 0.001)
            self.assertEqual(heard[:4], b"250 ")
        self.assertGreater(len(relayed.script.said("BDAT")), 2)
        self.assertEqual(relayed.script.said("BDAT")[-1], "BDAT 0 LAST")
        self.assertTrue(b"".join(relayed.script.messages).endswith(b"\r\r\n\n." * WHOLE))

    def test_binaryRefused(self) -> None:
        """If the next server refuses a chunk, that is the reply to the message. The rest is discarded."""
        relayed = Relayed(Script(DOT=[b"452 4.3.1 full\r\n"]))
        relayed.ask("MAIL FROM:<a@x> BODY=BINARYMIME")
        relayed.ask("RCPT TO:<b@x>")
        message = b"a" * 2 * WHOLE
        self.assertEqual(relayed.hear(b"BDAT %d\r\n" % len(message) + message)[0].code, 250)
        self.assertEqual(relayed.ask("BDAT 0 LAST"), "452 4.3.1 full")
        self.assertEqual(relayed.script.said("BDAT")[1:], [])

    def test_backPressure(self) -> None:
        """While the next server does not read, the client is not read either. Then the message continues."""
        relayed = Relayed(Script(offers=UNLIMITED), timeout=100)
        self.begun(relayed, message=HEADER)
        wire = relayed.script.open[0]
        wire.takes = False
        for _ in range(60):
            relayed.client.say(LINE.replace(b".a", b"a") * (WHOLE // 8 // len(LINE)))
            relayed.turn()
        self.assertFalse(relayed.client.reading)
        self.assertGreater(relayed.client.undelivered, 4 * WHOLE)
        wire.takes = True
        wire._pull()
        relayed.turn()
        for _ in range(200):
            relayed.turn()
            relayed.client.wait(0.001, 0.001)
        self.assertEqual(relayed.client.undelivered, 0)
        self.assertEqual(self.end(relayed), ["250 2.6.0 queued as 42"])

    def test_stalls(self) -> None:
        """A next server that reads nothing for too long is disconnected. The client gets the refusal at the end."""
        relayed = Relayed(Script(), timeout=20)
        self.begun(relayed, message=HEADER)
        relayed.script.open[0].takes = False
        for _ in range(12):
            relayed.client.say(b"a" * 60_000 + b"\r\n")
            relayed.turn()
        relayed.turn(20)
        relayed.client.wait(0.001, 0.001)
        relayed.turn()
        self.assertEqual(relayed.script.aborted, 1)
        self.assertEqual(self.end(relayed), ["451 4.4.2 The next server timed out, try again later"])

    def test_refused(self) -> None:
        """A refusal of the next server, of DATA, during a message or at its end, is the client's reply."""
        for script, expected in (
            ({"DATA": b"452 4.3.1 full\r\n"}, "452 4.3.1 full"),
            (
                {"DATA": b"250 2.0.0 done\r\n"},
                "451 4.5.0 The next server violated the protocol, try again later",
            ),
            ({"DATA": [CLOSE]}, "451 4.4.2 The next server closed the connection, try again later"),
            ({"DATA": b"354 go\r\n552 5.3.4 big\r\n"}, "552 5.3.4 big"),
            ({"DATA": b"354 go\r\n421 4.3.2 bye\r\n"}, "451 4.3.2 bye"),
            ({"DOT": b"550 5.7.1 spam\r\n"}, "550 5.7.1 spam"),
            ({"DOT": [CLOSE]}, "451 4.4.2 The next server closed the connection, try again later"),
        ):
            relayed = Relayed(Script(**script))
            self.begun(relayed)
            self.assertEqual(self.end(relayed), [expected], script)
            self.assertEqual(len(relayed.script.messages), int("DOT" in script))
            self.assertFalse(relayed.client.closed)
            relayed.script.script.clear()
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")

    def test_silent(self) -> None:
        """A next server that sends no reply results in 451."""
        relayed = Relayed(Script(DOT=SILENT), final_timeout=20)
        self.begun(relayed)
        self.assertEqual(self.end(relayed, 20)[0][:9], "451 4.4.2")

    def test_notForIt(self) -> None:
        """A message that is too large for the next server, or not ASCII, is not completed there."""
        for offers, message, expected in (
            (("SIZE 300000", "8BITMIME"), LARGE, "552 5.3.4"),
            ((), LARGE + b"\xc3\xa9\r\n", "554 5.6.3"),
        ):
            relayed = Relayed(Script(offers=offers))
            self.begun(relayed, message=message)
            self.assertEqual(self.end(relayed)[0][:9], expected)
            self.assertEqual((relayed.script.messages, relayed.script.aborted), ([], 1))

    def test_refusedHere(self) -> None:
        """A message that this server refuses, or whose client disconnects, is never completed at the next server."""
        for server, message, leave in (
            ({"data_size_limit": 2 * WHOLE}, LARGE, False),
            ({}, LARGE + b"a\nb\r\n", False),
            ({}, LARGE, True),
        ):
            relayed = Relayed(Script(), server=server)
            self.begun(relayed, message=message)
            if leave:
                relayed.client.vanish()
                relayed.turn()
            else:
                self.assertIn(self.end(relayed)[0][:1], "5")
            self.assertEqual((relayed.script.messages, relayed.script.aborted, relayed.script.open), ([], 1, []))

    def test_leavesWhileItWaits(self) -> None:
        """If the client disconnects while the next server is silent, the connection is closed."""
        for verb in ("DATA", "DOT"):
            relayed = Relayed(Script(**{verb: SILENT}))
            self.begun(relayed, message=LARGE if verb == "DOT" else LARGE[: WHOLE + 1000])
            if verb == "DOT":
                relayed.client.say(b".\r\n")
                relayed.turn()
            relayed.client.vanish()
            relayed.turn()
            self.assertEqual((relayed.script.open, relayed.script.aborted), ([], 1))

    def test_recipients(self) -> None:
        """A refused recipient is not sent again. Under LMTP, each of the others has its reply."""
        relayed = Relayed(Script(RCPT=[None, b"550 5.1.1 who?\r\n", None]))
        self.begun(relayed, "b@x", "c@x", "d@x")
        self.assertEqual(self.end(relayed), ["250 2.6.0 queued as 42"])
        self.assertEqual(len(relayed.script.said("RCPT")), 3)
        relayed = Relayed(Script(DOT=b"250 2.0.0 one\r\n550 5.7.1 two\r\n"), lmtp=True, server={"protocol": LMTP})
        relayed.ask("LHLO client.test")
        self.begun(relayed, "b@x", "c@x")
        self.assertEqual(self.end(relayed), ["250 2.0.0 one", "550 5.7.1 two"])

    def test_beginsAnew(self) -> None:
        """If the next server has closed the connection before the message, a new transaction is started."""
        relayed = Relayed(Script())
        relayed.begin("b@x", "c@x")
        relayed.script.open[0].end(ConnectionError())
        relayed.turn()
        relayed.script.script["RCPT"] = [None, b"550 5.1.1 gone\r\n"]
        self.assertEqual(relayed.ask("DATA")[:3], "354")
        self.feed(relayed, LARGE)
        self.assertEqual(self.end(relayed), ["550 5.1.1 gone"])
        self.assertEqual((relayed.script.connections, len(relayed.script.messages)), (2, 1))

    def test_headers(self) -> None:
        """A message in a mail loop, or with an endless header, is refused before it is forwarded. A header that ends
        with a line that is not a field is accepted."""
        body = b"no field\r\n" + LINE * (2 * WHOLE // len(LINE))
        for header, options, expected in (
            (b"Received: x\r\n" * 100 + b"\r\n", {}, "554 5.4.6"),
            (b"A: " + b"b" * 100 + b"\r\n", {"header_size_limit": None, "header_field_limit": None}, "552 5.3.4"),
            (b"A: b\r\n", {}, "250 2.6.0"),
        ):
            message = header + body if expected != "552 5.3.4" else header * (2 * WHOLE // len(header))
            relayed = Relayed(Script(), server=options)
            self.begun(relayed, message=message)
            self.assertEqual(self.end(relayed)[0][:9], expected)
            self.assertEqual(len(relayed.script.said("DATA")), int(expected[0] == "2"))

    def test_subclass(self) -> None:
        """A subclass that reads messages gets them whole."""
        from txsmtpd.handlers import Proxy

        sizes = []

        class Sees(Proxy):
            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
                sizes.append(len(envelope.content))
                return await super().handle_DATA(server, session, envelope)

        relayed = Relayed(Script(), make=Sees)
        self.begun(relayed)
        self.assertEqual(self.end(relayed), ["250 2.6.0 queued as 42"])
        self.assertEqual(sizes, [len(LARGE)])


class PieceTests(SynchronousTestCase):
    """Writing in pieces has the same result as writing at once."""

    @given(st.lists(st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"a"])).map(b"".join)))
    def test_asAtOnce(self, pieces: list[bytes]) -> None:
        """The result does not depend on how a message is split."""
        ends, stuffer = LineEnds(), Stuffer()
        found = b"".join(stuffer.feed(ends.feed(piece)) for piece in pieces)
        found += stuffer.feed(ends.end()) + stuffer.end()
        self.assertEqual(found, b"".join(stuffed(with_crlf(b"".join(pieces)))))
