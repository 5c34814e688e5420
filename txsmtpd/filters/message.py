"""A message as filters see it: its header, its body, and what they may change.

Whatever one filter changes, the next one sees, and then the handler.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from txsmtpd.filters.header import END, Header
from txsmtpd.filters.spool import Spool
from txsmtpd.parameters import NOTHING_SAID
from txsmtpd.reply import Refused
from txsmtpd.session import Envelope
from txsmtpd.wire import grammar

QUARANTINE = "X-Quarantine"


class FilteredMessage:
    """A complete message on its way to the handler.

    :param envelope: its envelope; changes of sender and recipients are made there.
    :param header: its header.
    :param separator: the empty line between header and body, if there is one.
    :param body: the rest; None: it is not there yet.
    :param make_spool: makes a spool for another body.
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
        self.quarantined: str | None = None  #: why the message shall be kept from its recipients, if it shall
        self.recipients_changed = False
        self.added: list[tuple[str, str]] = []
        self._separator = separator
        self._body = body
        self._make_spool = make_spool

    # To read it

    @property
    def start(self) -> bytes:
        """All that stands before the body: the header and the empty line."""
        # Without an empty line, fields that were added would run into the text.
        separator = self._separator or (END if self.header.changed else b"")
        return self.header.octets + separator

    @property
    def size(self) -> int:
        """Octets of the whole message as it is now."""
        return len(self.start) + self._spooled.size

    @property
    def _spooled(self) -> Spool:
        if self._body is None:
            raise RuntimeError("filter_headers is called before the body has come; filter_message sees it")
        return self._body

    def body(self) -> AsyncIterator[bytes]:
        """The body in pieces of some size; from its beginning each time."""
        return self._spooled.pieces()

    async def content(self) -> AsyncIterator[bytes]:
        """The whole message in pieces."""
        yield self.start
        async for piece in self._spooled.pieces():
            yield piece

    async def read(self) -> bytes:
        """The whole message at once."""
        return b"".join([piece async for piece in self.content()])

    # To change it

    def add_header(self, name: str, value: str | bytes, space: bytes = b" ") -> None:
        """Add a field above all others.

        :param value: may have several lines; they are folded.
        :raises ValueError: if the name is none (RFC 5322 2.2).
        """
        self.insert_header(0, name, value, space)

    def append_header(self, name: str, value: str | bytes, space: bytes = b" ") -> None:
        """Add a field below all others."""
        self.insert_header(len(self.header.fields), name, value, space)

    def insert_header(self, index: int, name: str, value: str | bytes, space: bytes = b" ") -> None:
        """Add a field at this place: 0 is above all others. The handler's trace field counts as one."""
        field = self.header.insert(index, name, value, space)
        self.added.append((name, field.text))

    def change_header(self, name: str, value: str | bytes | None, occurrence: int = 1, space: bytes = b" ") -> None:
        """Change a field, or with None remove it. If there is none, it is added at the end.

        :param occurrence: which of those of this name, from 1 on; negative numbers count from the last.
        """
        if not self.header.replace(name, value, occurrence, space) and value is not None:
            self.append_header(name, value, space)

    def remove_header(self, name: str) -> None:
        """Remove all fields of this name."""
        self.header.remove(name)

    def new_body(self) -> Spool:
        """An empty spool, to write another body to and give it to :meth:`replace_body`."""
        return self._make_spool()

    def replace_body(self, body: bytes | Spool) -> None:
        """Put another body in the place of this one; the header stays."""
        if isinstance(body, bytes):
            octets, body = body, self._make_spool()
            body.write(octets)
        before, self._body = self._spooled, body
        before.close()

    def change_sender(self, reverse_path: str, parameters: Iterable[str] = ()) -> None:
        """Change the reverse-path; ``""`` is the null one. Parameters are those of MAIL, ``KEYWORD=value``.

        :raises ValueError: if it is no address.
        """
        _check_address(grammar.parse_mail, "FROM", reverse_path)
        self.envelope.mail_from = reverse_path
        self.envelope.mail_options.extend(parameters)

    def add_recipient(self, forward_path: str, parameters: Iterable[str] = ()) -> None:
        """Add a recipient, unless it is one already. Parameters are those of RCPT, ``KEYWORD=value``.

        :raises ValueError: if it is no address.
        """
        _check_address(grammar.parse_rcpt, "TO", forward_path)
        if forward_path not in self.envelope.rcpt_tos:
            self.envelope.rcpt_tos.append(forward_path)
            self.envelope.rcpt_options.extend(parameters)
            self.recipients_changed = True

    def remove_recipient(self, forward_path: str) -> None:
        """Remove a recipient, if it is one. A message without recipients reaches nobody."""
        envelope = self.envelope
        said = list(zip(envelope.rcpt_tos, envelope.recipients, strict=True))
        kept = [(path, about) for path, about in said if path != forward_path]
        if len(kept) == len(said):
            return
        self.recipients_changed = True
        envelope.rcpt_tos[:] = [path for path, _ in kept]
        envelope.said_of = {
            place: (path, about) for place, (path, about) in enumerate(kept) if about is not NOTHING_SAID
        }

    def quarantine(self, reason: str) -> None:
        """Have the message kept where its recipients do not see it. What that means, the application decides: it finds
        a header field ``X-Quarantine``, and may have a hook ``handle_QUARANTINE``.
        """
        if self.quarantined is None:
            self.quarantined = reason
            self.add_header(QUARANTINE, reason)

    def close(self) -> None:
        """Forget the body."""
        if self._body is not None:
            self._body.close()


def _check_address(parse: Callable[[str], tuple[str, grammar.Parameters]], keyword: str, path: str) -> None:
    try:
        found, parameters = parse(f"{keyword}:<{grammar.decode(path.encode())}>")
    except (Refused, UnicodeEncodeError):
        found, parameters = "", {"": None}
    if parameters or found != path:
        raise ValueError(f"{path!r} is no address")
