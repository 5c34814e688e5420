"""--rate and related options: the limits of the listeners, and invalid values."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.limits import Limits, Rate
from txsmtpd.limits.shared import SharedLimits
from txsmtpd.service import Options, makeService


def parse(*words: str, **environ: str) -> Options:
    options = Options()
    options.environ = environ
    options.parseOptions(["--handler=sink", *words])
    return options


def refusal(*words: str) -> str:
    output = io.StringIO()
    with redirect_stderr(output):
        try:
            parse(*words)
        except SystemExit as end:
            assert end.code == 64
        else:
            raise AssertionError(f"{words} were taken")
    line = output.getvalue()
    assert line.count("\n") == 1, line
    return line


def factories(*words: str) -> list[Any]:
    return [service.factory for service in makeService(parse(*words)).services]


class RateTests(SynchronousTestCase):
    """Limits of networks on the command line."""

    def test_default(self) -> None:
        """By default, connections and failed logins of a network are limited, and there are no rates."""
        [factory] = factories()
        self.assertEqual(factory.connection_limit_per_network, 50)
        self.assertEqual(factory.settings.admission.kinds, frozenset(["auth"]))
        self.assertEqual(factory.settings.admission.limiter.failures.rate, Rate(20, 600, 20))
        self.assertIsNone(factory.settings.admission.network(("127.0.0.1", 1)))

    def test_rates(self) -> None:
        """Rates apply to all listeners together."""
        first, second = factories(
            "--rate=messages:100/min,burst=20", "--rate=recipients:5/s", "-l", "tcp:0", "-l", "tcp:1"
        )
        limiter = first.settings.admission.limiter
        self.assertIs(limiter, second.settings.admission.limiter)
        self.assertEqual(limiter.buckets["messages"].rate, Rate(100, 60, 20))
        self.assertEqual(limiter.kinds, frozenset(["messages", "recipients", "auth"]))

    def test_environment(self) -> None:
        """In the environment, several rates are separated by spaces."""
        limiter = parse(TXSMTPD_RATE="messages:1/s connections:2/s,burst=3")["limiter"]
        self.assertEqual(sorted(limiter.buckets), ["connections", "messages"])

    def test_unlimited(self) -> None:
        """Networks without limits replace the default. "none" means that there are none."""
        [factory] = factories("--unlimited-network=192.0.2.0/24", "--unlimited-network=unix")
        network = factory.settings.admission.network
        self.assertEqual((network(("192.0.2.7", 1)), network(("127.0.0.1", 1))), (None, "127.0.0.1"))
        [factory] = factories("--unlimited-network=none")
        self.assertEqual(factory.settings.admission.network(("127.0.0.1", 1)), "127.0.0.1")

    def test_others(self) -> None:
        """Each other limit has an option."""
        [factory] = factories(
            "--connection-limit=100",
            "--network-prefixes=24,48",
            "--auth-failures-per-network=none",
            "--command-timeout=1min",
            "--data-rate-minimum=1kB",
            "--session-timeout=1h",
            "--error-delay=0",
        )
        settings = factory.settings
        self.assertEqual(factory.connection_limit_per_network, 25)
        self.assertEqual(settings.admission.network(("192.0.2.7", 1)), "192.0.2.0/24")
        self.assertEqual(settings.admission.kinds, frozenset())
        self.assertEqual(
            (settings.command_timeout, settings.data_rate_minimum, settings.session_timeout, settings.error_delay),
            (60, 1000, 3600, 0),
        )
        self.assertEqual(factories("--connection-limit-per-network=none")[0].connection_limit_per_network, None)
        self.assertEqual(factories("--connection-limit-per-network=7")[0].connection_limit_per_network, 7)

    def test_malformed(self) -> None:
        """The error is one line that names the option and the value."""
        for words, expected in [
            (["--rate=100/min"], "--rate=100/min: '100/min' has no kind"),
            (["--rate=message:1/s"], "did you mean messages?"),
            (["--rate=messages:fast"], "write N/PERIOD[,burst=N]"),
            (["--rate=messages:0/s"], "must be more than 0"),
            (["--rate=messages:1/s", "--rate=messages:2/s"], "there are two rates of messages"),
            (["--unlimited-network=192.0.2.1/24"], "did you mean 192.0.2.0/24?"),
            (["--unlimited-network=none", "--unlimited-network=::1"], "none cannot be combined with other networks"),
            (["--network-prefixes=32"], "must be the prefix lengths for IPv4 and IPv6, such as 32,64"),
            (["--network-prefixes=33,64"], "must be 1 to 32 for IPv4"),
            (["--auth-failures-per-network=x"], "is not a rate"),
            (["--data-rate-minimum=0"], "at least 1 octet"),
            (["--limits-redis=http://u:secret@h"], "--limits-redis=http:...: must be redis://"),
            (
                ["--limits-redis=redis://h", "--auth-failures-per-network=none"],
                "requires --rate or --auth-failures-per-network, the limits that hosts share",
            ),
        ]:
            line = refusal(*words)
            self.assertIn(expected, line)
            self.assertNotIn("secret", line)

    def test_redis(self) -> None:
        """With a Redis, limits are shared. Without the package, the error names the extra."""
        limiter = parse("--limits-redis=redis://127.0.0.1:1")["limiter"]
        self.assertIsInstance(limiter, SharedLimits)
        self.assertIsInstance(limiter.local, Limits)
        with mock.patch("importlib.util.find_spec", lambda name: None):
            self.assertIn("pip install 'txsmtpd[redis]'", refusal("--limits-redis=redis://h"))
