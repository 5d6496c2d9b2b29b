"""The files of the page, and how one HTML file is put together from them.

    shell.html    head, security policy, the order of the parts
    report.html   markup of the report            report.js  explorer.js  start.js  watch.js
    patches.html  markup of a page on patches                             patches.js, also of the room in the report
    prompt.html   markup of a page on one prompt                          prompt.js
    style.css     the look of both                core.js    what both share

Data stand in the page as JSON or as blocks (zlib, base64) in script elements of a type that no browser
executes. The Content-Security-Policy names the hash of each script that may run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

PLOTLY = "plotly.min.js"

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def assemble(
    *,
    title: str,
    body: str,
    scripts: Sequence[str],
    data: Mapping[str, Any],
    blocks: Mapping[str, bytes],
    connects: bool = False,
) -> str:
    """One HTML file.

    Args:
        title: of the window.
        body: name of the markup file.
        scripts: names of script files in the order in which they run; :data:`PLOTLY` is the one of the
            installed plotly package.
        data: element id -> what the scripts read at once, as JSON.
        blocks: name -> bytes that the scripts inflate when they need them; a name may be any text, such as a file's.
        connects: whether the page may ask the server that it came from, and no other.
    """
    sources = [_plotly() if name == PLOTLY else _file(name) for name in scripts]
    parts = {
        "policy": html.escape(_policy(sources, connects)),
        "title": html.escape(title),
        "style": _file("style.css"),
        "body": _file(body),
        "data": "\n".join(
            f'<script type="application/json" id="{html.escape(name)}">{embedded_json(value)}</script>'
            for name, value in data.items()
        ),
        "scripts": "\n".join(f"<script>{source}</script>" for source in sources),
        "blocks": "\n".join(
            f'<script type="text/plain" id="block-{html.escape(name)}">{_packed(raw)}</script>'
            for name, raw in blocks.items()
        ),
    }
    # One pass: what is put in is never looked at again.
    return _SLOT.sub(lambda slot: parts[slot[1]], _file("shell.html"))


def _packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 9)).decode()


def embedded_json(value: Any) -> str:
    """JSON that can stand in a script element: with no ``<``, nothing in it can end the element or open a comment.

    NaN and infinity are refused: they are not JSON.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )


def _policy(sources: Sequence[str], connects: bool) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in sources
    )
    own = "connect-src 'self'; " if connects else ""
    # plotly.js sets styles from script and makes images of figures from blob: and data: addresses.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"{own}base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8").rstrip("\n")


def _plotly() -> str:
    return resources.files("plotly").joinpath("package_data", PLOTLY).read_text(encoding="utf-8")
