"""Read commands and their arguments (RFC 5321 4.1.2, RFC 6531 3.3, RFC 3461 4 for xtext).

Each function parses text from the client. If the text is invalid, the function raises :class:`~txsmtpd.reply.Refused`
with a reply that describes the error. It raises no other exception, whatever the input is.

The functions accept harmless deviations: an address without brackets, and spaces after the colon.
"""

from __future__ import annotations

import re
import socket
import sys
import unicodedata
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

from txsmtpd.reply import Refused, Reply

# The rules of RFC 5321 4.1.2, extended by RFC 6531 3.3 to all characters beyond ASCII. `decode` has rejected control
# characters before. Atomic groups keep a failing match linear.
_ATOM = r'(?>[^\x00-\x20"(),.:;<>@\[\\\]\x7f]+)'
_DOT_STRING = rf"{_ATOM}(?>\.{_ATOM})*"
_QUOTED_STRING = r'"(?>[^\x00-\x1f"\\\x7f]+|\\[\x20-\x7e])*"'
_LOCAL_PART = rf"(?:{_DOT_STRING}|{_QUOTED_STRING})"
# RFC 1035 labels, with all characters beyond ASCII; underscores occur in the host names of containers. The pattern
# excludes ASCII characters instead of including a range to U+10FFFF, which takes a hundred times as long to compile.
_LABEL = r"(?!-)(?>[^\x00-,./:-@\[-^`{-\x7f]+)(?<!-)"
_DOMAIN = rf"{_LABEL}(?>\.{_LABEL})*"
_LITERAL = r"\[[A-Za-z0-9:.\-]+\]"
_MAILBOX = rf"{_LOCAL_PART}@(?:{_DOMAIN}|{_LITERAL})"
_SOURCE_ROUTE = rf"@{_DOMAIN}(?:,@{_DOMAIN})*:"  # RFC 5321 appendix C: accepted and ignored
# Only keywords ignore case, and only for ASCII letters. Otherwise the Kelvin sign would match K.


def _command(keyword: str, in_brackets: str, bare: str) -> re.Pattern[str]:
    path = rf"<(?P<path>{in_brackets})>|<{_SOURCE_ROUTE}(?P<routed>{_MAILBOX})>|(?P<bare>{bare})"
    return re.compile(rf"(?ai:{keyword}): *(?:{path})(?: +(?P<rest>.*))?")


_HALF = re.compile(r" *(?:@[^@]*|[^@]*@|@+) *")  # without a local part or without a domain

_RECIPIENT = rf"{_MAILBOX}|(?ai:postmaster)"  # RFC 5321 4.1.1.3: <Postmaster> needs no domain
_MAIL = _command("FROM", rf"{_MAILBOX}|", _MAILBOX)
_RCPT = _command("TO", _RECIPIENT, _RECIPIENT)
# A quoted string with any characters. The next two patterns skip such strings to find brackets outside of them, even
# in a malformed address.
_ANY_QUOTED = r'"(?>[^"\\]+|\\(?s:.))*"'
_UP_TO_BRACKET = re.compile(rf'(?>[^">]+|{_ANY_QUOTED})*>')
_WITHOUT_BRACKETS = re.compile(rf'(?>[^"<>]+|{_ANY_QUOTED})*')
_WHOLE_MAILBOX = re.compile(_MAILBOX)
_USER_NAME = re.compile(_LOCAL_PART)
_HOST = re.compile(rf"{_DOMAIN}|{_LITERAL}")
_PARAMETER = re.compile(r"(?P<keyword>[A-Za-z0-9][A-Za-z0-9-]*)(?:=(?P<value>[^\x00-\x20=\x7f]+))?")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")  # RFC 3461 4
_XTEXT_ENCODED = re.compile(r"[^!-*,-<>-~]")
# RFC 6533 3: an address in DSN, in which some characters are replaced by their code point.
_UTF8_ADDRESS = re.compile(r"(?:[^\x00-\x20+=\\\x7f]|\\x\{[0-9A-F]{2,6}\})+")
_EMBEDDED = re.compile(r"\\x\{([0-9A-F]+)\}")
_DATE_TIME = re.compile(  # RFC 3339 5.6, profiled as in RFC 4865 3 and RFC 7293 3
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)
_NUMBER = re.compile(r"[0-9]{1,20}")  # RFC 1870 3

Parameters = dict[str, str | None]  # keyword in upper case -> value as written, or None

_NOT_UTF8 = Reply(500, "5.5.2", "The command is neither ASCII nor UTF-8")
_CONTROL = Reply(500, "5.5.2", "Control characters are not allowed in commands")


def decode(octets: bytes, errors: str = "strict") -> str:
    """Decode a command.

    :param errors: ``"replace"`` to decode invalid UTF-8 as U+FFFD.
    :raises Refused: 500 if it is not UTF-8, or holds a control character, a line separator or a NUL (RFC 5321 4.1.2).
    """
    try:
        text = octets.decode("utf-8", errors)
    except UnicodeDecodeError:
        raise Refused(_NOT_UTF8) from None
    # str.isprintable is one pass in C, but it also rejects joiners and rare spaces beyond ASCII, which addresses may
    # contain. If it returns False for a text that is not ASCII, check each character.
    if not text.isprintable() and (
        text.isascii() or any(unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs") for letter in text)
    ):
        raise Refused(_CONTROL)
    return text


def parse_mail(arg: str | None) -> tuple[str, Parameters]:
    """Parse the argument of MAIL (RFC 5321 4.1.1.2).

    :return: the reverse-path and the parameters. The reverse-path ``<>`` is returned as ``""``.
    :raises Refused: with 501 for a syntax error in the command, with 553 for an invalid address.
    """
    found = _MAIL.fullmatch(arg or "")
    if found is None:
        raise Refused(_diagnose(arg, "FROM", "MAIL FROM:<address>", "5.1.7"))
    return _taken(found, "5.1.7")


def parse_rcpt(arg: str | None) -> tuple[str, Parameters]:
    """Parse the argument of RCPT (RFC 5321 4.1.1.3). Return the forward-path and the parameters. Only ``<Postmaster>``
    may be without a domain.

    :raises Refused: with 501 for a syntax error in the command, with 553 for an invalid address.
    """
    found = _RCPT.fullmatch(arg or "")
    if found is None:
        raise Refused(_diagnose(arg, "TO", "RCPT TO:<address>", "5.1.3"))
    return _taken(found, "5.1.3")


def parse_mail_leniently(arg: str | None) -> tuple[str, Parameters]:
    """As :func:`parse_mail`, but return invalid addresses unchanged, such as ``<webmaster>``, ``<DOMAIN\\user>`` or
    ``<a..b@example.com>``. Spaces around an address are removed.

    :raises Refused: with 501 if the syntax of the command is wrong, with 553 if nothing is before or after the ``@``.
    """
    try:
        return parse_mail(arg)
    except Refused:
        return _anything(arg, "FROM") or parse_mail(arg)


def parse_rcpt_leniently(arg: str | None) -> tuple[str, Parameters]:
    """As :func:`parse_rcpt`, but return invalid addresses unchanged; see :func:`parse_mail_leniently`.

    :raises Refused: for the same reasons, and with 553 for the null path.
    """
    try:
        return parse_rcpt(arg)
    except Refused:
        taken = _anything(arg, "TO")
        return taken if taken is not None and taken[0] else parse_rcpt(arg)


def _anything(arg: str | None, keyword: str) -> tuple[str, Parameters] | None:
    """Return the text in the place of an address, even if it is not a valid address, and the parameters. Return None if
    the argument has another error."""
    head, colon, path = (arg or "").partition(":")
    path = path.lstrip(" ")
    if not colon or head.upper() != keyword or not path:
        return None
    if path.startswith("<"):
        end = _end_of_path(path)
        if end is None:
            end = path.find(">")
        path, rest = path[1:end], path[end + 1 :]
        if end < 0 or rest[:1] not in ("", " "):
            return None
    else:
        end = _end_of_bare(path)
        path, rest = path[:end], path[end:]
    if _has_bracket(path) or _HALF.fullmatch(path):
        return None
    return path.strip(" "), parse_parameters(rest)


def _taken(found: re.Match[str], status: str) -> tuple[str, Parameters]:
    path, routed, bare, rest = found.group("path", "routed", "bare", "rest")
    if path is None:
        path = routed or bare
    if path[-1:] == "]":
        _check_literal(path, status)
    return path, parse_parameters(rest) if rest else {}


def _check_literal(mailbox: str, status: str) -> None:
    literal = mailbox[mailbox.rindex("[") + 1 : -1]
    if not _is_address(literal):
        raise Refused(
            Reply(553, status, f"[{literal}] is not an address literal such as [192.0.2.1] or [IPv6:2001:db8::1]")
        )


def _is_address(literal: str) -> bool:
    """Return True if an address literal (RFC 5321 4.1.3), without its brackets, is an IPv4 or IPv6 address."""
    try:
        if literal[:5].upper() == "IPV6:":
            IPv6Address(literal[5:])
        else:
            IPv4Address(literal)
    except ValueError:
        return False
    return True


def _diagnose(arg: str | None, keyword: str, form: str, status: str) -> Reply:
    """Return a reply that describes the error in the argument of MAIL or RCPT as precisely as possible."""
    head, colon, path = (arg or "").partition(":")
    if not colon or head.upper() != keyword:
        return Reply(501, "5.5.4", f"Syntax: {form}")
    path = path.lstrip(" ")
    if not path:
        return Reply(501, "5.5.4", f"The address is missing; syntax: {form}")
    if path.startswith("<"):
        end = _end_of_path(path)
        if end is None:
            return Reply(501, "5.5.4", "The closing > of the address is missing")
        if path[end + 1 : end + 2] not in ("", " "):
            return Reply(501, "5.5.4", "A space is missing after the address")
        path = path[1:end]
        if not path:
            return Reply(553, status, "The null path <> is not allowed in RCPT")
    else:
        path = path.split(" ", 1)[0]
    return _wrong_mailbox(path, status)


def _end_of_path(path: str) -> int | None:
    """Return the index of the ">" of a path that begins with "<", ignoring quoted strings, or None."""
    found = _UP_TO_BRACKET.match(path)
    return None if found is None else found.end() - 1


def _has_bracket(path: str) -> bool:
    """Return True if there is a "<" or ">" outside of quoted strings. A quotation mark without a closing one does not
    begin a quoted string."""
    return ("<" in path or ">" in path) and _WITHOUT_BRACKETS.fullmatch(path) is None


def _end_of_bare(path: str) -> int:
    """Return the index of the end of an address without brackets.

    The address ends at the first space. Spaces within a quoted string, a quoted pair or a comment (RFC 5322 3.2) do not
    end it. If the text before a space has a comment and ends with a dot, the space does not end the address either (for
    an example, see RFC 5322 A.6.3).

    If a quoted string or a comment is not closed, or the text ends with a backslash, these exceptions do not apply.
    """
    quoted = escaped = commented = False
    comments = 0
    for place, letter in enumerate(path):
        if escaped:
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == '"' and not comments:
            quoted = not quoted
        elif quoted:
            continue
        elif letter == "(":
            comments += 1
            commented = True
        elif letter == ")" and comments:
            comments -= 1
        elif letter == " " and not comments and not (commented and path[:place].rstrip(" ").endswith(".")):
            return place
    if quoted or escaped or comments:
        return len(path.partition(" ")[0])
    return len(path)


def _wrong_mailbox(path: str, status: str) -> Reply:
    if path.startswith("@"):
        path = path.rpartition(":")[2]
    local, at, _ = path.rpartition("@")
    if not at:
        return Reply(553, status, "The address needs a domain, as in user@example.com")
    if not re.fullmatch(_LOCAL_PART, local):
        return Reply(553, status, "The local part of the address is malformed")
    return Reply(553, status, "The domain of the address is malformed")


def parse_parameters(text: str) -> Parameters:
    """Parse the parameters after an address: ``KEYWORD`` or ``KEYWORD=value``, separated by spaces (RFC 5321 4.1.2).

    :raises Refused: with 501 if one is malformed, or given twice with different values.
    """
    parameters: Parameters = {}
    for word in text.split(" "):
        if not word:
            continue
        found = _PARAMETER.fullmatch(word)
        if found is None:
            raise Refused(Reply(501, "5.5.4", "A parameter must be KEYWORD or KEYWORD=value"))
        keyword = found["keyword"].upper()
        if parameters.get(keyword, found["value"]) != found["value"]:
            raise Refused(Reply(501, "5.5.4", f"The parameter {keyword} is given twice"))
        parameters[keyword] = found["value"]
    return parameters


def parse_size(value: str | None) -> int:
    """Parse the value of a SIZE parameter, in octets (RFC 1870 3).

    :raises Refused: with 501 unless it has one to twenty digits.
    """
    if value is None or not _NUMBER.fullmatch(value):
        raise Refused(Reply(501, "5.5.4", "SIZE takes a number of octets, as in SIZE=1000"))
    return int(value)


def parse_vrfy(arg: str) -> str:
    """Parse the argument of VRFY (RFC 5321 3.5.1): a user name or a mailbox. Return it without brackets.

    :raises Refused: with 502 if it is neither.
    """
    path = arg[1:-1] if arg.startswith("<") and arg.endswith(">") else arg
    if not (is_mailbox(path) or _USER_NAME.fullmatch(path)):
        raise Refused(Reply(502, "5.1.3", "Not a user name or an address; syntax: VRFY <address>"))
    return path


def is_mailbox(text: str) -> bool:
    """Return True if the text is a mailbox (RFC 5321 4.1.2): ``user@domain``, without brackets."""
    if not _WHOLE_MAILBOX.fullmatch(text):
        return False
    return not text.endswith("]") or _is_address(text[text.rindex("[") + 1 : -1])


def is_host(text: str) -> bool:
    """Return True if the text is a domain or an address literal (RFC 5321 4.1.2, 4.1.3)."""
    return _HOST.fullmatch(text) is not None and (not text.startswith("[") or _is_address(text[1:-1]))


def own_host_name() -> str:
    """Return the system's host name if it is valid, without a DNS lookup."""
    name = socket.gethostname()
    return name if name.isascii() and is_host(name) else "localhost"


def local_part(mailbox: str) -> str:
    """Return the part before the last ``@`` of a mailbox, including quotes."""
    return mailbox.rpartition("@")[0] or mailbox


def decode_xtext(text: str) -> str:
    """Decode xtext (RFC 3461 4), such as ``+3D`` for ``=``, and then UTF-8 (RFC 6533).

    :raises Refused: with 501 if it is not xtext, or encodes a control character.
    """
    if not _XTEXT.fullmatch(text):
        raise Refused(Reply(501, "5.5.4", "Invalid xtext (RFC 3461 4)"))
    head, *coded = text.split("+")
    octets = head.encode("ascii") + b"".join(bytes.fromhex(piece[:2]) + piece[2:].encode("ascii") for piece in coded)
    try:
        return decode(octets)
    except Refused:
        raise Refused(Reply(501, "5.5.4", "The xtext encodes control characters or invalid UTF-8")) from None


def encode_xtext(text: str) -> str:
    """Encode a text as xtext (RFC 3461 4)."""

    def hexadecimal(found: re.Match[str]) -> str:
        return "".join(f"+{octet:02X}" for octet in found[0].encode("utf-8"))

    return _XTEXT_ENCODED.sub(hexadecimal, text)


def decode_utf8_address(text: str, raw: bool) -> str:
    r"""Decode an address of type utf-8 (RFC 6533 3), such as ``\x{E9}`` for ``é``.

    :param raw: allow characters beyond ASCII that are not encoded (utf-8-addr-unitext).
    :raises Refused: with 501 if it is not valid.
    """
    if _UTF8_ADDRESS.fullmatch(text) and (raw or text.isascii()):
        address = _EMBEDDED.sub(_embedded, text)
        if address.isprintable():
            return address
    raise Refused(Reply(501, "5.5.4", "Invalid utf-8 address (RFC 6533 3)"))


def _embedded(found: re.Match[str]) -> str:
    number = int(found[1], 16)
    return chr(number) if number <= sys.maxunicode else "\x00"


def parse_date_time(text: str | None) -> datetime:
    """Parse a time as in RFC 3339: ``2006-01-02T15:04:05Z``, or with an offset instead of the Z.

    :raises Refused: with 501 if it is not valid.
    """
    if text is not None and _DATE_TIME.fullmatch(text.upper()):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise Refused(Reply(501, "5.5.4", "Invalid time, must be as in 2006-01-02T15:04:05Z (RFC 3339)"))
