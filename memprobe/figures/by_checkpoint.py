"""One number per checkpoint, or per arm with its seeds: first occurrence, paired differences, spread, kept facts."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.figures import look as style
from memprobe.statistics.vocabulary import STATISTICS, axis, label
from memprobe.statistics.vocabulary import panels as panels_of_differences
from memprobe.wording import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACEMENT = ("lof_mean", "lof_sd", "share_never", "effective_layers")
"""Panels of :func:`first_occurrence`: statistics of placement."""
DIFFERENCES = panels_of_differences()
"""Panels of :func:`differences`: statistics of a fact; one column of a page has room for the first three."""
_TOO_FEW = "without a line: too few for an interval, or without scatter"


@style.in_style
def first_occurrence(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Layer of first occurrence and diversity, checkpoint by checkpoint or arm by arm (Chen et al., figure 4, right).

    A grey bar is the mean ± one standard deviation over factoids, as far as there are depths; a dark line is a 95 %
    interval; seeds are dots.

    Args:
        table: [row, series, statistic, value, low, high, sd, by_seed, along]; ``series`` tells stages of one arm
            apart, ``by_seed`` is a list, null where the row is one checkpoint, ``along`` its place along its run. Of a
            fitted lens also ``floor``, how far two fits place the mean apart: a grey bar of that width. ``n_layers``
            is where a grey bar ends; tables of old lack it.
        k, token: named below.
        width: millimetres; one column has room for the first and the third of :data:`PLACEMENT`.
    """
    style.not_empty(table, "statistic")
    shown = list(PLACEMENT) if width >= 120 else ["lof_mean", "share_never"]
    shown = [name for name in shown if name in set(table["statistic"])]
    series = table["series"].unique(maintain_order=True).to_list()
    rows = table["row"].unique(maintain_order=True).to_list()
    in_row = {row: table.filter(row=row)["series"].unique(maintain_order=True).to_list() for row in rows}
    spread = any(value is not None for value in table["sd"].to_list())
    handles = [
        style.handle(name, **style.look(i) | {"linestyle": ""}) for i, name in enumerate(series) if name
    ]
    if any(value is not None for value in table["low"].to_list()):
        handles.append(style.handle("95 % interval", color=style.INK, linewidth=1.2))
    if spread:
        handles.append(style.handle("± sd over facts", color=style.PALE, linewidth=2.6))
    figure, every = style.panels(
        len(shown),
        width,
        columns=len(shown),
        height=style.rows_height(len(rows), max(map(len, in_row.values()))) + 13,
        above=style.legend_height(handles, width),
        sharey=True,
    )
    for axes, statistic in zip(every, shown, strict=True):
        for row in table.filter(statistic=statistic).iter_rows(named=True):
            here = in_row[row["row"]]
            at = rows.index(row["row"]) + style.dodge(here.index(row["series"]), len(here))
            where = f"{row['row']}/{row['series']}/{statistic}"
            along = row.get("along")
            marks = style.look(series.index(row["series"])) if along is None else style.look_along(along)
            point(axes, row, at, marks, where)
        if floor := _floor(table, statistic):
            start = axes.get_xlim()[0]
            place = axes.get_xaxis_transform()
            axes.plot(
                [start, start + floor],
                [0.98] * 2,
                color=style.FAINT,
                lw=3,
                transform=place,
                gid=f"{statistic}/floor",
            )
        beside = ", mean ± sd" if spread and statistic == "lof_mean" else ""
        axes.set_xlabel(fill(axis(statistic, k=k) + beside, 20))
        if STATISTICS[statistic].share:
            style.percent_axis(axes.xaxis)
            axes.set_xlim(0, max(0.05, 1.1 * axes.dataLim.x1))
        else:
            axes.margins(x=0.08)
        axes.grid(axis="x", color=style.PALE, linewidth=0.4)
    style.name_rows(every, rows, width)
    style.apart(figure)
    notes = [f"token rule: {style.TOKENS[token]}"] if token != "first" else []
    in_sight = table.filter(pl.col("statistic").is_in(shown))
    notes += [_TOO_FEW] if _without_line(in_sight.filter(pl.col("value").is_not_null())) else []
    notes += [f"seeds alone for {listed(alone)}"] if (alone := _seeds_alone(in_sight)) else []
    notes += (
        [f"bar on top: the lens’s floor, {_floor(table, 'lof_mean'):.2g}"] if "floor" in table.columns else []
    )
    if notes:
        said = "\n".join(wrap("; ".join(notes), 62 if style.is_narrow(width) else 120))
        figure.supxlabel(said, fontsize=6.5, color=style.FAINT)
    style.legend(figure, handles, width)
    return figure


@style.in_style
def differences(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Forest plot: differences from a reference, paired by factoid (checkpoints) or over seeds (arms).

    Grey: the 95 % interval holds 0, or there is none, and no line. Filled: the difference is on the same side in the
    checkpoints' own readout and in the base model's; open: it is not, or the latter was not probed. Exact match needs
    no readout: beside such claims it is filled where its interval leaves 0 out.

    Args:
        table: [row, reference, statistic, difference, low, high, held]; one reference throughout. Of a fitted lens
            also ``floor``, how far two fits place the mean apart; grey around 0. ``readout``, where it is there, is
            named below.
        k, token: named below.
        width: millimetres; one column has room for the first three of :data:`DIFFERENCES`.
    """
    style.not_empty(table, "difference")
    shown = [name for name in DIFFERENCES if name in set(table["statistic"])]
    shown = shown if width >= 120 else shown[:3]
    rows = table["row"].unique(maintain_order=True).to_list()
    colour = style.look(0)["color"]
    placed = table.filter(pl.col("statistic") != "exact")
    unknown = placed["held"].is_null().all()  # whether claims hold was not asked, as between arms
    sure = table.filter((pl.col("low") > 0) | (pl.col("high") < 0), statistic="exact")
    exact = not unknown and "exact" in shown and len(sure) > 0
    both = any(placed["held"].to_list())
    readout = table["readout"][0] if "readout" in table.columns else None
    one_alone = "in the own readout" if readout in (None, "own") else "in this readout"
    handles = [
        style.handle(
            text, color=colour, marker="o", linestyle="", markerfacecolor=fill, markeredgecolor=colour
        )
        for text, fill, wanted in (
            ("in both readouts" + exact * ", or exact match", colour, both),
            ("exact match, interval leaves 0 out", colour, exact and not both),
            ("interval leaves 0 out" if unknown else one_alone, "white", not all(placed["held"].to_list())),
        )
        if wanted
    ]
    handles.append(
        style.handle("interval holds 0", color=style.FAINT, marker="o", linestyle="", markerfacecolor="white")
    )
    if "floor" in table.columns:
        handles.append(style.handle("the lens’s floor", color=style.FAINT, alpha=0.25, linewidth=6))
    figure, every = style.panels(
        len(shown),
        width,
        columns=len(shown),
        height=style.rows_height(len(rows), 1) + 15,
        above=style.legend_height(handles, width),
        sharey=True,
    )
    for axes, statistic in zip(every, shown, strict=True):
        axes.axvline(0, color=style.INK, linewidth=0.6, zorder=1)
        if floor := _floor(table, statistic):
            axes.axvspan(
                -floor, floor, color=style.FAINT, alpha=0.25, linewidth=0, zorder=0, gid=f"{statistic}/floor"
            )
        for row in table.filter(statistic=statistic).iter_rows(named=True):
            low, high = row["low"], row["high"]
            sure = low is not None and (low > 0 or high < 0)
            ink = colour if sure else style.FAINT
            held = exact if statistic == "exact" else bool(row["held"])
            at = rows.index(row["row"])
            where = f"{row['row']}/{statistic}"
            if low is not None:
                axes.plot([low, high], [at, at], color=ink, linewidth=1.3, gid=f"{where}/interval")
            axes.plot(
                [row["difference"]],
                [at],
                marker="o",
                color=ink,
                markerfacecolor=ink if held and sure else "white",
                markersize=4,
                linestyle="",
                zorder=3,
                gid=f"{where}/value",
            )
        axes.set_xlabel(fill(label(statistic, short=True), 16))
        if STATISTICS[statistic].share:
            style.percent_axis(axes.xaxis)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", color=style.PALE, linewidth=0.4)
    style.name_rows(every, rows, width)
    says = (
        f"minus {style.shortened(table['reference'][0], 40)}; top {k}, {style.TOKENS[token]}; never as n + 1"
    )
    says += "" if readout is None else "; own readout" if readout == "own" else f"; read out by {readout}"
    says = "\n".join(wrap(says, 62 if style.is_narrow(width) else 120))
    says += f"\n{_TOO_FEW}" if _without_line(table.filter(pl.col("statistic").is_in(shown))) else ""
    figure.supxlabel(says, fontsize=6.5, color=style.FAINT)
    style.legend(figure, handles, width)
    return figure


def _without_line(table: pl.DataFrame) -> bool:
    """Whether a point has neither an interval nor seeds that show how far to trust it."""
    seeded = pl.col("by_seed").is_not_null() if "by_seed" in table.columns else pl.lit(False)
    return len(table.filter(pl.col("low").is_null() & ~seeded)) > 0


def _seeds_alone(table: pl.DataFrame) -> list[str]:
    """What statistics are called that have no interval over seeds, where others have one."""
    seeded = table.filter(pl.col("by_seed").is_not_null())
    known = set(seeded.filter(pl.col("low").is_not_null())["statistic"])
    every = seeded["statistic"].unique(maintain_order=True)
    return [label(name, short=True) for name in every if name not in known] if known else []


def _floor(table: pl.DataFrame, statistic: str) -> float | None:
    """The largest floor of a statistic's rows, where a lens has one."""
    known = table.filter(statistic=statistic)["floor"].drop_nulls() if "floor" in table.columns else []
    return float(max(known)) if len(known) else None


@style.in_style
def spread(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Whether facts surface in more diverse depths: the scale of their latent depths over the reference's.

    On a scale of powers of 2, so that right of 0 is more diverse and 1 is twice as wide; see
    :mod:`memprobe.statistics.latent`. Points are checkpoints (of an arm: seeds) with 95 % intervals over factoids.

    Args:
        table: [panel, row, series, reference, difference, low, high], logarithms to base 2; a row of one panel and
            series may hold several points.
        k, token: named below.
        width: millimetres.
    """
    style.not_empty(table, "difference")
    against = style.shortened(table["reference"][0], 40)
    words = f"scale of latent depths over that of {against} (log2: 1 is twice as wide; top {k}{style.rule(token)})"
    return _points(table.with_columns(by_seed=pl.lit(None)), words, width)


@style.in_style
def kept(table: pl.DataFrame, *, k: int | None = 10, token: str = "first", width: int = 89) -> Figure:
    """Whether the facts that a stage left had surfaced earlier, before it, than those that it took.

    Left of 0: earlier. With 95 % intervals where there are any; hollow points are seeds.

    Args:
        table: [panel, row, series, difference, low, high, by_seed]; ``by_seed`` is null where there are none.
        k, token: named below; ``k`` is ``None`` where the panels name them.
        width: millimetres.
    """
    style.not_empty(table, "difference")
    reading = "" if k is None else f"; top {k}{style.rule(token)}"
    words = f"first occurrence before, facts kept minus lost (depths, never as n + 1{reading}); left: kept earlier"
    return _points(table, words, width)


def _points(table: pl.DataFrame, words: str, width: int) -> Figure:
    """Differences with their intervals around 0: a panel each, rows by name, series side by side in a row."""
    names = table["panel"].unique(maintain_order=True).to_list()
    rows = table["row"].unique(maintain_order=True).to_list()
    series = table["series"].unique(maintain_order=True).to_list()
    handles = [
        style.handle(name, **style.look(i) | {"linestyle": ""}) for i, name in enumerate(series) if name
    ]
    most = max(len(part) for _, part in style.groups(table, "panel", "row"))
    figure, every = style.panels(
        len(names),
        width,
        columns=(1, len(names)),
        height=style.rows_height(len(rows), min(most, 3)) + 13,
        above=style.legend_height(handles, width),
        sharey=True,
        sharex=True,
    )
    for axes, name in zip(every, names, strict=True):
        axes.axvline(0, color=style.INK, linewidth=0.6, zorder=1)
        for (row,), part in style.groups(table.filter(panel=name), "row"):
            for position, one in enumerate(part.iter_rows(named=True)):
                at = rows.index(str(row)) + style.dodge(position, len(part))
                value = one | {"value": one["difference"], "sd": None}
                where = f"{name}/{row}/{one['series']}/{position}"
                point(axes, value, at, style.look(series.index(one["series"])), where)
        axes.set_title(name)
        axes.tick_params(axis="x", labelbottom=True)
        axes.grid(axis="x", color=style.PALE, linewidth=0.4)
    style.name_rows(every, rows, width)
    lines = wrap(words, 62 if style.is_narrow(width) else 120)
    lines += [_TOO_FEW] if _without_line(table) else []
    figure.supxlabel("\n".join(lines), fontsize=6.5, color=style.FAINT)
    style.legend(figure, handles, width)
    return figure


def point(axes: Axes, row: Mapping[str, Any], at: float, marks: Mapping[str, Any], where: str) -> None:
    """One number with what is known of its spread."""
    value, colour = row["value"], marks["color"]
    if row["sd"] is not None:
        ends = [value - row["sd"], value + row["sd"]]
        if (
            last := row.get("n_layers")
        ) is not None:  # no fact surfaces before the first depth or after the last
            ends = [min(max(end, 1), last) for end in ends]
        axes.plot(ends, [at, at], color=style.PALE, linewidth=2.6, gid=f"{where}/sd", solid_capstyle="butt")
    if row["low"] is not None:
        axes.plot(
            [row["low"], row["high"]],
            [at, at],
            color=colour,
            linewidth=1.2,
            clip_on=False,
            gid=f"{where}/interval",
        )
    dot = {key: marks[key] for key in ("marker", "markerfacecolor", "markeredgecolor")}
    seeds = [one for one in row["by_seed"] or [] if one is not None]
    if seeds:
        axes.plot(
            seeds,
            [at] * len(seeds),
            **dot | {"markerfacecolor": "white"},
            markersize=2.4,
            linestyle="",
            clip_on=False,
            zorder=3,
            gid=f"{where}/seeds",
        )
    if value is not None and (not seeds or row["low"] is not None):
        axes.plot(
            [value], [at], **dot, markersize=3.6, linestyle="", clip_on=False, zorder=4, gid=f"{where}/value"
        )
