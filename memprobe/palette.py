"""How everything that is drawn looks: colours, markers and dashes of checkpoints, scales, and plotly templates.

A checkpoint is told by colour *and* marker, so that no figure needs colour vision.
"""

from __future__ import annotations

from typing import Any

# Found by search: each at least 3:1 against the light and the dark background, any two at least 0.1 apart in OKLab,
# also as a deuteranope sees them (Machado, Oliveira and Fernandes 2009).
COLOURS = ("#1e78b4", "#e16900", "#2d7800", "#e15aa5", "#9678f0", "#965a78")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
# Dotted lines are chance levels alone: each has a long dash.
DASHES = (
    "solid",
    "10px,4px",
    "10px,3px,2px,3px",
    "28px,5px",
    "16px,4px",
    "16px,3px,2px,3px",
    "10px,3px,2px,3px,2px,3px",
    "4px,3px,10px,3px",
    "16px,3px,4px,3px",
    "22px,3px,2px,3px,2px,3px",
)

# Of steps of training, early to late: hue alone goes on, so that each stays 3:1 against both backgrounds.
ALONG = ("#2f6fd0", "#8a5cd6", "#c94f9b", "#e0603a", "#c98500")

# Dark enough throughout for white text in a cell.
HEAT = ((0, "#241b45"), (0.5, "#2f5d8a"), (1, "#167d61"))

# Lightness goes evenly from that of the page, so that more stands out without colour vision.
SEQUENTIAL = {
    "light": ((0, "#eef3f7"), (0.25, "#b4d0e3"), (0.5, "#6ba3c9"), (0.75, "#2b6ca3"), (1, "#12325c")),
    "dark": ((0, "#20262e"), (0.25, "#214362"), (0.5, "#2f6f9f"), (0.75, "#6db3ec"), (1, "#d8ecfb")),
}

# Of what becomes of a fact: said, only surfacing, absent.
FATES = ("#1e78b4", "#c98500", "#8a919c")
TEMPLATES = {
    "light": {
        "text": "#454b54",
        "grid": "#e9ebee",
        "axis": "#c3c8cf",
        "paper": "#ffffff",
        "faint": "#69707b",
    },
    "dark": {"text": "#b4bac4", "grid": "#2a2f37", "axis": "#474d57", "paper": "#181b20", "faint": "#8f97a3"},
}


def style(position: int) -> dict[str, str]:
    """Colour, marker and dash of the checkpoint at ``position`` in the order in which they were named.

    Sixty in a row share no colour with its dash.
    """
    # Each further round of colours has other markers, open ones, and other dashes.
    turn = position // len(COLOURS)
    suffix = "" if turn % 2 == 0 else "-open"
    return {
        "colour": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[(position + turn) % len(MARKERS)] + suffix,
        "dash": DASHES[turn % len(DASHES)],
    }


def along(n: int) -> list[dict[str, str]]:
    """Looks of ``n`` checkpoints along one training run: early ones blue, late ones orange, evenly between."""
    return [
        {"colour": along_at(at / max(1, n - 1)), "marker": MARKERS[0], "dash": DASHES[0]} for at in range(n)
    ]


def along_at(place: float) -> str:
    """The colour at ``place`` along a training run, which goes from 0 to 1."""
    stops = [_channels(colour) for colour in ALONG]
    at = (len(stops) - 1) * place
    low = min(int(at), len(stops) - 2)
    mixed = [round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def template(theme: str = "light") -> dict[str, Any]:
    """The look of every figure as a plotly template, ``light`` or ``dark``."""
    ink = TEMPLATES[theme]
    axis = {
        "gridcolor": ink["grid"],
        "linecolor": ink["axis"],
        "zeroline": False,
        "ticks": "",
        "title": {"standoff": 8},
        "automargin": True,
    }
    font = {
        "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
        "size": 12,
        "color": ink["text"],
    }
    return {
        "layout": {
            "font": font,
            "paper_bgcolor": ink["paper"],
            "plot_bgcolor": ink["paper"],
            "xaxis": axis | {"showgrid": False, "showline": True},
            "yaxis": axis,
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": ink["paper"], "bordercolor": ink["axis"], "font": font},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 52, "r": 12, "t": 12, "b": 44},
            "colorscale": {"sequential": [list(stop) for stop in SEQUENTIAL[theme]]},
            "shapedefaults": {"line": {"color": ink["faint"], "width": 1}},
            "annotationdefaults": {"font": {"color": ink["faint"], "size": 11}},
        }
    }


def translucent(colour: str, alpha: float) -> str:
    """``#rrggbb`` as ``rgba(…)``."""
    red, green, blue = _channels(colour)
    return f"rgba({red},{green},{blue},{alpha})"


def _channels(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
