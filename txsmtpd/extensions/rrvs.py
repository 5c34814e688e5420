"""RRVS (RFC 7293): deliver the mail only if the mailbox has had the same owner since a given time."""

from __future__ import annotations

from dataclasses import replace

from txsmtpd.extensions.base import Extension
from txsmtpd.parameters import ValidSince
from txsmtpd.reply import Refused, Reply
from txsmtpd.session import Envelope
from txsmtpd.wire.grammar import parse_date_time


class RRVS(Extension):
    """Sets ``valid_since`` of each recipient. If the mailbox is younger, a hook should return 550 5.7.17 (RFC 7293)."""

    keyword = "RRVS"
    rcpt_growth = len(" RRVS=2006-01-02T15:04:05.678+00:00;R")

    def since(self, envelope: Envelope, value: str | None) -> None:
        when, semicolon, otherwise = (value or "").partition(";")
        if semicolon and otherwise.upper() not in ("C", "R"):
            raise Refused(Reply(501, "5.5.4", "RRVS must be a time, optionally followed by ;C or ;R"))
        valid_since = ValidSince(parse_date_time(when), otherwise.upper() != "C")
        envelope.recipient = replace(envelope.recipient, valid_since=valid_since)

    rcpt_parameters = {"RRVS": since}
