"""Options: their checks, and the values derived from them."""

from __future__ import annotations

import dataclasses
import math
import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support import handler
from txsmtpd import Extension, Reply, SMTPFactory
from txsmtpd.settings import Settings, find_hooks


def make(hooks: object = None, /, **options: Any) -> Settings:
    """Settings for these options."""
    return Settings.make(hooks, options)


class OptionTests(SynchronousTestCase):
    """Checking."""

    def test_defaults(self) -> None:
        """By default there is a limit for everything that a client could exhaust."""
        settings = make()
        self.assertEqual(settings.data_size_limit, 2**25)
        self.assertEqual(settings.timeout, 300)
        names = ("hook_timeout", "recipient_limit", "error_limit", "refusal_limit", "junk_command_limit", "linger")
        for name in (*names, "buffer_limit"):
            self.assertGreater(getattr(settings, name), 0, name)
        for name in ("enable_SMTPUTF8", "decode_data", "bare_newlines", "log_messages", "log_dialogue"):
            self.assertFalse(getattr(settings, name), name)

    def test_unknown(self) -> None:
        """An unknown option is a TypeError that names the most similar one, or all."""
        for wrong, near in (("time_out", "timeout"), ("enable_smtputf8", "enable_SMTPUTF8"), ("host_name", "hostname")):
            self.assertIn(near, str(self.assertRaises(TypeError, make, **{wrong: 1})))
        self.assertIn("timeout", str(self.assertRaises(TypeError, make, zzz=1)))
        self.assertRaises(TypeError, make, handler=1)
        self.assertRaises(TypeError, make, hooks={})

    def test_wrongTypes(self) -> None:
        """A value of a wrong type is a TypeError that names the option."""
        for name in ("data_size_limit", "recipient_limit", "refusal_limit", "line_length_limit", "buffer_limit"):
            for value in ("5", 2.5, True, [1]):
                self.assertIn(name, str(self.assertRaises(TypeError, make, **{name: value})))
        for name in ("timeout", "hook_timeout", "linger"):
            for value in ("5", True, [1]):
                self.assertIn(name, str(self.assertRaises(TypeError, make, **{name: value})))
        for name in ("enable_SMTPUTF8", "decode_data", "bare_newlines", "log_messages", "log_dialogue"):
            for value in (None, 1, "yes"):
                self.assertIn(name, str(self.assertRaises(TypeError, make, **{name: value})))
        for name in ("hostname", "ident"):
            self.assertIn(name, str(self.assertRaises(TypeError, make, **{name: b"x"})))
        for value in ("5", True, {"NOOP": "5"}, {"*": None}):
            self.assertRaises(TypeError, make, command_call_limit=value)

    def test_wrongObjects(self) -> None:
        """So is an object that cannot do what the option needs, and a class in the place of an object."""
        for name in ("log", "portal", "limiter", "reactor"):
            for value in ("asyncio", 5, True, Clock):
                error = self.assertRaises(TypeError, make, **{name: value})
                self.assertTrue(str(error).startswith(f"{name} must be a"), error)
        for value in ("messages:100/min", ["messages:100/min"]):
            error = self.assertRaises(TypeError, make, rates=value)
            self.assertIn("rates must be a mapping, such as {'messages': '100/min'}", str(error))
        error = self.assertRaises(TypeError, SMTPFactory, handler(), metrics=True)
        self.assertIn("metrics must be a txsmtpd.observe.metrics.Metrics(), not True", str(error))

    def test_needed(self) -> None:
        """Limits that are required cannot be None."""
        for name in ("linger", "command_size_limit", "local_part_limit", "buffer_limit"):
            self.assertRaises(TypeError, make, **{name: None})

    def test_wrongValues(self) -> None:
        """An invalid value is a ValueError that names the option."""
        for name, value in (
            ("data_size_limit", -1),
            ("timeout", 0),
            ("timeout", -5),
            ("timeout", math.nan),
            ("timeout", math.inf),
            ("hook_timeout", 0),
            ("linger", -1),
            ("recipient_limit", -1),
            ("command_call_limit", -1),
            ("command_call_limit", {"NOOP": -1}),
        ):
            self.assertIn(name, str(self.assertRaises(ValueError, make, **{name: value})), (name, value))

    def test_hostname(self) -> None:
        """The hostname must be valid in a greeting."""
        for value in ("mx.example.com", "localhost", "[192.0.2.1]", "[IPv6:2001:db8::1]"):
            self.assertEqual(make(hostname=value).hostname, value)
        for value in ("a b", "a\r\nb", "bücher.example", "-a", "a..b", "[1.2.3]", "a\n"):
            self.assertRaises(ValueError, make, hostname=value)

    def test_hostnameOfSystem(self) -> None:
        """By default it is the system's host name, without a DNS lookup."""

        def forbidden(*arguments: Any) -> str:
            raise AssertionError("a look-up was made")

        for name in ("getfqdn", "gethostbyname", "getaddrinfo", "gethostbyaddr"):
            self.patch(socket, name, forbidden)
        self.patch(socket, "gethostname", lambda: "box.internal")
        self.assertEqual(make().hostname, "box.internal")
        self.patch(socket, "gethostname", lambda: "what a name")
        self.assertEqual(make().hostname, "localhost")

    def test_hostnameOfSystemInASCII(self) -> None:
        """A system's host name that is not valid in a greeting is not used."""
        self.patch(socket, "gethostname", lambda: "b\u00fccher")
        self.assertEqual(make().hostname, "localhost")

    def test_ident(self) -> None:
        """The ident must be printable ASCII."""
        self.assertEqual(make(hostname="a", ident="x y").greeting, Reply(220, None, "a x y"))
        self.assertEqual(make(hostname="a", ident="").greeting, Reply(220, None, "a"))
        for value in ("ü", "a\r\nb", "a\tb", "\x1b"):
            self.assertRaises(ValueError, make, ident=value)

    def test_extensions(self) -> None:
        """Extensions must be instances."""
        self.assertRaises(TypeError, make, extensions=[Extension])
        self.assertRaises(TypeError, make, extensions=["X"])

    def test_unchanging(self) -> None:
        """Data that all connections share is immutable."""
        settings = make(command_call_limit={"NOOP": 1})
        with self.assertRaises(dataclasses.FrozenInstanceError):
            settings.timeout = 5  # type: ignore[misc]
        with self.assertRaises(TypeError):
            settings.hooks["NOOP"] = print  # type: ignore[index]

    def test_callersMapping(self) -> None:
        """Later changes of the caller's mapping have no effect."""
        limits = {"noop": 1, "*": 5}
        settings = make(command_call_limit=limits)
        limits.clear()
        self.assertEqual((dict(settings.call_limits), settings.call_limit_default), ({"NOOP": 1}, 5))

    def test_noSizeLimit(self) -> None:
        """0 and None mean no limit for a message."""
        self.assertIsNone(make(data_size_limit=0).data_size_limit)
        self.assertIsNone(make(data_size_limit=None).data_size_limit)


class HookTests(SynchronousTestCase):
    """Finding hooks."""

    def test_found(self) -> None:
        """Hooks are the methods handle_NAME, by NAME."""

        class Handler:
            def handle_RCPT(self) -> None:
                pass

            async def handle_DATA(self) -> None:
                pass

            def other(self) -> None:
                pass

        self.assertEqual(set(find_hooks(Handler())), {"RCPT", "DATA"})
        self.assertEqual(find_hooks(None), {})

    def test_notCallable(self) -> None:
        """A hook that is not a method is a TypeError."""
        self.assertIn("RCPT", str(self.assertRaises(TypeError, make, handler(RCPT="no"))))

    def test_touchesNothingElse(self) -> None:
        """Other attributes are not read, because some raise exceptions."""

        class Handler:
            @property
            def database(self) -> None:
                raise AssertionError("asked for")

        self.assertEqual(find_hooks(Handler()), {})

    def test_handleMessage(self) -> None:
        """handle_message, which old handlers have for their own use, is not a hook."""
        self.assertEqual(find_hooks(handler(message=print)), {})

    def test_processMessage(self) -> None:
        """process_message is used if there is no handle_DATA, with a warning."""
        self.assertEqual(set(find_hooks(handler(process_message=print))), {"process_message"})
        (warning,) = self.flushWarnings()
        self.assertIs(warning["category"], DeprecationWarning)
        self.assertEqual(set(find_hooks(handler(process_message=print, DATA=print))), {"DATA"})
        self.assertEqual(self.flushWarnings(), [])

    def test_ehloForms(self) -> None:
        """The form of handle_EHLO is determined by its parameters. Other parameters are a TypeError."""
        self.assertTrue(make(handler(EHLO=lambda a, b, c, d, e: None)).ehlo_takes_responses)
        self.assertTrue(make(handler(EHLO=lambda *arguments: None)).ehlo_takes_responses)
        self.assertFalse(make(handler(EHLO=lambda a, b, c, d: None)).ehlo_takes_responses)
        self.assertRaises(TypeError, make, handler(EHLO=lambda a: None))
