"""What an extension is (RFC 5321 2.2.2). Every field has a neutral default; an extension mentions only its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from txsmtpd.session import Envelope

#: Takes one parameter of MAIL or RCPT: the extension, the envelope and the value (None: none was given). Returns None,
#: or the value as handlers shall see it; raises Refused for an invalid value.
TakeParameter = Callable[[Any, Envelope, str | None], str | None]


class Extension:
    """An ESMTP extension. Subclass it, and pass an instance to the factory.

    >>> class Priority(Extension):
    ...     keyword = "X-PRIORITY"
    ...     mail_growth = len(" X-PRIORITY=9")
    ...     def asked(self, envelope, value):
    ...         envelope.priority = value
    ...     mail_parameters = {"X-PRIORITY": asked}
    """

    keyword: str  #: the EHLO keyword
    mail_parameters: ClassVar[Mapping[str, TakeParameter]] = {}  #: parameters of MAIL that it claims, in upper case
    rcpt_parameters: ClassVar[Mapping[str, TakeParameter]] = {}  #: parameters of RCPT that it claims
    mail_growth: int = 0  #: octets by which it lengthens the longest MAIL command
    rcpt_growth: int = 0  #: octets by which it lengthens the longest RCPT command
    # Commands that it brings are methods ``smtp_VERB(server, arg)``, with a syntax like those of a server.

    def parameter(self, server: Any) -> str | None:
        """What stands behind the keyword in the answer to EHLO; None: the extension is not offered now.

        :param server: the protocol of the connection.
        """
        return ""

    def check_mail(self, server: Any, reverse_path: str) -> None:
        """Called for each MAIL, with what its parameters say in ``server.envelope``, before any hook.

        :raises Refused: to refuse it.
        """

    def check_rcpt(self, server: Any, forward_path: str) -> None:
        """Called for each RCPT, with what its parameters say in ``server.envelope.recipient``, before any hook.

        :raises Refused: to refuse it.
        """


class Keyword(Extension):
    """An extension that is nothing but its keyword."""

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword
