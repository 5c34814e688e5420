"""Results of type checkers for programs that use txsmtpd."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

from twisted.trial.unittest import SynchronousTestCase

import txsmtpd
from tests.support.programs import once
from txsmtpd import Handler, SMTPFactory
from txsmtpd.interfaces import HOOKS
from txsmtpd.settings import Settings
from txsmtpd.typed import FactoryOptions, Options

# The type checker must report an error in each line that ends with "# error", and in no other line.
PROGRAM = """
from typing import Any

import txsmtpd
from txsmtpd import SMTP, Envelope, Handler, Reply, Session, SMTPFactory
from txsmtpd.controller import Controller
from txsmtpd.testing import MailCatcher


class Right(Handler):
    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> Reply:
        return Reply(250, "2.0.0", "OK")

    def helper(self) -> int:
        return 1


class Wrong(Handler):
    def handle_RCPT(self, server: SMTP, address: str) -> str:  # error
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> int:  # error
        return 250

    def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: int) -> str:  # error
        return "250 OK"


class Plain:
    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return "250 OK"


SMTPFactory(Right(), data_size_limit=10**7, timeout=None, hostname="mx.example.com")
SMTPFactory(Plain(), connection_limit=5, bare_newlines=True)
SMTPFactory(Plain(), data_sizelimit=1)  # error
SMTPFactory(Plain(), data_size_limit="x")  # error
SMTPFactory(Plain(), timeout="never")  # error
SMTP(Plain(), timeout=1.5)
SMTP(Plain(), timout=1)  # error
Controller(Plain(), hostname="127.0.0.1", port=8025, data_size_limit=1)
Controller(Plain(), data_size_limt=1)  # error
MailCatcher(tls="starttls", enable_SMTPUTF8=False)
MailCatcher(recipient_limit="many")  # error
txsmtpd.run(Plain(), "tcp:8025", data_size_limit=1)
txsmtpd.run(Plain(), "tcp:8025", data_size=1)  # error
"""


class MypyTests(SynchronousTestCase):
    """mypy --strict, on a program that imports txsmtpd."""

    def test_program(self) -> None:
        """Unknown options, options of a wrong type, and hooks with wrong parameters or results are errors. Nothing else
        is."""
        once()
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "program.py").write_text(PROGRAM)
        where = Path(txsmtpd.__file__).parent.parent
        # mypy finds an installed package by itself, and rejects its folder in MYPYPATH.
        path = {} if where.name == "site-packages" else {"MYPYPATH": str(where)}
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "program.py"],
            cwd=folder,
            env={**os.environ, **path},
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = done.stdout + done.stderr
        found = {int(number) for number in re.findall(r"^program\.py:(\d+): error", said, re.MULTILINE)}
        wanted = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# error")}
        self.assertEqual(found, wanted, said)


class ListTests(SynchronousTestCase):
    """The definitions for type checkers agree with the code."""

    def test_options(self) -> None:
        """The options are those of Settings, with the same types."""
        made_by_factory = {"handler", "protocol_mechanisms", "filters"}
        names = {each.name for each in dataclasses.fields(Settings) if each.init} - made_by_factory
        types = get_type_hints(Settings)
        self.assertEqual(get_type_hints(Options), {name: types[name] for name in names})

    def test_factoryOptions(self) -> None:
        """Those of a factory are the parameters of SMTPFactory in addition."""
        parameters = inspect.signature(SMTPFactory).parameters.values()
        names = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
        self.assertEqual(set(get_type_hints(FactoryOptions)) - set(get_type_hints(Options)), names)

    def test_hooks(self) -> None:
        """Handler has every hook, with its parameters, only for type checkers."""
        declared = inspect.getsource(Handler)
        for name, interface in HOOKS.items():
            self.assertFalse(hasattr(Handler, name))
            if name == "process_message":  # deprecated
                continue
            found = re.search(rf"def {name}\(\s*self, ([^)]*?)\s*\)", declared)
            assert found is not None, name
            words = re.sub(r"\[.*?\]", "", found[1]).split(",")
            parameters = [word.partition(":")[0].strip() for word in words]
            self.assertEqual(parameters, list(interface[name].positional), name)
