"""BINARYMIME (RFC 3030 3): the message may be any octets, without lines. It comes by BDAT only."""

from __future__ import annotations

from txsmtpd.extensions.eightbitmime import EightBitMIME


class BinaryMIME(EightBitMIME):
    """BINARYMIME (RFC 3030 3): BODY=BINARYMIME, for messages that are sent by BDAT."""

    keyword = "BINARYMIME"
    mail_growth = 0  # what 8BITMIME adds is enough
    bodies = (*EightBitMIME.bodies, "BINARYMIME")
