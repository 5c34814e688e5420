"""Sends a message to a milter, and applies the milter's changes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from txsmtpd.filters.message import FilteredMessage
from txsmtpd.filters.milter.dialogue import MilterDialogue
from txsmtpd.filters.spool import Spool
from txsmtpd.filters.verdict import FilterError, Verdict
from txsmtpd.wire import milter
from txsmtpd.wire.milter import Response, Steps

CHANGES_LIMIT = 2**20  # bytes of all changes except to the body
NUMBER_LIMIT = 1_000  # changes
BODY_LIMIT = 2**28  # bytes of a new body, which is spooled to a file


async def send_message(dialogue: MilterDialogue, message: FilteredMessage) -> Verdict | None:
    """Send the message, and make the changes that the milter requests.

    :raises Refused: if the milter rejects the message.
    :raises FilterError: if there is no valid response.
    """
    try:
        decision = await _send_content(dialogue, message)
        if decision is None:
            decision = await _end(dialogue, message)
        else:
            dialogue.abort_message()
    finally:
        if dialogue.quarantine is not None:
            message.quarantine(dialogue.quarantine)
    return decision


async def _send_content(dialogue: MilterDialogue, message: FilteredMessage) -> Verdict | None:
    timeout = dialogue.filter.timeouts.content
    leading = bool(dialogue.agreed.steps & Steps.LEADING_SPACE)
    if dialogue.wants(milter.HEADER):
        for field in message.header:
            value = field.value
            if not leading:
                value = value.removeprefix(b" ")
            decision = await dialogue.say(milter.HEADER, milter.header(field.name, value), timeout=timeout)
            if decision is not None:
                return decision
    if dialogue.wants(milter.END_OF_HEADERS):
        decision = await dialogue.say(milter.END_OF_HEADERS, milter.packet(milter.END_OF_HEADERS), timeout=timeout)
        if decision is not None:
            return decision
    if dialogue.wants(milter.BODY):
        async for chunk in chunks(message.body(), milter.MAX_CHUNK):
            decision = await dialogue.say(milter.BODY, milter.body(chunk), timeout=timeout)
            if decision is not None:
                return decision
            if not dialogue.wants(milter.BODY):
                break
    return None


async def chunks(pieces: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Yield the bytes in chunks of *size*; only the last may be shorter."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        start = 0
        while len(buffer) - start >= size:
            yield bytes(buffer[start : start + size])
            start += size
        del buffer[:start]
    if buffer:
        yield bytes(buffer)


async def _end(dialogue: MilterDialogue, message: FilteredMessage) -> Verdict | None:
    changes = Changes(dialogue, message)
    end = milter.packet(milter.END_OF_MESSAGE)
    try:
        decision = await dialogue.say(milter.END_OF_MESSAGE, end, changes, dialogue.filter.timeouts.content)
    except BaseException:
        changes.discard()
        raise
    changes.apply()
    return decision


class Changes:
    """The changes that a milter requests at the end of a message. They are applied after its decision."""

    def __init__(self, dialogue: MilterDialogue, message: FilteredMessage) -> None:
        self._dialogue = dialogue
        self._message = message
        self._changes: list[Response] = []
        self._octets = 0
        self._body: Spool | None = None
        self._space = b"" if dialogue.agreed.steps & Steps.LEADING_SPACE else b" "

    async def __call__(self, response: Response) -> None:
        """Record a change. Wait while a new body is being written to disk.

        :raises FilterError: if there are too many changes, or they are too large.
        """
        if isinstance(response, milter.ReplaceBody):
            if self._body is None:
                self._body = self._message.new_body()
            self._body.write(response.chunk)
            if self._body.size > BODY_LIMIT:
                self._too_much()
            await self._body.room()
            return
        self._octets += len(repr(response))
        self._changes.append(response)
        if self._octets > CHANGES_LIMIT or len(self._changes) > NUMBER_LIMIT:
            self._too_much()

    def _too_much(self) -> None:
        self.discard()
        if self._dialogue.connection is not None:
            self._dialogue.connection.abort()
        raise FilterError("the milter makes too many changes")

    def discard(self) -> None:
        """Discard the changes."""
        if self._body is not None:
            self._body.close()
            self._body = None

    def apply(self) -> None:
        """Apply the changes, in order."""
        for change in self._changes:
            self._apply(change)
        if self._body is not None:
            self._message.replace_body(self._body)

    def _apply(self, change: Response) -> None:
        message = self._message
        match change:
            case milter.AddHeader(name, value):
                message.append_header(name.decode("ascii"), value, self._space)
            case milter.InsertHeader(index, name, value):
                message.insert_header(index, name.decode("ascii"), value, self._space)
            case milter.ChangeHeader(index, name, value):
                message.change_header(name.decode("ascii"), value or None, index, self._space)
            case milter.ChangeSender(path, parameters):
                message.change_sender(path, parameters)
            case milter.AddRecipient(path, parameters):
                message.add_recipient(path, parameters)
            case milter.RemoveRecipient(path):
                message.remove_recipient(path)
