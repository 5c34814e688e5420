"""BINARYMIME (RFC 3030 3): the message may be arbitrary octets without lines. It must be sent with BDAT."""

from __future__ import annotations

from txsmtpd.extensions.eightbitmime import EightBitMIME


class BinaryMIME(EightBitMIME):
    """BINARYMIME (RFC 3030 3): BODY=BINARYMIME, for messages that are sent by BDAT."""

    keyword = "BINARYMIME"
    mail_growth = 0  # that of 8BITMIME is enough
    bodies = (*EightBitMIME.bodies, "BINARYMIME")
