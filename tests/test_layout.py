"""The picture that the documentation draws of the code, held against the code."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import twisted
from twisted.trial.unittest import SynchronousTestCase

import txsmtpd

PACKAGE = Path(txsmtpd.__file__).parent

# Which layer may import which: each layer may import itself and those in rows before it. A layer is a module of the
# package, or a folder with its modules. Layers in the same row do not import each other.
# Pure: the standard library and each other only.
PURE = {"reply", "session", "parameters", "recipient_replies", "wire", "mime", "proxy_protocol", "_version"}
LAYERS = [
    PURE,
    {"log"},
    {"interfaces", "tls", "bridges"},
    {"limits"},
    {"command"},
    {"auth"},
    {"extensions"},
    {"typed"},
    {"settings"},
    {"engine"},
    {"smtp"},
    {"lmtp"},
    {"filters"},
    {"factory"},
    {"handlers"},
    {"handoff"},
    {"observe"},
    {"faults"},
    {"inbox"},
    {"service"},
    {"controller", "smtpd", "main", "__main__"},
    {"testing"},
]
FRIENDLY_NEIGHBOURS = [PURE, {"controller", "smtpd", "main", "__main__"}]
HANDLERS_MAY_IMPORT = {"handlers", "reply", "session", "interfaces", "wire", "mime", "bridges", "log"}
MODULES_IN_THE_ROOT = 16  # at most
# Within the engine, likewise: each row may import itself and those before it.
ENGINE = [
    {
        "__init__",
        "lines",
        "masking",
        "observer",
        "meter",
        "interceptor",
        "results",
        "output",
        "overrides",
        "message_sink",
        "notices",
        "stage",
        "refusals",
        "batches",
        "timers",
    },
    {"reader", "turn", "timeouts", "admission", "budget", "tls_input"},
    {"connection"},
    {"dispatcher"},
    {"handshake", "message"},
    {"proxy_header", "ending"},
    {"greeting"},
    {"protocol_class"},
]
LINES_OF_A_FILE = 500  # at most, unless its first paragraph says why all of it is in one file


def modules() -> list[str]:
    """The names of all modules of the package, starting with the package itself."""
    return ["txsmtpd", *sorted(each.name for each in pkgutil.walk_packages(txsmtpd.__path__, "txsmtpd."))]


def source_of(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def layer_of(name: str) -> str | None:
    """The layer that a module belongs to; None for the package itself, which exports the public names."""
    return name.split(".")[1] if "." in name else None


def imports_of(nodes: Iterator[ast.AST], package: str) -> Iterator[str]:
    """The full names of what the nodes import, each name of ``from x import y`` as ``x.y``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def all_imports(name: str) -> set[str]:
    path = source_of(name)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return set(imports_of(ast.walk(ast.parse(path.read_bytes())), package))


def executed_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module that are executed by its import: all that are not in a function."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from executed_on_import(child)


def type_checking_imports(name: str) -> set[str]:
    """The engine's parts that a module of it imports for annotations only."""
    guards = [
        node
        for node in ast.parse(source_of(name).read_bytes()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    imports = imports_of((node for guard in guards for node in ast.walk(guard)), "txsmtpd.engine")
    return {each.split(".")[2] for each in imports if each.startswith("txsmtpd.engine.")}


def layers_imported(name: str) -> set[str]:
    """The layers that a module imports from. A name of the package itself stands for "txsmtpd"."""
    layers = set().union(*LAYERS)
    parts = (each.split(".") for each in all_imports(name) if each.split(".")[0] == "txsmtpd")
    return {part[1] if len(part) > 1 and part[1] in layers else "txsmtpd" for part in parts}


def allowed(layer: str) -> set[str]:
    if layer == "handlers":
        return HANDLERS_MAY_IMPORT
    row = next(number for number, each in enumerate(LAYERS) if layer in each)
    neighbours = LAYERS[row] if LAYERS[row] in FRIENDLY_NEIGHBOURS else {layer}
    return neighbours.union(*LAYERS[:row])


class ImportTests(SynchronousTestCase):
    """Imports point one way."""

    def test_eachModuleHasALayer(self) -> None:
        """A new module or folder of the package must be added to the order in this file."""
        layers = set().union(*LAYERS)
        self.assertEqual({layer_of(name) for name in modules()} - layers - {None}, set())

    def test_direction(self) -> None:
        """Each module imports only its own layer and lower ones."""
        wrong = {
            name: upward
            for name in modules()
            if (layer := layer_of(name)) and (upward := layers_imported(name) - allowed(layer))
        }
        self.assertEqual(wrong, {})

    def test_engine(self) -> None:
        """The parts of the engine import each other one way, too: a part does not know who is made of it."""
        names = [name for name in modules() if name.startswith("txsmtpd.engine.")]
        self.assertEqual({name.split(".")[2] for name in names} | {"__init__"}, set().union(*ENGINE))
        wrong = {}
        for name in names:
            part = name.split(".")[2]
            row = next(number for number, each in enumerate(ENGINE) if part in each)
            imported = {each.split(".")[2] for each in all_imports(name) if each.startswith("txsmtpd.engine.")}
            for typed in type_checking_imports(name):
                imported.discard(typed)
            if upward := imported - set().union(*ENGINE[: row + 1]):
                wrong[part] = upward
        self.assertEqual(wrong, {})

    def test_longFiles(self) -> None:
        """The first paragraph of a file of more than 500 lines says why it is one file."""
        wrong = []
        for name in modules():
            text = source_of(name).read_text()
            first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
            if text.count("\n") > LINES_OF_A_FILE and "in one file" not in " ".join(first.split()):
                wrong.append(name)
        self.assertEqual(wrong, [])

    def test_testKitStandsAlone(self) -> None:
        """Nothing outside ``testing`` imports it: a production server runs no code for tests."""
        wrong = [name for name in modules() if layer_of(name) != "testing" and "testing" in layers_imported(name)]
        self.assertEqual(wrong, [])

    def test_root(self) -> None:
        """The package's root has few modules: the public interface. All others are in folders."""
        in_the_root = sorted(path.name for path in PACKAGE.glob("*.py"))
        self.assertLessEqual(len(in_the_root), MODULES_IN_THE_ROOT, in_the_root)

    def test_pure(self) -> None:
        """The leaves import only the standard library and each other, and neither Twisted nor zope."""
        known = sys.stdlib_module_names | {"txsmtpd"}
        wrong = {
            name: foreign
            for name in modules()
            if layer_of(name) in PURE and (foreign := {each.split(".")[0] for each in all_imports(name)} - known)
        }
        self.assertEqual(wrong, {})

    def test_reactorInSource(self) -> None:
        """No module imports the reactor during its own import, except the one that starts it."""
        wrong = []
        for name in modules():
            nodes = executed_on_import(ast.parse(source_of(name).read_bytes()))
            if layer_of(name) != "controller" and "twisted.internet.reactor" in set(imports_of(nodes, name)):
                wrong.append(name)
        self.assertEqual(wrong, [])

    def test_reactorInEffect(self) -> None:
        """A program can choose its reactor after it has imported txsmtpd."""
        choosers = ("controller", "service", "testing", "smtpd")
        names = [name for name in modules() if layer_of(name) not in choosers]
        code = f"import sys, {', '.join(names)}; print('twisted.internet.reactor' in sys.modules)"
        printed = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            env={"PYTHONPATH": str(PACKAGE.parent)},
        )
        self.assertEqual(printed.stdout, "False\n")

    def test_oneProcess(self) -> None:
        """A server of one process does not import what only a server of several needs."""
        code = "import sys, txsmtpd.service; print(*sys.modules)"
        printed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
        imported = set(printed.stdout.split())
        self.assertEqual(imported & {"twisted.protocols.amp", "txsmtpd.service.workers.master"}, set())
        workers = {name for name in imported if name.startswith("txsmtpd.service.workers.")}
        self.assertEqual(workers, {"txsmtpd.service.workers.inheritance"})

    def test_relativeImports(self) -> None:
        """The parser of this file handles relative imports, too."""

        def read(text: str) -> list[str]:
            return list(imports_of(ast.walk(ast.parse(text)), "txsmtpd.wire"))

        self.assertEqual(read("from . import data"), ["txsmtpd.wire.data"])
        self.assertEqual(read("from .data import Fault"), ["txsmtpd.wire.data.Fault"])
        self.assertEqual(read("from ..smtp import SMTP"), ["txsmtpd.smtp.SMTP"])
        self.assertEqual(read("from .. import smtp"), ["txsmtpd.smtp"])


class PluginTests(SynchronousTestCase):
    """The folder of Twisted's plugins."""

    def plugin(self) -> Path:
        """The plugin's file, as twist finds it."""
        module = importlib.import_module("twisted.plugins.txsmtpd_plugin")
        return Path(str(module.__file__))

    def test_imports(self) -> None:
        """The plugin imports only ServiceMaker, because all programs of an environment that look for plugins execute
        it."""
        tree = ast.parse(self.plugin().read_bytes())
        imports = set(imports_of(ast.walk(tree), "twisted.plugins"))
        self.assertEqual(imports, {"twisted.application.service.ServiceMaker"})

    def test_noPackages(self) -> None:
        """``twisted`` and ``twisted/plugins`` have no ``__init__.py`` from this package, which would hide Twisted's
        own."""
        plugins = self.plugin().parent
        if plugins.parent == Path(twisted.__file__).parent:
            shipped = {str(each) for each in importlib.metadata.files("txsmtpd") or ()}
            self.assertIn("twisted/plugins/txsmtpd_plugin.py", shipped)
            self.assertNotIn("twisted/__init__.py", shipped)
            self.assertNotIn("twisted/plugins/__init__.py", shipped)
            self.assertNotIn("twisted/plugins/dropin.cache", shipped)
        else:
            self.assertFalse((plugins / "__init__.py").exists())
            self.assertFalse((plugins.parent / "__init__.py").exists())


class PublicTests(SynchronousTestCase):
    """The public names of the package."""

    def test_all(self) -> None:
        """Each name in an ``__all__`` exists, and is listed once."""
        for name in modules():
            module = importlib.import_module(name)
            names = getattr(module, "__all__", [])
            self.assertEqual(sorted(set(names)), sorted(names), name)
            for each in names:
                self.assertTrue(hasattr(module, each), f"{name}.{each}")

    def test_typed(self) -> None:
        """The package is marked as typed for type checkers."""
        self.assertTrue((PACKAGE / "py.typed").is_file())

    def test_examples(self) -> None:
        """The examples in docstrings are correct."""
        report: list[str] = []
        attempted = 0
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        for name in modules():
            for example in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
                attempted += runner.run(example, out=report.append).attempted
        if report:
            self.fail("".join(report))
        self.assertGreater(attempted, 0)

    def test_charters(self) -> None:
        """Each module starts with a docstring."""
        missing = [name for name in modules() if not ast.get_docstring(ast.parse(source_of(name).read_bytes()))]
        self.assertEqual(missing, [])
