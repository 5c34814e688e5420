"""Trim the data of caniemail.com: which features of HTML and CSS each mail program supports, in its latest version.

The output has only features that can be found in a document by their name, and that some program does not support.

    caniemail.py CANIEMAIL.JSON OUTPUT.JSON
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

HTML = (
    (r"<([a-z0-9]+)>(?: element)?", "element"),
    (r"([a-z-]+) element", "element"),
    (r"([a-z-]+) attribute", "attribute"),
)
CSS = (
    (r"([a-z]+(?:-[a-z]+)*)(?: property)?", "property"),
    (r"([a-z-]+: ?[a-z]+)", "value"),
    (r"(@[a-z-]+)", "rule"),
    (r"([a-z-]+)\(\)", "function"),
    (r"(::?[a-z-]+)", "selector"),
)
NAMED = {
    "html-h1-h6": ("element", "h[1-6]"),
    "html-lists": ("element", "ul|ol|dl"),
    "html-srcset": ("attribute", "srcset|sizes"),
    "html-svg": ("element", "svg"),
    "html-image-maps": ("element", "map"),
}


def sign_of(feature: dict[str, Any]) -> tuple[str, str] | None:
    """Return how to find a feature in a document: a kind and a name. None: it cannot be found."""
    if feature["slug"] in NAMED:
        return NAMED[feature["slug"]]
    patterns = {"html": HTML, "css": CSS}.get(feature["category"], ())
    for pattern, kind in patterns:
        match = re.fullmatch(pattern, feature["title"].strip())
        if match is not None:
            return kind, match[1].replace(" ", "")
    return None


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        data = json.load(file)
    clients = sorted(
        {(family, place) for each in data["data"] for family, places in each["stats"].items() for place in places}
    )
    features = []
    for each in data["data"]:
        sign = sign_of(each)
        results = []
        for number, (family, place) in enumerate(clients):
            versions = each["stats"].get(family, {}).get(place)
            if versions:
                version, support = list(versions.items())[-1]
                note = re.search(r"#(\d+)", support)
                results.append([number, version, support[0], note[1] if note else ""])
        if sign is None or all(support == "y" for _, _, support, _ in results):
            continue
        features.append(
            {
                **{name: each[name] or "" for name in ("slug", "description", "category", "keywords")},
                "title": each["title"].strip(),
                "tags": each["tags"] or [],
                "sign": sign,
                "results": results,
                "notes": each["notes_by_num"] or {},
            }
        )
    names = {kind: data["nicenames"][kind] for kind in ("family", "platform")}
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        head = {"updated": data["last_update_date"], "names": names, "clients": clients}
        file.write(_text(head)[:-1] + ',"features":[\n')
        file.write(",\n".join(map(_text, features)) + "\n]}\n")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


main()
