"""The replies of the engine to lines that are not commands, to commands before TLS, and during a shutdown."""

from __future__ import annotations

import re

from txsmtpd.engine.results import ClosingReply
from txsmtpd.reply import Reply

NEED_STARTTLS = Reply(530, "5.7.0", "Must issue a STARTTLS command first")  # RFC 3207 4
SHUTTING_DOWN = Reply(421, "4.3.2", "The server is shutting down")
STILL_BUSY = Reply(421, "4.3.0", "Processing timed out, try again later")
FOREIGN_PROTOCOL = ClosingReply(554, "5.5.1", "This is an SMTP server, closing connection")
UNEXPECTED_TLS = ClosingReply(554, "5.5.1", "TLS without STARTTLS is not accepted on this port, closing connection")
LINE_TOO_LONG = Reply(500, "5.5.2", "Command line too long")
LINES_REFUSED = {
    "long": LINE_TOO_LONG,
    "endless": Reply(421, "4.7.0", "Line too long, closing connection"),
    "bare LF": Reply(500, "5.5.2", "Lines must end with CR LF, not with LF alone"),
    "TLS": UNEXPECTED_TLS,
}
PAYLOAD_UNKNOWN = Reply(421, "4.5.4", "Invalid chunk size, closing connection")
# As LINES_REFUSED, for lines that are responses to a challenge (RFC 4954 4).
ANSWERS_REFUSED = LINES_REFUSED | {
    "long": Reply(500, "5.5.6", "Authentication exchange line is too long"),
    "missing": Reply(501, "5.7.0", "The connection was closed before the response"),
}
NOT_RECOGNIZED = Reply(500, "5.5.2", "Command not recognized")

# Commands of HTTP. A client that sends these, or header fields, is not an SMTP client. It may be a web browser that an
# attacker uses to send mail.
FOREIGN_VERBS = frozenset(b"CONNECT DELETE GET HEAD OPTIONS PATCH POST PRI PUT TRACE".split())
_HEADER_FIELD = re.compile(rb"(?!MAIL|RCPT)[A-Z][A-Z0-9-]*:")  # "MAILFROM:" is a mistake of an SMTP client


def reply_to_unknown(verb: bytes, line: bytes) -> Reply:
    """Return the reply to a line with an unknown verb.

    :param verb: the first word, in upper case.
    """
    if verb in FOREIGN_VERBS or _HEADER_FIELD.match(verb) or verb.startswith(b"SSH-"):
        return FOREIGN_PROTOCOL
    if not line:
        return Reply(500, "5.5.2", "Empty command line")
    if verb.isalnum() and len(verb) <= 20:
        return Reply(500, "5.5.1", f"Command {verb.decode('ascii')} not recognized")
    return NOT_RECOGNIZED
