"""One set of checkpoints: the entry that the page reads at once, and the blocks that wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import palette, plots
from memprobe.dashboard import explorer
from memprobe.dashboard.chains import Chain, base_of, chains_of, pairs_of
from memprobe.dashboard.embedding import embedded, figure_json
from memprobe.dashboard.questions import Asked
from memprobe.dashboard.rules import UnderRule
from memprobe.dashboard.setup import asked_how, checkpoint_rows, what_was_run
from memprobe.dashboard.shown import SHOWN
from memprobe.statistics import TOKEN_RULES
from memprobe.statistics.occurrence import Occurrence

if TYPE_CHECKING:
    pass

_AGAINST = {
    "reference": "reference",
    "before": "stage before",
    "naive": "naive arm",
}


def set_of(
    asked: Asked, prefix: str, ks: Sequence[int], reference: str | None, fixed: Asked | None, cells: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the page shows of one set: the entry that is read at once, and the blocks that wait."""
    labels = asked.labels
    chosen, tokens, left_out = explorer.explored(asked, cells)
    records, blocks, texts = explorer.pack_records(asked, chosen, tokens, prefix)
    base = base_of(asked)
    chains = chains_of(asked, base)
    origin = reference if reference in labels else labels[0]
    followed = chains or [
        Chain(f"{origin} → {label}", label, False, None, [0, 1], [origin, label], [origin, label])
        for label in labels
        if label != origin
    ]
    pairs = pairs_of(asked, chains, origin)
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    headline: dict[str, dict[str, Any]] = {}
    arms: dict[str, dict[str, Any]] = {}
    occurrence = []
    for rule in TOKEN_RULES:
        under = UnderRule(asked, rule, chains, followed, pairs, fixed)
        headline[rule], arms[rule] = {}, {}
        for k in ks:
            drawn, headline[rule][str(k)], arms[rule][str(k)] = under.tables(k)
            occurrence += [
                explorer.depth_columns(Occurrence.of(under.answers[label], k), chosen["id"].to_list())
                for label in labels
            ]
            for name, figure in drawn.items():
                figures.setdefault(name, {}).setdefault(rule, {})[str(k)] = figure_json(figure)
    paths = {chain.name: chain.labels for chain in followed}
    blocks |= {f"{prefix}{name}": embedded(figure) for name, figure in figures.items()}
    blocks |= {
        f"{prefix}trajectory": embedded(_trajectory(asked)),
        f"{prefix}factoids": embedded(explorer.factoid_columns(asked, chosen, paths)),
        f"{prefix}occurrence": b"".join(occurrence),
        f"{prefix}tokens": embedded(texts),
    }
    manifests = {label: asked.entry(label).get("manifest") or {} for label in labels}
    entry = {
        "name": asked.name,
        "prefix": prefix,
        "subtitle": asked_how(asked),
        "checkpoints": [
            {"label": label, "n_layers": asked.n_layers[label]}
            | palette.style(position)
            | {name: manifests[label].get(name) for name in ("arm", "seed", "stage", "stage_name")}
            | {"base": label == base}
            for position, label in enumerate(labels)
        ],
        "default": {"k": int(asked.run["k"]), "rule": asked.run["token"]},
        "controls": not asked.shuffled.is_empty(),
        "headline": headline,
        "arms": arms if any(arms[TOKEN_RULES[0]].values()) else None,
        "figures": list(figures),
        "statistics": {name: label for name, (label, _) in SHOWN.items()},
        "against": [
            [key, f"{name} ({origin})" if key == "reference" else name]
            for key, name in _AGAINST.items()
            if any(pair[0] == key for pair in pairs)
        ],
        "fixed": fixed is not None,
        "chains": [
            {"name": chain.name, "checkpoints": chain.labels, "stages": chain.stage_names}
            for chain in followed
        ],
        "records": records,
        "left_out": left_out,
        "run": what_was_run(asked),
        "run_checkpoints": checkpoint_rows(asked),
    }
    return entry, blocks


def _trajectory(asked: Asked) -> dict[str, Any]:
    """The figure of one factoid, for the page to put each factoid's own numbers into."""
    first = asked.records.filter(pl.col("token") == 0)
    some = [first.filter(pl.col("checkpoint") == label).head(1) for label in asked.labels]
    rows = pl.concat(some).with_columns(factoid=pl.lit(""))
    return figure_json(plots.rank_trajectory(rows, k=int(asked.run["k"]), checkpoints=asked.labels))
