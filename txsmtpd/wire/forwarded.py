"""Parse XCLIENT and XFORWARD, which describe the client behind a proxy or a filter.

Both come from Postfix, and are described in its XCLIENT_README and XFORWARD_README. Both are lists of
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
    """The client as described by XCLIENT. Attributes that are missing or unknown are None."""

    said_by: Any = None  #: the ``session.peer`` before the command, which is the proxy or filter that sent it
    peer: Any = None  #: the new ``session.peer``: ``("", 0)`` if the client's address is not known
    name: str | None = None  #: the client's name in the DNS
    name_failed: bool = False  #: True if the name is missing because of a temporary DNS error
    addr: str | None = None  #: the client's address
    port: int | None = None
    proto: str | None = None  #: ``SMTP`` or ``ESMTP``
    helo: str | None = None  #: the argument of its HELO or EHLO
    login: str | None = None  #: the name by which it has authenticated
    dest_addr: str | None = None  #: the address that it has connected to
    dest_port: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class XForwardData:
    """The origin of the message as described by XFORWARD. Attributes that are missing or unknown are None."""

    name: str | None = None  #: the client's name
    addr: str | None = None  #: its address, which need not be an IP address
    port: int | None = None
    proto: str | None = None  #: the protocol with which it sent the message, such as ``ESMTP``
    helo: str | None = None  #: the argument of its HELO or EHLO
    ident: str | None = None  #: the message's queue id at the forwarding server
    source: str | None = None  #: ``LOCAL`` or ``REMOTE``: the origin of the message, as seen by the forwarding server


def parse_xclient(arg: str, before: XClientData) -> XClientData:
    """Return the data after XCLIENT.

    :param before: the data before it. Name, address and port are kept until they are set again; everything else is from
        the last XCLIENT.
    :raises Refused: with 501 if the argument is malformed.
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
    """Return the data after XFORWARD.

    :param before: the data before it, or None if there are none since the last message.
    :raises Refused: with 501 if the argument is malformed.
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
            raise Refused(Reply(501, "5.5.4", f"Invalid value of {name}")) from None
    return values


def _printable(value: str) -> str:
    """Return the value if it is safe in a log or a header."""
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


# Attribute -> the field of XClientData and the parser of the value; in the order of EHLO.
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
