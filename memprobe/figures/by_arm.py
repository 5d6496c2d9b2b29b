"""What training runs keep, by arm: retention, its curves over one setting, and scores after each stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe.arms import Arm
from memprobe.evaluations import SHARES
from memprobe.figures import look as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@style.in_style
def forgetting(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention: exact match on D_A after the last stage, for each pair of datasets and arm; cost and D_B beside it.

    Dots are seeds. The bar (mean) and its 95 % interval need three seeds. Grey: naive training and its matched
    controls. Hollow: arms that see D_A again in a later stage.

    Args:
        table: [setup, arm, arm_text, retention, low, high, by_seed, failed, last_metric, last_score, steps, tokens].
            ``low`` and ``high`` are null under three seeds, and no bar is drawn; ``failed`` counts seeds whose training
            did not learn its data and which are in none of the numbers; ``steps`` and ``tokens`` are multiples of
            naive's.
        width: millimetres.
    """
    style.not_empty(table, "by_seed")
    setups = table["setup"].unique(maintain_order=True).to_list()
    parts = sorted(table.partition_by("setup", maintain_order=True), key=len, reverse=True)
    arms = list(dict.fromkeys(arm for part in parts for arm in part["arm"].to_list()))
    beside = dict(_BESIDE)
    if not any(table["failed"].to_list()):
        del beside["failed"]
    kinds = [_kind(row["arm_text"]) for row in table.iter_rows(named=True) if row["by_seed"]]
    handles = [_bar_handle(text, **_BARS[text]) for text in _BARS if text in kinds]
    figure, every = style.panels(
        len(setups),
        width,
        columns=(1, 2),
        height=4.6 * len(arms) + 15,
        above=style.legend_height(handles, width),
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
            axes.annotate("not run", (0.01, at), va="center", fontsize=5.5, color=style.FAINT)
        for name, offset in beside.items():
            head = _head(name, setup, part["last_metric"].to_list())
            _beside(axes, head, -0.75, offset, style.FAINT)
        axes.set_title(
            style.shortened(setup, 55, setups), pad=9
        )  # above the heads of the columns, which it may reach
        axes.set_xlim(0, 1)
        style.percent_axis(axes.xaxis)
        axes.tick_params(axis="x", labelbottom=True)
        axes.grid(axis="x", color=style.PALE, linewidth=0.4)
    style.name_rows(every, arms, width)
    style.name_axes(figure, every, "D_A exact match after the last stage", "")
    style.legend(figure, handles, width)
    return figure


_BARS: dict[str, dict[str, Any]] = {
    "naive and matched controls": {"color": "#b3bac3", "edgecolor": "#8a919c"},
    "against forgetting": {"color": "#7fb0d8", "edgecolor": "#2577b8"},
    "sees D_A again": {"color": "white", "edgecolor": "#2577b8"},
}


def _kind(arm: str) -> str:
    what = Arm.of(arm)
    if what.sees_again:
        return "sees D_A again"
    return "naive and matched controls" if what.is_naive or what.is_control else "against forgetting"


def _bar(axes: Axes, row: Mapping[str, Any], at: int, where: str) -> None:
    seeds = [value for value in row["by_seed"] if value is not None]
    bar_style = _BARS[_kind(row["arm_text"])]
    if row["retention"] is not None and row["low"] is not None:
        (bar,) = axes.barh([at], [row["retention"]], height=0.62, linewidth=0.7, zorder=2, **bar_style)
        bar.set_gid(f"{where}/mean")
        axes.plot(
            [row["low"], row["high"]],
            [at, at],
            color=style.INK,
            linewidth=0.9,
            zorder=3,
            gid=f"{where}/interval",
        )
    dot = bar_style["edgecolor"]
    axes.plot(
        seeds,
        [at + style.dodge(i, len(seeds), 0.36) for i in range(len(seeds))],
        linestyle="",
        marker="o",
        markersize=3.2,
        markerfacecolor="white" if bar_style["color"] == "white" else dot,
        markeredgecolor=dot if bar_style["color"] == "white" else "white",
        markeredgewidth=0.7 if bar_style["color"] == "white" else 0.4,
        clip_on=False,
        zorder=4,
        gid=f"{where}/seeds",
    )


_BESIDE = {"D_B": 17, "steps": 38, "tokens": 60, "failed": 80}
"""Columns right of the bars, and where each ends, in points from the panel's edge."""


def _beside(axes: Axes, text: str, at: float, offset: float, colour: str = style.INK) -> None:
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


def _head(name: str, setup: str, metrics: Collection[str | None]) -> str:
    """What stands above one of the columns of :data:`_BESIDE`: of the last stage which it is, and by what it is
    measured where that is no share."""
    if name != "D_B":
        return name
    last = "D_C" if setup.count("→") > 1 else "D_B"
    return " ".join([last, ", ".join(sorted({one for one in metrics if one and one not in SHARES}))]).strip()


def _cost(row: Mapping[str, Any], name: str) -> str:
    """What stands in one of the columns of :data:`_BESIDE`."""
    value = row["last_score" if name == "D_B" else name]
    if value is None:
        return "–"
    if name == "D_B":
        return f"{value:.0%}" if row["last_metric"] in SHARES else f"{value:.2f}"
    return f"{value}" if name == "failed" else f"×{value:.1f}"


@style.in_style
def interference(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention by how D_A's gradient lies to the last stage's before that stage begins (Chen et al., figure 2).

    Each point is a run. A cosine below 0: a step that lowers the loss of the new data raises that of D_A.

    Args:
        table: [setup, arm, arm_text, seed, cosine, retention].
        width: millimetres.
    """
    style.not_empty(table, "cosine")
    parts = list(style.groups(table, "setup"))
    kinds = [kind for kind in _BARS if kind in {_kind(text) for text in table["arm_text"]}]
    handles = [style.handle(kind, **_dot(kind)) for kind in kinds]
    figure, every = style.panels(
        len(parts),
        width,
        columns=(2, 3),
        height=50 if len(parts) == 1 else 42,
        above=style.legend_height(handles, width),
        sharex=True,
        sharey=True,
    )
    for axes, ((setup,), rows) in zip(every, parts, strict=True):
        axes.axvline(0, color=style.PALE, linewidth=0.6, zorder=1)
        for row in rows.iter_rows(named=True):
            axes.plot(
                [row["cosine"]],
                [row["retention"]],
                clip_on=False,
                gid=f"{setup}/{row['arm']}/{row['seed']}",
                **_dot(_kind(row["arm_text"])),
            )
        axes.set_title(style.shortened(setup, 40, table["setup"]))
        axes.set_ylim(0, 1)
        axes.margins(x=0.08)
        style.percent_axis(axes.yaxis)
    label = "cosine of the gradients of D_A and of the last stage's rows"
    style.name_axes(figure, every, label, "D_A exact match\nafter the last stage")
    style.legend(figure, handles, width)
    return figure


_SHAPES = {"naive and matched controls": "s", "against forgetting": "o", "sees D_A again": "D"}


def _dot(kind: str) -> dict[str, Any]:
    edge, fill = _BARS[kind]["edgecolor"], _BARS[kind]["color"]
    return {
        "linestyle": "",
        "marker": _SHAPES[kind],
        "markersize": 3.2,
        "markerfacecolor": "white" if fill == "white" else edge,
        "markeredgecolor": edge,
    }


@style.in_style
def stages(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """What each dataset's score is after each stage, arm by arm; thin lines are seeds.

    Args:
        table: [setup, arm, dataset, metric, stage, value, low, high, by_seed, seed_numbers], shares only; ``value`` is
            the mean over seeds, and ``low`` and ``high`` are null under three: then no mean is drawn. ``seed_numbers``
            are the seeds of ``by_seed``, in its order: a line joins the values of one seed.
        width: millimetres.
    """
    style.not_empty(table, "stage")
    datasets = table.select("dataset", "metric").unique(maintain_order=True).rows()
    names = [dataset for dataset, _ in datasets]
    one_setup = table["setup"].n_unique() == 1
    parts = list(style.groups(table, "setup", "arm"))
    titles = {(setup, arm): arm if one_setup else f"{setup}: {arm}" for (setup, arm), _ in parts}
    handles = [
        style.handle(f"{name}, {metric.replace('_', ' ')}", **style.look(names.index(name)))
        for name, metric in datasets
    ]
    figure, every = style.panels(
        len(parts),
        width,
        columns=(2, 4),
        height=48 if len(parts) == 1 else 37,
        above=style.legend_height(handles, width),
        sharey=True,
    )
    for axes, ((setup, arm), part) in zip(every, parts, strict=True):
        last = int(part["stage"].max())  # type: ignore[arg-type]
        for (dataset,), rows in style.groups(part, "dataset"):
            rows, marks = rows.sort("stage"), style.look(names.index(dataset))
            where = f"{setup}/{arm}/{dataset}"
            for of, at, values, joined in style.seeds_along(rows["stage"].to_list(), rows, "by_seed"):
                axes.plot(
                    at,
                    values,
                    color=marks["color"],
                    linewidth=0.7,
                    linestyle=marks["linestyle"] if joined else "",
                    marker=marks["marker"],
                    markerfacecolor=marks["markerfacecolor"],
                    markersize=2.6,
                    clip_on=False,
                    gid=f"{where}/{of}",
                )
            means = style.with_interval(rows)
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
        style.panel_title(axes, titles[setup, arm], 24, titles.values())
        axes.set_xticks(range(1, last + 1))
        axes.set_xlim(0.85, last + 0.15)
        axes.set_ylim(0, 1)
        style.percent_axis(axes.yaxis)
    style.name_axes(figure, every, "after stage", "score")
    style.legend(figure, handles, width)
    return figure


def _bar_handle(label: str, **bar_style: Any) -> Any:
    from matplotlib.patches import Patch

    return Patch(label=label, linewidth=0.7, facecolor=bar_style["color"], edgecolor=bar_style["edgecolor"])
