"""Option values: units, addresses, misspelt words, and the help."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import SkipTest

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SynchronousTestCase

from tests.service.test_service import parse, refusal
from txsmtpd.service import makeService
from txsmtpd.service.endpoints import description_of
from txsmtpd.service.exit_status import cannot_listen
from txsmtpd.service.options import values
from txsmtpd.service.options.help import described_option
from txsmtpd.service.options.parser import GROUPS, TABLE
from txsmtpd.service.topics import describe_checkers, describe_faults, describe_filters, describe_handlers
from txsmtpd.settings import _NUMBERS, Settings


class UnitTests(SynchronousTestCase):
    """Sizes and times with their units."""

    def test_octets(self) -> None:
        """MB is a million octets, MiB and M are 2**20. Units are case-insensitive."""
        for text, octets in [
            ("0", 0),
            ("10", 10),
            ("10kB", 10_000),
            ("10K", 10_240),
            ("10MB", 10_000_000),
            ("10mb", 10_000_000),
            ("10 MiB", 10 * 2**20),
            ("10m", 10 * 2**20),
            ("1.5G", 3 * 2**29),
            ("2TB", 2 * 10**12),
            ("5B", 5),
        ]:
            self.assertEqual(values.octets(text), octets, text)

    def test_seconds(self) -> None:
        """A plain number is in seconds."""
        for text, seconds in [
            ("0", 0),
            ("90", 90),
            ("1.5", 1.5),
            ("250ms", 0.25),
            ("5min", 300),
            ("5m", 300),
            ("1h", 3600),
        ]:
            self.assertEqual(values.seconds(text), seconds, text)

    def test_refusals(self) -> None:
        """The error for an invalid number or unit has an example."""
        for text in "", "MB", "10XB", "1.5", "1.5B", "-1", "\N{ARABIC-INDIC DIGIT ONE}", "10 M B", "0x10", "1e3":
            self.assertIn("10MB", str(self.assertRaises(ValueError, values.octets, text)))
        for text in "", "soon", "5 weeks", "-1", "1.2.3", "nan", "inf", "1e999":
            self.assertIn("5min", str(self.assertRaises(ValueError, values.seconds, text)))
        for text in "", "-1", "2.5", "many":
            self.assertRaises(ValueError, values.count, text)

    def test_none(self) -> None:
        """A limit that can be switched off accepts "none", and its error says so."""
        read = values.or_none(values.count)
        self.assertEqual([read("none"), read("Unlimited"), read("3")], [None, None, 3])
        self.assertIn("none for no limit", str(self.assertRaises(ValueError, read, "x")))

    @given(st.text())
    def test_anyText(self, text: str) -> None:
        """Any text results in a value or a ValueError."""
        for read in values.octets, values.seconds, values.some_seconds, values.count, values.yes_or_no:
            try:
                read(text)
            except ValueError:
                continue


class EndpointTests(SynchronousTestCase):
    """Addresses as users write them."""

    def test_hostAndPort(self) -> None:
        """HOST:PORT is accepted if the host cannot be a misspelt kind of endpoint."""
        for text, description in [
            ("localhost:1025", "tcp:1025:interface=localhost"),
            ("192.0.2.1:25", "tcp:25:interface=192.0.2.1"),
            ("mx.example.com:25", "tcp:25:interface=mx.example.com"),
            ("[::1]:25", "tcp:25:interface=\\:\\:1"),
            (":25", "tcp:25"),
            ("*:25", "tcp:25"),
            ("tcp:25", "tcp:25"),
            ("unix:25", "unix:25"),
            ("tcp:25:interface=127.0.0.1", "tcp:25:interface=127.0.0.1"),
        ]:
            self.assertEqual(description_of(text), description)

    def test_serves(self) -> None:
        """It becomes the endpoint."""
        [(label, endpoint)] = parse("--listen=localhost:1025")["endpoints"]
        self.assertEqual(label, "--listen=localhost:1025")
        self.assertEqual((endpoint._port, endpoint._interface), (1025, "localhost"))

    def test_meant(self) -> None:
        """The error for a text that is nearly an endpoint suggests the right one."""
        for text, meant in [
            ("25", "did you mean tcp:25 (on all addresses) or localhost:25 (on this machine only)?"),
            ("tpc:25", "did you mean tcp:25?"),
            ("localhsot:25", "did you mean localhost:25?"),
            ("myhost:25", "did you mean tcp:25:interface=myhost?"),
            ("tccp:25:interface=127.0.0.1", "not an endpoint such as tcp:25:interface=127.0.0.1: "),
            ("localhost", "did you mean localhost:8025?"),
            ("127.0.0.1", "did you mean 127.0.0.1:8025?"),
            ("tcp:localhost:25", "did you mean localhost:25?"),
            ("tcp:127.0.0.1:25", "did you mean 127.0.0.1:25?"),
            ("nowhere", "such as tcp:8025:interface=127.0.0.1 or localhost:8025: Unknown endpoint type: 'nowhere'"),
            ("localhost:99999", "invalid port 99999"),
            ("localhost:smtp", "invalid port 'smtp'; it must be a number"),
            ("mx.example.com:smtp", "invalid port 'smtp'"),
            ("tcp:smtp", "invalid port 'smtp'"),
            ("tcp:port=x:interface=::1", "invalid port 'x'"),
            ("localhost:", "invalid port ''"),
            ("ssl:465", "use --listen-tls=tcp:PORT and --tls=CERT instead"),
        ]:
            self.assertIn(meant, refusal(f"--listen={text}"))

    def test_lmtpPort(self) -> None:
        """Port 25 is refused for LMTP, however it is written."""
        self.assertIn("port 25 must not be used for LMTP", refusal("--listen-lmtp=localhost:25"))


class AdviceTests(SynchronousTestCase):
    """Errors when an address cannot be listened on."""

    def told(self, port: Any, number: int) -> str:
        output = io.StringIO()
        self.patch(sys, "__stderr__", output)
        end = cannot_listen("--listen=x", CannotListenError("", port, OSError(number, os.strerror(number))))
        self.assertEqual(end.code, 71)
        self.flushLoggedErrors()
        self.assertEqual(output.getvalue().count("\n"), 1)
        return output.getvalue()

    def test_taken(self) -> None:
        """For a port in use, the error says how to find the process."""
        self.assertIn(
            "Address already in use; `ss -ltnp 'sport = :25'` shows the process", self.told(25, errno.EADDRINUSE)
        )

    def test_forbidden(self) -> None:
        """For a port below 1024, the error says what is needed, and which port does not need it. For a Unix socket, it
        names the folder."""
        self.assertIn(
            "Permission denied; ports below 1024 require root, CAP_NET_BIND_SERVICE or a systemd socket unit: another,"
            " such as 8025, does not",
            self.told(25, errno.EACCES),
        )
        self.assertIn("write permission for the folder", self.told(b"/run/x", errno.EACCES))

    def test_foreign(self) -> None:
        """An address of another machine."""
        self.assertIn("this machine has no such address", self.told(25, errno.EADDRNOTAVAIL))


class NameTests(SynchronousTestCase):
    """Options that do not exist."""

    def test_nearest(self) -> None:
        """The error for a misspelt option suggests the most similar one. It also knows the names in other servers."""
        for word, meant in [
            ("--hanlder=sink", "there is no option --hanlder; did you mean --handler?"),
            ("--listen-tsl=tcp:465", "did you mean --listen-tls?"),
            ("--port=25", "did you mean --listen=tcp:PORT?"),
            ("--tls-cert=x", "did you mean --tls=CERT:KEY?"),
            ("--starttls", "did you mean --tls=CERT:KEY?"),
            ("-p", "there is no option -p; did you mean --listen=tcp:PORT?"),
            ("--zzzzzz", "there is no option --zzzzzz; see --help"),
        ]:
            self.assertEqual(refusal(word).rpartition("; ")[2], meant.rpartition("; ")[2])

    def test_value(self) -> None:
        """The error for a missing or superfluous value names the option. So does the one for an unknown checker."""
        for word, told in [
            ("--size", "option --size needs a value; see --help"),
            ("-s", "option -s needs a value; see --help"),
            ("--smtputf8=yes", "option --smtputf8 takes no value"),
            ("--help-auth-type=x", "--help-auth-type=x: there is no such checker; see --help-auth"),
            ("--require-starttls", "--require-starttls: requires --tls, which names the certificate"),
        ]:
            self.assertEqual(refusal(word), told)

    def test_variable(self) -> None:
        """The same is true for a misspelt variable: without an error, its value would be ignored."""
        line = refusal(environ={"TXSMTPD_HANDLR": "mailbox:mail"})
        self.assertEqual(line, "TXSMTPD_HANDLR: there is no such option; did you mean TXSMTPD_HANDLER?")

    def test_otherVariables(self) -> None:
        """A variable that resembles no option causes a warning, and the server starts. Variables of a cluster cause
        none."""
        output = io.StringIO()
        environ = {"TXSMTPD_COLOUR": "red", "TXSMTPD_PORT_25_TCP_ADDR": "10.0.0.1", "TXSMTPD_SERVICE_HOST": "10.0.0.1"}
        with redirect_stderr(output):
            parse(environ=environ)
        self.assertEqual(
            output.getvalue(), "smtpd: TXSMTPD_COLOUR is in the environment, but is not an option; see --help\n"
        )


class LimitTests(SynchronousTestCase):
    """An option for every limit."""

    def test_all(self) -> None:
        """Each numeric setting has an option, which sets it."""
        options = {option.setting: option for option in TABLE.values() if option.setting}
        options["proxy_protocol_timeout"] = TABLE["proxy-protocol-timeout"]
        self.assertEqual(set(_NUMBERS) - set(options), set())
        for setting, option in options.items():
            if setting in _NUMBERS:
                value = parse(f"--{option.name}=7", "--proxy-from=unix")["settings"][setting]
                self.assertEqual(value, 7, option.name)

    def test_connections(self) -> None:
        """The connection limits are passed to the factory. "none" is no limit."""

        def factory(*words: str) -> Any:
            return makeService(parse(*words)).services[0].factory

        self.assertEqual(factory("--connection-limit=5").connection_limit, 5)
        self.assertIs(factory("--connection-limit=none").connection_limit, None)
        self.assertEqual(factory("--connection-limit-per-host=3").connection_limit_per_host, 3)

    def test_refusals(self) -> None:
        """The error for an invalid limit names its option."""
        self.assertIn("--recipient-limit=few: must be a number; none for no limit", refusal("--recipient-limit=few"))
        self.assertIn("requires --proxy-from", refusal("--proxy-protocol-timeout=7"))
        self.assertIn("--hook-timeout=0: must be more than 0", refusal("--hook-timeout=0"))
        self.assertIn("--memory-limit=1: must be at least 134217728 octets", refusal("--memory-limit=1"))

    def test_nothingAllowed(self) -> None:
        """A limit with which no mail would be accepted is refused: zero does not mean no limit."""
        for name in (
            *("connection-limit", "connection-limit-per-network", "connection-limit-per-host", "recipient-limit"),
            *("header-size-limit", "header-field-limit", "line-length-limit", "command-size-limit", "batch-limit"),
            *("auth-attempt-limit", "data-rate-minimum"),
        ):
            self.assertIn(f"--{name}=0: must be at least 1", refusal(f"--{name}=0"))


class HelpTests(SynchronousTestCase):
    """--help."""

    def help(self) -> str:
        output = io.StringIO()
        with redirect_stdout(output):
            self.assertRaises(SystemExit, parse, "--help")
        return output.getvalue()

    def test_groups(self) -> None:
        """Each option is in one group."""
        text = self.help()
        for group in GROUPS:
            self.assertIn(f"\n\n{group.title}:\n", text)
            for option in group.options:
                self.assertRegex(text, rf"(?m)^  (-\w, |    )--{option.name}\b(?!-)")

    def test_width(self) -> None:
        """No line is longer than a terminal of 80 columns."""
        self.patch(os, "environ", {**os.environ, "COLUMNS": "80"})
        for text in self.help(), describe_handlers(), describe_filters(), describe_faults(), describe_checkers():
            self.assertEqual([line for line in text.splitlines() if len(line) > 80], [])

    def test_defaults(self) -> None:
        """The default of an option that is a setting is the setting's, in the syntax of the option."""
        for option in TABLE.values():
            if option.setting is None or option.metavar is None:
                continue
            default = re.search(r"\[default: (.*)\]$", described_option(option)[1])
            assert default is not None, option.name
            if default[1] not in ("this host's", "ESMTP txsmtpd"):  # computed when a server is created
                made = option.read(default[1])
                self.assertEqual(made, Settings.__dataclass_fields__[option.setting].default, option.name)

    def test_pipe(self) -> None:
        """A program that reads only the start of a long list causes no error."""
        for word in "--help", "--help-handlers", "--version":
            reader, writer = os.pipe()
            os.close(reader)
            with open(writer, "w") as closed:
                program = [sys.executable, "-c", "from txsmtpd.service.console import main; main()", word]
                ended = subprocess.run(program, stdout=closed, stderr=subprocess.PIPE, timeout=60)
            self.assertEqual((ended.returncode, ended.stderr), (0, b""), word)

    def test_documented(self) -> None:
        """The documentation has each option."""
        docs = Path(__file__).parents[2] / "docs"
        if not docs.is_dir():
            raise SkipTest("the documentation is not here")
        text = "".join(page.read_text("utf-8") for page in docs.glob("*.rst"))
        told = [option.name for group in GROUPS if group.title != "Inbox" for option in group.options]
        missing = [name for name in told if not re.search(rf"``--{name}(?![a-z-])", text)]
        self.assertEqual(missing, [])

    def test_rows(self) -> None:
        """The help of each option is a sentence."""
        for option in TABLE.values():
            self.assertTrue(option.help.endswith("."), option.name)
