"""``python -m txsmtpd``: runs ``twist smtpd`` with aiosmtpd's command line options, or with its own.

aiosmtpd's options are translated to those of ``twist smtpd``, which checks them. Options that only ``twist smtpd`` has
are passed on unchanged; they must be written with ``=``.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from twisted.python.usage import UsageError

from txsmtpd._version import __version__
from txsmtpd.service.exit_status import EX_USAGE, complain
from txsmtpd.service.handlers import make_handler, quote_argument

__all__ = ["main"]

PROGRAM = "python -m txsmtpd"
DEFAULT_HOST = "localhost"
DEFAULT_PORT = "8025"
DEFAULT_CLASS = "txsmtpd.handlers.Debugging"
LOG_LEVELS = ("info", "info", "debug")  # by the number of -d options; handlers print at level info


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        complain(message, sys.stderr)
        sys.exit(EX_USAGE)


def _parser(kind: type[argparse.ArgumentParser] = _Parser) -> argparse.ArgumentParser:
    parser = kind(
        prog=PROGRAM,
        description="Receive mail over SMTP and hand it to a handler. Other options are those of twist smtpd.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-v", "--version", action="version", version=f"{PROGRAM.removeprefix('python -m ')} {__version__}")
    add("-n", "--nosetuid", action="store_true", help="of no effect: the server stays the user that starts it")
    add("-c", "--class", dest="classpath", metavar="CLASSPATH", help="the handler's class; CLASSARGS make it")
    add("-s", "--size", metavar="OCTETS", help="the largest message; 0 for no limit")
    add("-u", "--smtputf8", action="store_true", help="take addresses and headers in UTF-8")
    add("-d", "--debug", action="count", default=0, help="twice: log all that is said")
    add("-l", "--listen", metavar="[HOST][:PORT]", help=f"or an endpoint [default: {DEFAULT_HOST}:{DEFAULT_PORT}]")
    add("--smtpscert", metavar="FILE", help="connections begin with TLS, with this certificate")
    add("--smtpskey", metavar="FILE", help="its key")
    add("--tlscert", metavar="FILE", help="offer STARTTLS, with this certificate")
    add("--tlskey", metavar="FILE", help="its key")
    add("--no-requiretls", action="store_true", help="accept mail without TLS although STARTTLS is offered")
    add("classargs", metavar="CLASSARGS", nargs="*", help="arguments of the handler")
    return parser


def parseargs(args: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Parse aiosmtpd's command line arguments, for programs that start their own server with them.

    :param args: the arguments. Default: those of the process.
    :return: the parser and the parsed values: ``handler``, made from ``classpath`` and ``classargs``; ``host`` and
        ``port``; and each option by its name, with ``setuid`` and ``requiretls`` for the negated ones.
    :raises SystemExit: if the arguments are invalid, with argparse's status (2).
    """
    parser = _parser(argparse.ArgumentParser)
    given = parser.parse_args(args)
    given.classpath = given.classpath or DEFAULT_CLASS
    given.classargs = tuple(given.classargs)
    try:
        given.handler = make_handler(":".join([_ours(given.classpath), *map(quote_argument, given.classargs)]))
        given.size = None if given.size is None else int(given.size)
    except (UsageError, ValueError) as error:
        parser.error(str(error))
    for cert, key in _pairs(parser, given):
        for name, path in ("Cert", cert), ("Key", key):
            if not os.path.exists(path):
                parser.error(f"{name} file {path} not found")
    host, port = _host_and_port(given.listen or "")
    given.host = host
    given.port = int(port) if port.isdecimal() else parser.error(f"Invalid port number: {port}")
    given.setuid = not given.nosetuid
    given.requiretls = not given.no_requiretls
    return parser, given


def twist_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments for ``twist`` that correspond to these.

    >>> twist_arguments(["-n", "-c", "mine.Handler", "-l", ":25", "argument"])
    ['--log-format=text', '--log-level=info', '--reactor=asyncio', 'smtpd',
     '--handler=mine.Handler:argument', '--listen=tcp:25:interface=localhost']
    """
    parser = _parser()
    given, passed_on = parser.parse_known_args(arguments)
    before = ["--log-format=text", f"--log-level={LOG_LEVELS[min(given.debug, 2)]}"]
    options: list[str] = []
    if given.classpath is not None:
        path = _ours(given.classpath)
        options.append(f"--handler={':'.join([path, *map(quote_argument, given.classargs)])}")
        if not path.startswith("txsmtpd."):
            before.append("--reactor=asyncio")  # the handler may have been written for asyncio
    elif given.classargs:
        parser.error(f"unexpected argument {given.classargs[0]!r}; the class that it is for is missing: give -c")
    if given.size is not None:
        options.append(f"--size={given.size}")
    if given.smtputf8:
        options.append("--smtputf8")
    options += _tls_options(parser, given)
    listen = "--listen" if given.smtpscert is None else "--listen-tls"
    if given.listen is not None or given.smtpscert is not None:
        options.append(f"{listen}={endpoint_of(given.listen or '')}")
    return [*before, "smtpd", *options, *passed_on]


def _ours(classpath: str) -> str:
    """Return our handler for the name of one of aiosmtpd's."""
    return re.sub(r"^aiosmtpd\.handlers\.", "txsmtpd.handlers.", classpath)


def _pairs(parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the certificates that were given, each with its key."""
    found: list[tuple[str, str]] = []
    for kind in ("smtps", "tls"):
        cert, key = getattr(given, f"{kind}cert"), getattr(given, f"{kind}key")
        if (cert is None) != (key is None):
            parser.error(f"--{kind}cert and --{kind}key must be specified together")
        if cert is not None:
            found.append((cert, key))
    return found


def _tls_options(parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[str]:
    found = [f"--tls={quote_argument(cert)}:{quote_argument(key)}" for cert, key in _pairs(parser, given)]
    if len(set(found)) > 1:
        parser.error("one certificate is all that a server has; give --smtpscert or --tlscert")
    starttls = given.tlscert is not None and given.smtpscert is None
    return found[:1] + ["--require-starttls"] * (starttls and not given.no_requiretls)


def endpoint_of(listen: str) -> str:
    """Return the endpoint for ``[HOST][:PORT]``. An endpoint is returned unchanged.

    >>> endpoint_of(":25")
    'tcp:25:interface=localhost'
    >>> endpoint_of("unix:/run/smtp.sock")
    'unix:/run/smtp.sock'
    """
    if re.match(r"(tcp6?|unix|systemd|fd|haproxy|ssl|tls):", listen):
        return listen
    host, port = _host_and_port(listen)
    return f"tcp:{port}:interface={quote_argument(host)}"


def _host_and_port(listen: str) -> tuple[str, str]:
    host, colon, port = listen.rpartition(":")
    if not colon or listen.endswith("]"):
        host, port = listen, ""
    return host.removeprefix("[").removesuffix("]") or DEFAULT_HOST, port or DEFAULT_PORT


def main(args: Sequence[str] | None = None) -> None:
    """Run the server until it is told to stop.

    :param args: the arguments. Default: those of the process.
    """
    from twisted.application.twist._twist import Twist

    sys.exit(Twist.main(["twist", *twist_arguments(sys.argv[1:] if args is None else args)]))
