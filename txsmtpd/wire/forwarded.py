"""Read what XCLIENT and XFORWARD say of the client behind a proxy or a filter.

Postfix has invented both, and describes them in its XCLIENT_README and XFORWARD_README. Both are lists of
``NAME=value`` with values in xtext. ``[UNAVAILABLE]`` is None here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from txsmtpd.reply import Refused, Reply
from txsmtpd.wire.grammar import decode_xtext

UNAVAILABLE, TEMPORARILY = "[UNAVAILABLE]", "[TEMPUNAVAIL]"
LONGEST = 255  # characters of a value

_PRINTABLE = re.compile(r"[!-~]+")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, kw_only=True, slots=True)
class XClientData:
    """What XCLIENT has said of the client. None: nothing, or that it is not known."""

    said_by: Any = None  #: who has said it: whoever ``session.peer`` was before
    peer: Any = None  #: the client as ``session.peer`` has it: ``("", 0)`` if its address is not known
    name: str | None = None  #: the client's name in the DNS
    name_failed: bool = False  #: whether the name is missing only because the DNS did not answer
    addr: str | None = None  #: the client's address
    port: int | None = None
    proto: str | None = None  #: ``SMTP`` or ``ESMTP``
    helo: str | None = None  #: the argument of its HELO or EHLO
    login: str | None = None  #: the name by which it has authenticated
    dest_addr: str | None = None  #: the address that it has connected to
    dest_port: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class XForwardData:
    """What XFORWARD has said of the client that the message has come from. None: nothing, or that it is not known."""

    name: str | None = None  #: the client's name
    addr: str | None = None  #: its address, which may be of another kind than those of the Internet
    port: int | None = None
    proto: str | None = None  #: by which it has handed the message over, such as ``ESMTP``
    helo: str | None = None  #: by what name it has announced itself
    ident: str | None = None  #: the message's name in the queue of who forwards it
    source: str | None = None  #: ``LOCAL`` or ``REMOTE``: where the message has come from, seen from there


def parse_xclient(arg: str, before: XClientData) -> XClientData:
    """What is known after XCLIENT.

    :param before: what was known. Name, address and port stay until another is said; the rest is of the last XCLIENT.
    :raises Refused: 501 if it is malformed.
    """
    values = _parse(arg, _XCLIENT)
    if "name" in values:
        failed = values["name"] is _FAILED
        values |= {"name": None if failed else values["name"], "name_failed": failed}
    said = replace(before, **{"proto": None, "helo": None, "login": None, **values})
    if "addr" in values:
        return replace(said, peer=(said.addr or "", said.port or 0))
    if "port" in values and isinstance(said.peer, tuple):
        return replace(said, peer=(said.peer[0], said.port or 0))
    return said


def parse_xforward(arg: str, before: XForwardData | None) -> XForwardData:
    """What is known after XFORWARD.

    :param before: what was said before; None: nothing since the last message.
    :raises Refused: 501 if it is malformed.
    """
    return replace(before or XForwardData(), **_parse(arg, _XFORWARD))


_FAILED = object()


def _parse(arg: str, attributes: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in arg.split():
        name, equals, coded = word.partition("=")
        name = name.upper()
        if not equals or name not in attributes:
            raise Refused(Reply(501, "5.5.4", f"An attribute must be one of {', '.join(attributes)}, as NAME=value"))
        field, read = attributes[name]
        if field in values:
            raise Refused(Reply(501, "5.5.4", f"The attribute {name} is given twice"))
        value = decode_xtext(coded)
        if not value or len(value) > LONGEST:
            raise Refused(Reply(501, "5.5.4", f"The value of {name} is empty or longer than {LONGEST} characters"))
        try:
            values[field] = None if value.upper() == UNAVAILABLE else read(value)
        except ValueError:
            raise Refused(Reply(501, "5.5.4", f"That is no value of {name}")) from None
    return values


def _printable(value: str) -> str:
    """What may stand in a log or a header as it is."""
    if not _PRINTABLE.fullmatch(value):
        raise ValueError
    return value


def _name(value: str) -> Any:
    return _FAILED if value.upper() == TEMPORARILY else _printable(value)


def _address(value: str) -> str:
    address = ip_address(value[5:] if value[:5].upper() == "IPV6:" else value)
    if getattr(address, "scope_id", None):
        raise ValueError
    return str(getattr(address, "ipv4_mapped", None) or address)


def _any_address(value: str) -> str:
    try:
        return _address(value)
    except ValueError:
        return _printable(value)


def _port(value: str) -> int:
    if not _PORT.fullmatch(value) or int(value) > 65535:
        raise ValueError
    return int(value)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value.upper() not in words:
            raise ValueError
        return value.upper()

    return read


# Attribute -> the field that it becomes, and how its value reads. In the order in which EHLO names them.
_XCLIENT: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "NAME": ("name", _name),
    "ADDR": ("addr", _address),
    "PORT": ("port", _port),
    "PROTO": ("proto", _one_of("SMTP", "ESMTP")),
    "HELO": ("helo", _printable),
    "LOGIN": ("login", str),
    "DESTADDR": ("dest_addr", _address),
    "DESTPORT": ("dest_port", _port),
}
_XFORWARD: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "NAME": ("name", _printable),
    "ADDR": ("addr", _any_address),
    "PORT": ("port", _port),
    "PROTO": ("proto", _printable),
    "HELO": ("helo", _printable),
    "IDENT": ("ident", _printable),
    "SOURCE": ("source", _one_of("LOCAL", "REMOTE")),
}
XCLIENT_ATTRIBUTES, XFORWARD_ATTRIBUTES = tuple(_XCLIENT), tuple(_XFORWARD)
