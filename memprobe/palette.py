"""How everything that is drawn looks: colours, markers and dashes of checkpoints, scales, and plotly templates.

A checkpoint is told by colour *and* marker, so that no figure needs colour vision.
"""

from __future__ import annotations

from typing import Any

# After Okabe and Ito (2008), moved so that each is at least 3:1 against the light and the dark background.
COLOURS = ("#2577b8", "#d05a14", "#128a6e", "#b8569a", "#a67c00", "#6f6ad1")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
DASHES = ("solid", "dash", "dashdot")

# Dark enough throughout for white text in a cell.
HEAT = ((0, "#241b45"), (0.5, "#2f5d8a"), (1, "#1a8a6c"))

# Lightness goes evenly from that of the page, so that more stands out without colour vision.
SEQUENTIAL = {
    "light": ((0, "#eef3f7"), (0.25, "#b4d0e3"), (0.5, "#6ba3c9"), (0.75, "#2b6ca3"), (1, "#12325c")),
    "dark": ((0, "#20262e"), (0.25, "#214362"), (0.5, "#2f6f9f"), (0.75, "#6db3ec"), (1, "#d8ecfb")),
}

# Of what becomes of a fact: said, only surfacing, absent.
FATES = ("#128a6e", "#d49a1e", "#8a919c")
TEMPLATES = {
    "light": {
        "text": "#454b54",
        "grid": "#e9ebee",
        "axis": "#c3c8cf",
        "paper": "#ffffff",
        "faint": "#8a919c",
    },
    "dark": {"text": "#b4bac4", "grid": "#2a2f37", "axis": "#474d57", "paper": "#181b20", "faint": "#7d8591"},
}


def style(position: int) -> dict[str, str]:
    """Colour, marker and dash of the checkpoint at ``position`` in the order in which they were named."""
    # Each further round of colours has other markers, open ones, and other dashes.
    turn = position // len(COLOURS)
    suffix = "" if turn % 2 == 0 else "-open"
    return {
        "colour": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[(position + turn) % len(MARKERS)] + suffix,
        "dash": DASHES[turn % len(DASHES)],
    }


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
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
