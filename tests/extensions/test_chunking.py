"""CHUNKING and BINARYMIME (RFC 3030): messages in chunks of known size."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.support import GREETING, TRANSACTION, Answer, Client, LoggingTestCase, Waiting, answers, codes, conversation
from txsmtpd import SMTP, SMTPFactory
from txsmtpd.command import Rule, syntax
from txsmtpd.engine.timeouts import Idle
from txsmtpd.interfaces import IMessageReceiver, IStreamingHandler
from txsmtpd.reply import Refused, Reply

START = GREETING + TRANSACTION
CHUNK_OK = Answer(250, ("2.0.0 Chunk received",))
KEPT = Answer(250, ("2.0.0 kept",))
TOO_LARGE = Answer(552, ("5.3.4 Message size exceeds the limit",))
MALFORMED = Answer(421, ("4.5.4 Invalid chunk size, closing connection",))
FAILED = 451


def chunk(octets: bytes, last: bool = False) -> bytes:
    """BDAT and its payload."""
    return b"BDAT %d%s\r\n%s" % (len(octets), b" LAST" if last else b"", octets)


class Keeps:
    """A handler that keeps messages, and the argument of NOOP."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.noops: list[str | None] = []
        self.ended: list[BaseException] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append(envelope.content)
        return "250 2.0.0 kept"

    def handle_NOOP(self, server: Any, session: Any, envelope: Any, arg: str | None) -> str:
        self.noops.append(arg)
        return "250 2.0.0 OK"

    def handle_DISCONNECT(self, server: Any, session: Any, envelope: Any, cause: BaseException) -> None:
        self.ended.append(cause)


@implementer(IStreamingHandler)
class Streams(Keeps):
    """The same, with receivers. *opens* makes the result of ``open_message`` from the receiver."""

    def __init__(self, opens: Callable[[Receiver], Receiver | Awaitable[Receiver]] = lambda receiver: receiver) -> None:
        super().__init__()
        self.opens = opens
        self.receivers: list[Receiver] = []

    def open_message(self, server: Any, session: Any, envelope: Any) -> Any:
        self.receivers.append(Receiver(self))
        return self.opens(self.receivers[-1])


@implementer(IMessageReceiver)
class Receiver:
    """Keeps one message."""

    def __init__(self, handler: Streams) -> None:
        self.handler = handler
        self.octets: list[bytes] = []
        self.finished = 0
        self.aborts: list[BaseException] = []

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def unregisterProducer(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.octets.append(data)

    def finish(self) -> str:
        self.finished += 1
        self.handler.messages.append(b"".join(self.octets))
        return "250 2.0.0 kept"

    def abort(self, reason: BaseException) -> None:
        self.aborts.append(reason)


class DialogueTests(SynchronousTestCase):
    """Messages by BDAT."""

    def setUp(self) -> None:
        self.handler = Keeps()

    def client(self, **options: Any) -> Client:
        client = Client(self.handler, **options)
        self.assertEqual(client.codes(START), [250, 250, 250])
        return client

    def test_offered(self) -> None:
        """EHLO offers CHUNKING and BINARYMIME."""
        lines = Client().ask(b"EHLO client.test").lines
        self.assertIn("CHUNKING", lines)
        self.assertIn("BINARYMIME", lines)

    def test_binaryNotOffered(self) -> None:
        """A server that decodes messages accepts chunks, but not BINARYMIME."""
        lines = Client(decode_data=True).ask(b"EHLO client.test").lines
        self.assertIn("CHUNKING", lines)
        self.assertNotIn("BINARYMIME", lines)
        for utf8, code in (False, 555), (True, 501):
            client = Client(decode_data=True, enable_SMTPUTF8=utf8)
            self.assertEqual(client.codes(GREETING + b"MAIL FROM:<a@example.com> BODY=BINARYMIME\r\n"), [250, code])

    def test_last(self) -> None:
        """The reply to a message of one chunk, which is the last, is the handler's."""
        client = self.client()
        self.assertEqual(answers(client.talk(chunk(b"hello", True))), [KEPT])
        self.assertEqual(self.handler.messages, [b"hello"])

    def test_several(self) -> None:
        """Each chunk except the last has its own reply. The message consists of all of them."""
        client = self.client()
        said = client.talk(chunk(b"Subject: a\r\n") + chunk(b"\r\nhel") + chunk(b"lo\r\n", True))
        self.assertEqual(answers(said), [CHUNK_OK, CHUNK_OK, KEPT])
        self.assertEqual(self.handler.messages, [b"Subject: a\r\n\r\nhello\r\n"])

    def test_emptyLast(self) -> None:
        """BDAT 0 LAST ends the message immediately. Alone, it is a message without octets."""
        client = self.client()
        self.assertEqual(answers(client.talk(chunk(b"hello"))), [CHUNK_OK])
        self.assertEqual(client.ask(b"BDAT 0 LAST"), KEPT)
        self.assertEqual(client.codes(TRANSACTION), [250, 250])
        self.assertEqual(client.ask(b"BDAT 0 LAST"), KEPT)
        self.assertEqual(self.handler.messages, [b"hello", b""])

    def test_empty(self) -> None:
        """BDAT 0 is a chunk without octets."""
        client = self.client()
        self.assertEqual(client.ask(b"BDAT 0"), CHUNK_OK)
        self.assertEqual(
            answers(client.talk(chunk(b"hello") + b"BDAT 0\r\n" + chunk(b"!", True))), [CHUNK_OK] * 2 + [KEPT]
        )
        self.assertEqual(self.handler.messages, [b"hello!"])

    def test_emptyForEver(self) -> None:
        """Chunks without octets count as junk: too many of them end the connection."""
        client = self.client(junk_command_limit=10)
        said = answers(client.talk(b"BDAT 0\r\n" * 20))
        self.assertEqual([answer.code for answer in said][-2:], [250, 421])
        self.assertLessEqual(len(said), 11)
        self.assertTrue(client.closed)

    def test_lowerCase(self) -> None:
        """The command is case-insensitive."""
        client = self.client()
        self.assertEqual(answers(client.talk(b"bdat 5 last\r\nhello")), [KEPT])

    def test_octets(self) -> None:
        """All octets are kept: NUL, bare CR and LF, dots, and the end of DATA."""
        message = bytes(range(256)) + b"\r\n.\r\n..\r\n\n.\n\r.\r\0\r\n.\r\n"
        client = self.client()
        self.assertEqual(answers(client.talk(chunk(message[:130]) + chunk(message[130:], True))), [CHUNK_OK, KEPT])
        self.assertEqual(self.handler.messages, [message])

    def test_lineLimitOfData(self) -> None:
        """The limit of lines applies to DATA, not to chunks."""
        client = self.client(line_length_limit=100)
        self.assertEqual(answers(client.talk(chunk(b"x" * 1000, True))), [KEPT])

    def test_sameHook(self) -> None:
        """handle_DATA is called as for DATA, with the same envelope."""
        seen: list[Any] = []

        async def handle(server: Any, session: Any, envelope: Any) -> str:
            seen.append((envelope.mail_from, envelope.rcpt_tos, envelope.content, envelope.original_content))
            return "250 2.0.0 kept"

        self.handler.handle_DATA = handle  # type: ignore[method-assign]
        client = self.client()
        client.say(b"DATA\r\nhello\r\n.\r\n" + TRANSACTION + chunk(b"hello") + chunk(b"\r\n", True))
        self.assertEqual(codes(client.heard()), [354, 250, 250, 250, 250, 250])
        self.assertEqual(seen, [("a@example.com", ["b@example.com"], b"hello\r\n", b"hello\r\n")] * 2)

    def test_decoded(self) -> None:
        """With decode_data, the content is a string. Content that is not ASCII is refused."""
        client = self.client(decode_data=True)
        self.assertEqual(client.codes(chunk(b"hello", True) + TRANSACTION + chunk(b"\xff", True)), [250, 250, 250, 500])
        self.assertEqual(self.handler.messages, ["hello"])

    def test_several_messages(self) -> None:
        """The transaction ends with the last chunk. Another one can start."""
        client = self.client()
        self.assertEqual(client.codes(chunk(b"a", True) + TRANSACTION + chunk(b"b", True)), [250] * 4)
        self.assertEqual(self.handler.messages, [b"a", b"b"])
        self.assertEqual(client.codes(chunk(b"c", True)), [503])

    def test_betweenChunks(self) -> None:
        """NOOP, VRFY and HELP between chunks have no effect on the message."""
        client = self.client()
        said = client.codes(chunk(b"a") + b"NOOP\r\nVRFY b\r\nHELP\r\nBOGUS\r\n" + chunk(b"b", True))
        self.assertEqual(said, [250, 250, 252, 214, 500, 250])
        self.assertEqual(self.handler.messages, [b"ab"])

    def test_notBetweenChunks(self) -> None:
        """DATA, RCPT and MAIL between chunks are refused, and have no effect on the message."""
        client = self.client()
        self.assertEqual(client.codes(chunk(b"a")), [250])
        for line in b"DATA", b"RCPT TO:<c@example.com>", b"MAIL FROM:<c@example.com>":
            self.assertEqual(client.ask(line).code, 503)
        self.assertEqual(client.codes(chunk(b"b", True)), [250])
        self.assertEqual(self.handler.messages, [b"ab"])

    def test_dataAfterRefusedChunk(self) -> None:
        """DATA and RCPT are refused even after a refused chunk, until RSET."""
        client = self.client(data_size_limit=10)
        self.assertEqual(answers(client.talk(chunk(bytes(11)))), [TOO_LARGE])
        self.assertEqual([client.ask(b"DATA").code, client.ask(b"RCPT TO:<c@example.com>").code], [503, 503])
        self.assertEqual(client.codes(b"RSET\r\n" + TRANSACTION + b"DATA\r\n.\r\n"), [250, 250, 250, 354, 250])

    def test_resets(self) -> None:
        """RSET, EHLO and HELO between chunks end the transaction, and its chunks are discarded."""
        for command in b"RSET", b"EHLO client.test", b"HELO client.test":
            self.handler.messages.clear()
            client = self.client()
            self.assertEqual(client.codes(chunk(b"old") + command + b"\r\n" + chunk(b"x", True)), [250, 250, 503])
            self.assertEqual(client.codes(TRANSACTION + chunk(b"new", True)), [250] * 3)
            self.assertEqual(self.handler.messages, [b"new"])

    def test_quit(self) -> None:
        """QUIT between chunks ends the connection, and no message is received."""
        client = self.client()
        self.assertEqual(client.codes(chunk(b"a") + b"QUIT\r\n"), [250, 221])
        self.assertTrue(client.closed)
        self.assertEqual(self.handler.messages, [])

    def test_binary(self) -> None:
        """A BINARYMIME message must use BDAT. DATA is refused with 503, and chunks may still follow."""
        client = Client(self.handler)
        client.say(GREETING + b"MAIL FROM:<a@example.com> BODY=BinaryMIME\r\nRCPT TO:<b@example.com>\r\n")
        self.assertEqual(codes(client.heard()), [250] * 3)
        self.assertEqual(client.ask(b"DATA"), Answer(503, ("5.5.1 BINARYMIME requires BDAT",)))
        self.assertEqual(answers(client.talk(chunk(b"\0\n\r", True))), [KEPT])
        self.assertEqual(self.handler.messages, [b"\0\n\r"])

    def test_binaryWithHook(self) -> None:
        """DATA is refused for a BINARYMIME message, even if handle_MAIL does not keep the parameters."""

        class Mails(Keeps):
            def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, mail_options: Any) -> str:
                return "250 2.1.0 OK"

        client = Client(Mails())
        client.say(GREETING + b"MAIL FROM:<a@example.com> BODY=BINARYMIME\r\nRCPT TO:<b@example.com>\r\n")
        self.assertEqual(codes(client.heard()), [250] * 3)
        self.assertEqual(client.ask(b"DATA").code, 503)

    def test_notBinary(self) -> None:
        """Any message that is not BINARYMIME may use BDAT or DATA."""
        for body in b"", b" BODY=7BIT", b" BODY=8BITMIME":
            for data in chunk(b"hello\r\n", True), b"DATA\r\nhello\r\n.\r\n":
                client = Client(self.handler)
                client.say(GREETING + b"MAIL FROM:<a@example.com>" + body + b"\r\nRCPT TO:<b@example.com>\r\n" + data)
                self.assertEqual(codes(client.heard())[-1], 250)
        self.assertEqual(self.handler.messages, [b"hello\r\n"] * 6)

    def test_afterHelo(self) -> None:
        """BDAT works after HELO, too."""
        client = Client(self.handler)
        self.assertEqual(client.codes(b"HELO client.test\r\n" + TRANSACTION + chunk(b"a", True)), [250] * 4)

    def test_everySplit(self) -> None:
        """However a session is split into segments, its replies and messages are the same."""
        session = (
            START + chunk(b"Subject: a\r\n") + b"NOOP\r\n" + chunk(b"\r\nQUIT\r\n") + b"BDAT 0 LAST\r\n"
            + TRANSACTION + chunk(b"RSET\r\n") + b"RSET\r\n" + chunk(b"NOOP smuggled\r\n", True)
            + TRANSACTION + chunk(bytes(70)) + chunk(b"QUIT\r\n", True) + b"QUIT\r\nNOOP\r\n"
        )  # fmt: skip
        expected = None
        for cuts in [*([cut] for cut in range(len(session))), range(len(session)), range(0, len(session), 3)]:
            handler = Keeps()
            said = conversation(session, cuts, handler, data_size_limit=60)
            expected = expected or said
            self.assertEqual(said, expected)
            self.assertEqual((handler.messages, handler.noops), ([b"Subject: a\r\n\r\nQUIT\r\n"], [None]))
        assert expected is not None
        self.assertEqual(
            codes(expected[0]),
            [220] + [250] * 3 + [250, 250, 250, 250] + [250, 250, 250, 250, 503] + [250, 250, 552, 552, 221],
        )

    def test_help(self) -> None:
        """HELP shows the syntax."""
        self.assertEqual(Client().ask(b"HELP BDAT").text, "2.0.0 Syntax: BDAT size [LAST]")

    def test_waitingHook(self) -> None:
        """Chunks that arrive while a hook waits are kept. The replies are in order."""
        rcpt, data = Waiting("250 2.1.5 waited"), Waiting("250 2.0.0 waited too")

        class Waits(Keeps):
            async def handle_RCPT(self, server: Any, session: Any, envelope: Any, *more: Any) -> Any:
                envelope.rcpt_tos.append("b@example.com")
                return await rcpt()

            async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
                await super().handle_DATA(server, session, envelope)
                return await data()

        client = Client(handler := Waits())
        session = START + chunk(b"QUIT\r\n") + chunk(b"NOOP smuggled\r\n", True) + b"NOOP real\r\n"
        for cuts in [], range(len(session)):
            handler.messages.clear()
            handler.noops.clear()
            client = Client(handler)
            client.say(session, cuts)
            self.assertEqual(codes(client.heard()), [250, 250])
            rcpt.fire()
            self.assertEqual(answers(client.heard()), [Answer(250, ("2.1.5 waited",)), CHUNK_OK])
            self.assertEqual(handler.messages, [b"QUIT\r\nNOOP smuggled\r\n"])
            data.fire()
            self.assertEqual([a.text for a in answers(client.heard())], ["2.0.0 waited too", "2.0.0 OK"])
            self.assertEqual(handler.noops, ["real"])

    def test_tinyChunks(self) -> None:
        """A message may consist of very many chunks of one octet."""
        client = self.client()
        said = client.talk(chunk(b"x") * 10000 + b"BDAT 0 LAST\r\n")
        self.assertEqual(said.count(CHUNK_OK.text.encode()), 10000)
        self.assertEqual(self.handler.messages, [b"x" * 10000])


class SizeTests(SynchronousTestCase):
    """The size limit, over all chunks."""

    def setUp(self) -> None:
        self.handler = Keeps()
        self.client = Client(self.handler, data_size_limit=10)
        self.client.say(START)
        self.client.heard()

    def test_exact(self) -> None:
        """A message may have as many octets as the limit."""
        self.assertEqual(self.client.codes(chunk(bytes(4)) + chunk(bytes(6)) + b"BDAT 0 LAST\r\n"), [250] * 3)
        self.assertEqual(self.handler.messages, [bytes(10)])

    def test_acrossChunks(self) -> None:
        """The chunk that exceeds the limit by one octet is refused."""
        self.assertEqual(
            answers(self.client.talk(chunk(bytes(4)) + chunk(bytes(6)) + chunk(b"x", True))),
            [CHUNK_OK] * 2 + [TOO_LARGE],
        )
        self.assertEqual(self.handler.messages, [])

    def test_transactionOver(self) -> None:
        """A refused last chunk ends the transaction. A new one works, with the whole limit."""
        self.assertEqual(self.client.codes(chunk(bytes(11), True)), [552])
        self.assertEqual(self.client.codes(chunk(b"x", True)), [503])
        self.assertEqual(self.client.codes(TRANSACTION + chunk(bytes(10), True)), [250] * 3)

    def test_goesOnRefusing(self) -> None:
        """After a refused chunk, all others are refused in the same way, including the last one. Then a new transaction
        works."""
        said = self.client.talk(chunk(bytes(11)) + chunk(b"NOOP smuggled\r\n") + chunk(b"x") + chunk(b"y", True))
        self.assertEqual(answers(said), [TOO_LARGE] * 4)
        self.assertEqual(self.client.codes(TRANSACTION + chunk(b"z", True)), [250] * 3)
        self.assertEqual((self.handler.messages, self.handler.noops), ([b"z"], []))

    def test_resetAfterRefusal(self) -> None:
        """RSET ends it, too, and the count starts again."""
        said = self.client.codes(chunk(bytes(9)) + chunk(bytes(9)) + b"RSET\r\n" + TRANSACTION + chunk(bytes(10), True))
        self.assertEqual(said, [250, 552, 250, 250, 250, 250])

    def test_countBeginsAnew(self) -> None:
        """Each message has the whole limit, independent of earlier ones."""
        for before in chunk(bytes(9), True), chunk(bytes(9)) + b"RSET\r\n", chunk(bytes(9)) + b"EHLO client.test\r\n":
            self.client.say(before + TRANSACTION + chunk(bytes(10), True))
            self.assertEqual(codes(self.client.heard())[-1], 250)
            self.client.say(TRANSACTION)
            self.client.heard()

    def test_farTooLarge(self) -> None:
        """A chunk that is too large to be discarded ends the connection immediately."""
        for size in b"161", b"4294967296", b"9" * 20:
            client = Client(self.handler, data_size_limit=10)
            client.say(START)
            client.heard()
            said = answers(client.talk(b"BDAT " + size + b"\r\nNOOP smuggled\r\n"))
            self.assertEqual(said, [Answer(552, ("5.3.4 Message size far exceeds the limit, closing connection",))])
            self.assertTrue(client.closed)
        self.assertEqual(self.handler.noops, [])

    def test_noLimit(self) -> None:
        """Without a limit, a chunk of any size starts, and its octets are passed on as they arrive."""
        handler = Streams()
        client = Client(handler, data_size_limit=None)
        client.say(START + b"BDAT " + b"9" * 20 + b" LAST\r\n" + bytes(1000))
        self.assertEqual(codes(client.heard()), [250] * 3)
        self.assertEqual(handler.receivers[0].octets, [bytes(1000)])


class MalformedTests(SynchronousTestCase):
    """The number of octets that follow is unknown."""

    def assertEnds(self, line: bytes, before: bytes = START) -> list[Answer]:
        """The line ends the connection, and the octets after it are not read."""
        handler = Keeps()
        client = Client(handler)
        client.say(before)
        client.heard()
        said = answers(client.talk(line + b"NOOP smuggled\r\n"))
        self.assertEqual(handler.noops, [], line)
        self.assertEqual([answer.code for answer in said], [421], line)
        self.assertTrue(client.closed)
        return said

    def test_malformed(self) -> None:
        """An invalid size gets 421, and the connection ends."""
        for argument in [
            b"", b" ", b" LAST", b" -1", b" -1 LAST", b" +5", b" 1_0", b" 5.0", b" 1e1", b" 0x10", b" five",
            b" 5LAST", b" 5 FIRST", b" 5 LAST x", b" 5\tLAST", b" \t5", b" " + b"9" * 21, b" 5\0", b" 5\x01 LAST",
            b" 5\r", b" \xef\xbc\x95", b" \xff",
        ]:  # fmt: skip
            self.assertEqual(self.assertEnds(b"BDAT" + argument + b"\r\n"), [MALFORMED], argument)

    def test_whenRefusedAnyway(self) -> None:
        """The same is true if BDAT would be refused for another reason."""
        for before in b"", GREETING, GREETING + b"MAIL FROM:<a@example.com>\r\n", START + chunk(b"a", True):
            self.assertEqual(self.assertEnds(b"BDAT -1\r\n", before), [MALFORMED])

    def test_tab(self) -> None:
        """With a tab in place of the space before the size, it is a malformed BDAT and not an unknown command."""
        self.assertEnds(b"BDAT\t15 LAST\r\n")

    def test_bareLF(self) -> None:
        """A BDAT whose line ends in LF alone ends the connection, because the octets after it are not commands."""
        self.assertEnds(b"BDAT 15 LAST\n")


class HookFails(Keeps):
    def handle_RCPT(self, *arguments: Any) -> str:
        raise RuntimeError("RCPT")


class DataFails(Keeps):
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        raise RuntimeError("DATA")


class TurnedAway(Keeps):
    def handle_CONNECT(self, *arguments: Any) -> str:
        return "554 5.7.1 Go away"


def refuses(receiver: Receiver) -> Receiver:
    raise Refused(Reply(452, "4.3.1", "The disk is full"))


def raises(receiver: Receiver) -> Receiver:
    raise RuntimeError("open_message")


async def refuses_later(receiver: Receiver) -> Receiver:
    raise Refused(Reply(452, "4.3.1", "The disk is full"))


def gives_nothing(receiver: Receiver) -> Any:
    return None


class Breaks:
    """A receiver of which *method* raises."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __call__(self, receiver: Receiver) -> Receiver:
        def fail(*arguments: Any) -> Any:
            raise RuntimeError(self.method)

        setattr(receiver, self.method, fail)
        return receiver


# What may go wrong with a chunk: the octets before it, the handler, options, the code of the reply to a chunk that is
# not the last, and that of the reply to the last chunk.
Case = tuple[bytes, Callable[[], Keeps], dict[str, Any], int, int]
CASES: dict[str, Case] = {
    "nothing": (START, Keeps, {}, 250, 250),
    "before EHLO": (b"", Keeps, {}, 503, 503),
    "turned away": (b"", TurnedAway, {}, 503, 503),
    "no transaction": (GREETING, Keeps, {}, 503, 503),
    "no recipients": (GREETING + b"MAIL FROM:<a@example.com>\r\n", Keeps, {}, 503, 503),
    "the hook of RCPT raised": (START, HookFails, {}, 503, 503),
    "too large": (START, Keeps, {"data_size_limit": 2000}, 552, 552),
    "too large before": (START + chunk(bytes(2001)), Keeps, {"data_size_limit": 2000}, 552, 552),
    "handle_DATA raises": (START, DataFails, {}, 250, 451),
    "open_message refuses": (START, lambda: Streams(refuses), {}, 452, 452),
    "open_message refuses later": (START, lambda: Streams(refuses_later), {}, 452, 452),
    "open_message raises": (START, lambda: Streams(raises), {}, 451, 451),
    "open_message gives nothing": (START, lambda: Streams(gives_nothing), {}, 451, 451),
    "finish raises": (START, lambda: Streams(Breaks("finish")), {}, 250, 451),
}


class SmugglingTests(LoggingTestCase):
    """No octet of a chunk is executed as a command."""

    @given(
        case=some.sampled_from(sorted(CASES)),
        lines=some.lists(
            some.sampled_from(
                [b"NOOP smuggled\r\n", b"QUIT\r\n", b"RSET\r\n", b".\r\n", b"BDAT 3 LAST\r\n", b"BDAT -1\r\n",
                 b"MAIL FROM:<evil@example.com>\r\n", b"RCPT TO:<evil@example.com>\r\n", b"DATA\r\n",
                 b"EHLO evil\r\n", b"GET / HTTP/1.1\r\n", b"\n", b"\r", b"\0"]
            ),
            min_size=1,
        ),
        last=some.booleans(),
        cuts=some.lists(some.integers(0, 3000), max_size=8),
    )  # fmt: skip
    @settings(deadline=None, max_examples=300)
    def test_neverACommand(self, case: str, lines: list[bytes], last: bool, cuts: list[int]) -> None:
        """A chunk has one reply, whatever is wrong with it, whatever it contains, and however it is split. Its octets
        are not executed as commands. The next command is."""
        before, make, options, code, code_of_last = CASES[case]
        payload = b"".join(lines)
        if case.startswith("too large"):
            payload += bytes(2001)
        handler = make()
        client = Client(handler, **options)
        client.say(before)
        client.heard()
        client.say(chunk(payload, last) + b"NOOP real\r\n", cuts)
        self.assertEqual(codes(client.heard()), [code_of_last if last else code, 503 if case == "turned away" else 250])
        if case != "turned away":
            self.assertEqual(handler.noops, ["real"])
        self.flushLoggedErrors(RuntimeError, TypeError)

    @given(
        cuts=some.lists(some.integers(0, 900), max_size=8),
        length=some.sampled_from([500, 513, 530, 1000, 5000, 70000]),
        last=some.booleans(),
    )
    @settings(deadline=None)
    def test_longLine(self, cuts: list[int], length: int, last: bool) -> None:
        """The octets of a BDAT with a line that is too long are not executed as commands either."""
        handler = Keeps()
        client = Client(handler)
        client.say(START)
        client.heard()
        command, payload = chunk(b"NOOP smuggled\r\n", last).split(b"\r\n", 1)
        client.say(command.ljust(length) + b"\r\n" + payload + b"NOOP real\r\n", cuts)
        self.assertNotIn("smuggled", handler.noops)
        self.assertEqual(codes(client.heard())[0], 250 if length <= 512 else 421 if client.closed else 500)


class FailedChunkTests(LoggingTestCase):
    """A chunk whose octets were discarded is missing, so the message must not be accepted."""

    def start(self, handler: Keeps, **options: Any) -> Client:
        client = Client(handler, **options)
        self.assertEqual(client.codes(START), [250, 250, 250])
        return client

    def test_refused(self) -> None:
        """If open_message refuses the message, all its chunks are refused. Then a new transaction works."""
        handler = Streams(refuses)
        client = self.start(handler)
        self.assertEqual(client.codes(chunk(b"head") + chunk(b"middle") + chunk(b"tail", True)), [452] * 3)
        handler.opens = lambda receiver: receiver
        self.assertEqual(client.codes(TRANSACTION + chunk(b"new", True)), [250] * 3)
        self.assertEqual((handler.messages, len(handler.receivers)), ([b"new"], 2))

    def test_raised(self) -> None:
        """If open_message fails, all chunks fail: no message without its beginning is accepted."""
        handler = Streams()
        attempts = iter([raises])
        handler.opens = lambda receiver: next(attempts, lambda receiver: receiver)(receiver)
        client = self.start(handler)
        self.assertEqual(client.codes(chunk(b"head") + chunk(b"tail", True)), [FAILED, FAILED])
        self.assertEqual(handler.messages, [])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(client.codes(TRANSACTION + chunk(b"new", True)), [250] * 3)
        self.assertEqual(handler.messages, [b"new"])

    def test_tookTooLong(self) -> None:
        """If open_message takes too long, all chunks fail, too."""
        waiting = Waiting()
        handler = Streams()
        opens = iter([waiting])
        handler.opens = lambda receiver: next(opens, lambda receiver: receiver)(receiver)
        client = self.start(handler, hook_timeout=5)
        client.say(chunk(b"head") + chunk(b"tail", True))
        said = codes(client.wait(6))
        self.assertEqual((said, handler.messages), ([451, 451], []))
        self.assertEqual(waiting.cancelled, 1)

    def test_lineTooLong(self) -> None:
        """A chunk whose command line is too long is missing from the message."""
        handler = Keeps()
        client = self.start(handler)
        said = client.codes(chunk(b"a") + b"BDAT 6".ljust(520) + b"\r\nmiddle" + chunk(b"c", True))
        self.assertEqual(said[:2], [250, 500])
        self.assertEqual((said[2:] == [250], handler.messages), (False, []))

    def test_ownRule(self) -> None:
        """So is a chunk that a rule of a subclass has refused."""

        class Strict(SMTP):
            @syntax(
                "BDAT size [LAST]",
                needs=[Rule(lambda smtp, arg: arg != "6", Reply(450, "4.7.0", "Not this one"))],
            )
            async def smtp_BDAT(self, arg: str) -> Any:
                return await super().smtp_BDAT(arg)

        handler = Keeps()
        client = Client(factory=SMTPFactory(handler, protocol=Strict, reactor=Clock(), hostname="mx.test"))
        client.say(START)
        client.heard()
        said = client.codes(chunk(b"a") + chunk(b"middle") + chunk(b"c", True))
        self.assertEqual(said[:2], [250, 450])
        self.assertEqual((said[2:] == [250], handler.messages), (False, []))

    def test_handlerRaises(self) -> None:
        """If handle_DATA raises, the transaction is over. Further chunks are refused, and a new transaction works."""
        client = self.start(DataFails())
        self.assertEqual(client.codes(chunk(b"a", True) + chunk(b"b", True) + TRANSACTION), [451, 503, 250, 250])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_lastRaised(self) -> None:
        """If open_message fails for the last chunk, the transaction is over."""
        handler = Streams(raises)
        client = self.start(handler)
        self.assertEqual(client.codes(chunk(b"a", True) + b"MAIL FROM:<c@example.com>\r\n"), [FAILED, 250])
        self.flushLoggedErrors(RuntimeError)


class WaitingTests(SynchronousTestCase):
    """open_message waits, and the chunk's octets have already arrived."""

    def setUp(self) -> None:
        self.waiting: list[Deferred[Any]] = []
        self.handler = Streams(self.wait)

    def wait(self, receiver: Receiver) -> Any:
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: receiver)

    def start(self, octets: bytes, cuts: Iterable[int] = (), **options: Any) -> Client:
        client = Client(self.handler, **options)
        client.say(START)
        client.heard()
        client.say(octets, cuts)
        self.assertEqual(client.heard(), b"")
        return client

    def test_goesOn(self) -> None:
        """The octets wait, and then the session continues as usual."""
        octets = chunk(b"NOOP smuggled\r\n") + chunk(b"b", True) + b"NOOP real\r\n"
        for cuts in [], range(len(octets)):
            self.setUp()
            client = self.start(octets, cuts)
            self.waiting[0].callback(None)
            self.assertEqual(codes(client.heard()), [250, 250, 250])
            self.assertEqual((self.handler.messages, self.handler.noops), ([b"NOOP smuggled\r\nb"], ["real"]))

    def test_octetsLater(self) -> None:
        """The same is true if the octets arrive later."""
        client = self.start(b"BDAT 5 LAST\r\nhe")
        self.waiting[0].callback(None)
        self.assertEqual(client.talk(b"ll"), b"")
        self.assertEqual(answers(client.talk(b"o")), [KEPT])
        self.assertEqual(self.handler.messages, [b"hello"])

    def test_raises(self) -> None:
        """If the chunk is refused after all, the octets are discarded."""
        octets = chunk(b"NOOP smuggled\r\n", True) + b"NOOP real\r\n"
        client = self.start(octets)
        self.waiting[0].errback(Refused(Reply(452, "4.3.1", "The disk is full")))
        self.assertEqual(codes(client.heard()), [452, 250])
        self.assertEqual(self.handler.noops, ["real"])

    def test_timesOut(self) -> None:
        """If it takes too long, it is cancelled, the octets are discarded, and the reply is 451."""
        client = self.start(chunk(b"NOOP smuggled\r\n", True) + b"NOOP real\r\n", hook_timeout=5)
        self.assertEqual(codes(client.wait(6)), [451, 250])
        self.assertEqual(self.handler.noops, ["real"])

    def test_idleWhileWaiting(self) -> None:
        """The client's timeouts do not run while open_message waits."""
        client = self.start(chunk(b"hello", True), timeout=5)
        self.assertEqual(client.wait(60), b"")
        self.waiting[0].callback(None)
        self.assertEqual(answers(client.heard()), [KEPT])

    def test_clientGone(self) -> None:
        """If the client disconnects meanwhile, it is cancelled, and no receiver is left with a part of the message."""
        client = self.start(chunk(b"hello", True))
        client.vanish()
        self.assertTrue(self.waiting[0].called)
        self.assertEqual(self.handler.messages, [])
        [receiver] = self.handler.receivers
        self.assertEqual((receiver.finished, receiver.aborts), (0, []))  # the handler never received the message

    def test_disobedient(self) -> None:
        """If open_message ignores the cancellation and opens a receiver later, that is aborted."""
        for way in "vanish", "time out":
            waiting = Waiting(obedient=False)
            handler = Streams(waiting)
            client = Client(handler, hook_timeout=5)
            client.say(START)
            client.heard()
            waiting.result = receiver = Receiver(handler)
            client.say(chunk(b"hello", True))
            if way == "vanish":
                client.vanish()
            else:
                self.assertEqual(codes(client.wait(6)), [421])
            waiting.fire()
            self.assertEqual((receiver.finished, len(receiver.aborts), receiver.octets), (0, 1, []))


class EndTests(SynchronousTestCase):
    """Connections that end within a chunk."""

    def setUp(self) -> None:
        self.handler = Streams()
        self.client = Client(self.handler, timeout=30)
        self.client.say(START)
        self.client.heard()

    def assertAborted(self, why: type[BaseException]) -> None:
        [receiver] = self.handler.receivers
        self.assertEqual((receiver.finished, [type(each) for each in receiver.aborts]), (0, [why]))
        self.assertEqual(self.handler.messages, [])

    def test_idle(self) -> None:
        """A client that is idle for too long within a chunk gets a reply. Each octet restarts the timeout."""
        self.client = Client(self.handler, timeout=30, data_rate_minimum=None)
        self.client.say(START + b"BDAT 5 LAST\r\nhe")
        self.client.heard()
        self.assertEqual(self.client.wait(29), b"")
        self.client.say(b"l")
        self.assertEqual(self.client.wait(29), b"")
        self.assertEqual(answers(self.client.wait(2)), [Answer(421, ("4.4.2 Idle timeout, closing connection",))])
        self.assertTrue(self.client.closed)
        self.assertAborted(Idle)

    def test_gone(self) -> None:
        """A client that disconnects within a chunk leaves no message."""
        self.client.say(b"BDAT 5 LAST\r\nhell")
        self.client.vanish()
        self.assertAborted(ConnectionLost)

    def test_goneBetween(self) -> None:
        """Neither does one that disconnects between chunks."""
        self.client.say(chunk(b"hello"))
        self.client.vanish()
        self.assertAborted(ConnectionLost)

    def test_halfClose(self) -> None:
        """A client that half-closes within a chunk gets no reply to it. The connection closes."""
        self.client.say(b"BDAT 5 LAST\r\nhell")
        self.client.half_close()
        self.assertEqual(self.client.heard(), b"")
        self.assertTrue(self.client.closed)
        [receiver] = self.handler.receivers
        self.assertEqual((receiver.finished, len(receiver.aborts)), (0, 1))

    def test_halfCloseAfter(self) -> None:
        """A client that half-closes after the last chunk gets its reply."""
        self.client.say(chunk(b"hello", True) + b"QUIT\r\n")
        self.client.half_close()
        self.assertEqual(codes(self.client.heard()), [250, 221])

    def test_goneWhileDropping(self) -> None:
        """A client may disconnect within a chunk that is being discarded."""
        client = Client(self.handler, timeout=30)
        client.say(GREETING + b"BDAT 5 LAST\r\nhell")
        self.assertEqual(codes(client.heard()), [250])
        self.assertEqual(codes(client.wait(31)), [421])
        self.assertTrue(client.closed)
