"""Figures and tables as the JSON that a page embeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memprobe.dashboard import page
from memprobe.plots import Sketch

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def figure_json(figure: Figure | Sketch) -> dict[str, Any]:
    """A figure as plain JSON without its template, which the page sets by theme."""
    if isinstance(figure, Sketch):
        return {"data": figure.data, "layout": figure.layout}
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


def embedded(value: Any) -> bytes:
    """A value as the bytes of a block of the page."""
    return page.embedded_json(rounded(value)).encode()


def joined(parts: Mapping[str, Any]) -> bytes:
    """Embedded values by key, and by key again, as one embedded value: plain objects of hundreds of figures, kept until
    the last is drawn, would take ten times the room of their text."""
    items = (
        embedded(key) + b":" + (part if isinstance(part, bytes) else joined(part))
        for key, part in parts.items()
    )
    return b"{" + b",".join(items) + b"}"


def rounded(value: Any) -> Any:
    """Numbers with seven digits: more than any figure shows, and half the size."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
