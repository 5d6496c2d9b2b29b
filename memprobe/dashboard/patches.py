"""Patches -> a page: restoration by depth and positions, and every factoid of a sweep.

The same figures stand in the report of a probe that holds patches; see :mod:`memprobe.dashboard.writing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from memprobe import palette, wording
from memprobe.dashboard import page
from memprobe.dashboard.embedding import embedded, figure_json, rounded
from memprobe.errors import MemprobeError
from memprobe.files import short_names, write_text
from memprobe.patch_tables import tables_of
from memprobe.patches import Patches
from memprobe.plots.patches import restoration_curves, restoration_heatmap, sweep_names
from memprobe.statistics import patches as statistics
from memprobe.statistics.patch_arms import NAMES
from memprobe.statistics.patches import OF_STATES, SWEEP
from memprobe.statistics.vocabulary import STATISTICS, label

TITLE = "Where does a patch bring the fact back?"
"""Of a page that shows patches alone."""
MAX_ROWS = 2000
"""Factoids of a sweep beyond these are left out of the page, and it says so."""


def write_patches(
    patches: Patches, path: str | Path, *, facts: str = "all", threshold: float = statistics.GAP
) -> None:
    """Writes the page on a directory of patches as one HTML file.

    Args:
        facts: see :data:`memprobe.statistics.patches.FACTS`.
        threshold: nats by which source and target must differ on a fact.

    Raises:
        MemprobeError: there are no patches, or ``path`` cannot be written.
    """
    if patches.table.is_empty():
        why = (
            "no pair is patched to its end yet; run the same memprobe patch again"
            if patches.errors.is_empty()
            else "every fact gave logits that are not finite; try --dtype float32"
        )
        raise MemprobeError(f"{patches.path}: {why}")
    data = patches_data([patches], facts=facts, threshold=threshold)
    data["title"] = TITLE
    data["templates"] = {theme: palette.template(theme) for theme in ("light", "dark")}
    text = page.assemble(
        title="patches · memprobe",
        body="patches.html",
        scripts=("core.js", page.PLOTLY, "patches.js"),
        data={"patches-data": rounded(data)},
        blocks={},
    )
    write_text(text, Path(path))


def patches_room(patches: Sequence[Patches]) -> tuple[bool, dict[str, bytes]]:
    """Whether there is a room of patches, and the block that it waits for."""
    whole = [one for one in patches if not one.table.is_empty()]
    if not whole:
        return False, {}
    return True, {"patches": embedded(patches_data(whole))}


def patches_data(
    patches: Sequence[Patches], *, facts: str = "all", threshold: float = statistics.GAP
) -> dict[str, Any]:
    """What page and room show: by pair and direction the figures and the rows, all computed here."""
    views, arms = [], []
    for one, name in zip(patches, short_names([one.path for one in patches]), strict=True):
        tables = tables_of(one, facts=facts, threshold=threshold)
        prefix = f"{name}: " if len(patches) > 1 else ""
        first = statistics.first_depths(one.table, facts=facts, threshold=threshold, n_layers=one.layers)
        shares = statistics.moved_shares(statistics.answers(one.table, facts=facts), threshold=threshold)
        asked = one.factoids.select("id", "prompt", "answer")
        if not tables["by_depth"].is_empty():
            weights = pl.col("what") == "weights"
            for kind, rows in (("states", ~weights), ("weights", weights)):
                views += [
                    _view(kind, part, tables, shares, first, asked, prefix)
                    | {"said": _facts_that_differ(part, facts, threshold)}
                    for part in tables["by_depth"]
                    .filter(rows)
                    .partition_by(["source", "target", "direction"], maintain_order=True)
                ]
        arms += _arms(tables["arms"], prefix)
    nothing = (
        f"No fact separates the two by more than {threshold:g} nats, so there is nothing to restore or erase."
    )
    head = ["arm", "stage", "facts", "patched", "direction", "seeds", *map(label, NAMES)]
    return {
        "views": views,
        "arms": [head, *arms] if arms else [],
        "nothing": nothing,
        "heat": {theme: [list(stop) for stop in palette.SEQUENTIAL[theme]] for theme in ("light", "dark")},
    }


def _facts_that_differ(part: pl.DataFrame, facts: str, threshold: float) -> str:
    head = part.row(0, named=True)
    n, asked = (int(part[name].to_numpy().max()) for name in ("n", "facts"))
    of = "" if facts == "all" else f" (facts {facts})"
    pair = f"between {head['source']} and {head['target']}"
    return f"{n} of {asked} facts differ by more than {threshold:g} nats {pair}{of}."


def _arms(means: pl.DataFrame, prefix: str) -> list[list[str]]:
    """A row of texts for each arm, stage, set of facts and sweep."""
    if means.is_empty() or (means["arm"].n_unique() < 2 and means["seeds"].to_numpy().max() < 2):
        return []
    rows = []
    keys = ["facts", "what", "positions", "direction", "arm", "stage"]
    for part in means.partition_by(keys, maintain_order=True):
        head = part.row(0, named=True)
        by_name = {row["statistic"]: row for row in part.iter_rows(named=True)}
        numbers = []
        for name in NAMES:
            row, unit = by_name[name], ".1%" if STATISTICS[name].share else ".1f"
            seeds = ", ".join("–" if value is None else format(value, unit) for value in row["by_seed"])
            known = row["low"] is not None
            numbers.append(
                wording.interval(row["mean"], row["low"], row["high"], unit) if known else f"seeds {seeds}"
            )
        patched = f"{head['what']}, {head['positions']}"
        texts = [
            head["arm"],
            prefix + head["stage"],
            head["facts"],
            patched,
            head["direction"],
            str(head["seeds"]),
        ]
        rows.append([*texts, *numbers])
    return rows


def _view(
    kind: str,
    part: pl.DataFrame,
    tables: Mapping[str, pl.DataFrame],
    shares: pl.DataFrame,
    first: pl.DataFrame,
    asked: pl.DataFrame,
    prefix: str,
) -> dict[str, Any]:
    """One pair in one direction: its figures, its sentences and the factoids of each of its sweeps."""
    head = part.row(0, named=True)
    same = [pl.col(name) == head[name] for name in ("source", "target", "direction")]
    sentences: list[str] = []
    for name, say in _SENTENCES[kind].items():
        if not tables[name].is_empty():
            sentences += [say(row) for row in tables[name].filter(same).iter_rows(named=True)]
    sweeps = []
    for sweep, name in zip(part.partition_by(SWEEP, maintain_order=True), sweep_names(part), strict=True):
        row = sweep.row(0, named=True)
        within = [pl.col(key) == row[key] for key in SWEEP]
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
            depths = first.filter([pl.col(key) == row[key] for key in OF_STATES])
            every = bool(depths["patched"].is_null().all())
            by_fact = by_fact.join(depths.select("factoid", "first"), on="factoid", how="left")
        else:
            every = True
            best = pl.col("depth").list.get(pl.col("moved").list.arg_max())
            by_fact = by_fact.with_columns(first=best)
        names = {depth: _place(depth, last) for depth, last in sweep.select("depth", "last").iter_rows()}
        by_fact = by_fact.sort("first", "prompt", nulls_last=True).with_columns(
            pl.col("first").replace_strict(names, default=None, return_dtype=pl.String)
        )
        rows = by_fact.head(MAX_ROWS).select(
            "factoid", "prompt", "answer", "source_log_prob", "target_log_prob", "gap", "first", "moved"
        )
        sweeps.append(
            {
                "name": name,
                "places": [_place(*ends) for ends in sweep.select("depth", "last").rows()],
                "every": every,
                "rows": [list(values) for values in rows.iter_rows()],
                "left_out": max(0, len(by_fact) - MAX_ROWS),
            }
        )
    by = " by grafts" if kind == "weights" else ""
    return {
        "name": f"{prefix}{head['source']} → {head['target']}: {head['direction']}{by}",
        "kind": kind,
        "sentences": sentences,
        "heatmap": figure_json(restoration_heatmap.sketch(part)),
        "curves": figure_json(restoration_curves.sketch(part)),
        "sweeps": sweeps,
    }


def _place(first: int, last: int) -> str:
    """The name of a depth, of a block, or of several in a row."""
    return f"{first}" if first == last else f"{first}–{last}"


def _first_sentence(row: dict[str, Any]) -> str:
    where = f"{row['what']}, {row['positions']}"
    if row["patched"] is not None:
        return (
            f"{where}: a patch moves half at none of the depths patched ({wording.spans(row['patched'])}) for "
            f"{wording.percent_of_some(row['never'])} of {row['n']} facts; median and mean need every depth"
        )
    median = "no depth for most facts" if row["median"] is None else f"depth {row['median']:.0f} (median)"
    return (
        f"{where}: a patch moves half from {median}; mean {row['restricted']:.1f}, counting never as one further; "
        f"never for {wording.percent_of_some(row['never'])} of {row['n']} facts"
    )


def _fate_sentence(row: dict[str, Any]) -> str:
    return f"facts {row['fate']} ({row['facts']}): {_first_sentence(row)}"


def _graft_sentence(row: dict[str, Any]) -> str:
    return (
        f"{row['parts']}: block {_place(row['depth'], row['last'])} moves most, {100 * row['moved']:.0f} %; it wins "
        f"{wording.wins(row)}"
    )


_SENTENCES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "states": {"first_depth": _first_sentence, "fates": _fate_sentence},
    "weights": {"grafts": _graft_sentence},
}
