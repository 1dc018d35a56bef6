"""Render the map as one HTML file that needs nothing else; lend the page's files to its server.

Everything in it that others have named goes through JSON, and into the page as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from plugin.escape import escape

STYLE, SCRIPTS, PAGE = "map.css", ("shape.js", "details.js", "map.js"), "map.html"
KINDS = {PAGE: "text/html", STYLE: "text/css", **dict.fromkeys(SCRIPTS, "text/javascript")}


def read_file(name: str) -> str:
    """Return one of the page's files."""
    return files("plugin.cli").joinpath("page", name).read_text(encoding="utf-8")


def make_visible(value: Any) -> Any:
    """Return a value of JSON with all that does not show, or turns text around, made visible."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {escape(str(key)): make_visible(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [make_visible(each) for each in value]
    return value


def render_page(shown: dict[str, Any]) -> str:
    """Return the page with a map in it, which asks nobody for anything and runs nothing else."""
    page, style = read_file(PAGE), read_file(STYLE)
    scripts = {name: read_file(name) for name in SCRIPTS}
    allowed = " ".join(map(_hash, scripts.values()))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {allowed}"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page = _put(page, f'<link rel="stylesheet" href="{STYLE}">', f"{meta}\n<style>{style}</style>")
    data = f'<script id="data" type="application/json">{_encode(shown)}</script>'
    for number, (name, script) in enumerate(scripts.items()):
        before = f"{data}\n" if number == 0 else ""
        page = _put(page, f'<script src="{name}"></script>', f"{before}<script>{script}</script>")
    return page


def _put(page: str, place: str, text: str) -> str:
    before, found, after = page.partition(place)
    if not found:
        raise LookupError(f"render the page: {PAGE} has no {place}")
    return f"{before}{text}{after}"


def _hash(text: str) -> str:
    """Return what a policy calls a script or a style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _encode(shown: dict[str, Any]) -> str:
    """Return JSON in which nothing ends the element that it is in."""
    text = json.dumps(make_visible(shown), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
