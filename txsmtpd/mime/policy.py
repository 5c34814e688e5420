"""Policies of Python's :mod:`email` for untrusted mail, under which malformed fields do not raise.

The standard library's field parser raises IndexError, AttributeError, ValueError, RecursionError and others for some
malformed fields, either when the message is parsed or when a field is read. Its time is quadratic in a field's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.header import Header
from email.headerregistry import HeaderRegistry
from email.message import EmailMessage
from email.parser import BytesHeaderParser, BytesParser
from email.policy import Compat32, EmailPolicy, Policy
from types import MappingProxyType
from typing import Any, Self

MAX_STRUCTURED = 2**14  # characters of a field to parse; 16 KiB take about 10 ms
FOLD_ABOVE = 78  # RFC 5322 2.1.1

_REPLACED = str.maketrans({"\0": "\ufffd"})  # a NUL in the name of a charset raises ValueError elsewhere


class Verbatim(str):
    """The unparsed value of a field, with encoded words not decoded.

    It has the attributes of all value classes in :mod:`email.headerregistry`, but they are empty.

    :param name: the name of the field.
    :param value: the value, in one line.
    """

    __slots__ = ("name",)

    max_count = None
    defects: tuple[Exception, ...] = ()
    addresses: tuple[Any, ...] = ()
    groups: tuple[Any, ...] = ()
    params: Mapping[str, str] = MappingProxyType({})
    datetime = None
    cte = "7bit"

    name: str

    def __new__(cls, name: str, value: str) -> Self:
        made = super().__new__(cls, value)
        made.name = name
        return made

    @property
    def content_type(self) -> str:
        """The text before the first semicolon, in lower case."""
        return self.partition(";")[0].strip().lower()

    content_disposition = content_type

    def fold(self, *, policy: Policy) -> str:
        """Format the field so that decoding it returns this value."""
        charset = "us-ascii" if self.isascii() and "=?" not in self else "utf-8"
        width = policy.max_line_length or FOLD_ABOVE
        value = Header(str(self), charset, width, self.name).encode(linesep=policy.linesep)
        return f"{self.name}: {value}{policy.linesep}"


class _Registry(HeaderRegistry):
    """Makes the values of fields."""

    def __call__(self, name: str, value: Any) -> Any:
        try:
            if len(value) <= MAX_STRUCTURED:
                header = super().__call__(name, value)
                for address in getattr(header, "addresses", ()):  # computed lazily, and may raise too
                    address.addr_spec  # noqa: B018
                return header
        except Exception:
            pass
        text = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return Verbatim(name, " ".join(text.splitlines()))


class TolerantPolicy(EmailPolicy):
    """:data:`email.policy.default`, but malformed fields do not raise."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value.translate(_REPLACED) if "\0" in value else value


TOLERANT = TolerantPolicy(header_factory=_Registry())
"""A policy like :data:`email.policy.default`. The value of a field that Python cannot parse, or that is very long, is a
:class:`Verbatim`."""


class CompatiblePolicy(Compat32):
    """:data:`email.policy.compat32`, but :class:`Verbatim` values are written so that they can be read back, and
    malformed fields do not raise."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value.translate(_REPLACED) if "\0" in value else value

    def fold(self, name: str, value: Any) -> str:
        return value.fold(policy=self) if isinstance(value, Verbatim) else super().fold(name, value)

    def fold_binary(self, name: str, value: Any) -> bytes:
        if isinstance(value, Verbatim):
            return value.fold(policy=self).encode("ascii", "surrogateescape")
        return super().fold_binary(name, value)


COMPATIBLE = CompatiblePolicy()
"""A policy like :data:`email.policy.compat32`, for :class:`email.message.Message`."""


def email_message(content: bytes) -> EmailMessage:
    """Parse any bytes as a message with Python's :mod:`email`.

    If the parts are nested too deeply, only the header is parsed, and the rest is the body.
    """
    try:
        parsed: Any = BytesParser(policy=TOLERANT).parsebytes(content)
    except Exception:
        parsed = BytesHeaderParser(policy=TOLERANT).parsebytes(content)
    message: EmailMessage = parsed
    return message
