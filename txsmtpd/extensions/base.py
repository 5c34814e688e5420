"""The base class of extensions (RFC 5321 2.2.2). All fields have neutral defaults, so extensions set only those they
use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from txsmtpd.session import Envelope

#: Processes one parameter of MAIL or RCPT. Called with the extension, the envelope and the value (None: no value).
#: Returns None, or the value to pass to handlers; raises Refused if the value is invalid.
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
    mail_parameters: ClassVar[Mapping[str, TakeParameter]] = {}  #: its parameters of MAIL, in upper case
    rcpt_parameters: ClassVar[Mapping[str, TakeParameter]] = {}  #: its parameters of RCPT
    mail_growth: int = 0  #: octets by which MAIL commands may be longer
    rcpt_growth: int = 0  #: octets by which RCPT commands may be longer
    # Its commands are methods ``smtp_VERB(server, arg)``, with a syntax like those of a server.

    def parameter(self, server: Any) -> str | None:
        """Return the parameter after the keyword in the reply to EHLO, or None if the extension is not offered now.

        :param server: the protocol of the connection.
        """
        return ""

    def check_mail(self, server: Any, reverse_path: str) -> None:
        """Called for each MAIL before any hook, after its parameters were stored in ``server.envelope``.

        :raises Refused: to refuse it.
        """

    def check_rcpt(self, server: Any, forward_path: str) -> None:
        """Called for each RCPT before any hook, after its parameters were stored in ``server.envelope.recipient``.

        :raises Refused: to refuse it.
        """


class Keyword(Extension):
    """An extension that only has a keyword."""

    def __init__(self, keyword: str) -> None:
        self.keyword = keyword
