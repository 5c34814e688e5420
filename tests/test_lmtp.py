"""LMTP (RFC 2033): LHLO, and a reply for each recipient of a message; and such results in SMTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.support import MESSAGE, Answer, Client, LoggingTestCase, Waiting, answers, handler, in_three_forms
from txsmtpd import SMTP, SMTPFactory, syntax
from txsmtpd.handlers import Mailbox, Message
from txsmtpd.interfaces import IMessageReceiver, IStreamingHandler
from txsmtpd.lmtp import LMTP
from txsmtpd.recipient_replies import Replies, folded, replies_for
from txsmtpd.reply import Refused, Reply

SENDER = b"MAIL FROM:<a@example.com>\r\n"
BCD = [b"b@x", b"c@x", b"d@x"]
OK, FULL, GONE, BYE = "250 2.1.5 kept", "452 4.2.2 full", "550 5.1.1 gone", "421 4.3.2 bye"


def recipients(*paths: bytes) -> bytes:
    return b"".join(b"RCPT TO:<" + path + b">\r\n" for path in paths)


def lmtp(handler: object = None, **options: Any) -> Client:
    """A client that has sent LHLO."""
    client = Client(handler, protocol=LMTP, **options)
    assert client.ask(b"LHLO client.test").code == 250
    return client


def by_data(client: Client, message: bytes = MESSAGE) -> list[Answer]:
    """Send the message of an open transaction by DATA. Return the replies to it."""
    assert client.codes(b"DATA\r\n") == [354]
    return answers(client.talk(message + b".\r\n"))


def by_bdat(client: Client, message: bytes = MESSAGE) -> list[Answer]:
    """The same by BDAT, in two chunks."""
    assert client.codes(b"BDAT 5\r\n" + message[:5]) == [250]
    return answers(client.talk(b"BDAT %d LAST\r\n" % (len(message) - 5) + message[5:]))


WAYS: list[Callable[[Client], list[Answer]]] = [by_data, by_bdat]


def send(client: Client, *paths: bytes, way: Callable[[Client], list[Answer]] = by_data) -> list[str]:
    """Send a message to these recipients. Return the replies to it, in one line each."""
    assert set(client.codes(SENDER + recipients(*paths))) == {250}
    return [f"{answer.code} {answer.text}" for answer in way(client)]


@implementer(IStreamingHandler)
class Streaming:
    """A streaming handler whose receivers have this result of finish."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.ends: list[str] = []

    def open_message(self, server: Any, session: Any, envelope: Any) -> Any:
        return Receiver(self)


@implementer(IMessageReceiver)
class Receiver:
    def __init__(self, handler: Streaming) -> None:
        self.handler = handler

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None: ...

    def write(self, data: bytes) -> None:
        if self.handler.result == "stop":
            self.producer.stopProducing()

    def finish(self) -> Any:
        self.handler.ends.append("finish")
        return self.handler.result

    def abort(self, reason: BaseException) -> None:
        self.handler.ends.append("abort")


def with_result(result: Any) -> Iterator[tuple[str, Any]]:
    """Handlers of each kind with this result for a message."""
    for form, hook in in_three_forms(result):
        yield form, handler(DATA=hook)
    yield "streaming", Streaming(result)


class GreetingTests(LoggingTestCase):
    """RFC 2033 4.1."""

    def test_banner(self) -> None:
        """The greeting names the protocol, unless the ident is set."""
        self.assertEqual(Client(protocol=LMTP).welcome, b"220 mx.test LMTP txsmtpd\r\n")
        self.assertEqual(Client(protocol=LMTP, ident="hello").welcome, b"220 mx.test hello\r\n")

    def test_lhlo(self) -> None:
        """The reply to LHLO is the same as to EHLO in SMTP."""
        said = Client(protocol=LMTP).talk(b"LHLO c.test\r\n")
        self.assertEqual(said, Client().talk(b"EHLO c.test\r\n"))
        (answer,) = answers(said)
        for keyword in "PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "CHUNKING":
            self.assertIn(keyword, answer.lines)

    def test_session(self) -> None:
        """The session has the client's name, and parameters are allowed."""
        client = lmtp()
        self.assertEqual(client.server.session.host_name, "client.test")
        self.assertTrue(client.server.session.extended_smtp)
        self.assertEqual(client.ask(b"MAIL FROM:<a@x> BODY=8BITMIME").code, 250)

    def test_otherGreetings(self) -> None:
        """HELO and EHLO are unknown commands, and so is LHLO in SMTP. They have no effect."""
        for client, words in (
            (Client(protocol=LMTP), (b"HELO c.test", b"EHLO c.test", b"helo c.test", b"EHLO")),
            (Client(), (b"LHLO c.test",)),
        ):
            for line in words:
                self.assertEqual(client.ask(line).code, 500, line)
            self.assertIsNone(client.server.session.host_name)
            self.assertEqual(client.ask(b"MAIL FROM:<a@x>").code, 503)

    def test_withoutArgument(self) -> None:
        """LHLO requires a name, and the refusal shows the syntax."""
        answer = Client(protocol=LMTP).ask(b"LHLO")
        self.assertEqual((answer.code, answer.text), (501, "5.5.4 Syntax: LHLO hostname"))

    def test_first(self) -> None:
        """MAIL before LHLO is refused, and the reply says what is missing."""
        client = Client(protocol=LMTP)
        for line in SENDER, recipients(b"b@x"), b"DATA\r\n":
            self.assertEqual(client.talk(line), b"503 5.5.1 Send LHLO first\r\n")

    def test_help(self) -> None:
        """HELP lists LHLO, and neither HELO nor EHLO."""
        client = Client(protocol=LMTP)
        words = client.ask(b"HELP").text.split()
        self.assertIn("LHLO", words)
        self.assertFalse({"HELO", "EHLO"} & set(words))
        self.assertEqual(client.ask(b"HELP LHLO").text, "2.0.0 Syntax: LHLO hostname")
        self.assertEqual(client.ask(b"HELP DATA").text, "2.0.0 Syntax: DATA")

    def test_hook(self) -> None:
        """LHLO calls handle_EHLO, in both of its forms. A refusal leaves no greeting."""

        def lines(server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]) -> list[str]:
            return [responses[0], "250-MINE", *responses[1:]]

        self.assertIn("MINE", Client(handler(EHLO=lines), protocol=LMTP).ask(b"LHLO c.test").lines)

        def status(server: Any, session: Any, envelope: Any, hostname: str) -> str:
            return "550 5.7.1 not you"

        client = Client(handler(EHLO=status), protocol=LMTP)
        self.assertEqual(client.ask(b"LHLO c.test").code, 550)
        self.assertEqual(client.ask(b"MAIL FROM:<a@x>").code, 503)

    def test_again(self) -> None:
        """LHLO ends a transaction."""
        client = lmtp()
        client.talk(SENDER + recipients(*BCD))
        self.assertEqual(client.codes(b"LHLO c.test\r\nDATA\r\n"), [250, 503])
        self.assertEqual(send(client, b"e@x"), ["250 2.0.0 OK"])

    def test_subclass(self) -> None:
        """A subclass adds commands as in SMTP."""

        class Mine(LMTP):
            @syntax("PING [ignored]")
            async def smtp_PING(self, arg: str | None) -> str:
                return "259 Pong"

        client = Client(protocol=Mine)
        self.assertEqual(client.codes(b"PING\r\nEHLO c.test\r\nLHLO c.test\r\n"), [259, 500, 250])

    def test_lmtp(self) -> None:
        """Handlers can read from the server which protocol the client uses."""
        self.assertTrue(lmtp().server.lmtp)
        self.assertFalse(Client().server.lmtp)


class RepliesTests(LoggingTestCase):
    """RFC 2033 4.2: one reply for each accepted recipient, whatever the result is."""

    def check(self, expected: list[str], result: Any, *paths: bytes) -> None:
        """With each kind of handler, and each way of sending, the result causes these replies, once each."""
        for (form, each), way in product(with_result(result), WAYS):
            client = lmtp(each)
            for _ in range(2):
                self.assertEqual(send(client, *paths, way=way), expected, (form, way))
            self.assertEqual(client.codes(b"NOOP\r\n"), [250])

    def test_noHook(self) -> None:
        """Without a hook, all recipients get the message."""
        for way in WAYS:
            self.assertEqual(send(lmtp(), *BCD, way=way), ["250 2.0.0 OK"] * 3)

    def test_one(self) -> None:
        """A single status is repeated."""
        for status in OK, FULL, GONE, Reply(550, "5.1.1", "gone"), b"550 5.1.1 gone":
            text = status.decode() if isinstance(status, bytes) else str(status)
            for paths in BCD[:1], BCD[:2], BCD:
                self.check([text] * len(paths), status, *paths)

    def test_list(self) -> None:
        """A list or tuple has one status for each recipient, in order."""
        self.check([OK, FULL, GONE], [OK, FULL, GONE], *BCD)
        self.check([GONE, GONE, GONE], (GONE, Reply(550, "5.1.1", "gone"), GONE.encode()), *BCD)
        self.check([OK], [OK], b"b@x")

    def test_mapping(self) -> None:
        """A mapping has one status for each forward-path. Other keys are ignored."""
        self.check([OK, FULL, GONE], {"c@x": FULL, "d@x": GONE, "b@x": OK, "e@x": OK}, *BCD)

    def test_duplicates(self) -> None:
        """A recipient that is named twice gets two replies."""
        self.check([OK, FULL, OK], [OK, FULL, OK], b"b@x", b"c@x", b"b@x")
        self.check([OK, FULL, OK], {"b@x": OK, "c@x": FULL}, b"b@x", b"c@x", b"b@x")

    def test_tooFew(self) -> None:
        """A recipient without a status gets 451, so that the client tries again. One line in the log reports it."""
        for result, expected, who in (
            ([OK, OK], [451, 451, 451], "<b@x>, <c@x>, <d@x>"),
            ([OK] * 4, [451, 451, 451], "<b@x>, <c@x>, <d@x>"),
            ([], [451, 451, 451], "<b@x>, <c@x>, <d@x>"),
            ({"b@x": OK, "d@x": GONE}, [250, 451, 550], "<c@x>"),
            ([OK, None, GONE], [250, 451, 550], "<c@x>"),
            ([OK, "garbage", "354 go on"], [250, 451, 451], "<c@x>, <d@x>"),
        ):
            for form, each in with_result(result):
                client = lmtp(each)
                self.events.clear()
                replies = send(client, *BCD)
                self.assertEqual([int(reply[:3]) for reply in replies], expected, (form, result))
                self.assertEqual(self.errors_logged(), 1)
                self.assertIn(f"handle_DATA, for {who}, returned ", self.logged("error")[0])

    def test_accepted(self) -> None:
        """A refused recipient gets no reply to the message."""

        def choose(server: Any, session: Any, envelope: Any, address: str, rcpt_options: Any) -> str:
            if address == "c@x":
                return GONE
            envelope.rcpt_tos.append(address)
            return OK

        hook = handler(RCPT=choose, DATA=lambda server, session, envelope: dict.fromkeys(envelope.rcpt_tos, OK))
        for way in WAYS:
            client = lmtp(hook)
            self.assertEqual(client.codes(SENDER + recipients(*BCD)), [250, 250, 550, 250])
            self.assertEqual([answer.code for answer in way(client)], [250, 250])

    def test_aliases(self) -> None:
        """Replies belong to RCPT commands: one that became several forward-paths gets the worst reply of these, and one
        that became none counts as delivered."""

        def expand(server: Any, session: Any, envelope: Any, address: str, rcpt_options: Any) -> str:
            envelope.rcpt_tos += {"list@x": ["b@x", "c@x"], "d@x": ["d@x"]}.get(address, [])
            return OK

        for result in [OK, FULL, GONE], {"b@x": OK, "c@x": FULL, "d@x": GONE}:
            hook = handler(RCPT=expand, DATA=lambda *arguments, result=result: result)
            self.assertEqual(send(lmtp(hook), b"list@x", b"nobody@x", b"d@x"), [FULL, "250 2.0.0 OK", GONE])
        hook = handler(RCPT=expand, DATA=lambda *arguments: FULL)
        self.assertEqual(send(lmtp(hook), b"list@x", b"nobody@x", b"d@x"), [FULL] * 3)

    def test_addedByHook(self) -> None:
        """If a hook adds a recipient, there is no reply for it, wherever its status is in the result."""

        def mail(server: Any, session: Any, envelope: Any, address: str, mail_options: Any) -> str:
            envelope.mail_from = address
            envelope.rcpt_tos.append("log@x")
            return OK

        def told(result: Any) -> list[str]:
            return send(lmtp(handler(MAIL=mail, DATA=lambda *arguments: result)), *BCD)

        for result in [FULL, OK, GONE, OK], {"log@x": FULL, "b@x": OK, "c@x": GONE, "d@x": OK}:
            self.assertEqual(told(result), [OK, GONE, OK])
        self.assertEqual([reply[:3] for reply in told([OK, GONE, OK])], ["451"] * 3)  # three for four recipients

    def test_droppedByHook(self) -> None:
        """If a hook delivers once to a recipient that is named twice, there are two replies."""

        def data(server: Any, session: Any, envelope: Any) -> Any:
            envelope.rcpt_tos[:] = dict.fromkeys(envelope.rcpt_tos)
            return [OK, FULL]

        self.assertEqual(send(lmtp(handler(DATA=data)), b"b@x", b"c@x", b"b@x", b"c@x"), [OK, FULL, OK, FULL])

    def test_noRecipients(self) -> None:
        """Without an accepted recipient there is no message, whatever a handler has added to the envelope."""

        def mail(server: Any, session: Any, envelope: Any, address: str, mail_options: Any) -> str:
            envelope.mail_from = address
            envelope.rcpt_tos.append("archive@x")
            return OK

        for hooks in {"RCPT": lambda *arguments: GONE}, {"MAIL": mail, "RCPT": lambda *arguments: GONE}:
            client = lmtp(handler(**hooks))
            client.talk(SENDER + recipients(b"b@x"))
            self.assertEqual(client.ask(b"DATA").code, 503)
            self.assertEqual(client.codes(b"BDAT 6 LAST\r\nRSET\r\nNOOP\r\n"), [503, 250])

    def test_forgotten(self) -> None:
        """Recipients of an earlier transaction do not belong to this one."""
        for end in b"RSET\r\n", b"LHLO again\r\n":
            client = lmtp()
            client.talk(SENDER + recipients(*BCD) + end)
            self.assertEqual(send(client, b"e@x"), ["250 2.0.0 OK"])
        client = lmtp()
        self.assertEqual(len(send(client, *BCD)), 3)
        self.assertEqual(len(send(client, b"e@x")), 1)

    def test_pipelined(self) -> None:
        """However the octets are split, replies are in order, and each recipient has one."""
        octets = (
            SENDER + recipients(*BCD) + b"DATA\r\n" + MESSAGE + b".\r\n"
            + SENDER + recipients(b"e@x") + b"BDAT 3\r\na\r\nBDAT 3 LAST\r\nb\r\n" + b"QUIT\r\n"
        )  # fmt: skip
        hook = handler(DATA=lambda server, session, envelope: [OK, FULL, GONE][: len(envelope.rcpt_tos)])
        expected = [250] * 4 + [354] + [250, 452, 550] + [250] * 3 + [250] + [221]
        for cut in range(0, len(octets), 3):
            client = lmtp(hook)
            client.say(octets, [cut])
            self.assertEqual([each.code for each in answers(client.heard())], expected, cut)
            self.assertTrue(client.closed)

    def test_inOneGo(self) -> None:
        """The replies to a message are sent together."""
        client = lmtp(handler(DATA=lambda *arguments: [OK, FULL, GONE]))
        client.talk(SENDER + recipients(*BCD) + b"DATA\r\n")
        client.transport.writes.clear()
        client.talk(MESSAGE + b".\r\n")
        self.assertEqual(len(client.transport.writes), 1)

    def test_many(self) -> None:
        """A thousand recipients get a thousand replies."""
        paths = [b"%d@x" % number for number in range(1000)]
        statuses = [f"250 2.1.5 {number}" for number in range(1000)]
        self.assertEqual(send(lmtp(handler(DATA=lambda *arguments: statuses)), *paths), statuses)

    def test_severalLines(self) -> None:
        """A reply may have several lines."""
        client = lmtp(handler(DATA=lambda *arguments: ["250 2.0.0 a\nb", GONE]))
        replies = send(client, b"b@x", b"c@x")
        self.assertEqual(replies, ["250 2.0.0 a\n2.0.0 b", GONE])


class RefusedTests(LoggingTestCase):
    """Errors of a message as a whole apply to each recipient."""

    def check(self, code: int, hooks: object = None, message: bytes = MESSAGE, **options: Any) -> None:
        for way in WAYS:
            client = lmtp(hooks, **options)
            client.talk(SENDER + recipients(*BCD))
            if way is by_data:
                self.assertEqual(client.codes(b"DATA\r\n"), [354])
                client.say(message + b".\r\n")
            else:
                client.say(b"BDAT %d LAST\r\n" % len(message) + message)
            client.wait(options.get("hook_timeout", 0), step=1)
            said = answers(client.transport.taken)[-3:]
            self.assertEqual([answer.code for answer in said], [code] * 3, (way, said))
            if code == 421:
                self.assertTrue(client.closed)
            else:
                self.assertFalse(client.closed)
                self.assertEqual(client.codes(b"NOOP\r\nDATA\r\n"), [250, 503])

    def test_tooLarge(self) -> None:
        """Too large."""
        self.check(552, message=MESSAGE * 10, data_size_limit=200)

    def test_bareNewline(self) -> None:
        """A bare LF. With BDAT it is an ordinary octet."""
        client = lmtp()
        client.talk(SENDER + recipients(*BCD) + b"DATA\r\n")
        self.assertEqual(client.codes(b"a\nb\r\n.\r\n"), [550] * 3)
        self.assertEqual(len(send(client, b"e@x")), 1)

    def test_raises(self) -> None:
        """A hook that raises an exception or Refused."""

        def fails(*arguments: Any) -> None:
            raise LookupError

        def refuses(*arguments: Any) -> None:
            raise Refused(GONE)

        self.check_once(fails, 451)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 2)
        self.check_once(refuses, 550)

    def check_once(self, hook: Any, code: int) -> None:
        for way in WAYS:
            client = lmtp(handler(DATA=hook))
            client.talk(SENDER + recipients(*BCD))
            self.assertEqual([answer.code for answer in way(client)], [code] * 3)

    def test_pushed(self) -> None:
        """A hook may push the replies of the first recipients, and return that of the last one, or push all."""

        def pushing(*pushed: str, result: Any) -> list[int]:
            async def hook(server: Any, session: Any, envelope: Any) -> Any:
                for status in pushed:
                    await server.push(status)
                return result

            client = lmtp(handler(DATA=hook))
            codes = []
            for way in WAYS:
                client.talk(SENDER + recipients(*BCD))
                codes.append([answer.code for answer in way(client)])
                self.assertEqual(client.codes(b"NOOP\r\n"), [250])
            self.assertEqual(codes[0], codes[1])
            return codes[0]

        self.assertEqual(pushing("251 a", "252 b", result="250 c"), [251, 252, 250])
        self.assertEqual(pushing("251 a", "252-b", "252 b", result="550 c"), [251, 252, 550])
        self.assertEqual(pushing("251 a", result="550 for the others"), [251, 550, 550])
        self.assertEqual(pushing("251 a", "252 b", "251 c", result="250 OK"), [251, 252, 251])
        self.assertEqual(pushing("251 a", result=["550 a", "551 b", "552 c"]), [251, 551, 552])

    def test_noStatus(self) -> None:
        """A hook without a valid status: one line in the log."""
        self.check_once(lambda *arguments: 7, 451)
        self.assertEqual(self.errors_logged(), 2)

    def test_receivers(self) -> None:
        """A receiver that refuses the message."""
        for way in WAYS:
            streaming = Streaming("stop")
            client = lmtp(streaming)
            client.talk(SENDER + recipients(*BCD))
            if way is by_data:
                self.assertEqual([answer.code for answer in by_data(client)], [451] * 3)
            else:
                self.assertEqual(client.codes(b"BDAT 2 LAST\r\nab"), [451] * 3)
            self.assertEqual(streaming.ends, ["abort"])

    def test_open(self) -> None:
        """A message that is refused before it is sent gets one reply to DATA, and all replies to BDAT LAST."""

        class Closed(Streaming):
            def open_message(self, *arguments: Any) -> Any:
                raise Refused(FULL)

        client = lmtp(Closed(None))
        client.talk(SENDER + recipients(*BCD))
        self.assertEqual(client.ask(b"DATA").code, 452)
        self.assertEqual(client.codes(b"BDAT 3 LAST\r\nabcNOOP\r\n"), [452] * 3 + [250])

    def test_chunks(self) -> None:
        """A refused chunk gets one reply. The last chunk gets all of them."""
        client = lmtp(data_size_limit=10)
        client.talk(SENDER + recipients(*BCD))
        octets = b"BDAT 8\r\n12345678BDAT 8\r\n12345678BDAT 8\r\n12345678BDAT 0 LAST\r\nNOOP\r\n"
        self.assertEqual(client.codes(octets), [250, 552, 552] + [552] * 3 + [250])

    def test_timeout(self) -> None:
        """A hook that takes too long: 451, or 421 if it ignores the cancellation."""
        self.check(451, handler(DATA=Waiting()), hook_timeout=5)
        self.check(421, handler(DATA=Waiting(obedient=False)), hook_timeout=5)

    def test_farTooLarge(self) -> None:
        """A chunk that is too large gets one 552. If it is the last one, each recipient gets one."""
        client = lmtp(data_size_limit=10)
        client.talk(SENDER + recipients(*BCD) + b"DATA\r\n")
        self.assertEqual(client.codes(b"x" * 3 * 2**20), [552])
        self.assertTrue(client.closed)
        client = lmtp(data_size_limit=10)
        client.talk(SENDER + recipients(*BCD))
        self.assertEqual(client.codes(b"BDAT 1000000 LAST\r\n"), [552] * 3)
        self.assertTrue(client.closed)

    def test_closing(self) -> None:
        """After 421 for all or for one, the connection closes. The other replies precede it."""
        self.check(421, handler(DATA=lambda *arguments: BYE))
        client = lmtp(handler(DATA=lambda *arguments: [OK, BYE, OK]))
        self.assertEqual(send(client, *BCD), [OK, BYE, OK])
        self.assertTrue(client.closed)

    def test_vanishes(self) -> None:
        """If the client disconnects while the hook runs, the hook ends, and no more is sent."""
        waiting = Waiting()
        client = lmtp(handler(DATA=waiting))
        client.talk(SENDER + recipients(*BCD) + b"DATA\r\n" + MESSAGE + b".\r\n")
        client.vanish()
        self.assertEqual((waiting.cancelled, client.heard()), (1, b""))

    def test_exception(self) -> None:
        """The reply of handle_exception applies to all recipients."""

        def fails(*arguments: Any) -> None:
            raise LookupError

        hooks = handler(DATA=fails)
        hooks.handle_exception = lambda error: "454 4.0.0 ouch"
        self.assertEqual(send(lmtp(hooks), *BCD), ["454 4.0.0 ouch"] * 3)
        self.flushLoggedErrors(LookupError)


PEER = "192.0.2.7:4321"
FROM = f"client {PEER}, from <a@example.com>"


class LogTests(LoggingTestCase):
    """Several replies in the log and in the limits."""

    def test_refusals(self) -> None:
        """A line for each distinct refusal, with its recipients."""
        send(lmtp(handler(DATA=lambda *arguments: [GONE, OK, FULL, GONE])), *BCD, b"e@x")
        lines = [line.partition(" ")[2] for line in self.logged("info")]
        self.assertEqual(
            lines,
            [f"DATA refused, {FROM} to <b@x>, <e@x>: {GONE}", f"DATA refused, {FROM} to <d@x>: {FULL}"],
        )

    def test_refusalAfterMessage(self) -> None:
        """The refusal of an invalid line after a message does not name the sender and the recipients of the message."""
        client = lmtp(handler(DATA=lambda *arguments: GONE))
        send(client, b"b@x")
        client.talk(b"NOOP\n")
        line = self.logged("info")[-1].partition(" ")[2]
        self.assertTrue(line.startswith(f"connection refused, client {PEER}: 500 5.5.2 "), line)

    def test_messages(self) -> None:
        """With log_messages, a message that is accepted for a recipient is one line, with all replies."""
        send(lmtp(handler(DATA=lambda *arguments: [OK, FULL, OK]), log_messages=True), *BCD)
        (line,) = [line.partition(" ")[2] for line in self.logged("info") if " message from " in line]
        octets = len(MESSAGE)
        told = f"{OK} for <b@x>, <d@x>; {FULL} for <c@x>"
        self.assertEqual(
            line, f"message from <a@example.com> to <b@x>, <c@x>, <d@x>, {octets} octets, client {PEER}: {told}"
        )
        self.events.clear()
        send(lmtp(handler(DATA=lambda *arguments: [GONE, GONE]), log_messages=True), b"b@x", b"c@x")
        self.assertFalse([line for line in self.logged("info") if " message from " in line])

    def test_dialogue(self) -> None:
        """With log_dialogue, each reply is a line."""
        send(lmtp(handler(DATA=lambda *arguments: [OK, GONE]), log_dialogue=True), b"b@x", b"c@x")
        self.assertEqual([line.partition(" ")[2] for line in self.logged("debug")[-2:]], [f"S: {OK}", f"S: {GONE}"])

    def test_errorLimit(self) -> None:
        """A refused message counts as at most one error, however many recipients it has."""
        client = lmtp(handler(DATA=lambda *arguments: "553 5.1.3 bad"), error_limit=3)
        self.assertEqual([reply[:3] for reply in send(client, *BCD)], ["553"] * 3)
        self.assertEqual([reply[:3] for reply in send(client, *BCD)], ["553"] * 3)
        self.assertEqual([reply[:3] for reply in send(client, *BCD)], ["421"] * 3)
        self.assertTrue(client.closed)

    def test_junk(self) -> None:
        """A message that is accepted for a recipient resets the count of junk commands. One that is not accepted does
        not."""
        for status, expected in ((OK, 250), (GONE, 421)):
            client = lmtp(handler(DATA=lambda *arguments, status=status: [GONE, status]), junk_command_limit=3)
            client.talk(b"NOOP\r\n" * 2)
            send(client, b"b@x", b"c@x")
            self.assertEqual(client.ask(b"NOOP").code, expected)


class FoldingTests(LoggingTestCase):
    """A status for each recipient in SMTP, where there is one reply."""

    def fold(self, result: Any, *paths: bytes) -> str:
        said = set()
        for (_, each), way in product(with_result(result), WAYS):
            client = Client(each)
            client.talk(b"EHLO c.test\r\n")
            (reply,) = send(client, *paths, way=way)
            said.add(reply)
            self.assertEqual(client.server.envelope.rcpt_tos, [])
        (reply,) = said
        return reply

    def test_rule(self) -> None:
        """Positive only if all are positive. If one is 4yz, the client tries again. Otherwise the sender gets a
        report."""
        other = "250 2.0.0 other"
        for result, expected in (
            ([OK, OK, OK], OK),
            ([OK, other, OK], OK),
            ([OK, OK, GONE], GONE),
            ([OK, FULL, GONE], FULL),
            ([GONE, FULL, OK], FULL),
            ([OK, OK, FULL], FULL),
            ([GONE, "554 5.0.0 other", GONE], GONE),
        ):
            self.assertEqual(self.fold(result, *BCD), expected, result)
            mapping = dict(zip(["b@x", "c@x", "d@x"], result, strict=True))
            self.assertEqual(self.fold(mapping, *BCD), expected, result)

    def test_missing(self) -> None:
        """A recipient without a status may not have the message: 451."""
        for result in [OK, OK], [OK, OK, None], {"b@x": OK, "c@x": GONE}:
            self.assertTrue(self.fold(result, *BCD).startswith("451 4.3.0"), result)

    def test_log(self) -> None:
        """The log has the different replies, which the single reply cannot show."""
        self.fold([OK, OK, OK], *BCD)
        self.assertEqual(self.logged(), [])
        client = Client(handler(DATA=lambda *arguments: [OK, FULL, OK]))
        client.talk(b"EHLO c.test\r\n")
        send(client, *BCD)
        first, second = self.logged("info")
        self.assertTrue(
            first.endswith(f"the client gets one reply for different results: {OK} for <b@x>, <d@x>; {FULL} for <c@x>")
        )
        self.assertTrue(second.endswith(f"DATA refused, {FROM} to <b@x>, <c@x>, <d@x>: {FULL}"), second)

    def test_closes(self) -> None:
        """421 for one recipient is 421 for all."""
        client = Client(handler(DATA=lambda *arguments: [OK, FULL, BYE]))
        client.talk(b"EHLO c.test\r\n")
        self.assertEqual(send(client, *BCD), [BYE])
        self.assertTrue(client.closed)

    def test_processMessage(self) -> None:
        """process_message may return a status for each recipient, too."""
        client = Client(handler(process_message=lambda *arguments: [OK, GONE]))
        self.assertEqual(len(self.flushWarnings()), 1)
        client.talk(b"EHLO c.test\r\n")
        self.assertEqual(send(client, b"b@x", b"c@x"), [GONE])


class VerdictsTests(SynchronousTestCase):
    """The functions themselves."""

    def test_foldedOfNone(self) -> None:
        """Without any reply, the result is 250."""
        self.assertEqual(folded([]).code, 250)

    def test_foldedFirst(self) -> None:
        """Of equal codes, the first reply is used."""
        first, second = Reply(452, "4.2.2", "first"), Reply(452, "4.2.2", "second")
        self.assertIs(folded([Reply(250, None, "x"), first, second]), first)

    def test_repliesFor(self) -> None:
        """The status of each recipient in a result, and the recipients without one."""
        replies, missing = replies_for({"b": OK, "c": "no"}, ["b", "c", "d", "b"])
        self.assertEqual([reply.code for reply in replies], [250, 451, 451, 250])
        self.assertEqual(missing, ["c", "d"])

    def test_named(self) -> None:
        """A log line names a few recipients, and the number of the others."""
        paths = [str(number) for number in range(12)]
        text = str(Replies(paths, [Reply(250, None, "OK")] * 12))
        self.assertTrue(text.startswith("250 OK for <0>, <1>, "), text)
        self.assertTrue(text.endswith("<9> and 2 more"), text)


class HandlersTests(SynchronousTestCase):
    """Handlers that were written for SMTP work with LMTP."""

    def test_mailbox(self) -> None:
        """A Mailbox stores a message once, with a reply for each recipient. The trace header names LMTP (RFC 3848)."""

        class Whole(Mailbox):
            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
                return await super().handle_DATA(server, session, envelope)

        for kind in Mailbox, Whole:
            folder = self.mktemp()
            mailbox = kind(folder, durable=False)
            peer = UNIXAddress(None)
            client = lmtp(mailbox, peer=peer)
            replies = send(client, *BCD)
            self.assertEqual(len(set(replies)), 1)
            self.assertEqual([reply[:3] for reply in replies], ["250"] * 3)
            (message,) = mailbox.mailbox
            self.assertRegex(message["Received"], r"^from client\.test\n\tby mx\.test with LMTP id \S+;\n\t\w{3}, ")
            self.assertEqual((message["X-Peer"], message["X-RcptTo"]), ("", "b@x, c@x, d@x"))

    def test_message(self) -> None:
        """A subclass of Message may return a status for each recipient."""

        class Mine(Message):
            def handle_message(self, message: Any) -> Any:
                return {path: GONE if path == "c@x" else OK for path in message["X-RcptTo"].split(", ")}

        self.assertEqual(send(lmtp(Mine()), *BCD), [OK, GONE, OK])


class FactoryTests(SynchronousTestCase):
    """An LMTP server is a factory with this protocol."""

    def test_factory(self) -> None:
        """All options are those of SMTP. Two factories are independent."""
        for protocol, word in ((LMTP, b"LMTP"), (SMTP, b"ESMTP")):
            factory = SMTPFactory(None, protocol=protocol, hostname="mx.test", reactor=Clock(), auth_required=False)
            self.assertEqual(Client(factory=factory).welcome, b"220 mx.test %s txsmtpd\r\n" % word)

    def test_drain(self) -> None:
        """A server that shuts down waits for the transaction, sends all its replies, and closes."""
        waiting = Waiting([OK, FULL, GONE])
        client = lmtp(handler(DATA=waiting))
        client.talk(SENDER + recipients(*BCD) + b"DATA\r\n" + MESSAGE + b".\r\n")
        drained = client.factory.drain()
        self.assertNoResult(drained)
        waiting.fire()
        self.assertEqual([answer.code for answer in answers(client.wait(1))], [250, 452, 550, 421])
        self.assertTrue(client.closed)
        self.successResultOf(drained)

    def test_requireAuth(self) -> None:
        """AUTH works as in SMTP."""
        with_auth = {"auth_required": True, "auth_require_tls": False, "auth_callback": lambda *arguments: True}
        client = lmtp(**with_auth)
        self.assertEqual(len(self.flushWarnings()), 1)
        self.assertEqual(client.ask(b"MAIL FROM:<a@x>").code, 530)
        self.assertEqual(client.ask(b"AUTH PLAIN AGEAYg==").code, 235)
        self.assertEqual(len(send(client, *BCD)), 3)
