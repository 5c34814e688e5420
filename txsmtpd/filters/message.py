"""A message as passed to filters: they can read and change its header, body and envelope.

Later filters and the handler see the changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from txsmtpd.filters.header import END, Header
from txsmtpd.filters.spool import Spool
from txsmtpd.parameters import NO_PARAMETERS
from txsmtpd.reply import Refused
from txsmtpd.session import Envelope
from txsmtpd.wire import grammar

QUARANTINE = "X-Quarantine"


class FilteredMessage:
    """A complete message on its way to the handler.

    :param envelope: its envelope. Changes to the sender and the recipients are made there.
    :param header: its header.
    :param separator: the empty line between header and body, if there is one.
    :param body: the body. None: not yet available.
    :param make_spool: makes a spool for a new body.
    """

    def __init__(
        self,
        envelope: Envelope,
        header: Header,
        separator: bytes,
        body: Spool | None,
        make_spool: Callable[[], Spool],
    ) -> None:
        self.envelope = envelope
        self.header = header
        self.quarantined: str | None = None  #: the reason for quarantine, or None
        self.recipients_changed = False
        self.added: list[tuple[str, str]] = []
        self._separator = separator
        self._body = body
        self._make_spool = make_spool

    # Reading

    @property
    def start(self) -> bytes:
        """Return everything before the body: the header and the empty line."""
        # Without an empty line, added fields would run into the text.
        separator = self._separator or (END if self.header.changed else b"")
        return self.header.octets + separator

    @property
    def size(self) -> int:
        """The current size of the whole message, in bytes."""
        return len(self.start) + self._spooled.size

    @property
    def _spooled(self) -> Spool:
        if self._body is None:
            raise RuntimeError("filter_headers is called before the body arrives; use filter_message")
        return self._body

    def body(self) -> AsyncIterator[bytes]:
        """Iterate over the body in chunks, each time from its beginning."""
        return self._spooled.pieces()

    async def content(self) -> AsyncIterator[bytes]:
        """Iterate over the whole message in chunks."""
        yield self.start
        async for piece in self._spooled.pieces():
            yield piece

    async def read(self) -> bytes:
        """Return the whole message."""
        return b"".join([piece async for piece in self.content()])

    # Changing

    def add_header(self, name: str, value: str | bytes, space: bytes = b" ") -> None:
        """Add a field above all other fields.

        :param value: several lines are folded.
        :raises ValueError: if the name is invalid (RFC 5322 2.2).
        """
        self.insert_header(0, name, value, space)

    def append_header(self, name: str, value: str | bytes, space: bytes = b" ") -> None:
        """Add a field below all other fields."""
        self.insert_header(len(self.header.fields), name, value, space)

    def insert_header(self, index: int, name: str, value: str | bytes, space: bytes = b" ") -> None:
        """Add a field at this position: 0 is above all others. The handler's trace field counts as one."""
        field = self.header.insert(index, name, value, space)
        self.added.append((name, field.text))

    def change_header(self, name: str, value: str | bytes | None, occurrence: int = 1, space: bytes = b" ") -> None:
        """Change a field, or remove it if *value* is None. A missing field is added at the end.

        :param occurrence: which of the fields with this name, starting at 1. Negative numbers count from the last.
        """
        if not self.header.replace(name, value, occurrence, space) and value is not None:
            self.append_header(name, value, space)

    def remove_header(self, name: str) -> None:
        """Remove all fields with this name."""
        self.header.remove(name)

    def new_body(self) -> Spool:
        """Return an empty spool for a new body, to be passed to :meth:`replace_body`."""
        return self._make_spool()

    def replace_body(self, body: bytes | Spool) -> None:
        """Replace the body. The header stays the same."""
        if isinstance(body, bytes):
            octets, body = body, self._make_spool()
            body.write(octets)
        before, self._body = self._spooled, body
        before.close()

    def change_sender(self, reverse_path: str, parameters: Iterable[str] = ()) -> None:
        """Change the reverse-path; ``""`` is the null one. *parameters* are MAIL parameters, ``KEYWORD=value``.

        :raises ValueError: if it is not a valid address.
        """
        _check_address(grammar.parse_mail, "FROM", reverse_path)
        self.envelope.mail_from = reverse_path
        self.envelope.mail_options.extend(parameters)

    def add_recipient(self, forward_path: str, parameters: Iterable[str] = ()) -> None:
        """Add a recipient, unless already present. *parameters* are RCPT parameters, ``KEYWORD=value``.

        :raises ValueError: if it is not a valid address.
        """
        _check_address(grammar.parse_rcpt, "TO", forward_path)
        if forward_path not in self.envelope.rcpt_tos:
            self.envelope.rcpt_tos.append(forward_path)
            self.envelope.rcpt_options.extend(parameters)
            self.recipients_changed = True

    def remove_recipient(self, forward_path: str) -> None:
        """Remove a recipient, if present. A message without recipients is not delivered."""
        envelope = self.envelope
        said = list(zip(envelope.rcpt_tos, envelope.recipients, strict=True))
        kept = [(path, about) for path, about in said if path != forward_path]
        if len(kept) == len(said):
            return
        self.recipients_changed = True
        envelope.rcpt_tos[:] = [path for path, _ in kept]
        envelope.recipient_parameters = {
            place: (path, about) for place, (path, about) in enumerate(kept) if about is not NO_PARAMETERS
        }

    def quarantine(self, reason: str) -> None:
        """Quarantine the message, so that its recipients do not see it. The application decides what that means: the
        message gets an ``X-Quarantine`` header field, and the handler may have a ``handle_QUARANTINE`` hook.
        """
        if self.quarantined is None:
            self.quarantined = reason
            self.add_header(QUARANTINE, reason)

    def close(self) -> None:
        """Discard the body."""
        if self._body is not None:
            self._body.close()


def _check_address(parse: Callable[[str], tuple[str, grammar.Parameters]], keyword: str, path: str) -> None:
    try:
        found, parameters = parse(f"{keyword}:<{grammar.decode(path.encode())}>")
    except (Refused, UnicodeEncodeError):
        found, parameters = "", {"": None}
    if parameters or found != path:
        raise ValueError(f"{path!r} is not an address")
