"""Curves over depth, and depth × checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.figures import look as style
from memprobe.wording import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BANDS = 6
"""Lines of one panel that are drawn with their intervals and chance levels, and named in the legend one by one."""


@style.in_style
def recall(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Recall@k by depth; dotted, the level that shuffled answers reach.

    The 95 % band is drawn where a line has no seeds beside it: there the seeds show how far to trust it.

    Args:
        table: [panel, line, seed, exact, depth, recall, recall_low, recall_high, chance]; ``seed`` is null where
            a line is one checkpoint, ``exact`` the share of exact matches. Of a fitted lens also ``floor``, how far
            two fits read apart; a grey line.
        k, token: named on the axis.
        width: millimetres.
    """
    return _curves(
        table,
        "recall",
        width=width,
        label=f"recall@{k}{style.rule(token)}",
        edges=("recall_low", "recall_high"),
        chance="chance",
        top=1.0,
    )


@style.in_style
def frequency(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Normalised frequency by depth, accuracy in the legend (Chen et al., figure 4, left).

    Args:
        table: as of :func:`recall`, with ``frequency``, null at depth 0 and where nothing occurs.
        k, token, width: as there.
    """
    label = f"share of occurrences{style.rule(token)}\nin the top {k}"
    return _curves(table, "frequency", width=width, label=label, accuracy=True)


@style.in_style
def survival(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Share of factoids that have not surfaced by each depth (Kaplan & Meier 1958), with its 95 % band.

    A bar at the last depth is the interval of the share that never surfaces, where the band ends.

    Args:
        table: as of :func:`recall`, with ``survival``, ``low`` and ``high``.
        k, token, width: as there.
    """
    label = f"not yet in the top {k}{style.rule(token)}"
    return _curves(table, "survival", width=width, label=label, edges=("low", "high"), top=1.0, stepwise=True)


def _curves(
    table: pl.DataFrame,
    value: str,
    *,
    width: int,
    label: str,
    edges: tuple[str, str] | None = None,
    chance: str | None = None,
    top: float | None = None,
    stepwise: bool = False,
    accuracy: bool = False,
) -> Figure:
    """Lines over depth in panels: each line one checkpoint, or one stage of an arm with all its seeds."""
    style.not_empty(table, value)
    names = table["panel"].unique(maintain_order=True).to_list()
    lines = table["line"].unique(maintain_order=True).to_list()
    seeded = table["seed"].null_count() < len(table)
    looks = _looks(table, lines)
    many = len(lines) > MOST_BANDS
    alone = len(names) == 1  # a legend above several panels has no room for what differs between them
    handles = _line_handles(table, lines, accuracy=accuracy and alone and not seeded)
    if chance is not None and table[chance].null_count() < len(table):
        handles.append(style.handle("shuffled answers", color=style.FAINT, linestyle=style.DOTTED))
    floor = (
        table.filter(pl.col("floor").is_not_null())
        if value == "recall" and "floor" in table.columns
        else None
    )
    if floor is not None:
        handles.append(style.handle("the lens’s floor", color=style.FAINT, linestyle=style.FLOOR))
    figure, every = style.panels(
        len(names),
        width,
        columns=(2, 4),
        height=(54 if style.is_narrow(width) else 66)
        if len(names) == 1
        else (38 if style.is_narrow(width) else 40),
        above=style.legend_height(handles, width),
        sharex=True,
        sharey=True,
    )
    begun = table.filter(pl.col(value).is_not_null())["depth"]  # no block occurs at depth 0
    drawstyle = "steps-post" if stepwise else "default"
    for axes, name in zip(every, names, strict=True):
        for (line, seed), rows in style.groups(table.filter(panel=name), "line", "seed"):
            marks = dict(looks[line])
            if seed is not None:
                marks["linestyle"] = "-"
            where = f"{name}/{line}/{'' if seed is None else seed}"
            x, y = rows["depth"].to_list(), style.numbers(rows, value)
            if edges is not None and seed is None and not many:
                alpha, step = 0.24 / max(1, len(lines)) ** 0.5, "post" if stepwise else None
                style.band(axes, rows, "depth", edges, where, alpha=alpha, step=step, color=marks["color"])
                if stepwise:  # the last step has no width
                    _bar_at_the_end(axes, rows, edges, where, lines.index(line), marks["color"])
            if chance is not None and (not many or line == lines[-1]):
                axes.plot(
                    x,
                    style.numbers(rows, chance),
                    color=marks["color"],
                    linestyle=style.DOTTED,
                    lw=0.9,
                    gid=f"{where}/chance",
                )
            axes.plot(
                x,
                y,
                **marks,
                linewidth=1.1 if seed is None else 0.7,
                markersize=3 if seed is None else 2,
                markevery=_every(len(x), lines.index(line), 8 if len(names) > 1 else 16),
                drawstyle=drawstyle,
                clip_on=False,
                zorder=3,
                gid=f"{where}/line",
            )
        if floor is not None:
            height = floor.filter(panel=name).group_by("depth").agg(pl.col("floor").max()).sort("depth")
            axes.plot(
                height["depth"],
                height["floor"],
                color=style.FAINT,
                linestyle=style.FLOOR,
                lw=0.9,
                gid=f"{name}/floor",
            )
        if name:
            style.panel_title(axes, name, 22 if len(names) > 1 else 60, names)
        if accuracy and not (alone and not seeded):
            _write_accuracy(axes, table.filter(panel=name), lines)
        style.depth_axis(axes, begun if len(begun) else table["depth"])
        axes.set_ylim(0, top)
        style.percent_axis(axes.yaxis, 0 if axes.get_ylim()[1] >= 0.1 else None)
    style.name_axes(figure, every, "depth", label)
    style.legend(figure, handles, width)
    return figure


def _bar_at_the_end(
    axes: Axes, rows: pl.DataFrame, edges: tuple[str, str], where: str, position: int, colour: str
) -> None:
    """The interval of a line at its last depth, beside its last drop and those of the lines before it."""
    last = rows.sort("depth").tail(1)
    low, high = (style.numbers(last, edge) for edge in edges)
    beside = 0.006 * (position + 1) * last["depth"][0]
    axes.vlines(
        [last["depth"][0] + beside],
        low,
        high,
        color=colour,
        linewidth=0.9,
        clip_on=False,
        gid=f"{where}/last",
    )


def _every(n: int, position: int, wanted: int) -> list[int]:
    """Which points of a line carry its marker: about ``wanted``, not the same ones as the next line's, and the last."""
    step = max(1, round(n / wanted))
    return sorted({*range(position % step, n, step), n - 1})


def _line_handles(table: pl.DataFrame, lines: Sequence[str], *, accuracy: bool) -> list[Any]:
    seeded = set(table.filter(pl.col("seed").is_not_null())["line"])
    exact = {line: table.filter(line=line)["exact"].drop_nulls().to_list()[:1] for line in lines}
    looks = _looks(table, lines)
    # Along a run the colour says what lies between; a legend of twenty would be longer than the figure.
    last, places = len(lines) - 1, _places(table)
    along = last >= MOST_BANDS and all(places.get(line) is not None for line in lines)
    shown = {round(last * at / 4) for at in range(5)} if along else set(range(len(lines)))
    return [
        style.handle(
            line + (f", {100 * exact[line][0]:.3g}% exact" if accuracy and exact[line] else ""),
            **looks[line] | ({"linestyle": "-"} if line in seeded else {}),
        )
        for position, line in enumerate(lines)
        if position in shown
    ]


def _looks(table: pl.DataFrame, lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each line looks: along a training run by its place there, early to late, else by its place among all."""
    places = _places(table)
    return {
        line: style.look(position) if (place := places.get(line)) is None else style.look_along(place)
        for position, line in enumerate(lines)
    }


def _places(table: pl.DataFrame) -> dict[str, float | None]:
    """Of each line, its place along its training run, where it has one."""
    return dict(table.select("line", "along").unique().iter_rows()) if "along" in table.columns else {}


def _write_accuracy(axes: Axes, table: pl.DataFrame, lines: Sequence[str]) -> None:
    """Exact match of each line's seeds, a row of numbers in the line's colour."""
    row = 0
    for (line,), rows in style.groups(table, "line"):
        by_seed = rows.group_by("seed", maintain_order=True).agg(pl.col("exact").first())["exact"].to_list()
        shares = ", ".join(f"{100 * value:.3g}" for value in by_seed if value is not None)
        if shares:
            axes.annotate(
                f"{shares} % exact",
                (0.03, 0.99),
                xycoords="axes fraction",
                xytext=(0, -7 * row),
                textcoords="offset points",
                va="top",
                fontsize=5.5,
                color=_looks(table, lines)[line]["color"],
                gid=f"{line}/exact",
            )
            row += 1


@style.in_style
def heatmap(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Recall@k, depth × checkpoint.

    Args:
        table: [panel, group, row, depth, recall], rows in order from top to bottom; those of a group (an arm's seeds)
            stand together under its name.
        k, token, width: as of :func:`recall`.
    """
    from matplotlib.colors import LinearSegmentedColormap

    style.not_empty(table, "recall")
    names = table["panel"].unique(maintain_order=True).to_list()
    rows_of = {name: table.filter(panel=name)["row"].unique(maintain_order=True).to_list() for name in names}
    most = max(map(len, rows_of.values()))
    columns = 1 if style.is_narrow(width) else 2
    row_height = max(1.7, min(5.0, 200 / most / -(-len(names) // columns)))
    figure, every = style.panels(
        len(names), width, columns=columns, height=row_height * most + (12 if names != [""] else 9), above=9
    )
    blues = LinearSegmentedColormap.from_list(
        "memprobe", ["#f4f7fb", "#a9c8e2", "#2577b8", "#123a63", "#0a1c33"]
    )
    groups = table["group"].unique(maintain_order=True).to_list()
    names_of = shortened(groups, 24 if style.is_narrow(width) else 30)
    mesh = None
    for axes, name in zip(every, names, strict=True):
        part, labels = table.filter(panel=name), rows_of[name]
        depths = sorted(part["depth"].unique().to_list())
        values = {(row, depth): value for row, depth, value in part.select("row", "depth", "recall").rows()}
        cells = [[style.nan(values.get((label, depth))) for depth in depths] for label in labels]
        mesh = axes.pcolormesh(
            [depth - 0.5 for depth in [*depths, depths[-1] + 1]],
            range(len(labels) + 1),
            cells,
            cmap=blues,
            vmin=0,
            vmax=1,
            edgecolors="white",
            linewidth=0.25,
            gid=f"{name}/cells",
        )
        axes.invert_yaxis()
        sizes = (
            part.select("group", "row")
            .unique(maintain_order=True)
            .group_by("group", maintain_order=True)
            .len()
        )
        ends = [0, *sizes["len"].cum_sum().to_list()]
        axes.set_yticks([(start + end) / 2 for start, end in pairwise(ends)])
        axes.set_yticklabels(
            [names_of[group] for group in sizes["group"]],
            fontsize=6.5 if min(sizes["len"]) * row_height >= 2.8 else 5,
        )
        if any(size > 1 for size in sizes["len"]):
            axes.hlines(ends[1:-1], depths[0] - 0.5, depths[-1] + 0.5, color="white", linewidth=1.4)
        style.depth_axis(axes, part["depth"], 0.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("depth")
        if name:
            axes.set_title(style.shortened(name, 40, names))
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=every, location="top", aspect=40, shrink=0.6, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(f"recall@{k}{style.rule(token)}", fontsize=7)
    bar.ax.tick_params(labelsize=6.5, width=0.6, length=2)
    style.percent_axis(bar.ax.xaxis)
    return figure
