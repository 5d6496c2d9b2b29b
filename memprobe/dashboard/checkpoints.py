"""One set of checkpoints: the entry that the page reads at once, and the blocks that wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from memprobe import plots, wording
from memprobe.dashboard import explorer, lenses
from memprobe.dashboard.chains import from_reference, pairs_of, paths_of
from memprobe.dashboard.embedding import embedded, figure_json, joined
from memprobe.dashboard.rules import UnderRule
from memprobe.dashboard.series import OVER_STEPS, looks_of, series_of
from memprobe.dashboard.sets import Set
from memprobe.dashboard.setup import asked_how, checkpoint_rows, what_was_run
from memprobe.readings import Readings
from memprobe.statistics import TOKEN_RULES
from memprobe.statistics.occurrence import Occurrence
from memprobe.statistics.vocabulary import label as called
from memprobe.statistics.vocabulary import shown

_AGAINST = {
    "reference": "reference",
    "before": "stage before",
    "naive": "naive arm",
}

FEW = 6
"""Checkpoints whose labels stand beside a fact's marks on a phone; those of more are shorter."""


def set_of(one: Set, prefix: str, ks: Sequence[int], cells: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the page shows of one set: the entry that is read at once, and the blocks that wait."""
    readings = one.readings
    labels, origin = readings.labels, readings.reference.label
    explored = explorer.explored(readings, cells)
    records, blocks, texts = explorer.pack_records(readings, explored, prefix)
    chosen = explored.factoids
    paths = paths_of(readings)
    series = series_of(readings)
    looks, short = looks_of(readings), wording.shortened(labels, 20 if len(labels) <= FEW else 10)
    followed = paths or from_reference(readings, without={label for one in series for label in one.labels})
    pairs = pairs_of(readings, paths)
    figures: dict[str, dict[str, dict[str, bytes]]] = {}
    headline: dict[str, dict[str, Any]] = {}
    arms: dict[str, dict[str, Any]] = {}
    answer: dict[str, dict[str, list[str]]] = {}
    occurrence = []
    beside: dict[str, dict[str, dict[str, list[list[str]]]]] = {}
    for rule in TOKEN_RULES:
        ruled = readings.under(token=rule)
        under = UnderRule(ruled, paths, followed, pairs)
        headline[rule], arms[rule], answer[rule] = {}, {}, {}
        for k in ks:
            at = ruled.under(k=k)
            made = under.tables(at)
            headline[rule][str(k)], arms[rule][str(k)] = made.headline, made.arms
            answer[rule][str(k)] = made.answer
            occurrence += [
                explorer.depth_columns(Occurrence.of(ruled[label].everyone, k), chosen["id"].to_list())
                for label in labels
            ]
            more = lenses.beside_of(at)
            made.figures.update(more.figures)
            for room, table in more.tables.items():
                beside.setdefault(room, {}).setdefault(rule, {})[str(k)] = table
            for name, figure in made.figures.items():
                figures.setdefault(name, {}).setdefault(rule, {})[str(k)] = embedded(figure_json(figure))
    blocks |= {f"{prefix}{name}": joined(by_rule) for name, by_rule in figures.items()}
    blocks |= {
        f"{prefix}trajectory": embedded(_trajectory(readings)),
        f"{prefix}factoids": embedded(
            explorer.factoid_columns(readings, chosen, {path.name: path.labels for path in followed})
        ),
        f"{prefix}occurrence": b"".join(occurrence),
        f"{prefix}tokens": embedded(texts),
    }
    run = readings.run_json
    entry = {
        "name": one.name,
        "family": one.family,
        "lens": readings.lens,
        "position": readings.members[0].probe.position,
        "beside": beside,
        "shown_beside": labels[: lenses.MOST],
        "prefix": prefix,
        "subtitle": asked_how(one),
        "checkpoints": [
            {"label": member.label, "n_layers": member.n_layers}
            | looks[member.label]
            | {"short": short[member.label]}
            | {name: member.manifest.get(name) for name in ("arm", "seed", "stage", "stage_name")}
            | {"base": member == readings.base}
            for member in readings.members
        ],
        "default": {"k": int(run["k"]), "rule": run["token"]},
        "controls": any(readings.shuffled(label) for label in labels),
        "answer": answer,
        "headline": headline,
        "arms": arms if any(arms[TOKEN_RULES[0]].values()) else None,
        "figures": list(figures),
        "statistics": {
            name: called(name) for name in dict.fromkeys([*shown("compared"), *shown("staged"), *OVER_STEPS])
        },
        "series": [{"name": one.name, "checkpoints": one.labels} for one in series],
        "against": [
            [key, f"{name} ({origin})" if key == "reference" else name]
            for key, name in _AGAINST.items()
            if any(pair[0] == key for pair in pairs)
        ],
        "fixed": readings.second is not None,
        "chains": [
            {"name": path.name, "checkpoints": path.labels, "stages": path.stage_names} for path in followed
        ],
        "records": records,
        "left_out": explored.left_out,
        "run": what_was_run(readings),
        "run_checkpoints": checkpoint_rows(readings),
    }
    return entry, blocks


def _trajectory(readings: Readings) -> dict[str, Any]:
    """The figure of one factoid, for the page to put each factoid's own numbers into."""
    some = []
    for label in readings.labels:
        ends = pl.col("depth").is_in([0, readings.member(label).n_layers])
        known = readings.rows(label, "records", where=ends & (pl.col("token") == 0)).sort("depth")
        some += [known.head(1), known.tail(1)]  # so that the axis ends at the last depth
    rows = pl.concat(some).with_columns(factoid=pl.lit(""))
    return figure_json(
        plots.rank_trajectory(rows, k=readings.k, checkpoints=readings.labels, looks=looks_of(readings))
    )
