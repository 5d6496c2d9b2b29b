"""Tables -> matplotlib figures. Nothing is computed here but positions on paper, nothing is read or written.

Each function takes one table and gives one figure; :mod:`memprobe.figures.tables` says where its columns come
from. A line is told by colour *and* marker *and* dashes. Where an arm has several training seeds each seed is
drawn; a mean over seeds and its interval are drawn where the table has them, which it does from three seeds on.

Artists that hold data carry a ``gid`` such as ``naive/base/line``, so that what is drawn can be read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.errors import MemprobeError
from memprobe.figures.look import (
    DOTTED,
    FAINT,
    INK,
    PALE,
    depth_axis,
    in_style,
    legend,
    legend_height,
    look,
    panels,
    percent_axis,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS = {"first": "first token", "last": "last token", "all": "all tokens"}
SHARES = ("exact_match", "exact_tokens", "alias_match", "final_answer")
PLACEMENT = {
    "lof_mean": "first occurrence\n(depth{sd})",
    "lof_sd": "sd of\nfirst occurrence",
    "share_never": "never in\nthe top {k}",
    "effective_layers": "effective number\nof layers",
}
"""Panels of :func:`first_occurrence`."""
DIFFERENCES = {
    "lof_restricted": "first occurrence\n(depth)",
    "depths_per_factoid": "depths\nper factoid",
    "exact": "exact match",
    "settled_restricted": "settled depth",
    "area": "area under\nrecall",
}
"""Panels of :func:`differences`; one column of a page has room for the first three."""


# ---------------------------------------------------------------------------------------------------------------
# By depth
# ---------------------------------------------------------------------------------------------------------------


@in_style
def recall(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Recall@k by depth; dotted, the level that shuffled answers reach.

    The 95 % band is drawn where a line has no seeds beside it: there the seeds show how far to trust it.

    Args:
        table: [panel, line, seed, exact, depth, recall, recall_low, recall_high, chance]; ``seed`` is null where
            a line is one checkpoint, ``exact`` the share of exact matches.
        k, token: named on the axis.
        width: millimetres.
    """
    return _curves(
        table,
        "recall",
        width=width,
        label=f"recall@{k}{_rule(token)}",
        edges=("recall_low", "recall_high"),
        chance="chance",
        top=1.0,
    )


@in_style
def frequency(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Normalised frequency by depth, accuracy in the legend (Chen et al., figure 4, left).

    Args:
        table: as of :func:`recall`, with ``frequency``, null at depth 0 and where nothing occurs.
        k, token, width: as there.
    """
    label = f"share of occurrences{_rule(token)}\nin the top {k}"
    return _curves(table, "frequency", width=width, label=label, accuracy=True)


@in_style
def survival(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Share of factoids that have not surfaced by each depth (Kaplan & Meier 1958), with its 95 % band.

    Args:
        table: as of :func:`recall`, with ``survival``, ``low`` and ``high``.
        k, token, width: as there.
    """
    label = f"not yet in the top {k}{_rule(token)}"
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
    _not_empty(table, value)
    names = table["panel"].unique(maintain_order=True).to_list()
    lines = table["line"].unique(maintain_order=True).to_list()
    seeded = table["seed"].null_count() < len(table)
    alone = len(names) == 1  # a legend above several panels has no room for what differs between them
    handles = _line_handles(table, lines, accuracy=accuracy and alone and not seeded)
    if chance is not None and table[chance].null_count() < len(table):
        handles.append(_handle("shuffled answers", color=FAINT, linestyle=DOTTED))
    figure, every = panels(
        len(names),
        width,
        columns=1 if len(names) == 1 else (2 if width < 120 else 4),
        height=(54 if width < 120 else 66) if len(names) == 1 else (38 if width < 120 else 40),
        above=legend_height(handles, width),
        sharex=True,
        sharey=True,
    )
    last = float(table["depth"].max())  # type: ignore[arg-type]
    drawstyle = "steps-post" if stepwise else "default"
    for axes, name in zip(every, names, strict=True):
        for (line, seed), rows in _groups(table.filter(panel=name), "line", "seed"):
            marks = look(lines.index(line))
            if seed is not None:
                marks["linestyle"] = "-"
            where = f"{name}/{line}/{'' if seed is None else seed}"
            x, y = rows["depth"].to_list(), _numbers(rows, value)
            if edges is not None and seed is None:
                low, high = (_numbers(rows, edge) for edge in edges)
                axes.fill_between(
                    x,
                    low,
                    high,
                    color=marks["color"],
                    alpha=0.24 / max(1, len(lines)) ** 0.5,
                    linewidth=0,
                    step="post" if stepwise else None,
                    gid=f"{where}/band",
                )
            if chance is not None:
                axes.plot(
                    x,
                    _numbers(rows, chance),
                    color=marks["color"],
                    linestyle=DOTTED,
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
        if name:
            axes.set_title(shortened(name, 26 if len(names) > 1 else 60))
        if accuracy and not (alone and not seeded):
            _write_accuracy(axes, table.filter(panel=name), lines)
        depth_axis(axes, last)
        axes.set_ylim(0, top)
        percent_axis(axes.yaxis, 0 if axes.get_ylim()[1] >= 0.1 else None)
    _name_axes(figure, every, "depth", label)
    legend(figure, handles, width)
    return figure


def _name_axes(figure: Figure, every: Sequence[Axes], x: str, y: str) -> None:
    """Of all panels together."""
    if len(every) == 1:
        every[0].set_xlabel(x)
        every[0].set_ylabel(y)
    else:
        figure.supxlabel(x, fontsize=7, color=INK)
        figure.supylabel(y, fontsize=7, color=INK)


def _every(n: int, position: int, wanted: int) -> list[int]:
    """Which points of a line carry its marker: about ``wanted``, not the same ones as the next line's, and the last."""
    step = max(1, round(n / wanted))
    return sorted({*range(position % step, n, step), n - 1})


def _line_handles(table: pl.DataFrame, lines: Sequence[str], *, accuracy: bool) -> list[Any]:
    seeded = set(table.filter(pl.col("seed").is_not_null())["line"])
    exact = {line: table.filter(line=line)["exact"].drop_nulls().to_list()[:1] for line in lines}
    return [
        _handle(
            line + (f", {100 * exact[line][0]:.3g}% exact" if accuracy and exact[line] else ""),
            **look(position) | ({"linestyle": "-"} if line in seeded else {}),
        )
        for position, line in enumerate(lines)
    ]


def _write_accuracy(axes: Axes, table: pl.DataFrame, lines: Sequence[str]) -> None:
    """Exact match of each line's seeds, a row of numbers in the line's colour."""
    row = 0
    for (line,), rows in _groups(table, "line"):
        by_seed = rows.group_by("seed", maintain_order=True).agg(pl.col("exact").first())["exact"].to_list()
        numbers = ", ".join(f"{100 * value:.3g}" for value in by_seed if value is not None)
        if numbers:
            axes.annotate(
                f"{numbers} % exact",
                (0.03, 0.99),
                xycoords="axes fraction",
                xytext=(0, -7 * row),
                textcoords="offset points",
                va="top",
                fontsize=5.5,
                color=look(lines.index(line))["color"],
                gid=f"{line}/exact",
            )
            row += 1


@in_style
def heatmap(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Recall@k, depth × checkpoint.

    Args:
        table: [panel, row, depth, recall], rows in order from top to bottom.
        k, token, width: as of :func:`recall`.
    """
    from matplotlib.colors import LinearSegmentedColormap

    _not_empty(table, "recall")
    names = table["panel"].unique(maintain_order=True).to_list()
    rows_of = {name: table.filter(panel=name)["row"].unique(maintain_order=True).to_list() for name in names}
    most = max(map(len, rows_of.values()))
    row_height = max(1.9, min(5.0, 200 / most))
    columns = 1 if width < 120 else 2
    figure, every = panels(
        len(names), width, columns=columns, height=row_height * most + (12 if names != [""] else 9), above=9
    )
    blues = LinearSegmentedColormap.from_list(
        "memprobe", ["#f4f7fb", "#a9c8e2", "#2577b8", "#123a63", "#0a1c33"]
    )
    mesh = None
    for axes, name in zip(every, names, strict=True):
        part, labels = table.filter(panel=name), rows_of[name]
        depths = sorted(part["depth"].unique().to_list())
        found = {(row, depth): value for row, depth, value in part.select("row", "depth", "recall").rows()}
        cells = [[_nan(found.get((label, depth))) for depth in depths] for label in labels]
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
        axes.set_yticks([position + 0.5 for position in range(len(labels))])
        axes.set_yticklabels(
            [shortened(label, 30) for label in labels], fontsize=6.5 if row_height >= 2.8 else 5
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("depth")
        if name:
            axes.set_title(shortened(name, 40))
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=every, location="top", aspect=40, shrink=0.6, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(f"recall@{k}{_rule(token)}", fontsize=7)
    bar.ax.tick_params(labelsize=6.5, width=0.6, length=2)
    percent_axis(bar.ax.xaxis)
    return figure


# ---------------------------------------------------------------------------------------------------------------
# One number per checkpoint or arm
# ---------------------------------------------------------------------------------------------------------------


@in_style
def first_occurrence(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Layer of first occurrence and diversity, checkpoint by checkpoint or arm by arm (Chen et al., figure 4, right).

    A pale line is the mean ± one standard deviation over factoids, a dark one a 95 % interval; seeds are dots.

    Args:
        table: [row, series, statistic, value, low, high, sd, by_seed]; ``series`` tells stages of one arm apart,
            ``by_seed`` is a list, null where the row is one checkpoint.
        k, token: named below.
        width: millimetres; one column has room for the first and the third of :data:`PLACEMENT`.
    """
    _not_empty(table, "statistic")
    shown = list(PLACEMENT) if width >= 120 else ["lof_mean", "share_never"]
    shown = [name for name in shown if name in set(table["statistic"])]
    series = table["series"].unique(maintain_order=True).to_list()
    rows = table["row"].unique(maintain_order=True).to_list()
    in_row = {row: table.filter(row=row)["series"].unique(maintain_order=True).to_list() for row in rows}
    spread = any(value is not None for value in table["sd"].to_list())
    handles = [_handle(name, **look(i) | {"linestyle": ""}) for i, name in enumerate(series) if name]
    figure, every = panels(
        len(shown),
        width,
        columns=len(shown),
        height=_rows_height(len(rows), max(map(len, in_row.values()))) + 13,
        above=legend_height(handles, width),
        sharey=True,
    )
    for axes, statistic in zip(every, shown, strict=True):
        for row in table.filter(statistic=statistic).iter_rows(named=True):
            here = in_row[row["row"]]
            at = rows.index(row["row"]) + _dodge(here.index(row["series"]), len(here))
            where = f"{row['row']}/{row['series']}/{statistic}"
            _point(axes, row, at, look(series.index(row["series"])), where)
        axes.set_xlabel(PLACEMENT[statistic].format(k=k, sd=", mean ± sd" if spread else ""))
        if statistic == "share_never":
            percent_axis(axes.xaxis)
            axes.set_xlim(0, max(0.05, axes.get_xlim()[1]))
        axes.margins(x=0.08)
        axes.grid(axis="x", color=PALE, linewidth=0.4)
    _name_rows(every, rows, width)
    if token != "first":
        figure.supxlabel(f"token rule: {TOKENS[token]}", fontsize=6.5, color=FAINT)
    legend(figure, handles, width)
    return figure


@in_style
def differences(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Forest plot: differences from a reference, paired by factoid (checkpoints) or over seeds (arms).

    Grey: the 95 % interval holds 0. Filled: the difference is on the same side in the checkpoints' own readout and
    in the base model's; open: it is not, or the latter was not probed. Exact match needs no readout: it is filled
    where its interval leaves 0 out.

    Args:
        table: [row, reference, statistic, difference, low, high, held]; one reference throughout.
        k, token: named below.
        width: millimetres; one column has room for the first three of :data:`DIFFERENCES`.
    """
    _not_empty(table, "difference")
    shown = [name for name in DIFFERENCES if name in set(table["statistic"])]
    shown = shown if width >= 120 else shown[:3]
    rows = table["row"].unique(maintain_order=True).to_list()
    colour = look(0)["color"]
    placed = table.filter(pl.col("statistic") != "exact")
    handles = [
        _handle(text, color=colour, marker="o", linestyle="", markerfacecolor=fill, markeredgecolor=colour)
        for text, fill, wanted in (
            ("in both readouts", colour, any(placed["held"].to_list())),
            ("in the own readout", "white", not all(placed["held"].to_list())),
        )
        if wanted
    ]
    handles.append(
        _handle("interval holds 0", color=FAINT, marker="o", linestyle="", markerfacecolor="white")
    )
    figure, every = panels(
        len(shown),
        width,
        columns=len(shown),
        height=_rows_height(len(rows), 1) + 15,
        above=legend_height(handles, width),
        sharey=True,
    )
    for axes, statistic in zip(every, shown, strict=True):
        axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
        for row in table.filter(statistic=statistic).iter_rows(named=True):
            low, high = row["low"], row["high"]
            sure = low is not None and (low > 0 or high < 0)
            ink = colour if sure else FAINT
            held = sure if statistic == "exact" else bool(row["held"])
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
        axes.set_xlabel(DIFFERENCES[statistic])
        if statistic in ("exact", "area"):
            percent_axis(axes.xaxis)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", color=PALE, linewidth=0.4)
    _name_rows(every, rows, width)
    minus = f"minus {shortened(table['reference'][0], 40)}"
    figure.supxlabel(f"{minus}; top {k}, {TOKENS[token]}; never as n + 1", fontsize=6.5, color=FAINT)
    legend(figure, handles, width)
    return figure


# ---------------------------------------------------------------------------------------------------------------
# Training runs
# ---------------------------------------------------------------------------------------------------------------


@in_style
def forgetting(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention: exact match on D_A after the last stage, for each pair of datasets and arm; cost and D_B beside it.

    Dots are seeds. The bar (mean) and its 95 % interval need three seeds. Grey: naive training and its matched
    controls. Hollow: arms that see D_A again in a later stage.

    Args:
        table: [setup, arm, arm_text, retention, low, high, by_seed, failed, last_metric, last_score, steps, tokens].
            ``retention`` is null under three seeds; ``failed`` counts seeds whose training did not learn its data
            and which are in none of the numbers; ``steps`` and ``tokens`` are multiples of naive's.
        width: millimetres.
    """
    _not_empty(table, "by_seed")
    setups = table["setup"].unique(maintain_order=True).to_list()
    parts = sorted(table.partition_by("setup", maintain_order=True), key=len, reverse=True)
    arms = list(dict.fromkeys(arm for part in parts for arm in part["arm"].to_list()))
    beside = dict(_BESIDE)
    if not any(table["failed"].to_list()):
        del beside["failed"]
    kinds = [_kind(row["arm_text"]) for row in table.iter_rows(named=True)]
    handles = [_bar_handle(text, **_BARS[text]) for text in _BARS if text in kinds]
    figure, every = panels(
        len(setups),
        width,
        columns=1 if width < 120 else 2,
        height=4.6 * len(arms) + 13,
        above=legend_height(handles, width),
        sharey=True,
        sharex=True,
    )
    for axes, setup in zip(every, setups, strict=True):
        part = table.filter(setup=setup)
        for row in part.iter_rows(named=True):
            at = arms.index(row["arm"])
            _bar(axes, row, at, f"{setup}/{row['arm']}")
            for name, offset in beside.items():
                _beside(axes, _cost(row, name), at, offset)
        for at in set(range(len(arms))) - {arms.index(arm) for arm in part["arm"]}:
            axes.annotate("not run", (0.01, at), va="center", fontsize=5.5, color=FAINT)
        for name, offset in beside.items():
            _beside(axes, name, -0.75, offset, FAINT)
        axes.set_title(shortened(setup, 40))
        axes.set_xlim(0, 1)
        percent_axis(axes.xaxis)
        axes.tick_params(axis="x", labelbottom=True)
        axes.grid(axis="x", color=PALE, linewidth=0.4)
    _name_rows(every, arms, width)
    figure.supxlabel("D_A exact match after the last stage", fontsize=7, color=INK)
    legend(figure, handles, width)
    return figure


_BARS: dict[str, dict[str, Any]] = {
    "naive and matched controls": {"color": "#b3bac3", "edgecolor": "#8a919c"},
    "against forgetting": {"color": "#7fb0d8", "edgecolor": "#2577b8"},
    "sees D_A again": {"color": "white", "edgecolor": "#2577b8"},
}


def _kind(arm: str) -> str:
    if "replay(" in arm or arm.startswith("joint"):
        return "sees D_A again"
    return (
        "naive and matched controls" if arm == "none" or arm.startswith("matched(") else "against forgetting"
    )


def _bar(axes: Axes, row: Mapping[str, Any], at: int, where: str) -> None:
    seeds = [value for value in row["by_seed"] if value is not None]
    style = _BARS[_kind(row["arm_text"])]
    if row["retention"] is not None and row["low"] is not None:
        (bar,) = axes.barh([at], [row["retention"]], height=0.62, linewidth=0.7, zorder=2, **style)
        bar.set_gid(f"{where}/mean")
        axes.plot(
            [row["low"], row["high"]], [at, at], color=INK, linewidth=0.9, zorder=3, gid=f"{where}/interval"
        )
    dot = style["edgecolor"]
    axes.plot(
        seeds,
        [at + _dodge(i, len(seeds), 0.36) for i in range(len(seeds))],
        linestyle="",
        marker="o",
        markersize=3.2,
        markerfacecolor="white" if style["color"] == "white" else dot,
        markeredgecolor=dot if style["color"] == "white" else "white",
        markeredgewidth=0.7 if style["color"] == "white" else 0.4,
        clip_on=False,
        zorder=4,
        gid=f"{where}/seeds",
    )


_BESIDE = {"D_B": 17, "steps": 38, "tokens": 60, "failed": 80}
"""Columns right of the bars, and where each ends, in points from the panel's edge."""


def _beside(axes: Axes, text: str, at: float, offset: float, colour: str = INK) -> None:
    """Text right of the panel, ending ``offset`` points from its edge."""
    axes.annotate(
        text,
        (1, at),
        xycoords=("axes fraction", "data"),
        xytext=(offset + 5, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=5.5,
        color=colour,
        annotation_clip=False,
    )


def _cost(row: Mapping[str, Any], name: str) -> str:
    """What stands in one of the columns of :data:`_BESIDE`."""
    value = row["last_score" if name == "D_B" else name]
    if value is None:
        return "–"
    if name == "D_B":
        return f"{value:.0%}" if row["last_metric"] in SHARES else f"{value:.2f}"
    return f"{value}" if name == "failed" else f"×{value:.1f}"


@in_style
def replay_ratio(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention of D_A by how many of its rows are replayed in stage 2, as a share of D_B's.

    Args:
        table: [setup, rows, replay_ratio, retention, low, high, by_seed]; ratio 0 is naive. ``rows`` says of which
            rows of D_A (all, or those not replayed). ``retention`` is the mean over seeds, null under three;
            ``by_seed`` is in one order of seeds throughout.
        width: millimetres.
    """
    return _setting(table, "replay_ratio", ["setup", "rows"], "replayed rows per row of D_B", width)


@in_style
def mixing_ratio(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention of D_A by mixing rows per own row.

    Args:
        table: [setup, mixing, mixing_words, mixing_ratio, retention, low, high, by_seed]; as of :func:`replay_ratio`.
        width: millimetres.
    """
    return _setting(
        table, "mixing_ratio", ["setup", "mixing", "mixing_words"], "mixing rows per row of the stage", width
    )


@in_style
def mixing_length(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention of D_A by words in a mixing row.

    Args:
        table: [setup, mixing, mixing_ratio, mixing_words, retention, low, high, by_seed]; as of
            :func:`replay_ratio`.
        width: millimetres.
    """
    return _setting(
        table, "mixing_words", ["setup", "mixing", "mixing_ratio"], "words in a mixing row", width
    )


def _setting(table: pl.DataFrame, over: str, keys: list[str], label: str, width: int) -> Figure:
    """Curves over one setting of an arm: thin lines are seeds, a thick one their mean with its interval."""
    _not_empty(table, over)
    keys = [key for key in keys if key in table.columns]
    told = {key: table[key].n_unique() > 1 for key in keys}
    if not any(told.values()):
        told[keys[min(1, len(keys) - 1)]] = True
    named = [key for key in keys if told[key]]
    groups = list(_groups(table, *keys))
    texts = [
        ", ".join(_told(key, value) for key, value in zip(keys, values, strict=True) if key in named)
        for values, _ in groups
    ]
    handles = [_handle(text, **look(i)) for i, text in enumerate(texts)]
    handles.append(_handle("one seed", color=FAINT, linewidth=0.6, marker="o", markersize=2))
    figure, (axes,) = panels(
        1, width, columns=1, height=52 if width < 120 else 62, above=legend_height(handles, width)
    )
    for position, (text, (_, rows)) in enumerate(zip(texts, groups, strict=True)):
        rows, marks = rows.sort(over), look(position)
        x = rows[over].to_list()
        lists = rows["by_seed"].to_list()
        if len({len(values) for values in lists}) == 1:
            for seed, values in enumerate(zip(*lists, strict=True)):
                axes.plot(
                    x,
                    [_nan(value) for value in values],
                    color=marks["color"],
                    linewidth=0.5,
                    marker="o",
                    markersize=1.8,
                    alpha=0.75,
                    clip_on=False,
                    gid=f"{text}/seed {seed}",
                )
        else:  # a seed that was not learned: which one is not told, so that dots are not joined
            for at, values in zip(x, lists, strict=True):
                axes.plot(
                    [at] * len(values),
                    [_nan(value) for value in values],
                    color=marks["color"],
                    linestyle="",
                    marker="o",
                    markersize=1.8,
                    alpha=0.75,
                    clip_on=False,
                    gid=f"{text}/seeds at {at}",
                )
        means = _with_interval(rows)
        if len(means):
            axes.vlines(means[over].to_list(), means["low"].to_list(), means["high"].to_list(),
                        color=marks["color"], linewidth=1.0, gid=f"{text}/intervals")  # fmt: skip
            axes.plot(
                means[over].to_list(),
                means["retention"].to_list(),
                **marks | {"markersize": 4},
                linewidth=1.3,
                clip_on=False,
                zorder=4,
                gid=f"{text}/mean",
            )
    axes.set_xlabel(label)
    axes.set_ylabel("D_A exact match\nafter the last stage")
    axes.set_ylim(0, 1)
    axes.margins(x=0.04)
    axes.set_xlim(left=0)
    percent_axis(axes.yaxis)
    legend(figure, handles, width)
    return figure


def _told(key: str, value: Any) -> str:
    if key == "mixing_words":
        return f"{value:g} words"
    return f"ratio {value:g}" if key == "mixing_ratio" else str(value)


@in_style
def stages(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """What each dataset's score is after each stage, arm by arm; thin lines are seeds.

    Args:
        table: [setup, arm, dataset, metric, stage, value, low, high, by_seed], shares only; ``value``, the mean
            over seeds, is null under three.
        width: millimetres.
    """
    _not_empty(table, "stage")
    datasets = table.select("dataset", "metric").unique(maintain_order=True).rows()
    names = [dataset for dataset, _ in datasets]
    one_setup = table["setup"].n_unique() == 1
    groups = list(_groups(table, "setup", "arm"))
    handles = [
        _handle(f"{name}, {metric.replace('_', ' ')}", **look(names.index(name))) for name, metric in datasets
    ]
    figure, every = panels(
        len(groups),
        width,
        columns=1 if len(groups) == 1 else (2 if width < 120 else 4),
        height=48 if len(groups) == 1 else 37,
        above=legend_height(handles, width),
        sharey=True,
    )
    for axes, ((setup, arm), part) in zip(every, groups, strict=True):
        last = int(part["stage"].max())  # type: ignore[arg-type]
        for (dataset,), rows in _groups(part, "dataset"):
            rows, marks = rows.sort("stage"), look(names.index(dataset))
            where = f"{setup}/{arm}/{dataset}"
            x, lists = rows["stage"].to_list(), rows["by_seed"].to_list()
            joined = len({len(values) for values in lists}) == 1
            for seed in range(max(map(len, lists))):
                axes.plot(
                    x if joined else [at for at, values in zip(x, lists, strict=True) if seed < len(values)],
                    [_nan(values[seed]) for values in lists if seed < len(values)],
                    color=marks["color"],
                    linewidth=0.7,
                    linestyle=marks["linestyle"] if joined else "",
                    marker=marks["marker"],
                    markerfacecolor=marks["markerfacecolor"],
                    markersize=2.6,
                    clip_on=False,
                    gid=f"{where}/seed {seed}",
                )
            means = _with_interval(rows)
            if len(means):
                at = means["stage"].to_list()
                axes.vlines(at, means["low"].to_list(), means["high"].to_list(), color=marks["color"],
                            linewidth=1.2, gid=f"{where}/intervals")  # fmt: skip
                axes.plot(
                    at,
                    means["value"].to_list(),
                    color=marks["color"],
                    linestyle=marks["linestyle"],
                    linewidth=1.6,
                    gid=f"{where}/mean",
                )
        axes.set_title(shortened(arm if one_setup else f"{setup}: {arm}", 26))
        axes.set_xticks(range(1, last + 1))
        axes.set_xlim(0.85, last + 0.15)
        axes.set_ylim(0, 1)
        percent_axis(axes.yaxis)
    _name_axes(figure, every, "after stage", "score")
    legend(figure, handles, width)
    return figure


# ---------------------------------------------------------------------------------------------------------------


DRAWN: dict[str, Callable[..., Figure]] = {
    "recall": recall,
    "frequency": frequency,
    "lof": first_occurrence,
    "survival": survival,
    "heatmap": heatmap,
    "differences": differences,
    "forgetting": forgetting,
    "replay_ratio": replay_ratio,
    "mixing_ratio": mixing_ratio,
    "mixing_length": mixing_length,
    "stages": stages,
}
"""Every figure by the name that its files have."""


def _point(axes: Axes, row: Mapping[str, Any], at: float, marks: Mapping[str, Any], where: str) -> None:
    """One number with what is known of its spread."""
    value, colour = row["value"], marks["color"]
    if row["sd"] is not None:
        axes.plot(
            [value - row["sd"], value + row["sd"]], [at, at], color=PALE, linewidth=2.6, gid=f"{where}/sd",
            solid_capstyle="butt",
        )  # fmt: skip
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


def _name_rows(every: Sequence[Axes], rows: Sequence[str], width: int) -> None:
    for axes in every:
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels([shortened(row, 24 if width < 120 else 36) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)


def _rows_height(rows: int, series: int) -> float:
    return rows * (4.4 if series == 1 else 2.4 * series + 1)


def _dodge(position: int, n: int, over: float = 0.5) -> float:
    return 0.0 if n < 2 else over * (position / (n - 1) - 0.5)


def _rule(token: str) -> str:
    return "" if token == "first" else f" ({TOKENS[token]})"


def _groups(table: pl.DataFrame, *keys: str) -> Iterator[tuple[tuple[Any, ...], pl.DataFrame]]:
    yield from table.group_by(*keys, maintain_order=True)


def _numbers(rows: pl.DataFrame, column: str) -> list[float]:
    return [_nan(value) for value in rows[column].to_list()]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _with_interval(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows whose mean over seeds has an interval: three seeds or more."""
    return rows.filter(pl.col("low").is_not_null()) if "low" in rows.columns else rows.clear()


def _not_empty(table: pl.DataFrame, column: str) -> None:
    if column not in table.columns or not len(table):
        raise MemprobeError(f"a figure of {column} needs a table with rows and that column")


def _handle(label: str, **marks: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=shortened(label, 44), **marks)


def _bar_handle(label: str, **style: Any) -> Any:
    from matplotlib.patches import Patch

    return Patch(label=label, linewidth=0.7, facecolor=style["color"], edgecolor=style["edgecolor"])
