"""Commands as declared methods: the commands of a class, and their rules."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txsmtpd.command import Rule, commands_of, syntax
from txsmtpd.reply import Reply

first = Rule(lambda server, arg: True, Reply(503, "5.5.1", "first"))
second = Rule(lambda server, arg: True, Reply(503, "5.5.1", "second"))


class Base:
    """A class with commands."""

    @syntax("ONE", needs=[first], junk=True)
    def smtp_ONE(self, arg: Any) -> None:
        pass

    @syntax("TWO arg", extended=" [SP more]", argument=True)
    async def smtp_TWO(self, arg: Any) -> None:
        pass

    def smtp_BARE(self, arg: Any) -> None:
        pass

    def smtp_lower(self, arg: Any) -> None:
        pass

    def smtp_ÜBER(self, arg: Any) -> None:
        pass

    smtp_NUMBER = 5

    def other(self) -> None:
        pass


class CommandsTests(SynchronousTestCase):
    """The table of a class."""

    def test_found(self) -> None:
        """Commands are the methods smtp_VERB with a verb in upper-case ASCII, and nothing else."""
        self.assertEqual(set(commands_of(Base)), {b"ONE", b"TWO", b"BARE"})

    def test_declared(self) -> None:
        """The command has the declarations of @syntax. Without it, HELP does not list the command."""
        commands = commands_of(Base)
        self.assertEqual(commands[b"ONE"].rules, (first,))
        self.assertTrue(commands[b"ONE"].junk)
        self.assertFalse(commands[b"TWO"].junk)
        self.assertIsNone(commands[b"BARE"].syntax)
        self.assertEqual((commands[b"BARE"].rules, commands[b"BARE"].junk), ((), False))

    def test_help(self) -> None:
        """The help is the syntax, with the extended part after EHLO."""
        commands = commands_of(Base)
        self.assertEqual(commands[b"TWO"].help(False), "TWO arg")
        self.assertEqual(commands[b"TWO"].help(True), "TWO arg [SP more]")
        self.assertEqual(commands[b"ONE"].help(True), "ONE")
        self.assertEqual(commands[b"BARE"].help(True), "BARE")

    def test_argument(self) -> None:
        """A command that requires an argument, or takes none, has a rule whose refusal shows the syntax."""
        (rule,) = commands_of(Base)[b"TWO"].rules
        self.assertTrue(rule.holds(None, "x"))
        self.assertFalse(rule.holds(None, None))
        self.assertEqual(rule.refusal, Reply(501, "5.5.4", "Syntax: TWO arg"))

    def test_withdrawn(self) -> None:
        """smtp_VERB = None removes a command, and a subclass can add it again."""

        class Without(Base):
            smtp_ONE = None  # type: ignore[assignment]

        class Again(Without):
            def smtp_ONE(self, arg: Any) -> None:  # type: ignore[override]
                pass

        self.assertNotIn(b"ONE", commands_of(Without))
        self.assertEqual(commands_of(Again)[b"ONE"].rules, (first,))

    def test_overridden(self) -> None:
        """An override keeps the rules, its own follow them, and its own syntax is the help."""

        class Silent(Base):
            def smtp_ONE(self, arg: Any) -> None:
                pass

        class Speaking(Base):
            @syntax("ONE more", needs=[second])
            def smtp_ONE(self, arg: Any) -> None:
                pass

        silent, speaking = commands_of(Silent)[b"ONE"], commands_of(Speaking)[b"ONE"]
        self.assertEqual((silent.rules, silent.help(False), silent.junk), ((first,), "ONE", True))
        self.assertIs(silent.method, Silent.smtp_ONE)
        self.assertEqual((speaking.rules, speaking.help(False)), ((first, second), "ONE more"))

    def test_onceOnly(self) -> None:
        """A rule that is declared twice is checked once."""

        class Twice(Base):
            @syntax("ONE", needs=[second, first])
            def smtp_ONE(self, arg: Any) -> None:
                pass

        self.assertEqual(commands_of(Twice)[b"ONE"].rules, (first, second))

    def test_argumentOverridden(self) -> None:
        """An override that declares its argument again has the new rule."""

        class Without(Base):
            @syntax("TWO", argument=False)
            def smtp_TWO(self, arg: Any) -> None:  # type: ignore[override]
                pass

        (rule,) = commands_of(Without)[b"TWO"].rules
        self.assertTrue(rule.holds(None, None))
        self.assertFalse(rule.holds(None, "x"))

    def test_mixin(self) -> None:
        """Rules are inherited from all base classes, those of the most distant one first."""

        class Mixin:
            @syntax("ONE", needs=[second])
            def smtp_ONE(self, arg: Any) -> None:
                pass

        class Both(Mixin, Base):
            pass

        self.assertEqual(commands_of(Both)[b"ONE"].rules, (first, second))

    def test_syntaxKeepsMethod(self) -> None:
        """@syntax returns the method unchanged."""

        def method(self: Any, arg: Any) -> None:
            pass

        self.assertIs(syntax("X")(method), method)
