"""One prompt through a lens: depth by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memprobe.errors import MemprobeError, among
from memprobe.palette import HEAT
from memprobe.plots.sketch import Sketch, clip, depth_ticks, drawn, figure_of, plain
from memprobe.plots.tokens import visible

if TYPE_CHECKING:
    from memprobe.prompt_lens import PromptReading

FRAME = "#ffd23f"
"""Around a cell that says the answer: at least 3:1 against every cell."""
PAGE, LETTER, MOST_LETTERS = 1140, 8, 24
"""Pixels of a wide page, about those of a letter in a cell, and letters of a cell that stands in a wide one."""
_RANKS = (0, 9, 99, 999, 9_999, 99_999)


@dataclass(frozen=True)
class LensStatistic:
    """What a cell's colour stands for.

    Attributes:
        label: of the choice, and over the colours.
        values: [depth][position]; ``None`` where the reading has none.
        greener: what is so of a greener cell than of another.
        less: whether a greener cell has less of it: the colours then run the other way.
        log: whether the colours are of its logarithm, as of a rank.
    """

    label: str
    values: Callable[[PromptReading], Sequence[Sequence[float]] | None]
    greener: str
    less: bool = True
    log: bool = False


LENS_STATISTICS: dict[str, LensStatistic] = {
    "probability": LensStatistic(
        "probability of the first choice",
        lambda read: read.probability,
        "surer of their first choice, whether or not that is the answer",
        less=False,
    ),
    "rank": LensStatistic(
        "rank of the answer",
        lambda read: read.answer_ranks,
        "with fewer tokens before the answer",
        log=True,
    ),
    "entropy": LensStatistic(
        "entropy (nats)", lambda read: read.entropy, "surer, with its probability on fewer tokens"
    ),
    "kl": LensStatistic(
        "KL to the last depth (nats)", lambda read: read.kl, "nearer to what the last depth says"
    ),
}
"""The statistics of a prompt's picture; ``rank`` needs an answer."""


@drawn
def lens_heatmap(reading: PromptReading, statistic: str = "probability") -> Sketch:
    """The usual picture of a lens on one prompt: depth by position, the first choice in each cell.

    What a greener cell has more or less of, its statistic says. Cells that say the answer are framed. The hover text
    has the top tokens and every statistic.

    Args:
        reading: of :func:`memprobe.prompt_lens.read_prompt`.
        statistic: see :data:`LENS_STATISTICS`.

    Raises:
        MemprobeError: an unknown statistic, or the answer's rank where no answer was asked for.
    """
    if statistic not in LENS_STATISTICS:
        raise MemprobeError(f"lens_heatmap: no statistic {statistic!r}; {among(statistic, LENS_STATISTICS)}")
    chosen = LENS_STATISTICS[statistic]
    values = chosen.values(reading)
    if values is None:
        raise MemprobeError("lens_heatmap: the rank is an answer's: read the prompt with `answer`")
    positions = list(range(len(reading.tokens)))
    figure = figure_of(x="", y="depth", percent=False)
    fit = min(MOST_LETTERS, max(9, PAGE // len(positions) // LETTER - 1))
    texts = [[clip(visible(text), fit) for text in row] for row in reading.top1]
    column = max(54, LETTER * (1 + max(len(text) for row in texts for text in row)))
    figure.add(
        "heatmap",
        x=positions,
        y=list(range(len(values))),
        z=[[math.log10(one + 1) for one in row] if chosen.log else list(row) for row in values],
        text=[[plain(text) for text in row] for row in texts],
        texttemplate="%{text}",
        textfont={"color": "#ffffff"},
        customdata=[[_hover(reading, depth, at) for at in positions] for depth in range(len(values))],
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=[list(stop) for stop in HEAT],
        reversescale=chosen.less,
        zmin=0,
        zmax=1 if statistic == "probability" else None,
        colorbar=_bar(chosen, statistic),
        xgap=1,
        ygap=1,
        meta={"role": "prompt"},
    )
    for depth, row in enumerate(reading.answer_ranks or ()):
        for at, rank in enumerate(row):
            if rank == 0:
                edges = {"x0": at - 0.5, "x1": at + 0.5, "y0": depth - 0.5, "y1": depth + 0.5}
                figure.add_shape(type="rect", line={"color": FRAME, "width": 3}, **edges)
    figure.update_layout(
        hovermode="closest",
        height=max(320, 24 * len(values) + 110),
        margin={"l": 8, "r": 52, "t": 64, "b": 36},
        meta={"least": 60 + column * len(positions)},
    )
    figure.update_xaxes(
        tickvals=positions,
        ticktext=[plain(clip(visible(token), 14)) for token in reading.tokens],
        showline=False,
        range=[-0.52, len(positions) - 0.48],  # frames of the outer cells are whole
    )
    # Depths stand where a page opens a long prompt: at its end.
    edges = [-0.56, len(values) - 0.44]
    figure.update_yaxes(tickvals=depth_ticks(reading.n_layers), range=edges, showgrid=False, side="right")
    return figure


def _bar(chosen: LensStatistic, statistic: str) -> dict[str, Any]:
    bar: dict[str, Any] = {
        "title": {"text": chosen.label, "side": "top"},
        "orientation": "h",
        "x": 1,  # a page opens a long prompt at its end
        "xanchor": "right",
        "y": 1.0,
        "yanchor": "bottom",
        "len": 0.6,
        "thickness": 10,
        "outlinewidth": 0,
        "nticks": 5,
    }
    if statistic == "probability":
        bar["tickformat"] = ".0%"
    if chosen.log:
        bar |= {
            "tickvals": [math.log10(rank + 1) for rank in _RANKS],
            "ticktext": [f"{rank:,}" for rank in _RANKS],
        }
    return bar


def _hover(reading: PromptReading, depth: int, at: int) -> str:
    """Where, the top tokens, and every statistic."""
    lines = [f"after <b>{plain(visible(reading.tokens[at]))}</b>, depth {depth}"]
    lines += [
        f"{'<b>' if place == 0 else ''}{plain(visible(token))}{'</b>' if place == 0 else ''} {_percent(share)}"
        for place, (token, share) in enumerate(reading.best[depth][at][:5])
    ]
    if reading.answer is not None and reading.answer_ranks is not None:
        lines.append(f"rank of {plain(visible(reading.answer))}: {reading.answer_ranks[depth][at]:,}")
    lines.append(
        f"entropy {reading.entropy[depth][at]:.2f} nats, KL to the last depth {reading.kl[depth][at]:.2f} nats"
    )
    return "<br>".join(lines)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or not share else "<0.1%".replace("<", "&lt;")


def statistics_of(readings: Sequence[PromptReading]) -> list[str]:
    """Those statistics that every reading has."""
    return [
        name
        for name, one in LENS_STATISTICS.items()
        if all(one.values(read) is not None for read in readings)
    ]
