"""What else one pass read: curves of several lenses in one panel, and what each block writes towards the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import polars as pl

from memprobe.compare.beside import PARTS
from memprobe.figures import look as style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style.in_style
def lenses(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Recall@k by depth through each lens, with its 95 % band and, dotted, the level that shuffled answers reach.

    The legend names a fitted lens's floor: how far apart two fits on halves of its corpus place the mean first
    occurrence.

    Args:
        table: [checkpoint, lens, depth, recall, recall_low, recall_high, chance, floor_mean].
        k, token: named on the axis.
        width: millimetres.
    """
    lines = table["lens"].unique(maintain_order=True).to_list()
    names = {line: _with_floor(table, line) for line in lines}
    return _recall_by(table, "lens", names, label=f"recall@{k}{style.rule(token)}", width=width)


@style.in_style
def positions(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """Recall@k by depth at each position, on the facts that have all of them, with its 95 % band and, dotted, the
    level that shuffled answers reach there.

    Args:
        table: [checkpoint, position, depth, recall, recall_low, recall_high, chance].
        k, token: named on the axis.
        width: millimetres.
    """
    names = {line: f"at the {line}" for line in table["position"].unique(maintain_order=True)}
    return _recall_by(table, "position", names, label=f"recall@{k}{style.rule(token)}", width=width)


def _recall_by(
    table: pl.DataFrame, by: str, line_names: Mapping[str, str], *, label: str, width: int
) -> Figure:
    """Recall by depth, a panel for each checkpoint and a line for each value of ``by``."""
    style.not_empty(table, "recall")
    names = table["checkpoint"].unique(maintain_order=True).to_list()
    lines = list(line_names)
    handles = [style.handle(line_names[line], **style.look(at)) for at, line in enumerate(lines)]
    handles.append(style.handle("shuffled answers", color=style.FAINT, linestyle=style.DOTTED))
    figure, every = _panels(names, width, handles)
    for axes, name in zip(every, names, strict=True):
        for (line,), rows in style.groups(table.filter(checkpoint=name), by):
            marks, where = style.look(lines.index(line)), f"{name}/{line}"
            x = rows["depth"].to_list()
            style.band(
                axes, rows, "depth", ("recall_low", "recall_high"), where, alpha=0.12, color=marks["color"]
            )
            chance = style.numbers(rows, "chance")
            axes.plot(x, chance, color=marks["color"], linestyle=style.DOTTED, lw=0.9, gid=f"{where}/chance")
            axes.plot(
                x,
                style.numbers(rows, "recall"),
                **marks,
                linewidth=1.1,
                markersize=3,
                markevery=max(1, len(x) // 10),
                clip_on=False,
                zorder=3,
                gid=f"{where}/line",
            )
        axes.set_title(style.shortened(name, 40, names) if len(names) > 1 else "")
        style.depth_axis(axes, table["depth"])
        axes.set_ylim(0, 1)
        style.percent_axis(axes.yaxis)
    style.name_axes(figure, every, "depth", label)
    style.legend(figure, handles, width)
    return figure


@style.in_style
def contributions(table: pl.DataFrame, *, k: int = 10, token: str = "first", width: int = 89) -> Figure:
    """What each block, its attention and its MLP add to the answer's logit, net of shuffled answers where all
    have them.

    Args:
        table: [checkpoint, part, depth, value, low, high, net].
        k: not used: no top-k is involved.
        token: which answer tokens; named on the axis.
        width: millimetres.
    """
    del k
    style.not_empty(table, "value")
    names = table["checkpoint"].unique(maintain_order=True).to_list()
    parts = table["part"].unique(maintain_order=True).to_list()
    handles = [style.handle(PARTS[part], **style.look(at)) for at, part in enumerate(parts)]
    figure, every = _panels(names, width, handles)
    for axes, name in zip(every, names, strict=True):
        axes.axhline(0, color=style.INK, linewidth=0.6, zorder=1)
        for (part,), rows in style.groups(table.filter(checkpoint=name), "part"):
            marks, where, x = style.look(parts.index(part)), f"{name}/{part}", rows["depth"].to_list()
            style.band(axes, rows, "depth", ("low", "high"), where, alpha=0.15, color=marks["color"])
            axes.plot(
                x, style.numbers(rows, "value"), **marks, linewidth=1.1, markersize=2.5, gid=f"{where}/line"
            )
        axes.set_title(style.shortened(name, 40, names) if len(names) > 1 else "")
        style.depth_axis(axes, table["depth"])
    net = ", net of shuffled answers" if table["net"].all() else ""
    style.name_axes(figure, every, "depth", f"adds to the answer’s logit{style.rule(token)}{net}")
    style.legend(figure, handles, width)
    return figure


def _panels(names: list[str], width: int, handles: list) -> tuple[Figure, list]:
    return style.panels(
        len(names),
        width,
        columns=(2, 2),
        height=(54 if style.is_narrow(width) else 66)
        if len(names) == 1
        else (38 if style.is_narrow(width) else 44),
        above=style.legend_height(handles, width),
        sharex=True,
        sharey=True,
    )


def _with_floor(table: pl.DataFrame, lens: str) -> str:
    floors = table.filter(lens=lens)["floor_mean"].drop_nulls().unique().to_list()
    return lens + (f" (floor {floors[0]:.2f} depths)" if len(floors) == 1 else "")
