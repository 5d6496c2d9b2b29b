"""Figures of retention by one setting of an arm, all else equal: curves over replay, mixing and penalties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from memprobe.evaluations import SHARES
from memprobe.figures import look as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@style.in_style
def replay_ratio(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention of D_A by the share of the rows of all earlier stages that each later one replays.

    Args:
        table: [setup, rows, others, replay_ratio, retention, low, high, by_seed, seed_numbers]; ratio 0 is naive.
            ``rows`` says of which rows of D_A (all, or those not replayed), ``others`` what else tells curves apart,
            such as rows that are drawn again in each epoch. ``retention`` is the mean over seeds. ``low`` and ``high``
            are null under three, and no mean is drawn. ``seed_numbers`` are the seeds of ``by_seed``, in its order: a
            line joins one seed's; without them dots stand alone.
        width: millimetres.
    """
    label = "share of the rows of earlier stages that is replayed"
    return _setting(table, "replay_ratio", ["setup", "rows", "others"], label, width)


@style.in_style
def mixing_ratio(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention of D_A by mixing rows per own row.

    Args:
        table: [setup, mixing, mixing_words, others, mixing_ratio, retention, low, high, by_seed, seed_numbers]; as of
            :func:`replay_ratio`.
        width: millimetres.
    """
    keys = ["setup", "mixing", "mixing_words", "others"]
    return _setting(table, "mixing_ratio", keys, "mixing rows per row of the stage", width)


@style.in_style
def mixing_length(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention of D_A by the words of a mixing row's answer.

    Its prompt is as long, unless ``others`` says how long it is.

    Args:
        table: [setup, mixing, mixing_ratio, others, mixing_words, retention, low, high, by_seed, seed_numbers]; as of
            :func:`replay_ratio`.
        width: millimetres.
    """
    keys = ["setup", "mixing", "mixing_ratio", "others"]
    return _setting(table, "mixing_words", keys, "words of a mixing row's answer", width)


@style.in_style
def penalty_strength(table: pl.DataFrame, *, width: int = 89) -> Figure:
    """Retention of D_A by the strength of a penalty, and below it what is learned of D_B.

    A penalty that is strong enough keeps every fact and learns nothing: which strength serves, the two tell together.
    Strengths are on a logarithmic axis that begins with naive training at 0.

    Args:
        table: [setup, penalty, others, penalty_strength, retention, low, high, by_seed, seed_numbers, last_metric,
            last_score, last_by_seed], of one metric of D_B; else as of :func:`replay_ratio`.
        width: millimetres.
    """
    style.not_empty(table, "penalty_strength")
    metric = table["last_metric"][0]
    label = f"D_B {metric.replace('_', ' ')}\nafter the last stage"
    learned = _Panel("last_score", "last_by_seed", label, metric in SHARES, None)
    keys = ["setup", "penalty", "others"]
    return _setting(
        table, "penalty_strength", keys, "strength", width, panels=[_RETAINED, learned], logarithmic=True
    )


class _Panel(NamedTuple):
    """What one panel of a curve shows.

    Attributes:
        mean, by_seed: columns.
        label: of its axis.
        share: whether it is from 0 to 1.
        interval: columns of the mean's interval, where it has one.
    """

    mean: str
    by_seed: str
    label: str
    share: bool
    interval: tuple[str, str] | None


_RETAINED = _Panel("retention", "by_seed", "D_A exact match\nafter the last stage", True, ("low", "high"))


def _setting(
    table: pl.DataFrame,
    over: str,
    keys: list[str],
    label: str,
    width: int,
    *,
    panels: Sequence[_Panel] = (_RETAINED,),
    logarithmic: bool = False,
) -> Figure:
    """Curves over one setting of an arm: thin lines are seeds, a thick one their mean with its interval."""
    style.not_empty(table, over)
    keys = [key for key in keys if key in table.columns]
    varies = {key: table[key].n_unique() > 1 for key in keys}
    if not any(varies[key] for key in keys if key != "others"):  # which is mostly empty, and no name alone
        varies[keys[min(1, len(keys) - 1)]] = True
    named = [key for key in keys if varies[key]]
    parts = list(style.groups(table, *keys))
    texts = [
        ", ".join(
            _setting_text(key, value)
            for key, value in zip(keys, values, strict=True)
            if key in named and value != ""
        )
        for values, _ in parts
    ]
    handles = [style.handle(text, **style.look(i)) for i, text in enumerate(texts)]
    handles.append(style.handle("one seed", color=style.FAINT, linewidth=0.6, marker="o", markersize=2))
    figure, every = style.panels(
        len(panels),
        width,
        columns=1,
        height=(52 if style.is_narrow(width) else 62) if len(panels) == 1 else 38,
        above=style.legend_height(handles, width),
        sharex=True,
    )
    for axes, panel in zip(every, panels, strict=True):
        where = "" if panel is _RETAINED else "D_B/"
        for position, (text, (_, rows)) in enumerate(zip(texts, parts, strict=True)):
            _draw(axes, panel, over, rows.sort(over), style.look(position), where + text)
        axes.set_ylabel(panel.label)
        axes.margins(x=0.04)
        if logarithmic:  # with a tick at each value: decades may lie outside
            values = sorted(set(table[over]))
            axes.set_xscale("symlog", linthresh=min(value for value in values if value > 0))
            axes.set_xticks(values, labels=[f"{value:g}" for value in values])
            axes.set_xticks([], minor=True)
        axes.set_xlim(left=0)
        if panel.share:
            axes.set_ylim(0, 1)
            style.percent_axis(axes.yaxis)
    every[-1].set_xlabel(label)
    style.legend(figure, handles, width)
    return figure


def _draw(axes: Axes, panel: _Panel, over: str, rows: pl.DataFrame, marks: dict[str, Any], text: str) -> None:
    """One curve: its seeds, its mean and the mean's interval."""
    x = rows[over].to_list()
    for of, at, values, joined in style.seeds_along(x, rows, panel.by_seed):
        axes.plot(
            at,
            values,
            color=marks["color"],
            linewidth=0.5,
            linestyle="-" if joined else "",
            marker="o",
            markersize=1.8,
            alpha=0.75,
            clip_on=False,
            gid=f"{text}/{of}",
        )
    means = style.with_interval(rows)  # which it has from three seeds on
    if not len(means):
        return
    if panel.interval is not None:
        low, high = (means[column].to_list() for column in panel.interval)
        axes.vlines(
            means[over].to_list(), low, high, color=marks["color"], linewidth=1.0, gid=f"{text}/intervals"
        )
    # A value that too few seeds have learned breaks the line, which has no mean there.
    known = pl.when(pl.col("low").is_not_null()).then(panel.mean)
    axes.plot(
        x,
        [style.nan(value) for value in rows.select(known).to_series()],
        **marks | {"markersize": 4},
        linewidth=1.3,
        clip_on=False,
        zorder=4,
        gid=f"{text}/mean",
    )


def _setting_text(key: str, value: Any) -> str:
    if key == "mixing_words":
        return f"answers of {value:g} words"
    return f"ratio {value:g}" if key == "mixing_ratio" else str(value)
