"""Patches -> a page: restoration by depth and positions, and every factoid of a sweep.

The same figures stand in the report of a probe that holds patches; see :mod:`memprobe.dashboard.writing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from memprobe import palette
from memprobe.dashboard import page
from memprobe.dashboard.embedding import figure_json, rounded
from memprobe.errors import MemprobeError
from memprobe.files import write_text
from memprobe.patches import Patches
from memprobe.plots.patches import restoration_curves, restoration_heatmap, sweep_names
from memprobe.statistics import patches as statistics

_KEYS = ["source", "target", "what", "positions", "parts", "window", "direction"]
MAX_ROWS = 2000
"""Factoids of a sweep beyond these are left out of the page, and it says so."""


def write_patches(
    found: Patches, path: str | Path, *, facts: str = "all", threshold: float = statistics.GAP
) -> None:
    """Writes the page on a directory of patches as one HTML file.

    Args:
        facts: see :data:`memprobe.statistics.patches.FACTS`.
        threshold: nats by which source and target must differ on a fact.

    Raises:
        MemprobeError: there are no patches, or ``path`` cannot be written.
    """
    data = patches_data(found, facts=facts, threshold=threshold)
    text = page.assemble(
        title="patches · memprobe",
        body="patches.html",
        scripts=("core.js", page.PLOTLY, "patches.js"),
        data={"patches-data": rounded(data)},
        blocks={},
    )
    write_text(text, Path(path))


def patches_data(found: Patches, *, facts: str, threshold: float) -> dict[str, Any]:
    """What the page shows: by pair and direction the figures and the rows, all computed here."""
    if found.table.is_empty():
        raise MemprobeError(
            f"{found.path}: no pair is patched to its end yet; run the same memprobe patch again"
        )
    table = statistics.by_depth(found.table, facts=facts, threshold=threshold)
    first = statistics.first_depths(found.table, facts=facts, threshold=threshold, n_layers=found.n_layers)
    summary = statistics.first_depth_summary(first)
    effects = statistics.graft_effects(found.table, facts=facts, threshold=threshold)
    shares = statistics.moved_shares(statistics.answers(found.table, facts=facts), threshold=threshold)
    asked = found.factoids.select("id", "prompt", "answer")
    views = []
    if not table.is_empty():
        grafts = pl.col("what") == "weights"
        for kind, rows in (("states", table.filter(~grafts)), ("weights", table.filter(grafts))):
            views += [
                _view(kind, part, summary, effects, shares, first, asked)
                for part in rows.partition_by(["source", "target", "direction"], maintain_order=True)
            ]
    return {
        "threshold": threshold,
        "facts": facts,
        "asked": len(asked),
        "n_layers": found.n_layers,
        "template": found.run["template"],
        "views": views,
        "templates": {theme: palette.template(theme) for theme in ("light", "dark")},
        "heat": {theme: [list(stop) for stop in palette.SEQUENTIAL[theme]] for theme in ("light", "dark")},
    }


def _view(
    kind: str,
    part: pl.DataFrame,
    summary: pl.DataFrame,
    effects: pl.DataFrame,
    shares: pl.DataFrame,
    first: pl.DataFrame,
    asked: pl.DataFrame,
) -> dict[str, Any]:
    """One pair in one direction: its figures, its sentences and the factoids of each of its sweeps."""
    head = part.row(0, named=True)
    same = [pl.col(name) == head[name] for name in ("source", "target", "direction")]
    sentences = []
    if kind == "states" and not summary.is_empty():
        sentences = [_first_sentence(row) for row in summary.filter(same).iter_rows(named=True)]
    elif kind == "weights" and not effects.is_empty():
        sentences = [_graft_sentence(row) for row in effects.filter(same).iter_rows(named=True)]
    sweeps = []
    for sweep, name in zip(part.partition_by(_KEYS, maintain_order=True), sweep_names(part), strict=True):
        row = sweep.row(0, named=True)
        within = [pl.col(key) == row[key] for key in _KEYS]
        own = shares.filter([*within, pl.col("control") == "", pl.col("moved").is_not_null()])
        by_fact = (
            own.sort("depth")
            .group_by("factoid", maintain_order=True)
            .agg(
                "moved", "depth", "gap", pl.col("source_log_prob").first(), pl.col("target_log_prob").first()
            )
        )
        by_fact = by_fact.with_columns(pl.col("gap").list.first()).join(
            asked, left_on="factoid", right_on="id"
        )
        if kind == "states":
            keys = [key for key in _KEYS if key not in ("parts", "window")]
            depths = first.filter([pl.col(key) == row[key] for key in keys]).select("factoid", "first")
            by_fact = by_fact.join(depths, on="factoid", how="left")
        else:
            best = pl.col("depth").list.get(pl.col("moved").list.arg_max())
            by_fact = by_fact.with_columns(first=best)
        by_fact = by_fact.sort("first", "prompt", nulls_last=True)
        rows = by_fact.head(MAX_ROWS).select(
            "prompt", "answer", "source_log_prob", "target_log_prob", "gap", "first", "moved"
        )
        sweeps.append(
            {
                "name": name,
                "places": sweep["depth"].to_list(),
                "rows": [list(values) for values in rows.iter_rows()],
                "left_out": max(0, len(by_fact) - MAX_ROWS),
            }
        )
    return {
        "name": f"{head['source']} → {head['target']}: {head['direction']}{' by grafts' if kind == 'weights' else ''}",
        "kind": kind,
        "direction": head["direction"],
        "source": head["source"],
        "target": head["target"],
        "n": int(part["n"].to_numpy().max()),
        "facts": int(part["facts"].to_numpy().max()),
        "sentences": sentences,
        "heatmap": figure_json(restoration_heatmap.sketch(part)),
        "curves": figure_json(restoration_curves.sketch(part)),
        "sweeps": sweeps,
    }


def _first_sentence(row: dict[str, Any]) -> str:
    where = f"{row['what']}, {row['positions']}"
    median = "no depth for most facts" if row["median"] is None else f"depth {row['median']:.0f} (median)"
    return (
        f"{where}: a patch moves half from {median}; mean {row['restricted']:.1f}, counting never as one further; "
        f"never for {100 * row['never']:.0f} % of {row['n']} facts"
    )


def _graft_sentence(row: dict[str, Any]) -> str:
    place = f"{row['depth']}" if row["depth"] == row["last"] else f"{row['depth']}–{row['last']}"
    return (
        f"{row['parts']}: block {place} moves most, {100 * row['moved']:.0f} %; it wins in "
        f"{100 * row['support']:.0f} % of resamples and for {100 * row['facts_share']:.0f} % of {row['n']} facts"
    )
