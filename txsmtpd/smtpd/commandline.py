"""``--handler=smtpd:CLASS[:HOST:PORT]``: runs ``smtpd`` servers on the endpoints of the command line."""

from __future__ import annotations

from typing import Any, Self

from zope.interface import implementer

import txsmtpd.smtpd
from txsmtpd.factory import SMTPFactory
from txsmtpd.interfaces import IFactoryMaker
from txsmtpd.service.handlers import find_object
from txsmtpd.smtpd.server import SMTPServer

REMOTE = ("localhost", "25")


@implementer(IFactoryMaker)
class Served:
    """Wraps a server as a handler for the command line.

    :param server: a server that does not listen itself.
    """

    def __init__(self, server: SMTPServer) -> None:
        self.server = server
        self.descriptors: int = getattr(server, "descriptors", 1)

    @classmethod
    def from_cli(cls, parser: Any, *args: str) -> Self:
        """Make the server from the name of its class and the arguments of its ``from_cli``. If it has none, the
        arguments are the host and the port of the remote server.
        """
        if not args or not args[0]:
            parser.error("the dotted name of a class is required, as in smtpd:mypackage.MyServer")
        name, *rest = args
        server_class = _find_class(parser, name)
        from_cli = getattr(server_class, "from_cli", None)
        server = from_cli(parser, *rest) if from_cli is not None else server_class(None, _remote(parser, rest))
        if server.socket is not None:
            server.close()
            parser.error(f"{name} listens on an address of its own; it must pass its argument localaddr to SMTPServer")
        return cls(server)

    def make_factory(self, **options: Any) -> SMTPFactory:
        return self.server.make_factory(**options)


def _find_class(parser: Any, name: str) -> type[SMTPServer]:
    found: Any = find_object(name) if "." in name else getattr(txsmtpd.smtpd, name, None)
    if found is None:
        parser.error(f"txsmtpd.smtpd has no {name}; for a class of your own, give its dotted name")
    if not (isinstance(found, type) and issubclass(found, SMTPServer)):
        parser.error(
            f"{name} is not a subclass of txsmtpd.smtpd.SMTPServer; import it with 'from txsmtpd import smtpd'"
        )
    server_class: type[SMTPServer] = found
    if server_class.process_message is SMTPServer.process_message:
        parser.error(f"{name} must override process_message")
    return server_class


def _remote(parser: Any, args: list[str]) -> tuple[str, int]:
    if len(args) > 2:
        parser.error("too many arguments: it takes the host and the port of the remote server")
    host, port = *args, *REMOTE[len(args) :]
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        parser.error(f"invalid port {port!r}")
    return host, int(port)
