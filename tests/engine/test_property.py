"""The replies depend neither on segments nor on the duration of hooks. Each command has one."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.internet.task import Clock, deferLater

from tests.support import Client, LoggingTestCase, answers, codes
from txsmtpd import LMTP, Envelope, Refused
from txsmtpd.testing.strategies import Block, body_lines, cuts, lines, octets, sessions

# With these options, only the client's commands end a session.
UNLIMITED: dict[str, Any] = {
    "junk_command_limit": None,
    "error_limit": None,
    "error_delay": 0,  # with a delay, replies would wait for the clock
    "timeout": None,
    "hook_timeout": None,
}


class Delayed:
    """A handler whose hooks take as long as the next number says: no time, or seconds."""

    def __init__(self, clock: Clock, delays: list[float]) -> None:
        self.clock = clock
        self.delays = delays
        self.turn = 0
        self.working = 0
        self.contents: list[bytes | str | None] = []

    async def _work(self) -> None:
        if self.working:
            raise AssertionError("a hook was called while another worked")
        self.turn += 1
        delay = self.delays[self.turn % len(self.delays)] if self.delays else 0
        if delay:
            self.working += 1
            await deferLater(self.clock, delay)
            self.working -= 1

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        await self._work()
        return responses

    async def handle_MAIL(self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
        await self._work()
        if address.startswith("no"):
            return "550 5.7.1 no"
        envelope.mail_from = address
        return "250 2.1.0 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]) -> str:
        await self._work()
        if address.startswith("no"):
            raise Refused("550 5.1.1 no")
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        await self._work()
        self.contents.append(envelope.content)
        return "250 2.0.0 OK"

    async def handle_NOOP(self, server: Any, session: Any, envelope: Envelope, arg: str | None) -> str:
        await self._work()
        return "250 2.0.0 OK"

    async def handle_RSET(self, server: Any, session: Any, envelope: Envelope) -> str:
        await self._work()
        return "250 2.0.0 OK"


DELAYS = some.lists(some.sampled_from([0, 0, 0.5, 1, 3]), max_size=6)


def run(octets: bytes, cuts: list[int], delays: list[float], pauses: list[float], **options: Any) -> tuple[Any, ...]:
    """The server's output, whether it has closed the connection, and the messages that it has accepted.

    :param delays: the durations of the hooks, in turn.
    :param pauses: the time that the client waits after each segment, in turn.
    """
    clock = Clock()
    hooks = Delayed(clock, delays)
    client = Client(hooks, reactor=clock, **{**UNLIMITED, **options})
    start = 0
    for number, cut in enumerate([*sorted({cut for cut in cuts if cut < len(octets)}), len(octets)]):
        client.say(octets[start:cut])
        start = cut
        if pauses:
            client.wait(pauses[number % len(pauses)], step=0.5)
    for _ in range(10_000):
        if hooks.working and not client.closed:
            client.wait(1, step=1)
    said, closed = client.transport.taken, client.closed
    if not closed:
        client.vanish()
    if hooks.working and not closed:
        raise AssertionError("a hook works for ever")
    return said, closed, hooks.contents


class SessionTests(LoggingTestCase):
    """Sessions of commands, messages and mistakes."""

    @settings(deadline=None, max_examples=150)
    @given(sessions(), cuts(), DELAYS, DELAYS)
    def test_oneReplyEach(self, session: Block, cuts: list[int], delays: list[float], pauses: list[float]) -> None:
        """Each command gets exactly one final reply, in order, independent of segments and of the duration of hooks."""
        octets = session.octets
        expected = run(octets, [], [], [])
        finals = [code for code in codes(expected[0]) if code != 354]
        self.assertEqual(len(finals), session.replies, codes(expected[0]))
        self.assertEqual(expected[1], octets.endswith(b"QUIT\r\n"))
        self.assertEqual(run(octets, cuts, [], []), expected)
        self.assertEqual(run(octets, cuts, delays, pauses), expected)
        self.assertEqual(run(octets, list(range(1, len(octets))), delays, []), expected)
        self.assertEqual([event for event in self.events if "log_failure" in event], [])

    @settings(deadline=None, max_examples=100)
    @given(sessions(), cuts(), DELAYS, some.integers(0, 300))
    def test_smallBuffer(self, session: Block, cuts: list[int], delays: list[float], limit: int) -> None:
        """The same is true if the connection is paused repeatedly because the buffer is small."""
        expected = run(session.octets, [], [], [])
        self.assertEqual(run(session.octets, cuts, delays, [], buffer_limit=limit), expected)


def _to_several(recipients: list[bytes], lines: list[bytes], chunk: bytes | None) -> Block:
    """A message over LMTP, by DATA, or by BDAT if there are chunks."""
    accepted = sum(not each.startswith(b"no") for each in recipients) + 1
    octets = b"RSET\r\nMAIL FROM:<a@b>\r\n" + b"".join(b"RCPT TO:<%b>\r\n" % each for each in [*recipients, b"e@f"])
    before = 2 + len(recipients) + 1
    if chunk is None:
        return Block(octets + b"DATA\r\n" + b"".join(line + b"\r\n" for line in lines) + b".\r\n", before + accepted)
    octets += b"BDAT %d\r\n%b" % (len(chunk), chunk) + b"BDAT %d LAST\r\n%b" % (len(chunk), chunk)
    return Block(octets, before + 1 + accepted)


TO_SEVERAL = some.builds(
    _to_several,
    some.lists(some.sampled_from([b"c@d", b"no@d", b"e@f"]), max_size=3),
    body_lines(),
    some.sampled_from([None, b"", b"QUIT\r\n", b"x" * 15, b"y" * 30]),
)


class LMTPTests(LoggingTestCase):
    """The same over LMTP, where a message has several replies."""

    @settings(deadline=None, max_examples=100)
    @given(some.lists(some.one_of(lines(), TO_SEVERAL), max_size=8), cuts(), DELAYS, some.sampled_from([None, 20]))
    def test_oneReplyEach(self, blocks: list[Block], cuts: list[int], delays: list[float], limit: int | None) -> None:
        """Each accepted recipient gets exactly one reply to a message, in order, whatever is wrong with the message."""
        octets = b"LHLO first\r\n" + b"".join(block.octets for block in blocks)
        options = {"protocol": LMTP, "data_size_limit": limit}
        expected = run(octets, [], [], [], **options)
        finals = [code for code in codes(expected[0]) if code != 354]
        self.assertEqual(len(finals), 2 + sum(block.replies for block in blocks), codes(expected[0]))
        self.assertEqual(run(octets, cuts, delays, [], **options), expected)
        self.assertEqual(run(octets, list(range(1, len(octets))), delays, [], **options), expected)
        self.assertEqual([event for event in self.events if "log_failure" in event], [])


class AnythingTests(LoggingTestCase):
    """Arbitrary octets."""

    @settings(deadline=None, max_examples=400)
    @given(octets(), cuts(), DELAYS)
    def test_anything(self, octets: bytes, cuts: list[int], delays: list[float]) -> None:
        """Arbitrary octets, split anywhere, get the same well-formed replies, and leave no traceback in the log."""
        expected = run(octets, [], [], [])
        answers(expected[0])
        self.assertEqual(run(octets, cuts, [], []), expected)
        self.assertEqual(run(octets, list(range(1, len(octets))), delays, []), expected)
        self.assertEqual([event for event in self.events if "log_failure" in event], [])

    @settings(deadline=None, max_examples=200)
    @given(octets(), some.integers(0, 400), some.booleans())
    def test_clientGoes(self, octets: bytes, cut: int, half: bool) -> None:
        """A client that disconnects at any moment leaves no timer, hook or traceback behind."""
        clock = Clock()
        hooks = Delayed(clock, [2])
        client = Client(hooks, reactor=clock, **UNLIMITED)
        client.say(octets[:cut])
        client.wait(3, step=1)
        if half:
            client.half_close()
            client.wait(1000, step=2)
        elif not client.closed:
            client.vanish()
        self.assertTrue(client.closed)
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertEqual(client.factory.connections, set())
        self.assertEqual([event for event in self.events if "log_failure" in event], [])
