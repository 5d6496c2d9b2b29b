"""How every paper figure looks: one style, two widths, the palette of :mod:`memprobe.palette`.

Figures are made without pyplot, so that none is shown, and none stays open.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from polars.exceptions import ColumnNotFoundError

from memprobe import palette, wording
from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = (89, 183)
"""Millimetres: one column and two columns of a journal's page."""
INK, FAINT, PALE = "#22262b", "#7d858f", "#c9ced5"
MM = 1 / 25.4  # inches
MOST_UPRIGHT = 28
"""Letters that fit along a y axis of 38 mm, the least that a panel with such a label has."""
TOKENS = {"first": "first token", "last": "last token", "all": "all tokens"}

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that a figure is the same on every machine
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 4,
    "axes.labelpad": 2.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "legend.labelspacing": 0.3,
    "legend.borderpad": 0.1,
    "legend.borderaxespad": 0.1,
    "text.color": INK,
    "text.parse_math": False,  # labels are text as it stands, whatever it holds
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "lines.markeredgewidth": 0.7,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.03,
    "pdf.fonttype": 42,  # TrueType, as journals ask
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "memprobe",  # ids that do not change from one call to the next
    "savefig.dpi": 300,
}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "x": "X"}
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (2.5, 1.2)),
    (0, (8, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
)
DOTTED = (0, (1, 1.3))  # chance levels alone are dotted
FLOOR = (0, (4, 1.5, 1, 1.5))  # and floors of lenses alone dash-dotted, or grey areas
_SETS = re.compile(r"\bD_([ABCM])\b")

P = ParamSpec("P")
R = TypeVar("R")


def in_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Draws, or saves, in :data:`STYLE`, whatever the user's own settings are."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            try:
                drawn = draw(*args, **kwargs)
            except ColumnNotFoundError as error:
                raise MemprobeError(_other_table(draw.__name__, str(error))) from error
            _typeset(drawn)
            return drawn

    return styled


def _other_table(figure: str, said: str) -> str:
    """A table of something else was given; polars names the column in quotes."""
    missing = re.search(r"[\"'`]([^\"'`]+)[\"'`]", said)
    column = f"has no column {missing[1]!r}" if missing else "has other columns"
    return (
        f"the table of the figure {figure!r} {column}; help(memprobe.figures.{figure}) names all that it needs, "
        "memprobe.figures.of_comparison makes such tables"
    )


def _typeset(drawn: object) -> None:
    """Sets D_A, D_B … as mathematics, in texts that hold one; all other text stays as it stands."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    for text in drawn.findobj(Text) if isinstance(drawn, Figure) else ():
        if _SETS.search(content := text.get_text()):
            text.set_text(_SETS.sub(r"$D_{\\mathrm{\1}}$", content.replace("$", r"\$")))
            text.set_parse_math(True)


def look_along(place: float) -> dict[str, Any]:
    """Colour, marker and dashes of a checkpoint at ``place`` (0 to 1) along its training run, early to late."""
    return look(0) | dict.fromkeys(("color", "markerfacecolor", "markeredgecolor"), palette.along_at(place))


def look(position: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line at ``position``, the colour and marker being those of the dashboard."""
    shared = palette.style(position)
    colour, marker = shared["colour"], shared["marker"]
    return {
        "color": colour,
        "linestyle": _DASHES[(position + position // len(palette.COLOURS)) % len(_DASHES)],
        "marker": _MARKERS[marker.removesuffix("-open")],
        "markerfacecolor": "white" if marker.endswith("-open") else colour,
        "markeredgecolor": colour,
    }


def is_narrow(width: int) -> bool:
    """Whether a figure stands in one column of a page."""
    return width < sum(WIDTHS) / 2


def panels(
    n: int, width: int, *, columns: int | tuple[int, int], height: float, above: float = 0, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of ``n`` panels, ``width`` mm wide, each row of them ``height`` mm high.

    Args:
        columns: at most so many beside each other; two numbers are for one column of a page and for its whole width.
        above: mm kept for a legend on top.
        shared: ``sharex`` and ``sharey`` of the panels.
    """
    from matplotlib.figure import Figure

    if isinstance(columns, tuple):
        columns = columns[not is_narrow(width)]
    rows = math.ceil(n / columns)
    columns = math.ceil(n / rows)  # five panels are three and two, not four and one
    if n < rows * columns:
        above += 6 * (rows - 1)  # each panel has an axis of its own, see name_axes
    figure = Figure(figsize=(width * MM, (height * rows + above) * MM), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    every = list(grid.flat)
    for spare in every[n:]:
        spare.set_axis_off()
    return figure, every[:n]


def apart(figure: Figure) -> None:
    """The last tick of a panel stands off the first one of its neighbour."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(wspace=0.06)


def legend(figure: Figure, handles: Sequence[Any], width: int) -> None:
    """One legend above all panels, in as many columns as fit."""
    if handles:
        columns = legend_columns(handles, width)
        figure.legend(handles=list(handles), labels=_labels(handles), loc="outside upper left", ncols=columns)


def _labels(handles: Sequence[Any]) -> list[str]:
    """What entries are called beside each other."""
    labels = [str(handle.get_label()) for handle in handles]
    names = wording.shortened(labels, 44)
    return [names[label] for label in labels]


def legend_columns(handles: Sequence[Any], width: int) -> int:
    """How many entries fit beside each other, letters being 1.35 mm wide at most sizes of text used here."""
    longest = max(map(len, _labels(handles)))
    return max(1, min(len(handles), int((width - 3) / (longest * 1.35 + 11))))


def legend_height(handles: Sequence[Any], width: int) -> float:
    """Millimetres that :func:`legend` takes."""
    return 3.3 * math.ceil(len(handles) / legend_columns(handles, width)) + 2 if handles else 0


def depth_axis(axes: Axes, depths: pl.Series, beside: float | None = None) -> None:
    """Depths, or blocks, as whole numbers from the first to the last that there is.

    Args:
        depths: those drawn, in any panel.
        beside: depths kept free at both ends; a fiftieth of them all where not given.
    """
    from matplotlib.ticker import MaxNLocator

    first, last = float(depths.to_numpy().min()), float(depths.to_numpy().max())
    pad = beside or 0.02 * (last - first) or 0.5
    axes.set_xlim(first - pad, last + pad)
    # From one tick on: of two, a single depth would have fractions beside it.
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def percent_axis(axis: Any, decimals: int | None = 0) -> None:
    """Shares, written as per cent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=decimals))


def shortened(text: str, length: int, among: Iterable[str] = ()) -> str:
    """A label that fits into so many letters where it can, told apart from those that it stands among."""
    return wording.shortened(list(dict.fromkeys([text, *among])), length)[text]


def panel_title(axes: Axes, text: str, length: int, among: Iterable[str] = ()) -> None:
    """The title of a panel, on two lines where one of so many characters does not hold it.

    Args:
        among: titles of all panels.
    """
    lines = textwrap.wrap(text, length, break_on_hyphens=False)
    if len(lines) > 2 or any(len(line) > length for line in lines):
        lines = [shortened(text, length, among)]
    axes.set_title("\n".join(lines))


# ---------------------------------------------------------------------------------------------------------------
# What several figures need
# ---------------------------------------------------------------------------------------------------------------


def rule(token: str) -> str:
    """A token rule as part of an axis label; the usual one needs none."""
    return "" if token == "first" else f" ({TOKENS[token]})"


def name_axes(figure: Figure, every: Sequence[Axes], x: str, y: str) -> None:
    """Labels of all panels together; where the last row is not full, each panel has its own below it.

    A label of the y axis that is longer than the lowest panels are high is broken into lines.
    """
    y = "\n".join(textwrap.fill(line, MOST_UPRIGHT, break_on_hyphens=False) for line in y.split("\n"))
    if len(every) == 1:
        every[0].set_xlabel(x)
        every[0].set_ylabel(y)
        return
    if len(figure.axes) > len(every):
        for axes in every:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(x)
    else:
        figure.supxlabel(x, fontsize=7, color=INK)
    figure.supylabel(y, fontsize=7, color=INK)


def name_rows(every: Sequence[Axes], rows: Sequence[str], width: int) -> None:
    """Names of rows from top to bottom."""
    names = wording.shortened(rows, 24 if is_narrow(width) else 36)
    for axes in every:
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels([names[row] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)


def rows_height(rows: int, series: int) -> float:
    """Millimetres of so many rows with so many points below each other in each."""
    return rows * (4.4 if series == 1 else 2.4 * series + 1)


def dodge(position: int, n: int, over: float = 0.5) -> float:
    """Where the ``position``-th of ``n`` points of one row stands, so that they do not cover each other."""
    return 0.0 if n < 2 else over * (position / (n - 1) - 0.5)


def groups(table: pl.DataFrame, *keys: str) -> Iterator[tuple[tuple[Any, ...], pl.DataFrame]]:
    """Parts of a table, in order of appearance."""
    yield from table.group_by(*keys, maintain_order=True)


def band(
    axes: Axes,
    rows: pl.DataFrame,
    x: str,
    ends: tuple[str, str],
    where: str,
    *,
    alpha: float = 0.2,
    **more: Any,
) -> None:
    """The interval of a line, as a band in its colour.

    Args:
        rows: of the line.
        x, ends: columns: where, and from where to where.
        where: of the line; the band's id is ``WHERE/band``.
        more: for ``fill_between``, ``color`` among it.
    """
    low, high = (numbers(rows, end) for end in ends)
    axes.fill_between(rows[x].to_list(), low, high, alpha=alpha, linewidth=0, gid=f"{where}/band", **more)


def numbers(rows: pl.DataFrame, column: str) -> list[float]:
    """A column as matplotlib reads it."""
    return [nan(value) for value in rows[column].to_list()]


def nan(value: float | None) -> float:
    """What is not known is not drawn."""
    return float("nan") if value is None else float(value)


def not_empty(table: pl.DataFrame, column: str) -> None:
    """Raises a MemprobeError for a table without rows, or without that column."""
    if column not in table.columns or not len(table):
        raise MemprobeError(f"a figure of {column} needs a table with rows and that column")


def handle(label: str, **marks: Any) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **marks)


def seeds_along(
    x: Sequence[float], rows: pl.DataFrame, column: str
) -> Iterator[tuple[str, list[float], list[float], bool]]:
    """Each seed's points along ``x``: what they are, where they stand, their values, and whether a line joins them.

    A seed that did not learn one of the settings has no point there. Data of old, without ``seed_numbers``, do not say
    whose values they are: its points are told by where they stand, and not joined.
    """
    lists = rows[column].to_list()
    if "seed_numbers" not in rows.columns:
        for at, values in zip(x, lists, strict=True):
            yield f"seeds at {at}", [at] * len(values), [nan(value) for value in values], False
        return
    points: dict[int, list[tuple[float, float]]] = {}
    for at, seeds, values in zip(x, rows["seed_numbers"].to_list(), lists, strict=True):
        for seed, value in zip(seeds, values, strict=True):
            points.setdefault(seed, []).append((at, nan(value)))
    for seed, of_seed in sorted(points.items()):
        yield f"seed {seed}", [at for at, _ in of_seed], [value for _, value in of_seed], True


def with_interval(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows whose mean over seeds has an interval: three seeds or more."""
    return rows.drop_nulls("low") if "low" in rows.columns else rows.clear()
