"""The options of ``twist smtpd``: from words and the environment to checked values.

Each option can be given as ``TXSMTPD_<OPTION>`` in the environment; the command line wins, and an empty variable counts
as none. Whatever is wrong ends the process with one line and status 64 before anything listens.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from twisted.cred.strcred import AuthOptionMixin
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import LogLevel
from twisted.python import usage

from txsmtpd._version import __version__
from txsmtpd.interfaces import IFactoryMaker
from txsmtpd.service.adopted import systemd_endpoint
from txsmtpd.service.checkers import INTERFACES, make_checker, portal_of
from txsmtpd.service.exit_status import EX_USAGE, Exit, complain, described, one_line
from txsmtpd.service.handlers import BUILT_IN, describe_handlers, make_handler
from txsmtpd.service.listening import GRACE
from txsmtpd.service.monitoring import local_endpoint
from txsmtpd.service.privileges import of_the_server
from txsmtpd.settings import DATA_SIZE_DEFAULT, Settings
from txsmtpd.tls.certificates import Certificates, load_authorities

DEFAULT_HANDLER = "debugging"
AUTO = "auto"  # in place of a certificate
DEFAULT_LISTEN = "tcp:8025:interface=127.0.0.1"


class Asked(NamedTuple):
    """A value that somebody gave for an option."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}={self.text}"


# From words to values. They raise ValueError.


def text(value: str) -> str:
    return value


def name(value: str) -> str:
    if not value:
        raise ValueError("a value is needed")
    return value


def octets(value: str) -> int:
    if not re.fullmatch("[0-9]{1,20}", value):  # RFC 1870 3: up to 20 digits
        raise ValueError("must be a number of octets")
    return int(value)


def seconds(value: str) -> float:
    """A time that may be none at all."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError("must be a number of seconds")
    return number


def some_seconds(value: str) -> float:
    """A time that must not be none."""
    number = seconds(value)
    if not number:
        raise ValueError("must be more than 0 seconds")
    return number


def yes_or_no(value: str) -> bool:
    word = value.lower()
    if word in ("1", "yes", "true", "on"):
        return True
    if word in ("0", "no", "false", "off"):
        return False
    raise ValueError("must be yes or no")


SETTINGS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "hostname": ("hostname", name),
    "ident": ("ident", text),
    "size": ("data_size_limit", octets),
    "smtputf8": ("enable_SMTPUTF8", yes_or_no),
    "timeout": ("timeout", some_seconds),
}
"""The options that a :class:`~txsmtpd.settings.Settings` has too: its name for them, and how to read the value."""


class Options(usage.Options, AuthOptionMixin):
    """What was asked for.

    Once parsed, it has what :func:`~txsmtpd.service.makeService` needs: ``handler``, ``settings``, ``endpoints``,
    ``tls_endpoints`` and ``lmtp_endpoints`` (each with its label), ``faults``, ``transcript`` and ``grace``.
    """

    synopsis = "[options]"
    longdesc = (
        "Receive mail over SMTP and hand it to a handler. Without options, it prints each message and listens on"
        f" {DEFAULT_LISTEN} only. Each option can be given in the environment, as TXSMTPD_<OPTION>;"
        " several endpoints are parted by white space there."
    )
    optParameters = [
        ["handler", "H", None, f"Where mail goes: NAME[:ARGS]; see --help-handlers. [default: {DEFAULT_HANDLER}]"],
        ["hostname", None, None, "The server's name in its greeting. [default: this host's]"],
        ["ident", None, None, "What follows the name in the greeting. [default: ESMTP txsmtpd]"],
        ["size", "s", None, f"The largest message in octets; 0 for no limit. [default: {DATA_SIZE_DEFAULT}]"],
        ["tls", None, None, "CERT[:KEY], a DIRECTORY of them chosen by name, or auto: made in memory, to try TLS out."],
        ["ca-out", None, None, "Where --tls=auto writes the certificate of its authority, for clients to trust."],
        ["tls-client-ca", None, None, "A file of the authorities whose certificates clients may show."],
        ["timeout", "t", None, "Seconds that a client may be silent. [default: 300]"],
        ["fault-seed", None, None, "What chance comes from in --fault. [default: 0]"],
        ["transcript", None, None, "A file to write all that is said to, as JSON lines; without credentials."],
        ["metrics", None, None, "Serve /metrics, /livez and /readyz here: a port of 127.0.0.1, or an endpoint."],
        ["drain-delay", None, None, "Seconds between not being ready and not listening on SIGTERM. [default: 0]"],
        ["grace", None, None, f"Seconds that open transactions have to end on SIGTERM. [default: {GRACE:g}]"],
    ]
    compData = usage.Completions(
        optActions={"handler": usage.CompleteList([maker.name for maker in BUILT_IN])},
        multiUse=["auth", "fault", "listen", "listen_lmtp", "listen_tls", "proxy_from"],
    )
    environ: Mapping[str, str] = os.environ
    supportedInterfaces = INTERFACES
    _authority: Any = None  # of --tls=auto
    _names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["listen-tls"] = []
        self["listen-lmtp"] = []
        self["proxy-from"] = []
        self["fault"] = []
        self["require-starttls"] = None
        self["require-client-certificate"] = None
        self["smtputf8"] = None
        self["auth"] = []
        self["require-auth"] = None
        self["auth-without-tls"] = None
        self.authOutput = sys.stdout

    # Options that do something

    def opt_listen(self, endpoint: str) -> None:
        """A Twisted endpoint such as tcp:25; may be repeated. [default: tcp:8025:interface=127.0.0.1]"""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_listen_tls(self, endpoint: str) -> None:
        """An endpoint such as tcp:465, whose connections begin with TLS; may be repeated. Needs --tls."""
        self["listen-tls"].append(endpoint)

    def opt_listen_lmtp(self, endpoint: str) -> None:
        """An endpoint such as unix:/run/lmtp.sock:mode=660 that speaks LMTP; may be repeated."""
        self["listen-lmtp"].append(endpoint)

    def opt_proxy_from(self, network: str) -> None:
        """A network such as 192.0.2.0/24, or unix, whose connections begin with a PROXY header; may be repeated."""
        self["proxy-from"].append(network)

    def opt_require_starttls(self) -> None:
        """Take no mail in clear."""
        self["require-starttls"] = "yes"

    def opt_require_client_certificate(self) -> None:
        """Turn away clients that show no certificate of --tls-client-ca."""
        self["require-client-certificate"] = "yes"

    def opt_smtputf8(self) -> None:
        """Take addresses and headers in UTF-8 (SMTPUTF8)."""
        self["smtputf8"] = "yes"

    opt_u = opt_smtputf8

    def opt_auth(self, description: str) -> None:
        """Who knows the users, such as file:/path; may be repeated. See --help-auth."""
        self["auth"].append(description)

    def opt_require_auth(self) -> None:
        """Take mail from users only."""
        self["require-auth"] = "yes"

    def opt_auth_without_tls(self) -> None:
        """Let passwords pass in clear."""
        self["auth-without-tls"] = "yes"

    def opt_fault(self, spec: str) -> None:
        """What goes wrong on purpose, for tests, such as "rcpt first=2 reply=451 4.7.1 later"; may be repeated."""
        self["fault"].append(spec)

    def opt_help_handlers(self) -> None:
        """List the handlers and exit."""
        print(describe_handlers())
        raise SystemExit(0)

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"txsmtpd {__version__}")
        raise SystemExit(0)

    # Parsing

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            # The help that twist would print instead fills a screen, and hides what is wrong.
            complain(str(error), sys.stderr)
            raise Exit(EX_USAGE, str(error)) from None

    def parseArgs(self, *args: str) -> None:
        if args:
            raise usage.UsageError(f"unexpected argument {args[0]!r}; all that can be given are options")

    def postOptions(self) -> None:
        self["settings"] = self._settings() | self._tls_settings()
        self["settings"] |= self._auth_settings() | self._proxy_settings()
        self["grace"] = self._value("grace", seconds, GRACE)
        for asked in self._asked_all("listen-tls"):
            self._check_in_clear(asked)
        for asked in self._asked_all("listen-lmtp"):
            _check_not_smtp(asked)
        self["tls_endpoints"] = self._endpoints("listen-tls")
        self["lmtp_endpoints"] = self._endpoints("listen-lmtp")
        others = self["tls_endpoints"] or self["lmtp_endpoints"]
        self["endpoints"] = self._endpoints("listen", None if others else DEFAULT_LISTEN)
        self["handler"] = self._handler()
        self["faults"] = self._faults()
        self["drain_delay"] = self._value("drain-delay", seconds, 0.0)
        self["monitoring"] = self._monitoring()
        self["transcript"] = self._value("transcript", journal_of, None)
        self._hand_out_authority()

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"log_messages": True, "log_dialogue": self._is_debugging()}
        for option, (keyword, read) in SETTINGS.items():
            asked = self._asked(option)
            if asked is not None:
                with refusing(asked):
                    settings[keyword] = read(asked.text)
                    _check_setting(keyword, settings[keyword])
        return settings

    def _auth_settings(self) -> dict[str, Any]:
        checkers = self._asked_all("auth")
        required, without_tls = self._flag("require-auth"), self._flag("auth-without-tls")
        if not checkers:
            for asked in required, without_tls:
                if asked is not None:
                    raise usage.UsageError(
                        f"{asked.where}: nobody could authenticate; tell who knows the users by --auth"
                    )
            return {}
        found = []
        for asked in checkers:
            # The rest of the text may hold passwords, and nobody wants those on the screen.
            with refusing(Asked(asked.where, asked.text.partition(":")[0])):
                found.append(make_checker(asked.text))
        if without_tls is None and "tls_context" not in self["settings"]:
            raise usage.UsageError(
                f"{checkers[0].where}: passwords would pass in clear; give --tls, or --auth-without-tls to allow it"
            )
        if without_tls is not None:
            # The warning is for programs. Who gives the option has just allowed it; and all that this process has of
            # settings are those of its command line.
            warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS", UserWarning)
        return {
            "portal": portal_of(found),
            "auth_required": required is not None,
            "auth_require_tls": without_tls is None,
        }

    def _proxy_settings(self) -> dict[str, Any]:
        proxies = self._asked_all("proxy-from")
        if not proxies:
            return {}
        for asked in proxies:
            with refusing(asked):
                _check_setting("proxy_from", [asked.text])
        listeners = [*self._asked_all("listen"), *self._asked_all("listen-tls"), *self._asked_all("listen-lmtp")]
        for asked in listeners:
            already = re.match(r"(haproxy|ssl|tls):", asked.text)
            if already is not None:
                raise usage.UsageError(
                    f"{asked}: an endpoint {already[1]}: would take the PROXY header away from the server, which reads"
                    f" it because of {proxies[0].where}; give one such as tcp:25"
                )
        return {"proxy_from": [asked.text for asked in proxies]}

    def _flag(self, option: str) -> Asked | None:
        """What asked for an option that takes no value; None: nothing did."""
        asked = self._asked(option)
        if asked is None:
            return None
        with refusing(asked):
            return asked if yes_or_no(asked.text) else None

    def _is_debugging(self) -> bool:
        return self.parent is not None and self.parent.get("logLevel") is LogLevel.debug

    def _tls_settings(self) -> dict[str, Any]:
        certificate = self._asked("tls")
        client_ca = self._asked("tls-client-ca")
        required = self._flag("require-client-certificate")
        starttls = self._flag("require-starttls")
        ca_out = self._asked("ca-out")
        if certificate is None:
            for asked in (*self._asked_all("listen-tls"), client_ca, required, starttls, ca_out):
                if asked is not None:
                    raise usage.UsageError(f"{asked}: there is no TLS without a certificate; give --tls")
            return {}
        if required is not None and client_ca is None:
            raise usage.UsageError(f"{required}: give the authorities that they are from, by --tls-client-ca")
        if client_ca is not None:
            with refusing(client_ca):
                load_authorities(name(client_ca.text))
        if certificate.text == AUTO:
            if client_ca is not None:
                raise usage.UsageError(f"{client_ca}: --tls={AUTO} asks clients for no certificates; give --tls=CERT")
            return {"tls_context": self._own_certificate(), "require_starttls": starttls is not None}
        if ca_out is not None:
            raise usage.UsageError(f"{ca_out}: only --tls={AUTO} has an authority of its own")
        with refusing(certificate):
            path, key = certificate_files(certificate.text)
            context = Certificates(
                path,
                key,
                client_ca=client_ca and client_ca.text,
                require_client_certificate=required is not None,
            )
        return {"tls_context": context, "require_starttls": starttls is not None}

    def _own_certificate(self) -> Any:
        """A certificate made in memory, for the names of this host."""
        from txsmtpd.tls.authority import LOCAL_NAMES, Authority

        self._authority = Authority("txsmtpd --tls=auto")
        hostname = (Settings.make(None, self._settings()).hostname or "localhost").strip("[]")
        self._names = tuple(dict.fromkeys((*LOCAL_NAMES, hostname.removeprefix("IPv6:"))))
        return self._authority.issue(*self._names)

    def _hand_out_authority(self) -> None:
        """Let clients know whom to trust, once nothing is wrong with the other options."""
        if self._authority is None:
            return
        ca_out = self._asked("ca-out")
        where = "nowhere; give --ca-out=FILE"
        if ca_out is not None:
            with refusing(ca_out):
                try:
                    self._authority.write(name(ca_out.text))
                except OSError as error:
                    raise ValueError(error.strerror) from error
            where = ca_out.text
        told = f"--tls={AUTO}: a certificate for {', '.join(self._names)}; that of its authority is in {where}"
        print(f"smtpd: {one_line(told)}", file=sys.stderr, flush=True)

    def _faults(self) -> Any:
        seed = self._value("fault-seed", name, "0")
        wanted = self._asked_all("fault", separator=";")
        if not wanted:
            return None
        from txsmtpd.faults.rules import Faults
        from txsmtpd.faults.spec import add_fault

        faults = Faults(seed)
        for asked in wanted:
            with refusing(asked):
                add_fault(faults, asked.text)
        return faults

    def _endpoints(self, option: str, default: str | None = None) -> list[tuple[str, IStreamServerEndpoint]]:
        return [(str(asked), self._endpoint(asked)) for asked in self._asked_all(option, default)]

    def _endpoint(self, asked: Asked) -> IStreamServerEndpoint:
        with refusing(asked):
            return make_endpoint(asked.text)

    def _monitoring(self) -> tuple[str, IStreamServerEndpoint] | None:
        asked = self._asked("metrics")
        if asked is None:
            if self["drain_delay"]:
                raise usage.UsageError("--drain-delay: nobody could see that the server is not ready; give --metrics")
            return None
        with refusing(asked):
            need_extra("metrics", "prometheus_client")
            return str(asked), make_endpoint(local_endpoint(asked.text))

    def _check_in_clear(self, asked: Asked) -> None:
        already = re.match(r"(?:haproxy:)?(ssl|tls):", asked.text)
        if already is not None:
            raise usage.UsageError(
                f"{asked}: an endpoint {already[1]}: speaks TLS by itself, and the server would begin TLS within it;"
                " give one such as tcp:465"
            )

    def _handler(self) -> object:
        asked = self._asked("handler") or Asked("--handler", DEFAULT_HANDLER)
        with refusing(asked):
            handler = make_handler(asked.text, of_the_server(getattr(self, "parent", None)))
            Settings.make(handler, self["settings"])  # finds hooks that cannot be called
            if IFactoryMaker.providedBy(handler) and self["lmtp_endpoints"]:
                raise ValueError("it speaks SMTP only, and cannot serve --listen-lmtp")
        return handler

    # Where values come from

    def _asked(self, option: str) -> Asked | None:
        if self[option] is not None:
            return Asked(f"--{option}", self[option])
        variable = _variable(option)
        value = self.environ.get(variable)
        return Asked(variable, value) if value else None

    def _asked_all(self, option: str, default: str | None = None, separator: str | None = None) -> list[Asked]:
        """The values of an option that may be repeated.

        :param separator: what parts them in the environment; None: white space.
        """
        if self[option]:
            return [Asked(f"--{option}", value) for value in self[option]]
        variable = _variable(option)
        found = [
            Asked(variable, value.strip()) for value in self.environ.get(variable, "").split(separator) if value.strip()
        ]
        return found or ([] if default is None else [Asked(f"--{option}", default)])

    def _value(self, option: str, read: Callable[[str], Any], default: Any) -> Any:
        asked = self._asked(option)
        if asked is None:
            return default
        with refusing(asked):
            return read(asked.text)


def _check_not_smtp(asked: Asked) -> None:
    if re.search(r"(?:^|:)tcp6?:(?:port=)?0*25(?::|$)", asked.text):
        raise usage.UsageError(
            f"{asked}: port 25 is for SMTP, and who connects to it does not speak LMTP (RFC 2033);"
            " give another, such as tcp:24"
        )


def _variable(option: str) -> str:
    return f"TXSMTPD_{option.upper().replace('-', '_')}"


@contextmanager
def refusing(asked: Asked) -> Iterator[None]:
    """Whatever is raised in here is the fault of this value."""
    try:
        yield
    except (usage.UsageError, TypeError, ValueError) as error:
        raise usage.UsageError(f"{asked}: {error}") from error
    except Exception as error:
        raise usage.UsageError(f"{asked}: {described(error)}") from error


def _check_setting(keyword: str, value: object) -> None:
    try:
        Settings.make(None, {keyword: value})
    except (TypeError, ValueError) as error:
        # The option is named already, by the name that its user knows.
        raise ValueError(str(error).removeprefix(f"{keyword} ")) from error


def certificate_files(text: str) -> tuple[str, str | None]:
    """The file or directory of a certificate, and the file of its key if it is told: ``CERT[:KEY]``.

    :raises ValueError: if one of them is empty.
    """
    if not text:
        raise ValueError("a certificate is needed: CERT[:KEY], or a DIRECTORY")
    if ":" not in text or os.path.exists(text):
        return text, None
    certificate, _, key = text.rpartition(":")
    if not certificate or not key:
        raise ValueError(f"the file of the {'key' if certificate else 'certificate'} is missing: give CERT[:KEY]")
    return certificate, key


def need_extra(extra: str, module: str) -> None:
    """Refuse an option whose optional dependency is missing.

    :raises ValueError: with what to install.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{module} is missing; install it by: pip install 'txsmtpd[{extra}]'")


def journal_of(path: str) -> Any:
    """Transcripts that are kept in the file, and nowhere else.

    :raises ValueError: if it cannot be opened.
    """
    from txsmtpd.observe.journal import Journal
    from txsmtpd.observe.transcript import Transcripts

    try:
        return Transcripts(sessions=0, tell=Journal(path))
    except OSError as error:
        raise ValueError(error.strerror or described(error)) from error


def make_endpoint(description: str) -> IStreamServerEndpoint:
    """The endpoint of this description.

    :raises ValueError: if it is none.
    """
    from twisted.internet import reactor
    from twisted.internet.endpoints import serverFromString

    if re.match(r"unix:(?:address=)?(?::|$)", description):
        raise ValueError("a Unix socket needs a path, such as unix:/run/mail.sock")  # Linux would choose one itself
    mode = re.match(r"unix:(?:.*:)?mode=([^:]*)", description)
    if mode is not None and not re.fullmatch("(?:0o?)?[0-7]{3}", mode[1]):
        raise ValueError("mode must be three octal digits, such as mode=660")
    if description.startswith("unix:") and ":lockfile=" not in description:
        # Twisted's lock takes any process with the number of a dead one for its owner, and once it is stale, it removes
        # a socket that lives. What is in the way is looked at more closely when it is: see `sockets`.
        description += ":lockfile=0"
    port = re.match(r"(?:tcp6?|ssl|tls):(?:port=)?(-?[0-9]+)(?::|$)", description)
    if port is not None and not 0 <= int(port[1]) <= 65535:
        raise ValueError(f"there is no port {port[1]}")
    if description.startswith("systemd:"):
        return systemd_endpoint(reactor, description)
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except Exception as error:
        example = f"tcp:{description}" if description.isdigit() else "tcp:8025:interface=127.0.0.1"
        raise ValueError(f"not an endpoint such as {example}: {described(error)}") from error
    return endpoint
