"""Checks how well mail programs support the HTML of a message: compares the HTML and CSS features it uses with the data
of caniemail.com, which is in ``static/vendor``.

Features are found by name in one pass over the document. Nothing is fetched, so external stylesheets do not count.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "static/vendor/caniemail.json"
LONGEST = 2**20  # characters to examine
SUPPORT = {"y": "yes", "n": "no", "a": "partial", "m": "partial", "u": "unknown"}

_TAG = re.compile(r"<([a-zA-Z][a-zA-Z0-9]*)((?:\s[^<>]{0,20000})?)>")
_ATTRIBUTE = re.compile(r"""([a-zA-Z][a-zA-Z-]{0,50})(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")
_STYLE = re.compile(r"<style\b[^<>]*>([^<]*)", re.I)
# The lookbehind matches only at the start of a name; otherwise each letter of a long name would be tried.
_DECLARATION = re.compile(r"(?<![a-zA-Z-])([a-zA-Z-]{2,50})\s*:\s*([^;{}]{0,500})")
_RULE = re.compile(r"@[a-zA-Z-]{2,50}")
_FUNCTION = re.compile(r"(?<![a-zA-Z-])([a-zA-Z-]{2,50})\(")
_SELECTOR = re.compile(r"::?[a-zA-Z][a-zA-Z-]{1,50}")

Found = dict[str, Counter[str]]


@cache
def _data() -> Any:
    return json.loads(DATA.read_text("utf-8"))


def check(markup: str) -> dict[str, Any]:
    """Return the result of Mailpit's HTML check."""
    found, nodes = _features(markup[:LONGEST])
    data = _data()
    warnings = [warning for feature in data["features"] if (warning := _warning(feature, found, data)) is not None]
    scores = [warning["Score"] for warning in warnings]
    total = {
        name: round(sum(score[name] for score in scores) / len(scores), 2)
        if scores
        else float(name == "Supported") * 100
        for name in ("Supported", "Partial", "Unsupported")
    }
    platforms: dict[str, list[str]] = {}
    for family, place in data["clients"]:
        platforms.setdefault(place, []).append(data["names"]["family"].get(family, family))
    warnings.sort(key=lambda warning: (warning["Score"]["Supported"], warning["Slug"]))
    return {
        "Platforms": platforms,
        "Total": {"Tests": len(data["features"]), "Nodes": nodes, **total},
        "Warnings": warnings,
    }


def _features(markup: str) -> tuple[Found, int]:
    """Return the names used in a document, by kind, and the number of elements."""
    found: Found = {
        kind: Counter() for kind in ("element", "attribute", "property", "value", "rule", "function", "selector")
    }
    styles = _STYLE.findall(markup)
    for tag in _TAG.finditer(markup):
        found["element"][tag[1].lower()] += 1
        for name, *values in _ATTRIBUTE.findall(tag[2]):
            found["attribute"][name.lower()] += 1
            if name.lower() == "style":
                _read_style("".join(values), found)
    for style in styles:
        _read_style(style, found)
        found["rule"].update(rule.lower() for rule in _RULE.findall(style))
        found["selector"].update(selector.lower() for selector in _SELECTOR.findall(style))
    return found, found["element"].total()


def _read_style(style: str, found: Found) -> None:
    for name, value in _DECLARATION.findall(style):
        found["property"][name.lower()] += 1
        for word in value.lower().split():
            found["value"][f"{name.lower()}:{word}"] += 1
    found["function"].update(name.lower() for name in _FUNCTION.findall(style))


def _warning(feature: Mapping[str, Any], found: Found, data: Any) -> dict[str, Any] | None:
    kind, name = feature["sign"]
    pattern = re.compile(name if kind in ("element", "attribute") else re.escape(name))
    times = sum(count for each, count in found[kind].items() if pattern.fullmatch(each))
    if not times:
        return None
    results = list(_results(feature, data))
    known = [each["Support"] for each in results if each["Support"] != "unknown"]
    shares = {
        name: round(100 * known.count(support) / max(1, len(known)), 2)
        for name, support in (("Supported", "yes"), ("Partial", "partial"), ("Unsupported", "no"))
    }
    return {
        "Slug": feature["slug"],
        "Title": feature["title"],
        "Description": feature["description"],
        "URL": f"https://www.caniemail.com/features/{feature['slug']}/",
        "Category": feature["category"],
        "Tags": feature["tags"],
        "Keywords": feature["keywords"],
        "Results": results,
        "NotesByNumber": feature["notes"],
        "Score": {"Found": times, **shares},
    }


def _results(feature: Mapping[str, Any], data: Any) -> Iterable[dict[str, str]]:
    for number, version, support, note in feature["results"]:
        family, place = data["clients"][number]
        name = data["names"]["family"].get(family, family)
        platform = data["names"]["platform"].get(place, place)
        yield {
            "Name": f"{name} {platform} ({version})",
            "Platform": place,
            "Family": family,
            "Version": version,
            "Support": SUPPORT.get(support, "unknown"),
            "NoteNumber": note,
        }
