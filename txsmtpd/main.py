"""aiosmtpd's command line: for ``python -m txsmtpd``, and for programs that call :func:`main` or :func:`parseargs`.

``python -m txsmtpd`` runs ``twist smtpd``. It translates aiosmtpd's options to those of ``twist smtpd``, which checks
them. Options that only ``twist smtpd`` has are passed on unchanged; they must be written with ``=``. :func:`main` runs
a controller in the program's asyncio loop instead.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import ssl
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn

from twisted.python.usage import UsageError

from txsmtpd._version import __version__
from txsmtpd.service.exit_status import EX_USAGE, complain, name_command
from txsmtpd.service.handlers import Dotted, find_maker, quote_argument

__all__ = ["main"]

PROGRAM = "python -m txsmtpd"
DEFAULT_HOST = "localhost"
DEFAULT_PORT = "8025"
DEFAULT_CLASS = "txsmtpd.handlers.Debugging"
LOG_LEVELS = ("info", "info", "debug")  # by the number of -d options; handlers print at level info
USER = "nobody"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        complain(message, sys.stderr)
        sys.exit(EX_USAGE)


def _parser(kind: type[argparse.ArgumentParser] = _Parser) -> argparse.ArgumentParser:
    parser = kind(
        prog=PROGRAM,
        description="Receive mail over SMTP. The options are those of aiosmtpd, and those that txsmtpd --help lists.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-v", "--version", action="version", version=f"{PROGRAM.removeprefix('python -m ')} {__version__}")
    add("-n", "--nosetuid", action="store_true", help=f"do not become the user {USER} ({PROGRAM} never does)")
    add("-c", "--class", dest="classpath", metavar="CLASSPATH", help=f"class of the handler [default: {DEFAULT_CLASS}]")
    add("-s", "--size", metavar="OCTETS", help="maximum size of a message; 0 for no limit [default: 33554432]")
    add("-u", "--smtputf8", action="store_true", help="accept addresses and headers in UTF-8 (SMTPUTF8)")
    add("-d", "--debug", action="count", default=0, help="-dd logs all commands and replies")
    add(
        "-l",
        "--listen",
        metavar="[HOST][:PORT]",
        help=f"address, or a Twisted endpoint [default: {DEFAULT_HOST}:{DEFAULT_PORT}]",
    )
    add("--smtpscert", metavar="FILE", help="certificate for implicit TLS (SMTPS)")
    add("--smtpskey", metavar="FILE", help="private key of --smtpscert")
    add("--tlscert", metavar="FILE", help="certificate for STARTTLS")
    add("--tlskey", metavar="FILE", help="private key of --tlscert")
    add("--no-requiretls", action="store_true", help="with --tlscert, also accept mail without TLS")
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
        given.size = None if given.size is None else int(given.size)
    except ValueError as error:
        parser.error(str(error))
    try:
        given.handler = _make_handler(parser, _ours(given.classpath), given.classargs)
    except UsageError as error:
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


def _make_handler(parser: argparse.ArgumentParser, path: str, arguments: Sequence[str]) -> object:
    """Return the handler of a class or a built-in name. Exceptions of the class itself are not caught."""
    maker = find_maker(path)
    found = maker.find() if isinstance(maker, Dotted) else maker
    make = found.make_handler if found is maker else getattr(found, "from_cli", None)
    if make is not None:
        return make(parser, *arguments)
    if arguments:
        parser.error(f"{path} takes no arguments, because it has no from_cli")
    if isinstance(found, ModuleType):
        parser.error(f"{path} is a module; name the class in it")
    return found() if callable(found) else found


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
        parser.error("a server has only one certificate; give either --smtpscert or --tlscert")
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


def run(args: Sequence[str] | None = None) -> NoReturn:
    """Run ``twist smtpd`` until a signal stops it, and exit.

    :param args: the arguments. Default: those of the process.
    """
    from twisted.application.twist._twist import Twist

    name_command("txsmtpd")
    sys.exit(Twist.main(["twist", *twist_arguments(sys.argv[1:] if args is None else args)]))


# In the loop of a program


def main(args: Sequence[str] | None = None) -> None:
    """Run a server in this thread's asyncio loop, until the loop is stopped or SIGINT or SIGTERM arrives.

    Then the loop is closed. Without ``-n``, the process becomes the user nobody once the server listens.

    :param args: aiosmtpd's arguments. Default: those of the process.
    :raises SystemExit: 2 if the arguments are invalid, 1 if the process cannot become nobody.
    :raises OSError: if the address cannot be bound.
    """
    from txsmtpd.bridges.reactor_thread import LOGGER
    from txsmtpd.controller import UnthreadedController

    parser, given = parseargs(args)
    options = _options_of_controller(parser, given)
    logging.basicConfig(level=logging.ERROR)
    logger = logging.getLogger(LOGGER)
    if given.debug > 0:
        logger.setLevel(logging.INFO if given.debug == 1 else logging.DEBUG)
    loop = _this_threads_loop()
    if given.debug > 2:
        loop.set_debug(True)
    controller = UnthreadedController(given.handler, given.host, given.port, loop, **options)
    controller.begin()
    try:
        if given.setuid:
            _become(USER)
        logger.info("Server is listening on %s:%s", controller.hostname, controller.port)
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread, or not on this system
            for each in signal.SIGINT, signal.SIGTERM:
                loop.add_signal_handler(each, loop.stop)
        with suppress(KeyboardInterrupt):
            loop.run_forever()
    finally:
        controller.end()
        loop.close()


def _this_threads_loop() -> asyncio.AbstractEventLoop:
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there may be no current loop
        loop = asyncio.get_event_loop()
        if not loop.is_closed():
            return loop
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def _options_of_controller(parser: argparse.ArgumentParser, given: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {
        "enable_SMTPUTF8": given.smtputf8,
        "log_messages": given.debug > 0,
        "log_dialogue": given.debug > 1,
    }
    if given.size is not None:
        options["data_size_limit"] = given.size
    if given.smtpscert is not None:
        options["ssl_context"] = _context(parser, given.smtpscert, given.smtpskey)
    elif given.tlscert is not None:
        options["tls_context"] = _context(parser, given.tlscert, given.tlskey)
        options["require_starttls"] = given.requiretls
    return options


def _context(parser: argparse.ArgumentParser, cert: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        parser.error(f"{cert} and {key} are not a certificate and its key: {error}")
    return context


def _become(user: str) -> None:
    """Give up the rights of root.

    :raises SystemExit: if this is not possible.
    """
    try:
        import pwd

        entry = pwd.getpwnam(user)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except (ImportError, KeyError, PermissionError) as error:
        complain(f"cannot become the user {user}; run as root, or give -n ({error})", sys.stderr)
        sys.exit(1)
