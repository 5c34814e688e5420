"""DSN (RFC 3461): the reports that the sender wants about the message. The application must send them."""

from __future__ import annotations

import re
from dataclasses import replace

from txsmtpd.extensions.base import Extension
from txsmtpd.parameters import Notify, OriginalRecipient, Return
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope
from txsmtpd.wire.grammar import decode_utf8_address, decode_xtext

LONGEST_ID = 100  # characters of ENVID, as encoded (RFC 3461 4.4)
LONGEST_RECIPIENT = 500  # characters of ORCPT, as encoded (RFC 3461 4.2)
_GRAPHIC = re.compile(r"[\x20-\x7e]+")
_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*/?^_`{|}~-]{1,64}")  # an atom (RFC 3461 4.2), without the + of xtext

NOT_RETURN = Reply(501, "5.5.4", "RET must be FULL or HDRS")
NOT_ID = Reply(501, "5.5.4", f"ENVID must be xtext of printable ASCII, up to {LONGEST_ID} characters")
NOT_NOTIFY = Reply(501, "5.5.4", "NOTIFY must be NEVER, or some of SUCCESS,FAILURE,DELAY")
NOT_RECIPIENT = Reply(
    501, "5.5.4", f"ORCPT must be an address type, a semicolon and xtext, up to {LONGEST_RECIPIENT} characters"
)


class DSN(Extension):
    """Sets ``envelope.dsn_return``, ``envelope.dsn_id``, and ``notify`` and ``original`` of each recipient."""

    keyword = "DSN"
    mail_growth = len(" RET=FULL ENVID=") + LONGEST_ID
    rcpt_growth = len(" NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=") + LONGEST_RECIPIENT

    def ret(self, envelope: Envelope, value: str | None) -> None:
        try:
            envelope.dsn_return = Return((value or "").upper())
        except ValueError:
            raise Refused(NOT_RETURN) from None

    def envid(self, envelope: Envelope, value: str | None) -> None:
        if not value or len(value) > LONGEST_ID:
            raise Refused(NOT_ID)
        envelope.dsn_id = _graphic(decode_xtext(value), NOT_ID)

    def notify(self, envelope: Envelope, value: str | None) -> None:
        words = (value or "").upper().split(",")
        try:
            wanted = frozenset(map(Notify, words))
        except ValueError:
            raise Refused(NOT_NOTIFY) from None
        if len(wanted) < len(words) or (Notify.NEVER in wanted and len(wanted) > 1):
            raise Refused(NOT_NOTIFY)
        envelope.recipient = replace(envelope.recipient, notify=wanted)

    def orcpt(self, envelope: Envelope, value: str | None) -> None:
        kind, _, encoded = (value or "").partition(";")
        if not _TYPE.fullmatch(kind) or not encoded or len(value or "") > LONGEST_RECIPIENT:
            raise Refused(NOT_RECIPIENT)
        kind = kind.lower()
        if kind == "utf-8":
            address = decode_utf8_address(encoded, envelope.smtp_utf8)
        else:
            address = _graphic(decode_xtext(encoded), NOT_RECIPIENT)
        envelope.recipient = replace(envelope.recipient, original=OriginalRecipient(kind, address))

    mail_parameters = {"RET": ret, "ENVID": envid}
    rcpt_parameters = {"NOTIFY": notify, "ORCPT": orcpt}


def _graphic(text: str, refusal: Reply) -> str:
    """Return the text if a report can quote it (RFC 3461 4.2, 4.4), else raise Refused."""
    if not _GRAPHIC.fullmatch(text):
        raise Refused(refusal)
    return text
