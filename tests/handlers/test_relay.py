"""Relaying: what a Proxy's client hears is what the next server says, and no mail is taken that was not passed on."""

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
    """Each verdict of the next server is the client's, at the time when it is given."""

    def test_taken(self) -> None:
        """A message that the next server takes: its own words, command by command."""
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
        """4yz and 5yz stay what they are, with all their lines and without what they must not have."""
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
        """One recipient of three is refused, at once; the message goes to the others."""
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
        """A server that closes, at whatever point, is 451; the next message gets a new connection."""
        for verb in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
            relayed = Relayed(Script(**{verb: [CLOSE]}))
            self.assertIn(self.replies(relayed)[-1], [
                "451 4.4.2 The next server closed the connection, try again later"
            ], verb)  # fmt: skip
            relayed.ask("RSET")
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42", verb)
            self.assertEqual(relayed.script.connections, 2)

    def test_farewell(self) -> None:
        """A next server that says 421 behind its reply has said its reply; the next message goes elsewhere."""
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
        """One that says nothing for too long is 451, and its connection is given up."""
        for verb in ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"):
            relayed = Relayed(Script(**{verb: SILENT}), timeout=20, final_timeout=20)
            self.assertEqual(
                self.replies(relayed, 20)[-1], "451 4.4.2 The next server timed out, try again later", verb
            )
            self.assertEqual(relayed.script.aborted, 1)
            self.assertEqual(relayed.script.open, [])

    def test_garbage(self) -> None:
        """One that does not keep to the protocol is 451, whatever it says."""
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
        """A 354 that is none, for MAIL, RCPT and the end, and a 250 for DATA, are no promise."""
        for verb in ("MAIL", "RCPT", "DOT"):
            self.assertEqual(self.replies(Relayed(Script(**{verb: b"354 go\r\n"})))[-1][:9], "451 4.5.0", verb)
        self.assertEqual(self.replies(Relayed(Script(DATA=b"250 2.0.0 done\r\n")))[-1][:9], "451 4.5.0")
        # Behind the 354, before the message: 250 is not the verdict on it, but a refusal is.
        self.assertEqual(self.replies(Relayed(Script(DATA=b"354 go\r\n250 2.0.0 ok\r\n")))[-1][:9], "451 4.5.0")
        self.assertEqual(self.replies(Relayed(Script(DATA=b"354 go\r\n552 5.3.4 big\r\n")))[-1], "552 5.3.4 big")

    def test_neitherYesNorNo(self) -> None:
        """A recipient that is answered by 354 or 421: nothing more is said on that connection."""
        for answer in (b"354 go\r\n", b"421 4.3.2 bye\r\n"):
            relayed = Relayed(Script(RCPT=[answer]))
            self.assertEqual(relayed.begin("b@x")[1][0], "4")
            self.assertEqual(relayed.ask("RCPT TO:<c@x>")[0], "4")
            relayed.turn(10)
            self.assertNotIn("RSET", relayed.script.lines)
            self.assertEqual((relayed.script.said("RCPT"), relayed.script.open), (["RCPT TO:<b@x>"], []))

    def test_down(self) -> None:
        """One that cannot be reached, or never answers, is 451."""
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
        """A greeting that is a refusal is no verdict on the mail; nor is a refused EHLO and HELO."""
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
        """A refusal that comes before any message was spoken of is no verdict on it, whoever it is from."""
        for verb in ("CONNECT", "EHLO"):
            script = Script()
            script.script[verb] = script.answer(verb) + b"550 5.7.1 never\r\n"
            relayed = Relayed(script)
            self.assertEqual(relayed.ask("MAIL FROM:<a@x>")[:9], "451 4.3.2", verb)
            self.assertEqual(script.open, [])

    def test_hello(self) -> None:
        """Without a name of its own, the Proxy greets by the server's."""
        relayed = Relayed(Script(), hello=None)
        relayed.send()
        self.assertEqual(relayed.script.lines[0], "EHLO mx.test")

    def test_helo(self) -> None:
        """One that knows no EHLO is asked by HELO, and gets no parameters."""
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
        """The client gets one reply to each command, and 250 to as many messages at most as the server has read; in
        the end nothing is left that waits or is open."""
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
                relayed.ask("RSET", patience=30)  # a server that hangs there is waited for
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
    """Connections are used again, and none is left behind."""

    def test_reused(self) -> None:
        """Messages of one client, and of another, go over one connection, one after the other."""
        relayed = Relayed(Script())
        for _ in range(3):
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        relayed.client = relayed.connect()
        relayed.ask("EHLO other.test")
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertEqual(relayed.script.connections, 1)
        self.assertEqual(relayed.script.said("RSET"), [])

    def test_bareLF(self) -> None:
        """A server whose lines end in LF alone is understood."""
        script = Script()
        script.usual = {verb: reply.replace(b"\r\n", b"\n") for verb, reply in script.usual.items()}
        self.assertEqual(Relayed(script).send(), "250 2.6.0 queued as 42")

    def test_idle(self) -> None:
        """One that nobody needs is closed after a while, in good order."""
        relayed = Relayed(Script(), keep_for=30)
        relayed.send()
        relayed.turn(29)
        self.assertEqual(len(relayed.script.open), 1)
        relayed.turn(1)
        self.assertEqual((relayed.script.open, relayed.script.lines[-1]), ([], "QUIT"))
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")

    def test_foundDead(self) -> None:
        """One that turns out to be dead, in whatever way, is replaced by a new one, once."""

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
        """A new one that is dead as well is 451."""
        relayed = Relayed(Script(MAIL=[None, CLOSE, CLOSE]))
        relayed.send()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>")[:9], "451 4.4.2")
        self.assertEqual(relayed.script.connections, 2)

    def test_slowIsNotDead(self) -> None:
        """One that is slow is not tried again: the client has waited long enough."""
        relayed = Relayed(Script(MAIL=[None, SILENT]), timeout=20)
        relayed.send()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>", 20)[:9], "451 4.4.2")
        self.assertEqual(relayed.script.connections, 1)

    def test_keptAfterRefusal(self) -> None:
        """A refusal of sender, DATA or message leaves the connection fit for the next one."""
        for verb in ("MAIL", "DATA", "DOT"):
            relayed = Relayed(Script(**{verb: [b"550 5.7.1 no\r\n"]}))
            VerdictTests.replies(self, relayed)  # type: ignore[arg-type]
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42", verb)
            self.assertEqual(relayed.script.connections, 1, verb)

    def test_mailMax(self) -> None:
        """It carries no more messages than the server has said it takes (RFC 9422)."""
        relayed = Relayed(Script(offers=("LIMITS RCPTMAX=5 MAILMAX=2",)))
        for _ in range(3):
            relayed.send()
        self.assertEqual((relayed.script.connections, relayed.script.said("QUIT")), (2, ["QUIT"]))

    def test_limit(self) -> None:
        """There are no more connections than may be, those that are being made counted; the others are 451."""
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
        """A sender that is refused on a connection that has no more to carry is not asked about again."""
        relayed = Relayed(Script(offers=("LIMITS MAILMAX=2",), MAIL=[None, b"550 5.7.1 no\r\n"]))
        relayed.send()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x>"), "550 5.7.1 no")
        self.assertEqual(relayed.script.connections, 1)

    def test_close(self) -> None:
        """A Proxy that is told to close keeps none."""
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
    """A message that the client does not finish is finished by nobody."""

    def test_reset(self) -> None:
        """RSET, EHLO and another MAIL: the next server forgets the message, and the connection is kept."""
        for line in ("RSET", "EHLO again.test\r\nMAIL FROM:<c@x>"):
            relayed = Relayed(Script())
            relayed.begin("b@x")
            relayed.hear(line.encode() + b"\r\n")
            self.assertEqual(relayed.script.said("RSET"), ["RSET"], line)
            relayed.ask("RSET")
            self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertEqual(len(relayed.script.messages), 1)

    def test_resetAgainAndAgain(self) -> None:
        """However often a client begins and resets, without waiting, one connection is enough."""
        relayed = Relayed(Script())
        replies = relayed.hear(b"MAIL FROM:<a@x>\r\nRSET\r\n" * 20 + b"MAIL FROM:<a@x>\r\nEHLO y\r\n" * 20)
        self.assertEqual({reply.code for reply in replies}, {250})
        self.assertEqual((len(replies), relayed.script.connections), (80, 1))

    def test_didNotWait(self) -> None:
        """A next server that closes while the client still sends the message: it is asked anew once it is there."""
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
        """QUIT, or a client that vanishes, before DATA or within the message: nothing is sent."""
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
        """A client that vanishes while the next server thinks: that connection is of no more use; no other is made."""
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
        """A client that vanishes before there is a connection."""
        relayed = Relayed(Script(down=SILENT))
        relayed.client.say(b"MAIL FROM:<a@x>\r\n")
        relayed.client.vanish()
        relayed.turn(60)
        self.assertEqual(relayed.script.connections, 0)

    def test_goneWhileSending(self) -> None:
        """A client that vanishes while its message is on the way: the end is not sent, the connection aborted."""
        relayed = Relayed(Script(), server={"data_size_limit": None})
        relayed.begin("b@x")
        relayed.script.open[0].takes = False
        relayed.client.say(b"DATA\r\n" + MESSAGE + b"x\r\n" * 100_000 + b".\r\n")
        relayed.turn()
        relayed.client.vanish()
        relayed.turn()
        self.assertEqual((relayed.script.messages, relayed.script.open, relayed.script.aborted), ([], [], 1))

    def test_stalled(self) -> None:
        """A server that takes no more of the message, for too long, is 451; one that takes some has all the time."""
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
        self.assertGreater(turns, len(message) // 65536)  # each piece has the time
        self.assertEqual(heard, b"250 2.6.0 queued as 42\r\n")

    def test_messageRefusedHere(self) -> None:
        """A message that our own server refuses is forgotten there, too, before the next one."""
        relayed = Relayed(Script(), server={"data_size_limit": 100})
        relayed.begin("b@x")
        self.assertEqual(relayed.send_data(b"x" * 200 + b"\r\n")[:3], "552")
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertEqual((relayed.script.said("RSET"), len(relayed.script.messages)), (["RSET"], 1))


class MessageTests(SynchronousTestCase):
    """The message as it is passed on."""

    def passed_on(self, message: bytes, **more: Any) -> bytes:
        """What the next server gets of a message, dots undone, without what is known of Received."""
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
        """Received on top, and X-Peer at the end of the header, whatever the header is like."""
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
        """Dots at the beginning of lines are doubled, so nothing in a message ends it."""
        body = b"A: b\r\n\r\n..\r\n..a\r\n\r\n...\r\n"
        (octets,) = self.sent(body)
        self.assertTrue(octets.endswith(b"\r\n\r\n..\r\n..a\r\n\r\n...\r\n"), octets)

    def sent(self, message: bytes, **server: Any) -> list[bytes]:
        """Messages as they are on the wire, for a message in the client's own words."""
        relayed = Relayed(Script(), server=server)
        self.assertEqual(relayed.send(message)[:3], "250")
        return relayed.script.messages

    def test_bareNewlines(self) -> None:
        """No CR or LF on its own is passed on, even if our server takes them: what it hides is one message."""
        (octets,) = self.sent(b"A: b\r\n\r\nx\n.\nMAIL FROM:<evil@x>\r.\ry\r\n", bare_newlines=True)
        self.assertTrue(octets.endswith(b"\r\n\r\nx\r\n..\r\nMAIL FROM:<evil@x>\r\n..\r\ny\r\n"), octets)

    def test_loop(self) -> None:
        """A message that has passed a hundred servers is refused, and the next server's connection is kept."""
        relayed = Relayed(Script())
        self.assertEqual(relayed.send(b"Received: x\r\n" * 100 + b"\r\n")[:9], "554 5.4.6")
        self.assertEqual(relayed.send(b"Received: x\r\n" * 99 + b"\r\nReceived: y\r\n")[:3], "250")
        self.assertEqual(relayed.script.connections, 1)

    def test_text(self) -> None:
        """A handler behind decode_data, or one that changed the content, passes on what it has."""
        (octets,) = self.sent(b"A: \xc3\xa9\r\n\r\n", decode_data=True)
        self.assertIn(b"A: \xc3\xa9\r\n", octets)


class ParameterTests(SynchronousTestCase):
    """Parameters go along where the next server knows them; what must not get lost is refused where it does not."""

    everything = (DSN(), RRVS(), DeliverBy(), FutureRelease(99), RequireTLS())

    def relayed(self, *offers: str) -> Relayed:
        """A client of a server with all extensions, in front of one that offers these."""
        relayed = Relayed(Script(offers=offers), server={"extensions": self.everything})
        relayed.client.server.session.ssl = TLSInfo("TLSv1.3", "x")
        return relayed

    def test_goAlong(self) -> None:
        """With all that they say."""
        relayed = self.relayed(*OFFERS, "DELIVERBY", "FUTURERELEASE 99 2030-01-01T00:00:00Z", "RRVS")
        mail = "MAIL FROM:<\u00e9@x> SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=+41 BY=9;R HOLDFOR=9"
        rcpt = "RCPT TO:<\u00e8@x> NOTIFY=SUCCESS ORCPT=rfc822;b+2Bc@x RRVS=2026-01-01T00:00:00Z"
        self.assertEqual([relayed.ask(mail)[:3], relayed.ask(rcpt)[:3]], ["250", "250"])
        self.assertEqual(relayed.script.lines[1:], [mail, rcpt])

    def test_dropped(self) -> None:
        """What is advice only is left out."""
        relayed = self.relayed()
        self.assertEqual(relayed.ask("MAIL FROM:<a@x> SIZE=9 BODY=8BITMIME RET=FULL ENVID=1 BY=9;N")[:3], "250")
        self.assertEqual(relayed.ask("RCPT TO:<b@x> NOTIFY=NEVER ORCPT=x;y RRVS=2026-01-01T00:00:00Z;C")[:3], "250")
        self.assertEqual(relayed.script.lines[1:], ["MAIL FROM:<a@x>", "RCPT TO:<b@x>"])

    def test_mustNotBeLost(self) -> None:
        """What is more than advice is refused; the connection is kept."""
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
        """A message beyond ASCII to a server without 8BITMIME is 554 5.6.3 (RFC 6152 3); one in ASCII is passed on."""
        relayed = self.relayed()
        relayed.ask("MAIL FROM:<a@x> BODY=8BITMIME")
        relayed.ask("RCPT TO:<b@x>")
        self.assertEqual(relayed.send_data(b"A: \xff\r\n\r\n")[:9], "554 5.6.3")
        relayed.ask("MAIL FROM:<a@x> BODY=8BITMIME")
        relayed.ask("RCPT TO:<b@x>")
        self.assertEqual(relayed.send_data(b"A: b\r\n\r\n")[:3], "250")

    def test_size(self) -> None:
        """One that is larger than the next server takes is refused without being sent."""
        relayed = self.relayed("SIZE 500")
        self.assertEqual(relayed.send(b"x" * 500 + b"\r\n")[:9], "552 5.3.4")
        self.assertEqual((relayed.send()[:3], len(relayed.script.said("DATA"))), ("250", 1))

    def test_binary(self) -> None:
        """BINARYMIME goes by BDAT, octet for octet."""
        relayed = self.relayed(*OFFERS)
        relayed.ask("MAIL FROM:<a@x> BODY=BINARYMIME")
        relayed.ask("RCPT TO:<b@x>")
        body = b"A: b\r\n\r\n\r\n.\r\n\x00\n.\rx"
        (answer,) = relayed.hear(b"BDAT %d LAST\r\n" % len(body) + body)
        self.assertEqual(answer.code, 250)
        self.assertTrue(relayed.script.messages[0].endswith(b"X-Peer: 192.0.2.7\r\n\r\n\r\n.\r\n\x00\n.\rx"))
        self.assertEqual(relayed.script.said("RSET"), [])

    def test_binaryRefused(self) -> None:
        """A BINARYMIME message that is refused leaves a connection that is fit for the next (RFC 3030 2)."""
        relayed = self.relayed(*OFFERS)
        relayed.script.script["."] = [b"554 5.6.0 no\r\n"]
        relayed.ask("MAIL FROM:<a@x> BODY=BINARYMIME")
        relayed.ask("RCPT TO:<b@x>")
        (answer,) = relayed.hear(b"BDAT 6 LAST\r\nA: b\r\n")
        self.assertEqual((answer.code, relayed.script.said("RSET")), (554, ["RSET"]))
        self.assertEqual((relayed.send()[:3], relayed.script.connections), ("250", 1))

    def test_requireTLS(self) -> None:
        """REQUIRETLS goes along to a server that offers it and has shown who it is (RFC 8689 4.2.1)."""
        relayed = self.relayed("REQUIRETLS")
        relayed.send()
        relayed.script.open[0].protocol.verified = True
        self.assertEqual(relayed.ask("MAIL FROM:<a@x> REQUIRETLS")[:3], "250")
        self.assertEqual(relayed.script.lines[-1], "MAIL FROM:<a@x> REQUIRETLS")


class LMTPTests(SynchronousTestCase):
    """Servers that speak LMTP, behind us and before us."""

    each = (b"250 2.0.0 b has it\r\n", b"452 4.2.2 c is full\r\n", b"250 2.0.0 d has it\r\n")

    def test_underSMTP(self) -> None:
        """Each recipient has a verdict; a client of SMTP gets one that loses nobody's mail."""
        relayed = Relayed(Script(DOT=self.each), lmtp=True)
        relayed.begin("b@x", "c@x", "d@x")
        self.assertEqual(relayed.send_data(), "452 4.2.2 c is full")
        self.assertEqual(relayed.script.lines[0], "LHLO relay.test")
        relayed.begin("b@x")
        relayed.script.script["."] = [self.each[0]]
        self.assertEqual(relayed.send_data(), "250 2.0.0 b has it")
        self.assertEqual(relayed.script.connections, 1)

    def test_underLMTP(self) -> None:
        """A client of LMTP gets each of them."""
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
        """One that closes before all verdicts are there: those that it gave stand."""
        script = Script(DOT=(*self.each[:2], CLOSE))
        upstream = Upstream("x.test", endpoint=script, reactor=script.clock, lmtp=True)
        self.assertEqual([reply.code for reply in sent(script, upstream, ["b@x", "c@x", "d@x"])], [250, 452, 451])


def sent(
    script: Script, upstream: Upstream, recipients: list[str], content: bytes = MESSAGE, **more: Any
) -> list[Reply]:
    """What becomes of a message that a program sends."""
    sending = Deferred.fromCoroutine(upstream.send("a@x", recipients, content, **more))
    for _ in range(50):
        script.clock.advance(0)
    result: list[list[Reply]] = []
    sending.addCallback(result.append)
    (replies,) = result
    return replies


class SendTests(SynchronousTestCase):
    """A whole message at once, for programs."""

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
        """Refused sender, recipients, or message; down: all recipients have the same."""
        self.assertEqual(self.send(["b@x", "c@x"], MAIL=b"550 5.1.8 no\r\n"), ["550 5.1.8 no"] * 2)
        self.assertEqual(self.send(["b@x", "c@x"], DOT=b"451 4.3.0 no\r\n"), ["451 4.3.0 no"] * 2)
        self.assertEqual([each[:9] for each in self.send(["b@x", "c@x"], down=True)], ["451 4.4.1"] * 2)
        self.assertEqual(self.send(["b@x"], RCPT=b"550 5.1.1 who?\r\n"), ["550 5.1.1 who?"])
        self.assertEqual((self.script.said("DATA"), self.script.said("RSET")), ([], ["RSET"]))
        self.assertEqual(self.send([]), [])

    def test_closesBetween(self) -> None:
        """A server that closes among the recipients: none has the message."""
        replies = self.send(["b@x", "c@x", "d@x"], RCPT=[None, CLOSE])
        self.assertEqual([each[:9] for each in replies], ["451 4.4.2"] * 3)
        self.assertEqual(self.script.messages, [])

    def test_lineEnds(self) -> None:
        """Whatever line ends the program has, CRLF are sent; the last line gets one."""
        self.send(["b@x"], b"A: b\n\n.\nc")
        self.assertEqual(self.script.messages, [b"A: b\r\n\r\n..\r\nc\r\n"])

    def test_eightBits(self) -> None:
        """Octets beyond ASCII are announced."""
        self.send(["b@x"], b"A: \xc3\xa9\n")
        self.assertEqual(self.script.said("MAIL"), ["MAIL FROM:<a@x> BODY=8BITMIME"])

    def test_options(self) -> None:
        """Parameters, of MAIL and of each recipient."""
        self.send(["b@x", "c@x"], more={"mail_options": ["RET=FULL"], "rcpt_options": [["NOTIFY=NEVER"], []]})
        self.assertEqual(
            self.script.lines[1:4], ["MAIL FROM:<a@x> RET=FULL", "RCPT TO:<b@x> NOTIFY=NEVER", "RCPT TO:<c@x>"]
        )

    def test_nothingGetsOut(self) -> None:
        """An address that would be more than one, or a command of its own, is refused and never written."""
        evil = ["b@x> NOTIFY=NEVER", "b@x>\r\nRSET", "b@x\r\nRSET", "<b@x", "", "@y:b@x", "\u00e9@x", "b@x\n"]
        replies = self.send([*evil, "good@x"])
        self.assertEqual([each[0] for each in replies], ["5"] * len(evil) + ["2"])
        self.assertEqual(self.script.said("RCPT"), ["RCPT TO:<good@x>"])

    def test_noCharacters(self) -> None:
        """What cannot be encoded, or controls something, is refused and never written, with SMTPUTF8 too."""
        evil = ["\udcff@x", "\x85@x", "\u2028@x"]
        utf8 = {"mail_options": ["SMTPUTF8"]}
        replies = self.send([*evil, "\u00e9@x"], more=utf8)
        self.assertEqual([each[0] for each in replies], ["5"] * len(evil) + ["2"])
        self.assertEqual(self.script.said("RCPT"), ["RCPT TO:<\u00e9@x>"])
        for option in ("ENVID=\udcff", "ENVID=\u00e9"):
            self.assertEqual(self.send(["b@x"], more={"mail_options": [option]})[0][:9], "550 5.6.7")

    def test_mistakes(self) -> None:
        """A message or parameters that a program has got wrong are an exception, and leave no connection behind."""
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
        """Nor does a parameter get out."""
        self.assertEqual(self.send(["b@x"], more={"mail_options": ["RET=FULL\r\nRSET"]})[0][:3], "501")
        self.assertEqual(self.script.said("RSET"), [])


class SubclassTests(SynchronousTestCase):
    """Proxies of one's own."""

    def test_handleDATA(self) -> None:
        """handle_DATA may change the message before it goes on."""

        class Stamping(Proxy):
            async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> Any:
                envelope.content = b"X-Stamp: seen\r\n" + bytes(envelope.content)  # type: ignore[arg-type]
                return await super().handle_DATA(server, session, envelope)

        relayed = Relayed(Script(), make=Stamping)
        self.assertEqual(relayed.send(), "250 2.6.0 queued as 42")
        self.assertIn(b"\r\nX-Stamp: seen\r\n", relayed.script.messages[0])

    def test_ownRecipients(self) -> None:
        """Hooks that decide about recipients and senders by themselves: the next server is asked with the message."""

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
        """A recipient that a hook takes out again gets nothing."""

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
    """What a Proxy is told, in Python and on the command line."""

    def test_wrong(self) -> None:
        """Values that will not do are refused when it is made."""
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
        """A password goes over TLS only, unless one says otherwise."""
        self.assertEqual(Upstream("x").tls, "opportunistic")
        self.assertEqual(Upstream("x", username="u", password="p").tls, "required")
        self.assertEqual(Upstream("/run/x", username="u", password="p").tls, "never")

    def test_addresses(self) -> None:
        """Brackets are no part of an address."""
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
    """Who relays for everybody is told."""

    def warnings(self, server: dict[str, Any], make: Any = Proxy) -> int:
        relayed = Relayed(Script(), server=server, make=make)
        relayed.send()
        relayed.send()
        return len(self.logged("warn"))

    def test_open(self) -> None:
        """Once, where the server listens beyond loopback without AUTH, and no handle_RCPT decides."""
        self.assertEqual(self.warnings({}), 1)

    def test_deciding(self) -> None:
        """Not where a handle_RCPT decides."""

        class Deciding(Proxy):
            async def handle_RCPT(self, *arguments: Any) -> Any:
                return await super().handle_RCPT(*arguments)

        self.assertEqual(self.warnings({}, Deciding), 0)
