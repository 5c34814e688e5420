"""Responses with the content of mail: HTML, text, source and parts. No other module serves bytes of a mail.

The content security policy of the response protects the browser: a sandbox without scripts and without an origin,
which loads nothing. It is the same in a frame of the inbox and when opened directly. The HTML of the mail is not
sanitized, so it is displayed as it was sent. Only three things are changed: ``cid:`` URLs become the image itself,
elements that make a browser connect although the policy forbids loading are renamed, and links may get a target.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Mapping
from urllib.parse import quote

from txsmtpd.bridges.reactors import call_in_pool
from txsmtpd.inbox.message import Message, Part
from txsmtpd.inbox.store import Store
from txsmtpd.inbox.web.response import TEXT, Response

PIECE = 2**21  # bytes to read from the store at once
LARGE = 2**16  # characters; longer HTML is processed in a thread
INLINE_LIMIT = 10 * 2**20  # bytes of images embedded in one document

SAFE_IMAGES = frozenset(["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"])

_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:{remote};"
    " style-src 'unsafe-inline'{remote}; font-src data:{remote}; media-src data:{remote}; base-uri 'none';"
    " form-action 'none'; frame-ancestors {frames}"
)
# Chromium connects to the address of a frame or a preconnect although the policy forbids loading it.
_CONNECTING = re.compile(r"<(?=/?(?:i?frame|frameset|object|embed|applet|portal|fencedframe|link)(?:[\s/>]|$))", re.I)
_FRAMES = re.compile(r"<(?=/?(?:i?frame|frameset|object|embed|applet|portal|fencedframe)(?:[\s/>]|$))", re.I)
# What makes a browser fetch something from another host. One character class for blanks and quotes: two in a row would
# take quadratic time for a run of blanks.
_REMOTE = re.compile(r"""(?:\b(?:src|background|poster|srcset)\s*=|url\(|@import)[\s"']*(?:https?:)?//""", re.I)
_CID = re.compile(r"\bcid:([^\s\"'<>()]{1,1000})", re.I)
_LINK = re.compile(r"<(a|area)(?=[\s/>])", re.I)
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,100}/[a-z0-9!#$&^_.+-]{1,100}")


def wants_remote(markup: str) -> bool:
    """Return True if the HTML appears to load images, styles or fonts from other hosts."""
    return _REMOTE.search(markup) is not None


class MailResponse(Response):
    """A response with content of a mail.

    :param remote: whether the browser may load images, styles and fonts from other hosts.
    :param frames: other origins whose pages may show it in a frame.
    """

    def __init__(
        self,
        body: bytes | AsyncIterator[bytes],
        content_type: str = TEXT,
        *,
        remote: bool = False,
        frames: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        policy = _POLICY.format(remote=" https:" if remote else "", frames=" ".join(["'self'", *frames]))
        super().__init__(
            body, content_type, headers={**(headers or {}), "Content-Security-Policy": policy}, length=length
        )


# HTML


async def html_response(
    store: Store, message: Message, *, embed: bool = False, remote: bool = False, frames: tuple[str, ...] = ()
) -> MailResponse:
    """Return the HTML of a message.

    :param embed: whether links get a target, for display in a frame.
    :param remote: whether the browser may load what the mail refers to on other hosts.
    """
    markup = await store.html(message)
    images = await _images(store, message, markup)
    if len(markup) < LARGE and not images:
        octets = _changed(markup, images, embed, remote)
    else:
        octets = await call_in_pool(_changed, markup, images, embed, remote)
    return MailResponse(octets, "text/html; charset=utf-8", remote=remote, frames=frames)


async def _images(store: Store, message: Message, markup: str) -> dict[str, str]:
    """Return the images that the document refers to by Content-ID, as ``data:`` URLs."""
    wanted = {match[1] for match in _CID.finditer(markup)}
    found: dict[str, str] = {}
    room = INLINE_LIMIT
    for part in message.parts:
        names = {part.content_id, quote(part.content_id, safe="@.-_~!$&'*+,;=:")} & wanted
        if not part.content_id or not names or part.content_type not in SAFE_IMAGES or part.size > room:
            continue
        room -= part.size
        octets = await store.part(message, part)
        # Both consist of a fixed set of characters, so the mail cannot inject markup through them.
        address = f"data:{part.content_type};base64,{base64.b64encode(octets).decode('ascii')}"
        found.update(dict.fromkeys(names, address))
    return found


def _changed(markup: str, images: Mapping[str, str], embed: bool, remote: bool) -> bytes:
    markup = (_FRAMES if remote else _CONNECTING).sub("<x-", markup)
    if images:
        markup = _CID.sub(lambda match: images.get(match[1], match[0]), markup)
    if embed:
        # Of several attributes with the same name, the first one counts.
        markup = _LINK.sub(r'<\1 target="_blank" rel="noreferrer noopener"', markup)
    return markup.encode("utf-8", "replace")


# Text, source, parts


async def text_response(store: Store, message: Message) -> MailResponse:
    """Return the text of a message."""
    return MailResponse((await store.text(message)).encode("utf-8", "replace"))


def source_response(store: Store, message: Message, download: bool = False) -> MailResponse:
    """Return a message, byte for byte as received."""
    headers = {"Content-Disposition": f'attachment; filename="{message.id}.eml"'} if download else {}
    pieces = raw_pieces(store, message, 0, message.size)
    content_type = "message/rfc822" if download else TEXT
    return MailResponse(pieces, content_type, headers=headers, length=message.size)


def part_response(store: Store, message: Message, part: Part) -> MailResponse:
    """Return a decoded part. Browsers may display images and plain text; everything else is a download."""
    shown = part.content_type in SAFE_IMAGES or part.content_type == "text/plain"
    content_type = part.content_type if _TYPE.fullmatch(part.content_type) else "application/octet-stream"
    if content_type == "text/plain":
        content_type += f"; charset={part.charset if re.fullmatch('[a-z0-9_.:-]{1,50}', part.charset) else 'utf-8'}"
    disposition = f"{'inline' if shown else 'attachment'}; {file_name_parameter(part.name or part.content_id)}"
    headers = {"Content-Disposition": disposition.rstrip("; ")}
    return MailResponse(decoded_pieces(store, message, part), content_type, headers=headers)


def file_name_parameter(name: str) -> str:
    """Return the Content-Disposition parameter that suggests a file name (RFC 6266 4.3), or ``""``."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join(c for c in name if c.isprintable()).strip(". ")[:100]
    if not name:
        return ""
    plain = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


async def raw_pieces(store: Store, message: Message, start: int, length: int) -> AsyncIterator[bytes]:
    """Yield bytes of a message. Ends early if the message is deleted meanwhile."""
    end = start + length
    while start < end:
        piece = await store.content(message, start, min(PIECE, end - start))
        if not piece:
            return
        yield piece
        start += len(piece)


async def decoded_pieces(store: Store, message: Message, part: Part) -> AsyncIterator[bytes]:
    """Yield the decoded bytes of a part."""
    pieces = raw_pieces(store, message, part.start, part.length)
    if part.encoding == "base64":
        pieces = _from_base64(pieces)
    elif part.encoding == "quoted-printable":
        pieces = _from_quoted_printable(pieces)
    async for piece in pieces:
        yield piece


_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))


async def _from_base64(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        digits, padding, _ = (rest + piece.translate(None, _NOT_BASE64)).partition(b"=")
        whole = len(digits) - len(digits) % 4
        yield binascii.a2b_base64(digits[:whole])
        rest = digits[whole:]
        if padding:  # the end of the data (RFC 2045 6.8)
            break
    if len(rest) > 1:
        yield binascii.a2b_base64(rest + b"=" * (4 - len(rest)))


async def _from_quoted_printable(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        lines, newline, rest = (rest + piece).rpartition(b"\n")
        if len(rest) > PIECE:  # a line that does not end
            lines, newline, rest = lines + newline + rest, b"", b""
        yield binascii.a2b_qp(lines + newline)
    yield binascii.a2b_qp(rest)
