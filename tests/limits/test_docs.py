"""The table of limits in ``docs/limits.rst`` names each limit, with its default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits import KINDS
from txsmtpd.service.options.limits import GROUP
from txsmtpd.settings import Settings

PAGE = Path(__file__).parent.parent.parent / "docs" / "limits.rst"
NOT_BOUNDS = {"bare_newlines", "lenient_addresses"}  # options of the group that are not limits


def rows() -> dict[str, str]:
    """The defaults in the table, by the option's name."""
    return dict(re.findall(r"^   \* - ``([^`]+)``.*\n     - (.*)$", PAGE.read_text(), re.MULTILINE))


class TableTests(SynchronousTestCase):
    """The table is complete."""

    def test_options(self) -> None:
        """Each limit of the command line, and each rate, has a row."""
        wanted = {option.setting or option.name.replace("-", "_") for option in GROUP.options} - NOT_BOUNDS
        wanted |= {f'rates["{kind}"]' for kind in KINDS} | {"auth_failures_per_network", "auth_failure_limit"}
        self.assertEqual(wanted - set(rows()), set())

    def test_settings(self) -> None:
        """Each limit of Settings has a row."""
        names = {each.name for each in fields(Settings) if each.init}
        wanted = {name for name in names if re.search("_limit$|timeout|_delay$|_minimum$|_per_network$", name)}
        self.assertEqual(wanted - set(rows()) - {"proxy_protocol_timeout", "log_limit"}, set())

    def test_defaults(self) -> None:
        """The defaults are equal to those in the code."""
        defaults = {each.name: each.default for each in fields(Settings)}
        units = {"s": 1, "octets": 1, "octets a second": 1, "KiB": 1024, "MiB": 2**20, "": 1}
        for name, text in rows().items():
            found = re.fullmatch(r"([0-9]+)(?: (.*))?", text)
            if name in defaults and found is not None:
                # Other words after the number are not a unit.
                self.assertEqual(int(found[1]) * units.get(found[2] or "", 1), defaults[name], name)
            elif name in defaults and text == "none":
                self.assertIn(defaults[name], (None, 0), name)
