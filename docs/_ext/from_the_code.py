"""Directives that take their text from the code, so that it is written only once: ``.. options:: NAME...``,
``.. hooks::``, ``.. log-events::`` and ``.. inbox-routes::``."""

import inspect
from collections.abc import Iterator
from dataclasses import fields

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from txsmtpd.inbox.web.table import ROUTES
from txsmtpd.interfaces import HOOKS
from txsmtpd.log.events import EVENTS, LEVEL_NAMES
from txsmtpd.settings import Settings


def option_lines(names: list[str]) -> Iterator[str]:
    docs = ModuleAnalyzer.for_module(Settings.__module__).find_attr_docs()
    options = {option.name: option for option in fields(Settings)}
    yield f".. py:currentmodule:: {Settings.__module__}"
    for name in names:
        yield ""
        yield f".. py:attribute:: Settings.{name}"
        yield f"   :type: {options[name].type}"
        yield f"   :value: {options[name].default!r}"
        yield ""
        yield from (f"   {line}" for line in docs["Settings", name])


def hook_lines() -> Iterator[str]:
    for name, interface in HOOKS.items():
        hook = interface[name]
        yield ""
        yield f".. py:method:: {name}{hook.getSignatureString()}"
        yield "   :noindex:"
        yield ""
        yield from (f"   {line}" for line in inspect.cleandoc(hook.getDoc()).splitlines())


def event_lines() -> Iterator[str]:
    yield from (
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - event",
        "     - level",
        "     - fields",
        "     - text",
    )
    for event in EVENTS:
        yield f"   * - ``{event.name}``"
        yield f"     - {LEVEL_NAMES[event.level]}"
        yield f"     - {', '.join(f'``{name}``' for name in event.fields)}"
        yield f"     - {event.text}"


def route_lines() -> Iterator[str]:
    yield from (".. list-table::", "   :header-rows: 1", "", "   * - call", "     - what it does")
    for route in ROUTES:
        if route.summary:
            parameters = "".join(f" ``{name}``: {meaning}." for name, meaning in route.parameters.items())
            body = ", ".join(f"``{name}`` ({meaning})" for name, meaning in route.body.items())
            yield f"   * - ``{route.method} {route.path}``"
            yield f"     - {route.summary}{parameters}{f' Body: {body}.' if body else ''}"


class FromTheCode(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return self.parsed(StringList(list(self.lines()), source=f"<{self.name}>"))

    def lines(self) -> Iterator[str]:
        return {"hooks": hook_lines, "log-events": event_lines, "inbox-routes": route_lines}[self.name]()

    def parsed(self, content: StringList) -> list[nodes.Node]:
        node = nodes.container()
        self.state.nested_parse(content, self.content_offset, node)
        return node.children


class OptionsFromTheCode(FromTheCode):
    required_arguments = 1
    final_argument_whitespace = True

    def lines(self) -> Iterator[str]:
        return option_lines(self.arguments[0].split())


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("options", OptionsFromTheCode)
    app.add_directive("hooks", FromTheCode)
    app.add_directive("log-events", FromTheCode)
    app.add_directive("inbox-routes", FromTheCode)
    return {"parallel_read_safe": True}
