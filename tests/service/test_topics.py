"""The help topics: their tables list what the options accept, with the defaults that apply."""

from __future__ import annotations

import inspect
import re
from typing import Any

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.faults import rules, spec
from txsmtpd.filters.milter import Milter
from txsmtpd.filters.rspamd import Rspamd
from txsmtpd.handoff import AMQPHandoff, Handoff, KafkaHandoff, WebhookHandoff
from txsmtpd.service import topics
from txsmtpd.service.filters import BUILT_IN
from txsmtpd.service.handlers import make_handler
from txsmtpd.tls.authority import WRONG


def names(rows: Any) -> set[str]:
    """The names of options in the first column of a table."""
    return {row[0].partition("=")[0] for row in rows}


def default(function: Any, name: str) -> Any:
    return inspect.signature(function).parameters[name].default


class HandlerTopicTests(SynchronousTestCase):
    """--help-handlers."""

    def accepted(self, handler: str) -> set[str]:
        """The options that a handler names when it is given one that does not exist."""
        error = str(self.assertRaises(UsageError, make_handler, f"{handler}:zzzzzz=1"))
        listed = re.sub(r" \(.*", "", re.split("there are |use ", error)[1])
        return {word.partition("=")[0] for word in listed.split(", ")}

    def test_options(self) -> None:
        """Exactly the options that a handler accepts are listed."""
        for handler in topics.HANDED_OFF:
            listed = {*names(topics.HANDLER_OPTIONS[handler]), *names(topics._PROMISE)}
            self.assertEqual(listed, self.accepted(handler), handler)
        self.assertEqual(names(topics.HANDLER_OPTIONS["proxy"]), self.accepted("proxy:localhost:25"))

    def test_defaults(self) -> None:
        """The defaults are those of the classes."""
        text = " ".join(topics.describe_handlers().split())
        for name, value in {
            "inline=SIZE": default(Handoff, "inline") // 2**20,
            "in-flight=N": default(Handoff, "in_flight"),
            "wait=SECONDS": default(Handoff, "wait"),
            "confirm-timeout=SECONDS": default(Handoff, "confirm_timeout"),
            "timeout=SECONDS Timeout of a request.": default(WebhookHandoff, "timeout"),
            "requests=N": default(WebhookHandoff, "requests"),
            "format=NAME": default(WebhookHandoff, "format"),
            "key=domain|none": default(KafkaHandoff, "key"),
        }.items():
            shown = f"{value:g}" if isinstance(value, float | int) else str(value)
            self.assertRegex(text, rf"{re.escape(name)}[^\[]*\[default: {shown}m?[\],]", name)
        self.assertFalse(default(AMQPHandoff, "declare"))


class FilterTopicTests(SynchronousTestCase):
    """--help-filters."""

    def test_options(self) -> None:
        """Exactly the options that a filter accepts are listed; those of one filter alone name it."""
        rspamd, milter = set(BUILT_IN["rspamd"].options), set(BUILT_IN["milter"].options)
        self.assertEqual(names(topics.FILTER_OPTIONS), rspamd | milter)
        for name, text in topics.FILTER_OPTIONS:
            only = {filter for filter in ("rspamd", "milter") if f"{filter} only" in text}
            having = {"rspamd": rspamd, "milter": milter}
            self.assertEqual(
                {each for each in having if name.partition("=")[0] in having[each]}, only or set(having), name
            )

    def test_defaults(self) -> None:
        """The defaults are those of the classes."""
        text = " ".join(topics.describe_filters().split())
        for made, name in (Rspamd, "timeout"), (Milter, "command_timeout"):
            self.assertRegex(text, rf"{made.__name__.lower()} {default(made, name):g}[,\]]")
        for made in Rspamd, Milter:
            self.assertRegex(text, rf"{made.__name__.lower()} {default(made, 'connect_timeout'):g}[,\]]")
            self.assertEqual(default(made, "on_failure"), "tempfail")
        self.assertIn(f"[default: {default(Milter, 'content_timeout'):g}]", text)


class FaultTopicTests(SynchronousTestCase):
    """--help-faults."""

    def test_words(self) -> None:
        """Each word of a rule is listed, and each example is a rule."""
        tables = dict(topics._FAULTS)
        self.assertEqual(names(tables["Conditions"]), set(spec.MATCHES))
        words = {*names(tables["Schedules"]), *names(tables["Effects"])}
        self.assertEqual(words, {*spec.WITH_VALUE, *spec.ALONE, "reply"})
        stages = {word for row in tables["Stages"] for word in re.findall("[a-z]+", row[0])}
        self.assertEqual(stages - set(rules.STAGES), set())
        self.assertEqual({*rules.MOMENTS, rules.ANY} - stages, set())
        for kind in WRONG:
            self.assertIn(kind, str(tables["Effects"]))
        for example in re.findall("--fault='(.*)'", topics.describe_faults()):
            spec.add_fault(rules.Faults(), example)


class CheckerTopicTests(SynchronousTestCase):
    """--help-auth."""

    def test_form(self) -> None:
        """Each checker is listed in the form in which --auth takes it."""
        text = topics.describe_checkers()
        for form in "file:PATH", "memory:NAME:PASSWORD":
            self.assertIn(f"\n  {form}", text)
        self.assertNotIn("anonymous", text)
