"""--filter: from the value on the command line to filters in front of a handler."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.service.test_service import parse, refusal
from txsmtpd.filters.milter import Milter
from txsmtpd.filters.rspamd import Rspamd
from txsmtpd.service import makeService
from txsmtpd.service.options import Options
from txsmtpd.service.topics import describe_filters


class Marks:
    """A custom filter."""

    def __init__(self, value: str = "1") -> None:
        self.value = value

    @classmethod
    def from_cli(cls, parser: Any, value: str) -> Marks:
        if value == "bad":
            parser.error("bad is no value")
        return cls(value)

    def filter_message(self, server: Any, session: Any, envelope: Any, message: Any) -> None:
        message.add_header("X-Mark", self.value)


class FilterOptionTests(SynchronousTestCase):
    """The meaning of the values of --filter."""

    def filters(self, *specs: str) -> list[Any]:
        options = parse("--handler=sink", *(f"--filter={spec}" for spec in specs))
        filters: list[Any] = options["filters"]
        return filters

    def test_order(self) -> None:
        """Filters are created in order, with their options. The factories of all listeners have them."""
        options = parse(
            "--handler=sink",
            "--listen=tcp:0",
            "--listen-lmtp=tcp:0",
            "--filter=milter:unix:/run/dkim.sock,name=dkim,on-failure=accept,timeout=5,content-timeout=60",
            "--filter=rspamd:http://127.0.0.1:11333/,timeout=9,authserv-id=mx.example.com",
            "--filter=rspamd",
            f"--filter={__name__}.Marks:a\\:b",
        )
        milter, rspamd, default, own = options["filters"]
        self.assertIsInstance(milter, Milter)
        self.assertEqual((milter.name, milter.on_failure, milter.timeouts), ("dkim", "accept", (30.0, 5.0, 60.0)))
        self.assertIsInstance(rspamd, Rspamd)
        self.assertEqual((rspamd.url, rspamd.authserv_id), ("http://127.0.0.1:11333/checkv2", "mx.example.com"))
        self.assertEqual(default.url, "http://127.0.0.1:11333/checkv2")
        self.assertEqual(own.value, "a:b")
        service: Any = makeService(options)
        chains = [each.factory.settings.filters for each in service if hasattr(each, "factory")]
        self.assertEqual([[link.name for link in chain.links] for chain in chains], [
            ["dkim", "rspamd", "rspamd-2", "Marks"],
            ["dkim", "rspamd", "rspamd-2", "Marks"],
        ])  # fmt: skip

    def test_environment(self) -> None:
        """In the environment, filters are separated by spaces."""
        options = Options()
        options.environ = {"TXSMTPD_FILTER": "milter:tcp:127.0.0.1:1 rspamd", "TXSMTPD_HANDLER": "sink"}
        options.parseOptions([])
        self.assertEqual([each.name for each in options["filters"]], ["milter", "rspamd"])

    def test_password(self) -> None:
        """A password is read from a file."""
        path = Path(self.mktemp())
        path.write_text("secret\n")
        (rspamd,) = self.filters(f"rspamd:https://rspamd.example,password-file={path}")
        self.assertEqual(rspamd._password, "secret")

    def test_refusals(self) -> None:
        """The error for an invalid value is one line with the reason."""
        for spec, reason in (
            ("rspmd", "no filter is called 'rspmd'; did you mean rspamd?"),
            ("virus", "no filter is called 'virus'; there are rspamd, milter, and dotted names"),
            ("milter", "write milter:ENDPOINT"),
            ("milter:/run/x", "'/run/x' is not an endpoint; write unix:/run/milter.sock or tcp:127.0.0.1:8891"),
            ("milter:unix:/x,nmae=a", "'nmae' is not an option of milter; did you mean name=?"),
            ("milter:unix:/x,timeout=0", "timeout: must be a number of seconds"),
            ("milter:unix:/x,on-failure=drop", "on_failure of the filter milter must be 'tempfail' or 'accept'"),
            ("rspamd:ftp://x", "'ftp://x' is not a URL of rspamd; write http://127.0.0.1:11333"),
            ("rspamd,password-file=/nothing/here", "password-file: cannot be read from /nothing/here: No such file"),
            ("json.JSONDecoder", "is not a filter: it has no method such as filter_message"),
            (f"{__name__}.Marks:bad", "bad is no value"),
            (f"{__name__}.Nothing", "has no Nothing"),
        ):
            with self.subTest(spec=spec):
                told = refusal("--handler=sink", f"--filter={spec}")
                self.assertIn(reason, told)
                self.assertIn(f"--filter={spec}", told)

    def test_oldServers(self) -> None:
        """A server of the smtpd module does not support filters."""
        told = refusal("--handler=smtpd:txsmtpd.smtpd.DebuggingServer", "--filter=rspamd")
        self.assertEqual(told, "--filter=rspamd: servers of the smtpd module do not support filters")

    def test_help(self) -> None:
        """--help-filters lists the filters with their options."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.assertRaises(SystemExit, Options().parseOptions, ["--help-filters"])
        self.assertEqual(printed.getvalue(), describe_filters() + "\n")
        self.assertIn("milter:ENDPOINT", describe_filters())
