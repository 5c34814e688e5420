"""The responses of a filter: a class for each, and the parser of their packets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from txsmtpd.reply import Refused, Reply, parse_status
from txsmtpd.wire import grammar
from txsmtpd.wire.milter.commands import LENGTH, Actions, MilterError

# Responses. Those without data are members of Decision.


@dataclass(frozen=True, slots=True)
class Decision:
    """A response without data."""

    name: str

    def __repr__(self) -> str:
        return f"<{self.name}>"


CONTINUE = Decision("continue")
ACCEPT = Decision("accept")
DISCARD = Decision("discard")
REJECT = Decision("reject")
TEMPFAIL = Decision("tempfail")
SKIP = Decision("skip")
PROGRESS = Decision("progress")
SHUTDOWN = Decision("shutdown")
CONNECTION_FAILED = Decision("connection failed")


@dataclass(frozen=True, slots=True)
class ReplyCode:
    """Reject with this reply."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Append a field to the header."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class InsertHeader:
    """Insert a field into the header at an index; 0 is above all other fields.

    As in Postfix, the index counts the fields that were added before and the trace field that the server adds on top.
    If no other field was added, index 1 is above the client's first field.
    """

    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ChangeHeader:
    """Change the *index*-th field with this name, counted from 1. An empty value removes it."""

    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    """The next part of the new body."""

    chunk: bytes


@dataclass(frozen=True, slots=True)
class ChangeSender:
    """Change the reverse-path. It has no angle brackets."""

    path: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """Add a recipient. The forward-path has no angle brackets."""

    path: str
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RemoveRecipient:
    """Remove a recipient. The forward-path has no angle brackets."""

    path: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Quarantine the message."""

    reason: str


Response = (
    Decision
    | ReplyCode
    | AddHeader
    | InsertHeader
    | ChangeHeader
    | ReplaceBody
    | ChangeSender
    | AddRecipient
    | RemoveRecipient
    | Quarantine
)

_DECISIONS: Mapping[bytes, Decision] = {
    b"c": CONTINUE,
    b"a": ACCEPT,
    b"d": DISCARD,
    b"r": REJECT,
    b"t": TEMPFAIL,
    b"s": SKIP,
    b"p": PROGRESS,
    b"4": SHUTDOWN,
    b"f": CONNECTION_FAILED,
}

_NEEDS: Mapping[type, Actions] = {
    AddHeader: Actions.ADD_HEADERS,
    InsertHeader: Actions.ADD_HEADERS,
    ChangeHeader: Actions.CHANGE_HEADERS,
    ReplaceBody: Actions.CHANGE_BODY,
    ChangeSender: Actions.CHANGE_SENDER,
    AddRecipient: Actions.ADD_RECIPIENTS | Actions.ADD_RECIPIENTS_WITH_PARAMETERS,
    RemoveRecipient: Actions.REMOVE_RECIPIENTS,
    Quarantine: Actions.QUARANTINE,
}


def is_change(response: Response) -> bool:
    """Return True if the response changes the message, so that more responses follow it."""
    return type(response) in _NEEDS


def is_allowed(response: Response, actions: Actions) -> bool:
    """Return True if a filter that has negotiated these actions may send this response."""
    needed = _NEEDS.get(type(response))
    return needed is None or bool(needed & actions)


def parse_response(command: bytes, data: bytes) -> Response:
    """Parse a packet of the filter.

    :raises MilterError: if the response is unknown, or its data are malformed.
    """
    decision = _DECISIONS.get(command)
    if decision is not None:
        if data:
            raise MilterError(f"{decision.name} with data")
        return decision
    parse = _PARSERS.get(command)
    if parse is None:
        raise MilterError(f"unknown response {command!r}")
    return parse(data)


def _parse_reply_code(data: bytes) -> ReplyCode:
    text = (
        _one_string(data).replace(b"%%", b"%").decode("utf-8", "replace")
    )  # libmilter requires filters to double each %
    try:
        reply = parse_status(text)
    except ValueError as error:
        raise MilterError(f"an invalid reply: {error}") from None
    if reply.code < 400:
        raise MilterError(f"a reply that is not a refusal: {text!r}")
    return ReplyCode(reply)


def _parse_add_header(data: bytes) -> AddHeader:
    name, value = _strings(data, 2)
    return AddHeader(_field_name(name), value)


def _parse_insert_header(data: bytes) -> InsertHeader:
    index, name, value = _indexed(data)
    return InsertHeader(index, name, value)


def _parse_change_header(data: bytes) -> ChangeHeader:
    index, name, value = _indexed(data)
    return ChangeHeader(max(index, 1), name, value)


def _indexed(data: bytes) -> tuple[int, bytes, bytes]:
    if len(data) < LENGTH.size:
        raise MilterError("a header field without its place")
    (index,) = LENGTH.unpack_from(data)
    if index > 0x7FFFFFFF:
        raise MilterError(f"a header field at the place {index}")
    name, value = _strings(data[LENGTH.size :], 2)
    return index, _field_name(name), value


def _parse_change_sender(data: bytes) -> ChangeSender:
    path, parameters = _path_and_parameters(data)
    return ChangeSender(_address(grammar.parse_mail, "FROM", path), parameters)


def _parse_add_recipient(data: bytes) -> AddRecipient:
    return AddRecipient(_address(grammar.parse_rcpt, "TO", _one_string(data)))


def _parse_add_recipient_with_parameters(data: bytes) -> AddRecipient:
    path, parameters = _path_and_parameters(data)
    return AddRecipient(_address(grammar.parse_rcpt, "TO", path), parameters)


def _parse_remove_recipient(data: bytes) -> RemoveRecipient:
    return RemoveRecipient(_without_brackets(_one_string(data)))


def _parse_quarantine(data: bytes) -> Quarantine:
    return Quarantine(_one_string(data).decode("utf-8", "replace"))


_PARSERS: Mapping[bytes, Callable[[bytes], Response]] = {
    b"y": _parse_reply_code,
    b"h": _parse_add_header,
    b"i": _parse_insert_header,
    b"m": _parse_change_header,
    b"b": ReplaceBody,
    b"e": _parse_change_sender,
    b"+": _parse_add_recipient,
    b"2": _parse_add_recipient_with_parameters,
    b"-": _parse_remove_recipient,
    b"q": _parse_quarantine,
}


def _strings(data: bytes, count: int) -> list[bytes]:
    parts = data.split(b"\0")
    if len(parts) != count + 1 or parts[-1]:
        raise MilterError(f"{count} strings, each with a NUL at its end, were expected")
    return parts[:-1]


def _one_string(data: bytes) -> bytes:
    return _strings(data, 1)[0]


def _field_name(name: bytes) -> bytes:
    if not name or any(not 33 <= octet <= 126 or octet == 58 for octet in name):  # RFC 5322 2.2
        raise MilterError(f"a header field called {name[:50]!r}")
    return name


def _path_and_parameters(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    path, *more = data.split(b"\0")
    if not more or more[-1] or len(more) > 2:
        raise MilterError("an address, and perhaps parameters, were expected")
    parameters = more[0].decode("utf-8", "replace").split() if len(more) == 2 else []
    return path, tuple(parameters)


def _address(parse: Callable[[str], tuple[str, grammar.Parameters]], keyword: str, octets: bytes) -> str:
    try:
        path, parameters = parse(f"{keyword}:<{_without_brackets(octets)}>")
    except Refused as refused:
        raise MilterError(f"{octets[:100]!r}: {refused.reply.text}") from None
    if parameters:
        raise MilterError(f"{octets[:100]!r} is not an address")
    return path


def _without_brackets(octets: bytes) -> str:
    try:
        path = grammar.decode(octets.strip())
    except Refused:
        raise MilterError(f"{octets[:100]!r} is not an address") from None
    return path[1:-1] if path.startswith("<") and path.endswith(">") else path
