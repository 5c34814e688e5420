"""Relaying: a Proxy's client gets the replies of the next server. No message is accepted that was not forwarded."""

from __future__ import annotations

import re
import ssl
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.support import LoggingTestCase
from tests.support.relay import CLOSE, OFFERS, SILENT, Relayed, Script
from txsmtpd import Envelope, Reply, verifyHandler
from txsmtpd.extensions import DSN, RRVS, DeliverBy, FutureRelease, RequireTLS
from txsmtpd.handlers import Proxy
from txsmtpd.handlers.upstream import Upstream
from txsmtpd.lmtp import LMTP
from txsmtpd.session import TLSInfo

MESSAGE = b"Subject: test\r\n\r\nHello\r\n"


class VerdictTests(LoggingTestCase):
    """Each reply of the next server is the client's reply to the same command."""

    def test_taken(self) -> None:
        """The client gets the next server's texts, command by command."""
        relayed = Relayed(Script())
        self.assertEqual(
            relayed.begin("b@upstream.test", "c@upstream.test"),
            ["250 2.1.0 sender fine", "250 2.1.5 recipient fine", "250 2.1.5 recipient fine"],
        )
        self.assertEqual(relayed.send_data(), "250 2.6.0 queued as 42")
        self.assertEqual(
            relayed.script.lines,
            [
                "EHLO relay.test",
                "MAIL FROM:<a@client.test>",
                "RCPT TO:<b@upstream.test>",
                "RCPT TO:<c@upstream.test>",
                "DATA",
            ],
        )
        verifyHandler(relayed.proxy)

    def test_refused(self) -> None:
        """4yz and 5yz are passed on with all lines, without invalid characters."""
        for verb in ("MAIL", "RCPT", "DATA", "DOT"):
            for answer, expected in (
                (b"450 4.7.1 wait\r\n", "450 4.7.1 wait"),
                (b"550-5.7.1 never\r\n550 5.7.1 ever\r\n", "550 5.7.1 never / 5.7.1 ever"),
                (b"554 no \x07status\r\n", "554 5.0.0 no ?status"),
                (b"421 4.3.2 I am leaving\r\n", "451 4.3.2 I am leaving"),
                (b"552 2.0.0 odd\r\n", "552 5.0.0 2.0.0 odd"),
            ):
                relayed = Relayed(Script(**{verb: answer}))
                *_, last = self.replies(relayed)
                self.assertEqual(last, expected, verb)
                self.assertFalse(relayed.client.closed)
                self.assertEqual(len(relayed.script.messages), int(verb == "DOT"))

    def test_oneOfThree(self) -> None:
        """One recipient of three is refused at RCPT. The message goes to the others."""
        relayed = Relayed(Script(RCPT=[None, b"550 5.1.1 who?\r\n", None]))
        replies = relayed.begin("b@x", "c@x", "d@x")
        self.assertEqual(replies[2], "550 5.1.1 who?")
        self.assertEqual(relayed.client.server.envelope.rcpt_tos, ["b@x", "d@x"])
        self.assertEqual(relayed.send_data(), "250 2.6.0 queued as 42")

    def replies(self, relayed: Relayed, seconds: float = 0) -> list[str]:
        """Send a message until something is refused."""
        replies: list[str] = []
        for line in ("MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA", "Subject: test\r\n\r\nHello\r\n."):
            replies.append(relayed.ask(line, seconds))
            if replies[-1][0] not in "23":
                break
        return replies

    def test_closes(self) -> None:
        """If the server closes the connection at any point, the reply is 451. The next message uses a new
        connection."""
        for verb in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
            relayed = Relayed(Script(**{verb: [CLOSE]}))
            self.assertIn(self.replies(relayed)[-1], [
                "451 4.4.2 The next server closed the connection, try again later"
            ], verb)  # fmt: skip
            relayed.ask("RSET")
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42", verb)
            self.assertEqual(relayed.script.connections, 2)

    def test_farewell(self) -> None:
        """A reply of the next server followed by 421 is passed on. The next message uses another connection."""
        for lmtp in (False, True):
            script = Script(DOT=[b"250 2.0.0 queued\r\n421 4.3.2 bye\r\n"])
            relayed = Relayed(script, lmtp=lmtp)
            self.assertEqual(relayed.send(), "250 2.0.0 queued")
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
            self.assertEqual(script.connections, 2)
        script = Script(RCPT=[b"250 2.1.5 fine\r\n421 4.3.2 bye\r\n"])
        self.assertEqual(Relayed(script).begin("b@upstream.test")[-1], "250 2.1.5 fine")
        self.assertEqual(script.messages, [])

    def test_slow(self) -> None:
        """A next server that is silent for too long results in 451, and its connection is closed."""
        for verb in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
            relayed = Relayed(Script(**{verb: SILENT}), timeout=20, final_timeout=20)
            self.assertEqual(
                self.replies(relayed, 20)[-1], "451 4.4.2 The next server timed out, try again later", verb
            )
            self.assertEqual(relayed.script.aborted, 1)
            self.assertEqual(relayed.script.open, [])

    def test_garbage(self) -> None:
        """A next server that violates the protocol results in 451, whatever it sends."""
        garbage: list[Any] = [b"HTTP/1.1 200 OK\r\n", b"250-a\r\n251 b\r\n", b"999 a\r\n", b"2500 a\r\n", b"\r\n"]
        garbage += [
            b"250 " + b"x" * 5000,
            b"250-a\r\n" * 4000,
            b"\x16\x03\x01\r\n",
            b"250 a\r\n250 b\r\n",
            b"200-\r\n\r\n",
        ]
        for verb in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
            for answer in garbage:
                relayed = Relayed(Script(**{verb: answer}))
                self.assertEqual(self.replies(relayed)[-1][:9], "451 4.5.0", (verb, answer))
                self.assertEqual(len(relayed.script.messages), int(verb == "DOT"))

    def test_positiveTooEarly(self) -> None:
        """A 354 to MAIL, RCPT or the end of data, and a 250 to DATA, do not count as acceptance."""
        for verb in ("MAIL", "RCPT", "DOT"):
            self.assertEqual(self.replies(Relayed(Script(**{verb: b"354 go\r\n"})))[-1][:9], "451 4.5.0", verb)
        self.assertEqual(self.replies(Relayed(Script(DATA=b"250 2.0.0 done\r\n")))[-1][:9], "451 4.5.0")
        # A second reply follows the 354, before the message. A 250 is not the reply to the message, but a refusal is.
        self.assertEqual(self.replies(Relayed(Script(DATA=b"354 go\r\n250 2.0.0 ok\r\n")))[-1][:9], "451 4.5.0")
        self.assertEqual(self.replies(Relayed(Script(DATA=b"354 go\r\n552 5.3.4 big\r\n")))[-1], "552 5.3.4 big")

    def test_neitherYesNorNo(self) -> None:
        """After a 354 or 421 to RCPT, nothing more is sent on that connection."""
        for answer in (b"354 go\r\n", b"421 4.3.2 bye\r\n"):
            relayed = Relayed(Script(RCPT=[answer]))
            self.assertEqual(relayed.begin("b@x")[1][0], "4")
            self.assertEqual(relayed.ask("RCPT TO:<c@x>")[0], "4")
            relayed.turn(10)
            self.assertNotIn("RSET", relayed.script.lines)
            self.assertEqual((relayed.script.said("RCPT"), relayed.script.open), (["RCPT TO:<b@x>"], []))

    def test_down(self) -> None:
        """A next server that cannot be reached, or never replies, results in 451."""
        relayed = Relayed(Script(down=True))
        unreachable = "451 4.4.1 The next server cannot be reached, try again later"
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>"), unreachable)
        self.assertEqual(relayed.ask("RCPT TO:<b@x>")[:3], "503")
        relayed.script.down = SILENT
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>", 30), unreachable)
        self.assertEqual(sum("cannot be reached" in line for line in self.logged("warn")), 2)
        relayed.script.down = False
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")

    def test_turnedAway(self) -> None:
        """A refusal as greeting does not refuse the mail. Nor do refusals of EHLO and HELO."""
        for script in (
            {"CONNECT": b"554 5.7.1 no\r\n"},
            {"EHLO": b"421 4.3.2 no\r\n"},
            {"EHLO": b"500 no\r\n", "HELO": b"500 no\r\n"},
        ):
            relayed = Relayed(Script(**script))
            self.assertEqual(
                relayed.ask("MAIL FROM:<a@x>"), "451 4.3.2 The next server does not accept mail now, try again later"
            )
            self.assertEqual(relayed.script.open, [])

    def test_refusedUnasked(self) -> None:
        """A refusal before any message does not refuse the mail, whoever it is from."""
        for verb in ("CONNECT", "EHLO"):
            script = Script()
            script.script[verb] = script.answer(verb) + b"550 5.7.1 never\r\n"
            relayed = Relayed(script)
            self.assertEqual(relayed.ask("MAIL FROM:<a@x>")[:9], "451 4.3.2", verb)
            self.assertEqual(script.open, [])

    def test_hello(self) -> None:
        """By default, the Proxy uses the server's name in EHLO."""
        relayed = Relayed(Script(), hello=None)
        relayed.send()
        self.assertEqual(relayed.script.lines[0], "EHLO mx.test")

    def test_helo(self) -> None:
        """A next server that does not support EHLO gets HELO, and no parameters."""
        relayed = Relayed(Script(EHLO=b"500 what?\r\n"))
        relayed.ask("MAIL FROM:<a@x> SIZE=9 BODY=8BITMIME")
        self.assertEqual(relayed.script.lines[1:], ["HELO relay.test", "MAIL FROM:<a@x>"])

    def test_others(self) -> None:
        """While one client waits for the next server, others do not."""
        relayed = Relayed(Script(MAIL=[SILENT]))
        self.assertEqual(relayed.hear(b"MAIL FROM:<a@x>\r\n"), [])
        first, relayed.client = relayed.client, relayed.connect()
        relayed.ask("EHLO other.test")
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        first.vanish()


ANSWERS = [
    *[None] * 8,
    b"450 4.7.1 wait\r\n",
    b"550 5.7.1 never\r\n",
    b"421 4.3.2 bye\r\n",
    (b"421 4.3.2 bye\r\n", CLOSE),
    (b"550 5.7.1 never\r\n", CLOSE),
    CLOSE,
    SILENT,
    b"250 ok\r\n",
    b"354 go\r\n",
    b"354 go\r\n250 ok\r\n",
    b"250-half",
    b"what?\r\n",
    b"250 ok\r\n250 ok\r\n",
]
VERBS = ["CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", ".", "RSET"]


class AnyServerTests(SynchronousTestCase):
    """Whatever the next server does."""

    @settings(max_examples=300, deadline=None)
    @given(
        st.fixed_dictionaries({verb: st.lists(st.sampled_from(ANSWERS), max_size=4) for verb in VERBS}),
        st.lists(st.sampled_from(["send", "send", "RSET", "vanish", "wait"]), min_size=1, max_size=6),
    )
    def test_nothingLost(self, answers: dict[str, Any], deeds: list[str]) -> None:
        """The client gets one reply to each command, and at most as many 250 as the server has messages. In the end,
        nothing waits or is open."""
        script = Script()
        script.script = answers
        relayed = Relayed(script, timeout=20, final_timeout=20, keep_for=5)
        taken = 0
        for deed in deeds:
            if deed == "vanish":
                relayed.client.vanish()
                relayed.client = relayed.connect()
                relayed.ask("EHLO again.test")
            elif deed == "wait":
                relayed.turn(6)
            elif deed == "RSET":
                relayed.ask("RSET", patience=30)  # the proxy waits for a server that hangs
            else:
                replies = VerdictTests.replies(self, relayed, 70)  # type: ignore[arg-type]
                self.assertRegex(replies[-1], "^(250|[45]5[0-9]) ")
                taken += len(replies) == 4 and replies[-1].startswith("250")
                self.assertLessEqual(taken, len(script.messages))
                relayed.ask("RSET", patience=30)
        relayed.client.vanish()
        relayed.turn(100)
        self.assertEqual((script.open, relayed.proxy._open, relayed.clock.getDelayedCalls()), ([], {}, []))
        self.assertEqual(self.flushLoggedErrors(), [])


class ConnectionTests(SynchronousTestCase):
    """Connections are reused, and none is left open."""

    def test_reused(self) -> None:
        """Messages of one client, and of another one, use one connection, one after the other."""
        relayed = Relayed(Script())
        for _ in range(3):
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        relayed.client = relayed.connect()
        relayed.ask("EHLO other.test")
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertEqual(relayed.script.connections, 1)
        self.assertEqual(relayed.script.said("RSET"), [])

    def test_bareLF(self) -> None:
        """A server whose lines end with LF alone works."""
        script = Script()
        script.usual = {verb: reply.replace(b"\r\n", b"\n") for verb, reply in script.usual.items()}
        self.assertEqual(Relayed(script).send(), "250 2.6.0 queued as 42")

    def test_idle(self) -> None:
        """An idle connection is closed after a while, with QUIT."""
        relayed = Relayed(Script(), keep_for=30)
        relayed.send()
        relayed.turn(29)
        self.assertEqual(len(relayed.script.open), 1)
        relayed.turn(1)
        self.assertEqual((relayed.script.open, relayed.script.lines[-1]), ([], "QUIT"))
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")

    def test_foundDead(self) -> None:
        """A connection that turns out to be closed, in any way, is replaced by a new one, once."""

        def dead(relayed: Relayed) -> None:
            relayed.script.script["MAIL"] = [CLOSE]

        def leaving(relayed: Relayed) -> None:
            relayed.script.script["MAIL"] = [b"421 4.4.2 idle\r\n"]

        def left(relayed: Relayed) -> None:
            relayed.script.open[0].say(b"421 4.4.2 idle\r\n")

        def closed(relayed: Relayed) -> None:
            relayed.script.open[0]._act("CONNECT")
            relayed.turn()

        for die in (dead, leaving, left, closed):
            relayed = Relayed(Script())
            relayed.send()
            die(relayed)
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42", die)
            self.assertEqual((relayed.script.connections, len(relayed.script.open)), (2, 1))

    def test_onceOnly(self) -> None:
        """If the new one fails, too, the reply is 451."""
        relayed = Relayed(Script(MAIL=[None, CLOSE, CLOSE]))
        relayed.send()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>")[:9], "451 4.4.2")
        self.assertEqual(relayed.script.connections, 2)

    def test_slowIsNotDead(self) -> None:
        """If the connection is slow, no other one is tried: the client has waited long enough."""
        relayed = Relayed(Script(MAIL=[None, SILENT]), timeout=20)
        relayed.send()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>", 20)[:9], "451 4.4.2")
        self.assertEqual(relayed.script.connections, 1)

    def test_keptAfterRefusal(self) -> None:
        """After a refusal of the sender, DATA or the message, the connection can be reused."""
        for verb in ("MAIL", "DATA", "DOT"):
            relayed = Relayed(Script(**{verb: [b"550 5.7.1 no\r\n"]}))
            VerdictTests.replies(self, relayed)  # type: ignore[arg-type]
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42", verb)
            self.assertEqual(relayed.script.connections, 1, verb)

    def test_mailMax(self) -> None:
        """It is used for no more messages than the server advertises (RFC 9422)."""
        relayed = Relayed(Script(offers=("LIMITS RCPTMAX=5 MAILMAX=2",)))
        for _ in range(3):
            relayed.send()
        self.assertEqual((relayed.script.connections, relayed.script.said("QUIT")), (2, ["QUIT"]))

    def test_limit(self) -> None:
        """The number of connections is limited, including those that are being made. Further messages get 451."""
        for script in ({"MAIL": SILENT}, {"down": SILENT}):
            relayed = Relayed(Script(**script), connection_limit=2)
            for _ in range(2):
                client = relayed.connect()
                client.say(b"EHLO x\r\nMAIL FROM:<a@x>\r\n")
                relayed.turn()
            self.assertEqual(
                relayed.ask("MAIL FROM:<a@x>"),
                "451 4.3.2 Too many connections to the next server, try again later",
            )
            client.vanish()
            relayed.script.down = False
            relayed.script.script.clear()
            relayed.turn()
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")

    def test_refusedOnce(self) -> None:
        """If the sender is refused on a connection that has reached its limit, it is not tried again."""
        relayed = Relayed(Script(offers=("LIMITS MAILMAX=2",), MAIL=[None, b"550 5.7.1 no\r\n"]))
        relayed.send()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>"), "550 5.7.1 no")
        self.assertEqual(relayed.script.connections, 1)

    def test_close(self) -> None:
        """A Proxy that is closed keeps no connections."""
        relayed = Relayed(Script())
        relayed.send()
        closed = relayed.proxy.upstream.close()
        self.assertNoResult(closed)
        relayed.turn()
        self.successResultOf(closed)
        self.assertEqual(relayed.script.open, [])
        relayed.send()
        relayed.turn(10)
        self.assertEqual((relayed.script.open, relayed.clock.getDelayedCalls()[1:]), ([], []))


class AbortTests(SynchronousTestCase):
    """A message that the client does not complete is not completed at the next server."""

    def test_reset(self) -> None:
        """After RSET, EHLO and another MAIL, the next server discards the message, and the connection is kept."""
        for line in ("RSET", "EHLO again.test\r\nMAIL FROM:<c@x>"):
            relayed = Relayed(Script())
            relayed.begin("b@x")
            relayed.hear(line.encode() + b"\r\n")
            self.assertEqual(relayed.script.said("RSET"), ["RSET"], line)
            relayed.ask("RSET")
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertEqual(len(relayed.script.messages), 1)

    def test_resetAgainAndAgain(self) -> None:
        """However often a client repeats MAIL and RSET without waiting, one connection is enough."""
        relayed = Relayed(Script())
        replies = relayed.hear(b"MAIL FROM:<a@x>\r\nRSET\r\n" * 20 + b"MAIL FROM:<a@x>\r\nEHLO y\r\n" * 20)
        self.assertEqual({reply.code for reply in replies}, {250})
        self.assertEqual((len(replies), relayed.script.connections), (80, 1))

    def test_didNotWait(self) -> None:
        """If the next server closes while the client still sends the message, the transaction is repeated on a new
        connection."""
        for last in (b"421 4.4.2 too slow\r\n", CLOSE):
            relayed = Relayed(Script(), server={"extensions": [DSN()]})
            relayed.ask("MAIL FROM:<a@x> RET=HDRS")
            relayed.ask("RCPT TO:<b@x> NOTIFY=NEVER")
            relayed.ask("DATA")
            (wire,) = relayed.script.open
            relayed.script.script["IDLE"] = last
            wire._act("IDLE")
            relayed.turn()
            (answer,) = relayed.hear(MESSAGE + b".\r\n")
            self.assertEqual((answer.code, answer.lines), (250, ("2.6.0 queued as 42",)))
            self.assertEqual(
                relayed.script.lines[3:],
                ["EHLO relay.test", "MAIL FROM:<a@x> RET=HDRS", "RCPT TO:<b@x> NOTIFY=NEVER", "DATA"],
            )
            self.assertEqual(len(relayed.script.messages), 1)

    def test_gone(self) -> None:
        """After QUIT, or if the client disconnects, before DATA or during the message, nothing is sent."""
        for before in ("", "DATA\r\nSubject: half\r\n"):
            for end in ("quit", "vanish"):
                relayed = Relayed(Script())
                relayed.begin("b@x")
                relayed.client.say(before.encode())
                if end == "vanish" or before:
                    relayed.client.vanish()
                else:
                    relayed.client.say(b"QUIT\r\n")
                relayed.turn()
                self.assertEqual(relayed.script.lines[3:], ["RSET"], (before, end))
                self.assertEqual((relayed.script.messages, relayed.proxy._open), ([], {}))

    def test_goneWhileWaiting(self) -> None:
        """If a client disconnects while the next server processes a command, that connection is closed and no other one
        is made."""
        for verb in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA"):
            relayed = Relayed(Script(**{verb: SILENT}))
            relayed.client.say(b"MAIL FROM:<a@x>\r\n")
            relayed.turn()
            relayed.client.say(b"RCPT TO:<b@x>\r\n")
            relayed.turn()
            relayed.client.say(b"DATA\r\n" + MESSAGE + b".\r\n")
            relayed.turn()
            relayed.client.vanish()
            relayed.turn()
            self.assertEqual((relayed.script.open, relayed.script.connections), ([], 1), verb)
            self.assertEqual((relayed.script.messages, relayed.proxy._open), ([], {}), verb)

    def test_goneWhileConnecting(self) -> None:
        """A client disconnects before the connection is made."""
        relayed = Relayed(Script(down=SILENT))
        relayed.client.say(b"MAIL FROM:<a@x>\r\n")
        relayed.client.vanish()
        relayed.turn(60)
        self.assertEqual(relayed.script.connections, 0)

    def test_goneWhileSending(self) -> None:
        """If a client disconnects while its message is sent, the end is not sent, and the connection is aborted."""
        relayed = Relayed(Script(), server={"data_size_limit": None})
        relayed.begin("b@x")
        relayed.script.open[0].takes = False
        relayed.client.say(b"DATA\r\n" + MESSAGE + b"x\r\n" * 100_000 + b".\r\n")
        relayed.turn()
        relayed.client.vanish()
        relayed.turn()
        self.assertEqual((relayed.script.messages, relayed.script.open, relayed.script.aborted), ([], [], 1))

    def test_stalled(self) -> None:
        """A server that stops reading the message for too long results in 451. One that reads slowly does not time
        out."""
        message = MESSAGE + b"x\r\n" * 100_000
        relayed = Relayed(Script(), timeout=20)
        relayed.begin("b@x")
        relayed.script.open[0].takes = False
        self.assertEqual(relayed.send_data(message, 20)[:9], "451 4.4.2")
        relayed = Relayed(Script(), timeout=20)
        relayed.begin("b@x")
        wire = relayed.script.open[0]
        wire.takes = False
        relayed.hear(b"DATA\r\n" + message + b".\r\n")
        turns, heard = 0, b""
        while not heard and turns < 50:
            turns += 1
            relayed.turn(19)
            if wire.producer is not None:
                wire.producer.resumeProducing()
            heard = relayed.client.heard()
        self.assertGreater(turns, len(message) // 65536)  # the timeout starts again with each piece
        self.assertEqual(heard, b"250 2.6.0 queued as 42\r\n")

    def test_messageRefusedHere(self) -> None:
        """A message that this server refuses is also discarded at the next server before another one."""
        relayed = Relayed(Script(), server={"data_size_limit": 100})
        relayed.begin("b@x")
        self.assertEqual(relayed.send_data(b"x" * 200 + b"\r\n")[:3], "552")
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertEqual((relayed.script.said("RSET"), len(relayed.script.messages)), (["RSET"], 1))


class MessageTests(SynchronousTestCase):
    """The forwarded message."""

    def passed_on(self, message: bytes, **more: Any) -> bytes:
        """The message that the next server gets, without dot-stuffing and without the variable parts of Received."""
        relayed = Relayed(Script(), **more)
        self.assertEqual(relayed.send(message)[:3], "250")
        (octets,) = relayed.script.messages
        received = re.match(
            rb"Received: from client\.test \(\[192\.0\.2\.7\]\)\r\n\tby mx\.test with E?SMTP id \S+\r\n"
            rb"\tfor <b@upstream\.test>;\r\n\t[^\r\n]+\r\n".replace(rb"\r\n\tfor", rb" *\r?\n?\tfor"),
            octets,
        )
        if more.get("received", True):
            assert received is not None, octets
            octets = octets[received.end() :]
        return octets

    def test_fields(self) -> None:
        """Received is added at the top, and X-Peer at the end of the header, whatever the header is like."""
        for message, expected in (
            (b"Subject: a\r\n\r\nbody\r\n", b"Subject: a\r\nX-Peer: 192.0.2.7\r\n\r\nbody\r\n"),
            (b"\r\nbody\r\n", b"X-Peer: 192.0.2.7\r\n\r\nbody\r\n"),
            (b"Subject: a\r\n", b"Subject: a\r\nX-Peer: 192.0.2.7\r\n"),
            (b"", b"X-Peer: 192.0.2.7\r\n"),
            (b" folded\r\n\r\nbody\r\n", b"X-Peer: 192.0.2.7\r\n\r\n folded\r\n\r\nbody\r\n"),
            (b"X-peer : me\r\n too\r\nA: b\r\n\r\nX-Peer: c\r\n", b"A: b\r\nX-Peer: 192.0.2.7\r\n\r\nX-Peer: c\r\n"),
        ):
            self.assertEqual(self.passed_on(message), expected)
        self.assertEqual(self.passed_on(b"A: b\r\n\r\n", received=False), b"A: b\r\nX-Peer: 192.0.2.7\r\n\r\n")

    def test_dots(self) -> None:
        """Dots at the beginning of lines are doubled, so that nothing in a message ends it."""
        body = b"A: b\r\n\r\n..\r\n..a\r\n\r\n...\r\n"
        (octets,) = self.sent(body)
        self.assertTrue(octets.endswith(b"\r\n\r\n..\r\n..a\r\n\r\n...\r\n"), octets)

    def sent(self, message: bytes, **server: Any) -> list[bytes]:
        """Return the messages as sent on the wire for a client's message."""
        relayed = Relayed(Script(), server=server)
        self.assertEqual(relayed.send(message)[:3], "250")
        return relayed.script.messages

    def test_bareNewlines(self) -> None:
        """No bare CR or LF is forwarded, even if this server accepts them: the next server gets one message."""
        (octets,) = self.sent(b"A: b\r\n\r\nx\n.\nMAIL FROM:<evil@x>\r.\ry\r\n", bare_newlines=True)
        self.assertTrue(octets.endswith(b"\r\n\r\nx\r\n..\r\nMAIL FROM:<evil@x>\r\n..\r\ny\r\n"), octets)

    def test_loop(self) -> None:
        """A message that has passed a hundred servers is refused, and the next server's connection is kept."""
        relayed = Relayed(Script())
        self.assertEqual(relayed.send(b"Received: x\r\n" * 100 + b"\r\n")[:9], "554 5.4.6")
        self.assertEqual(relayed.send(b"Received: x\r\n" * 99 + b"\r\nReceived: y\r\n")[:3], "250")
        self.assertEqual(relayed.script.connections, 1)

    def test_text(self) -> None:
        """With decode_data, or if a hook changes the content, the present content is forwarded."""
        (octets,) = self.sent(b"A: \xc3\xa9\r\n\r\n", decode_data=True)
        self.assertIn(b"A: \xc3\xa9\r\n", octets)


class ParameterTests(SynchronousTestCase):
    """Parameters are forwarded if the next server supports them. Required parameters are refused otherwise."""

    everything = (DSN(), RRVS(), DeliverBy(), FutureRelease(99), RequireTLS())

    def relayed(self, *offers: str) -> Relayed:
        """A client of a server with all extensions, whose next server has these."""
        relayed = Relayed(Script(offers=offers), server={"extensions": self.everything})
        relayed.client.server.session.ssl = TLSInfo("TLSv1.3", "x")
        return relayed

    def test_goAlong(self) -> None:
        """Parameters are forwarded with their values."""
        relayed = self.relayed(*OFFERS, "DELIVERBY", "FUTURERELEASE 99 2030-01-01T00:00:00Z", "RRVS")
        mail = "MAIL FROM:<\u00e9@x> SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=+41 BY=9;R HOLDFOR=9"
        rcpt = "RCPT TO:<\u00e8@x> NOTIFY=SUCCESS ORCPT=rfc822;b+2Bc@x RRVS=2026-01-01T00:00:00Z"
        self.assertEqual([relayed.ask(mail)[:3], relayed.ask(rcpt)[:3]], ["250", "250"])
        self.assertEqual(relayed.script.lines[1:], [mail, rcpt])

    def test_dropped(self) -> None:
        """Parameters that may be dropped are dropped."""
        relayed = self.relayed()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x> SIZE=9 BODY=8BITMIME RET=FULL ENVID=1 BY=9;N")[:3], "250")
        self.assertEqual(relayed.ask("RCPT TO:<b@x> NOTIFY=NEVER ORCPT=x;y RRVS=2026-01-01T00:00:00Z;C")[:3], "250")
        self.assertEqual(relayed.script.lines[1:], ["MAIL FROM:<a@x>", "RCPT TO:<b@x>"])

    def test_mustNotBeLost(self) -> None:
        """Parameters that must not be dropped are refused, and the connection is kept."""
        for parameter, refusal in (
            ("SMTPUTF8", "550 5.6.7"),
            ("REQUIRETLS", "550 5.7.30"),
            ("BODY=BINARYMIME", "554 5.6.3"),
            ("BY=9;R", "550 5.3.3"),
            ("HOLDFOR=9", "550 5.3.3"),
        ):
            relayed = self.relayed("REQUIRETLS", "CHUNKING")
            self.assertEqual(relayed.ask(f"MAIL FROM:<a@x> {parameter}")[: len(refusal)], refusal)
            relayed.ask("MAIL FROM:<a@x>")
            self.assertEqual(relayed.ask("RCPT TO:<b@x> RRVS=2026-01-01T00:00:00Z")[:10], "550 5.7.19")
            self.assertEqual(relayed.script.connections, 1)
            self.assertEqual(relayed.script.lines[1:], ["MAIL FROM:<a@x>"])

    def test_eightBits(self) -> None:
        """A message that is not ASCII gets 554 5.6.3 if the next server lacks 8BITMIME (RFC 6152 3). An ASCII message
        is forwarded."""
        relayed = self.relayed()
        relayed.ask("MAIL FROM:<a@x> BODY=8BITMIME")
        relayed.ask("RCPT TO:<b@x>")
        self.assertEqual(relayed.send_data(b"A: \xff\r\n\r\n")[:9], "554 5.6.3")
        relayed.ask("MAIL FROM:<a@x> BODY=8BITMIME")
        relayed.ask("RCPT TO:<b@x>")
        self.assertEqual(relayed.send_data(b"A: b\r\n\r\n")[:3], "250")

    def test_size(self) -> None:
        """A message that is too large for the next server is refused without being sent."""
        relayed = self.relayed("SIZE 500")
        self.assertEqual(relayed.send(b"x" * 500 + b"\r\n")[:9], "552 5.3.4")
        self.assertEqual((relayed.send()[:3], len(relayed.script.said("DATA"))), ("250", 1))

    def test_binary(self) -> None:
        """BINARYMIME is sent with BDAT, octet for octet."""
        relayed = self.relayed(*OFFERS)
        relayed.ask("MAIL FROM:<a@x> BODY=BINARYMIME")
        relayed.ask("RCPT TO:<b@x>")
        body = b"A: b\r\n\r\n\r\n.\r\n\x00\n.\rx"
        (answer,) = relayed.hear(b"BDAT %d LAST\r\n" % len(body) + body)
        self.assertEqual(answer.code, 250)
        self.assertTrue(relayed.script.messages[0].endswith(b"X-Peer: 192.0.2.7\r\n\r\n\r\n.\r\n\x00\n.\rx"))
        self.assertEqual(relayed.script.said("RSET"), [])

    def test_binaryRefused(self) -> None:
        """After a refused BINARYMIME message, the connection can be reused (RFC 3030 2)."""
        relayed = self.relayed(*OFFERS)
        relayed.script.script["."] = [b"554 5.6.0 no\r\n"]
        relayed.ask("MAIL FROM:<a@x> BODY=BINARYMIME")
        relayed.ask("RCPT TO:<b@x>")
        (answer,) = relayed.hear(b"BDAT 6 LAST\r\nA: b\r\n")
        self.assertEqual((answer.code, relayed.script.said("RSET")), (554, ["RSET"]))
        self.assertEqual((relayed.send()[:3], relayed.script.connections), ("250", 1))

    def test_requireTLS(self) -> None:
        """REQUIRETLS is forwarded only to a verified server that offers it (RFC 8689 4.2.1)."""
        relayed = self.relayed("REQUIRETLS")
        relayed.send()
        relayed.script.open[0].protocol.verified = True
        self.assertEqual(relayed.ask("MAIL FROM:<a@x> REQUIRETLS")[:3], "250")
        self.assertEqual(relayed.script.lines[-1], "MAIL FROM:<a@x> REQUIRETLS")


class LMTPTests(SynchronousTestCase):
    """Clients and next servers that use LMTP."""

    each = (b"250 2.0.0 b has it\r\n", b"452 4.2.2 c is full\r\n", b"250 2.0.0 d has it\r\n")

    def test_underSMTP(self) -> None:
        """Each recipient has a reply. An SMTP client gets one that loses no mail."""
        relayed = Relayed(Script(DOT=self.each), lmtp=True)
        relayed.begin("b@x", "c@x", "d@x")
        self.assertEqual(relayed.send_data(), "452 4.2.2 c is full")
        self.assertEqual(relayed.script.lines[0], "LHLO relay.test")
        relayed.begin("b@x")
        relayed.script.script["."] = [self.each[0]]
        self.assertEqual(relayed.send_data(), "250 2.0.0 b has it")
        self.assertEqual(relayed.script.connections, 1)

    def test_underLMTP(self) -> None:
        """An LMTP client gets all replies."""
        relayed = Relayed.__new__(Relayed)
        script = Script(DOT=self.each)
        relayed.script, relayed.clock = script, script.clock
        relayed.proxy = Proxy("x.test", endpoint=script, reactor=script.clock, lmtp=True)
        relayed.server = {"protocol": LMTP}
        relayed.client = self.lmtp_client(relayed)
        relayed.ask("LHLO client.test")
        relayed.begin("b@x", "c@x", "d@x")
        relayed.ask("DATA")
        found = relayed.hear(MESSAGE + b".\r\n")
        self.assertEqual([each.lines[0] for each in found], ["2.0.0 b has it", "4.2.2 c is full", "2.0.0 d has it"])
        self.assertIn(b"with LMTP id", script.messages[0])

    def lmtp_client(self, relayed: Relayed) -> Any:
        from tests.support import Client
        from txsmtpd import SMTPFactory

        factory = SMTPFactory(relayed.proxy, protocol=LMTP, reactor=relayed.clock, hostname="mx.test")
        return Client(factory=factory)

    def test_closesWithin(self) -> None:
        """If the server closes before all replies, those that it has sent are valid."""
        script = Script(DOT=(*self.each[:2], CLOSE))
        upstream = Upstream("x.test", endpoint=script, reactor=script.clock, lmtp=True)
        self.assertEqual([reply.code for reply in sent(script, upstream, ["b@x", "c@x", "d@x"])], [250, 452, 451])


def sent(
    script: Script, upstream: Upstream, recipients: list[str], content: bytes = MESSAGE, **more: Any
) -> list[Reply]:
    """The result of sending a message from a program."""
    sending = Deferred.fromCoroutine(upstream.send("a@x", recipients, content, **more))
    for _ in range(50):
        script.clock.advance(0)
    result: list[list[Reply]] = []
    sending.addCallback(result.append)
    (replies,) = result
    return replies


class SendTests(SynchronousTestCase):
    """A program sends a whole message."""

    def send(self, recipients: list[str], content: bytes = MESSAGE, more: Any = None, **script: Any) -> list[str]:
        self.script = Script(**script)
        upstream = Upstream("x.test", endpoint=self.script, reactor=self.script.clock, hello="relay.test")
        return [str(reply) for reply in sent(self.script, upstream, recipients, content, **(more or {}))]

    def test_each(self) -> None:
        """There is a reply for each recipient, in their order."""
        replies = self.send(["b@x", "c@x", "d@x"], RCPT=[None, b"550 5.1.1 who?\r\n", None])
        self.assertEqual(replies, ["250 2.6.0 queued as 42", "550 5.1.1 who?", "250 2.6.0 queued as 42"])
        self.assertEqual(self.script.messages, [MESSAGE])

    def test_all(self) -> None:
        """If the sender, the recipients or the message are refused, or the server is down, all recipients have the same
        reply."""
        self.assertEqual(self.send(["b@x", "c@x"], MAIL=b"550 5.1.8 no\r\n"), ["550 5.1.8 no"] * 2)
        self.assertEqual(self.send(["b@x", "c@x"], DOT=b"451 4.3.0 no\r\n"), ["451 4.3.0 no"] * 2)
        self.assertEqual([each[:9] for each in self.send(["b@x", "c@x"], down=True)], ["451 4.4.1"] * 2)
        self.assertEqual(self.send(["b@x"], RCPT=b"550 5.1.1 who?\r\n"), ["550 5.1.1 who?"])
        self.assertEqual((self.script.said("DATA"), self.script.said("RSET")), ([], ["RSET"]))
        self.assertEqual(self.send([]), [])

    def test_closesBetween(self) -> None:
        """If a server closes during the RCPT commands, no recipient has the message."""
        replies = self.send(["b@x", "c@x", "d@x"], RCPT=[None, CLOSE])
        self.assertEqual([each[:9] for each in replies], ["451 4.4.2"] * 3)
        self.assertEqual(self.script.messages, [])

    def test_lineEnds(self) -> None:
        """Any line ends become CRLF. The last line gets one, too."""
        self.send(["b@x"], b"A: b\n\n.\nc")
        self.assertEqual(self.script.messages, [b"A: b\r\n\r\n..\r\nc\r\n"])

    def test_eightBits(self) -> None:
        """Octets that are not ASCII are declared with BODY."""
        self.send(["b@x"], b"A: \xc3\xa9\n")
        self.assertEqual(self.script.said("MAIL"), ["MAIL FROM:<a@x> BODY=8BITMIME"])

    def test_options(self) -> None:
        """Parameters of MAIL and of each recipient."""
        self.send(["b@x", "c@x"], more={"mail_options": ["RET=FULL"], "rcpt_options": [["NOTIFY=NEVER"], []]})
        self.assertEqual(
            self.script.lines[1:4], ["MAIL FROM:<a@x> RET=FULL", "RCPT TO:<b@x> NOTIFY=NEVER", "RCPT TO:<c@x>"]
        )

    def test_nothingGetsOut(self) -> None:
        """A text that is more than one address, or contains a command, is refused and never sent."""
        evil = ["b@x> NOTIFY=NEVER", "b@x>\r\nRSET", "b@x\r\nRSET", "<b@x", "", "@y:b@x", "\u00e9@x", "b@x\n"]
        replies = self.send([*evil, "good@x"])
        self.assertEqual([each[0] for each in replies], ["5"] * len(evil) + ["2"])
        self.assertEqual(self.script.said("RCPT"), ["RCPT TO:<good@x>"])

    def test_noCharacters(self) -> None:
        """Text that cannot be encoded, and control characters, are refused and never sent, even with SMTPUTF8."""
        evil = ["\udcff@x", "\x85@x", "\u2028@x"]
        utf8 = {"mail_options": ["SMTPUTF8"]}
        replies = self.send([*evil, "\u00e9@x"], more=utf8)
        self.assertEqual([each[0] for each in replies], ["5"] * len(evil) + ["2"])
        self.assertEqual(self.script.said("RCPT"), ["RCPT TO:<\u00e9@x>"])
        for option in ("ENVID=\udcff", "ENVID=\u00e9"):
            self.assertEqual(self.send(["b@x"], more={"mail_options": [option]})[0][:9], "550 5.6.7")

    def test_mistakes(self) -> None:
        """A message or parameter of a wrong type is an exception, and leaves no connection behind."""
        for content, more in (
            (None, {}),
            ("text", {}),
            (MESSAGE, {"rcpt_options": [[]]}),
            (MESSAGE, {"mail_options": [""]}),
        ):
            script = Script()
            upstream = Upstream("x.test", endpoint=script, reactor=script.clock)
            sending = Deferred.fromCoroutine(upstream.send("a@x", ["b@x", "c@x"], content, **more))  # type: ignore[arg-type]
            script.clock.advance(0)
            for _ in range(50):
                script.clock.advance(0)
            self.failureResultOf(sending, TypeError, AttributeError, IndexError, ValueError)
            script.clock.advance(30)
            for _ in range(50):
                script.clock.advance(0)
            self.assertEqual(script.open, [])

    def test_lineEndInOption(self) -> None:
        """Nor is an invalid parameter sent."""
        self.assertEqual(self.send(["b@x"], more={"mail_options": ["RET=FULL\r\nRSET"]})[0][:3], "501")
        self.assertEqual(self.script.said("RSET"), [])


class SubclassTests(SynchronousTestCase):
    """Subclasses of Proxy."""

    def test_handleDATA(self) -> None:
        """handle_DATA may change the message before it is forwarded."""

        class Stamping(Proxy):
            async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> Any:
                envelope.content = b"X-Stamp: seen\r\n" + bytes(envelope.content)  # type: ignore[arg-type]
                return await super().handle_DATA(server, session, envelope)

        relayed = Relayed(Script(), make=Stamping)
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertIn(b"\r\nX-Stamp: seen\r\n", relayed.script.messages[0])

    def test_ownRecipients(self) -> None:
        """If hooks decide about recipients and senders themselves, the next server gets the transaction with the
        message."""

        class Deciding(Proxy):
            async def handle_RCPT(
                self, server: Any, session: Any, envelope: Envelope, address: str, rcpt_options: list[str]
            ) -> Any:
                if address == "no@x":
                    return "550 5.7.1 no"
                envelope.rcpt_tos.append(address)
                return "250 2.1.5 OK"

        relayed = Relayed(Script(), make=Deciding)
        self.assertEqual([each[:3] for each in relayed.begin("b@x", "no@x", "c@x")], ["250", "250", "550", "250"])
        self.assertEqual(relayed.send_data(), "250 2.6.0 queued as 42")
        self.assertEqual(relayed.script.said("RCPT"), ["RCPT TO:<b@x>", "RCPT TO:<c@x>"])
        self.assertEqual(len(relayed.script.messages), 1)
        relayed.script.script["RCPT"] = [None, b"550 5.1.1 who?\r\n"]
        relayed.begin("b@x", "c@x")
        self.assertEqual(relayed.send_data(), "550 5.1.1 who?")

    def test_recipientTakenOut(self) -> None:
        """A recipient that a hook removes again gets nothing."""

        class Dropping(Proxy):
            async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> Any:
                envelope.rcpt_tos.remove("b@x")
                return await super().handle_DATA(server, session, envelope)

        relayed = Relayed(Script(), make=Dropping, server={"extensions": [DSN()]})
        relayed.begin("b@x")
        relayed.ask("RCPT TO:<c@x> NOTIFY=NEVER")
        self.assertEqual(relayed.send_data(), "250 2.6.0 queued as 42")
        relayed.ask("RSET")
        last = len(relayed.script.lines) - relayed.script.lines[::-1].index("MAIL FROM:<a@client.test>")
        self.assertEqual(relayed.script.lines[last:], ["RCPT TO:<c@x> NOTIFY=NEVER", "DATA"])


class OptionTests(SynchronousTestCase):
    """The arguments of a Proxy, in Python and on the command line."""

    def test_wrong(self) -> None:
        """Invalid values are refused when it is created."""
        for arguments, options in (
            (("",), {}), (("a b",), {}), (("x", 0), {}), (("x", 65536), {}), (("x", "25"), {}), (("x", True), {}),
            (("x",), {"tls": "maybe"}), (("x",), {"username": "u"}), (("x",), {"hello": "a b"}), (("x",), {"tls": ""}),
            (("x:y",), {}), (("[x]",), {}), (("[::1",), {}), (("[IPv6:::1]",), {}), (("x",), {"keep": -1}),
            (("x",), {"connection_limit": -1}), (("x",), {"username": "", "password": "p"}),
            (("x",), {"username": "u", "password": ""}),
            (("/run/x",), {"tls": "required"}), (("/run/x",), {"tls": "implicit"}),
        ):  # fmt: skip
            self.assertRaises(ValueError, Proxy, *arguments, **options)
        for name in ("keep", "connection_limit"):
            for count in ("9", True, 1.5):
                self.assertRaises(TypeError, Proxy, "x", **{name: count})
        self.assertRaises(TypeError, Proxy, "x", colour="blue")
        self.assertRaises(TypeError, Proxy, "x", tls_context=ssl.create_default_context())
        for name in ("timeout", "connect_timeout", "final_timeout", "keep_for"):
            for seconds in (0, -1, float("inf"), float("nan")):
                self.assertRaises(ValueError, Proxy, "x", **{name: seconds})

    def test_tlsByDefault(self) -> None:
        """A password is sent only over TLS, unless the option tls says otherwise."""
        self.assertEqual(Upstream("x").tls, "opportunistic")
        self.assertEqual(Upstream("x", username="u", password="p").tls, "required")
        self.assertEqual(Upstream("/run/x", username="u", password="p").tls, "never")

    def test_addresses(self) -> None:
        """Brackets are not part of an address."""
        for host, bare in (
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("[192.0.2.1]", "192.0.2.1"),
        ):
            self.assertEqual(Upstream(host).host, bare)
        self.assertEqual(repr(Upstream("[::1]")), "<Upstream [::1]:25>")

    def test_commandLine(self) -> None:
        """HOST:PORT, a Unix socket, and options."""
        from twisted.python.usage import UsageError

        from txsmtpd.service.handlers import make_handler

        folder = self.mktemp()
        with open(folder, "w") as file:
            file.write("secret\n")
        handler: Any = make_handler(f"proxy:mx.test:587:tls=implicit:user=u:password-file={folder}:hello=me.test")
        upstream = handler.upstream
        self.assertEqual(
            (upstream.host, upstream.port, upstream.tls, upstream.hello), ("mx.test", 587, "implicit", "me.test")
        )
        self.assertEqual(upstream.credentials, (b"u", b"secret"))
        handler = make_handler("proxy:[2001:db8::1]:587:tls=implicit")
        self.assertEqual((handler.upstream.host, handler.upstream.port), ("2001:db8::1", 587))
        handler = make_handler("proxy:/run/lmtp.sock:lmtp")
        self.assertEqual((handler.upstream.host, handler.upstream.lmtp), ("/run/lmtp.sock", True))
        for wrong in (
            "proxy", "proxy:", "proxy:x", "proxy:x:", "proxy:x:y", "proxy:x:0", "proxy:x:25:what", "proxy:x:25:tls=x",
            "proxy:x:25:tls", "proxy:x:25:user=u", "proxy:x:25:password-file=/nowhere", "proxy:a b:25", "proxy:x:70000",
            "proxy:[::1]", "proxy:[::1:25", "proxy:[::1]:x", "proxy:x:25:tls=", "proxy:/run/x:tls=required",
            "proxy:x:25:user=u:password-file=/dev/null",
        ):  # fmt: skip
            self.assertRaises(UsageError, make_handler, wrong)


class WarningTests(LoggingTestCase):
    """An open relay logs a warning."""

    def warnings(self, server: dict[str, Any], make: Any = Proxy) -> int:
        relayed = Relayed(Script(), server=server, make=make)
        relayed.send()
        relayed.send()
        return len(self.logged("warn"))

    def test_open(self) -> None:
        """Once, if the server listens on other addresses than loopback without AUTH, and has no handle_RCPT of its
        own."""
        self.assertEqual(self.warnings({}), 1)

    def test_deciding(self) -> None:
        """Not with an overridden handle_RCPT."""

        class Deciding(Proxy):
            async def handle_RCPT(self, *arguments: Any) -> Any:
                return await super().handle_RCPT(*arguments)

        self.assertEqual(self.warnings({}, Deciding), 0)
