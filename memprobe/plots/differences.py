"""What differs between checkpoints, and what becomes of the facts from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memprobe.palette import FATES, HEAT, style, translucent
from memprobe.plots import sketch
from memprobe.statistics.controls import held_in_both
from memprobe.wording import shortened

if TYPE_CHECKING:
    import polars as pl


@sketch.drawn
def difference_forest(
    differences: pl.DataFrame,
    *,
    x: str,
    percent: bool = False,
    checkpoints: Sequence[str] | None = None,
    looks: sketch.Looks | None = None,
    floor: float | None = None,
) -> sketch.Sketch:
    """Paired differences with 95 % intervals, a row for each checkpoint, and the line of no difference.

    Where a second readout was probed, a row for it stands below, and markers are filled where both readouts agree: both
    intervals on the same side of 0.

    Args:
        differences: of one statistic; [against, reference, checkpoint, n, difference, low, high] and, where a second
            readout was probed, fixed_difference, fixed_low, fixed_high. ``against`` goes into ``meta`` for a page to
            choose by.
        x: what differs, with its unit.
        percent: shares, in percentage points.
        checkpoints: their order, which gives each its look; as in the table where not given.
        looks: see :data:`memprobe.plots.sketch.Looks`.
        floor: in depths, how far apart two fits of a fitted lens place the mean; grey around 0.
    """
    figure = sketch.figure_of(x=x, y="", percent=False)
    sketch.add_floor_band(figure, floor)
    labels = (
        list(checkpoints)
        if checkpoints is not None
        else differences["checkpoint"].unique(maintain_order=True).to_list()
    )
    scale, digits, unit = (100, 1, " points") if percent else (1, 2, "")
    second = "fixed_difference" in differences.columns
    most = max(differences["n"], default=0)
    short = shortened(labels)
    for row in differences.iter_rows(named=True):
        look = (looks or {}).get(row["checkpoint"]) or style(labels.index(row["checkpoint"]))
        name = sketch.plain(short[row["checkpoint"]])
        if row["n"] < most:
            name += f" (n = {row['n']:,})"
        shape = look["marker"].removesuffix("-open")
        marker = look["marker"] if not second else shape if held_in_both(row) else f"{shape}-open"
        # Rows of the second readout have one name, made distinct by what cannot be seen.
        below = "base model’s readout" + "\u200b" * labels.index(row["checkpoint"])
        own = ("", name, marker, "")
        fixed = ("fixed_", below, marker, ", read out by the base model")
        for prefix, place, marker, note in (own, fixed) if second else (own,):
            value, low, high = (row[f"{prefix}{end}"] for end in ("difference", "low", "high"))
            if value is None:
                continue
            known = low is not None and high is not None
            figure.add_scatter(
                x=[value * scale],
                y=[place],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [(high - value) * scale if known else 0],
                    "arrayminus": [(value - low) * scale if known else 0],
                    "thickness": 1.2 if prefix else 2,
                    "width": 0,
                },
                customdata=[[low * scale, high * scale] if known else [None, None]],
                mode="markers",
                name=name + note,
                marker={
                    "symbol": marker,
                    "size": 9,
                    "color": look["colour"],
                    "line": {"width": 1.5, "color": look["colour"]},
                },
                showlegend=False,
                hovertemplate=f"<b>%{{x:+.{digits}f}}</b>{unit}"
                + (f" (%{{customdata[0]:+.{digits}f}} … %{{customdata[1]:+.{digits}f}})" if known else "")
                + f"<br>{sketch.plain(row['checkpoint'])} − {sketch.plain(row['reference'])}{note}"
                + f", n = {row['n']:,}<extra></extra>",
                meta={
                    "checkpoint": row["checkpoint"],
                    "role": "fixed" if prefix else "difference",
                    "against": row["against"],
                },
            )
    figure.add_shape(type="line", x0=0, x1=0, yref="paper", y0=0, y1=1, layer="below")
    figure.update_layout(hovermode="closest", margin={"t": 22 if floor else 8}, meta={"row": 28, "frame": 66})
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(showgrid=True, showline=False, nticks=6)
    return figure


@sketch.drawn
def fate_flows(flows: pl.DataFrame, stages: Sequence[str], *, names: Mapping[str, str]) -> sketch.Sketch:
    """What becomes of the facts from checkpoint to checkpoint of one run: a band for each change of state.

    Args:
        flows: of :func:`memprobe.statistics.overview.flows`.
        stages: a name for each checkpoint.
        names: how each state is called, in the order in which they stand.
    """
    states = list(names)
    colours = dict(zip(states, FATES, strict=True))
    total = float(flows.filter(flows["step"] == 0)["n"].sum())
    sizes: dict[tuple[int, str], int] = {}
    for row in flows.iter_rows(named=True):
        sizes[row["step"], row["source"]] = sizes.get((row["step"], row["source"]), 0) + row["n"]
        target = (row["step"] + 1, row["target"])
        if row["step"] == len(stages) - 2:
            sizes[target] = sizes.get(target, 0) + row["n"]
    nodes = [(step, state) for step in range(len(stages)) for state in states if sizes.get((step, state))]
    index = {node: at for at, node in enumerate(nodes)}
    tops: list[float] = []
    for step, state in nodes:
        above = sum(sizes.get((step, other), 0) for other in states[: states.index(state)])
        tops.append((above + sizes[step, state] / 2) / total)
    links = flows.filter(flows["n"] > 0)
    figure = sketch.figure_of(x="", y="", percent=False)
    figure.add(
        "sankey",
        arrangement="fixed",
        node={
            "label": [f"{sizes[node]:,} {names[node[1]]}" for node in nodes],
            "x": [0.001 + 0.998 * step / (len(stages) - 1) for step, _ in nodes],
            "y": [min(max(top, 0.001), 0.999) for top in tops],
            "color": [colours[state] for _, state in nodes],
            "pad": 14,
            "thickness": 12,
            "line": {"width": 0},
            "hovertemplate": "%{label}<extra></extra>",
        },
        link={
            "source": [index[step, state] for step, state in links.select("step", "source").rows()],
            "target": [index[step + 1, state] for step, state in links.select("step", "target").rows()],
            "value": links["n"].to_list(),
            "color": [translucent(colours[state], 0.35) for state in links["source"]],
            "customdata": links.select("share", "low", "high").rows(),
            "hovertemplate": "<b>%{value:,}</b> facts, %{customdata[0]:.1%} "
            "(%{customdata[1]:.1%} – %{customdata[2]:.1%})<br>%{source.label} → %{target.label}<extra></extra>",
        },
        meta={"role": "flows"},
    )
    figure.update_layout(margin={"l": 8, "r": 8, "t": 30, "b": 8})
    for step, name in enumerate(stages):
        last = step == len(stages) - 1
        figure.add_annotation(
            x=step / (len(stages) - 1),
            y=1,
            xref="paper",
            yref="paper",
            yanchor="bottom",
            yshift=8,
            xanchor="left" if step == 0 else "right" if last else "center",
            text=sketch.clip(sketch.plain(name), 24),
            showarrow=False,
        )
    return figure


@sketch.drawn
def accuracy_matrix(scores: pl.DataFrame) -> sketch.Sketch:
    """Rows: a run after each stage; columns: the evaluated sets; each cell with its share of right answers.

    Args:
        scores: [row, dataset, value, low, high, n, metric], the shares only.
    """
    figure = sketch.figure_of(x="", y="", percent=False)
    rows = scores["row"].unique(maintain_order=True).to_list()
    short = shortened(rows, 44)
    datasets = scores["dataset"].unique(maintain_order=True).to_list()
    cells = {(row["row"], row["dataset"]): row for row in scores.iter_rows(named=True)}
    grid = [[cells.get((row, dataset)) for dataset in datasets] for row in rows]
    figure.add(
        "heatmap",
        x=[sketch.clip(sketch.plain(name), 22) for name in datasets],
        y=[sketch.plain(short[name]) for name in rows],
        z=[[None if cell is None else cell["value"] for cell in line] for line in grid],
        text=[["" if cell is None else sketch.percentage(cell["value"]) for cell in line] for line in grid],
        texttemplate="%{text}",
        customdata=[
            [
                None if cell is None else [cell["low"], cell["high"], cell["n"], cell["metric"]]
                for cell in line
            ]
            for line in grid
        ],
        hovertemplate="<b>%{z:.1%}</b> (%{customdata[0]:.1%} – %{customdata[1]:.1%}) %{customdata[3]},"
        " n = %{customdata[2]:,}<br>%{x}, %{y}<extra></extra>",
        zmin=0,
        zmax=1,
        colorscale=HEAT,
        showscale=False,
        xgap=2,
        ygap=2,
        textfont={"color": "#ffffff", "size": 13},
        meta={"role": "matrix"},
    )
    figure.update_layout(hovermode="closest", margin={"t": 8}, meta={"row": 30, "frame": 44, "column": 130})
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showline=False, type="category", side="bottom")
    return figure
