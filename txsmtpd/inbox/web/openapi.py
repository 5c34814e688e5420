"""The OpenAPI 3.1 description of the API, generated from the table of routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from txsmtpd._version import __version__
from txsmtpd.inbox.web.routes import Route


def description(routes: Iterable[Route], path: str = "") -> dict[str, Any]:
    """Return the description of these routes.

    :param path: prefix of all paths.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.summary:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inbox",
            "version": __version__,
            "description": "The API also exists below /in/CRITERION=VALUE/, where it applies only to matching mail.",
        },
        "servers": [{"url": path or "/"}],
        "paths": paths,
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}}
        for name, meaning in route.parameters.items()
    ]
    words = re.sub(r"[^A-Za-z0-9]+", " ", f"{route.method.lower()} {route.path}").split()
    operation: dict[str, Any] = {
        "operationId": words[0] + "".join(word[0].upper() + word[1:] for word in words[1:]),
        "summary": route.summary,
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}, "default": {"description": "An error, in plain text."}},
    }
    if route.body:
        properties = {name: {"description": meaning} for name, meaning in route.body.items()}
        schema = {"type": "object", "properties": properties}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation
