"""The room of comparisons that ``memprobe compare`` has written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from memprobe import plots
from memprobe.compare import read_comparison
from memprobe.compare.outcomes import outcomes_of
from memprobe.dashboard.embedding import embedded, figure_json
from memprobe.dashboard.lenses import claim_cells, claim_head
from memprobe.files import short_names
from memprobe.statistics.vocabulary import PER_FACTOID, STATISTICS, axis, shown
from memprobe.statistics.vocabulary import label as called


def comparisons_room(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Differences and placement claims as ``memprobe compare`` wrote them."""
    entries, blocks = [], {}
    for position, (path, name) in enumerate(
        zip(paths, short_names([one.parent for one in paths]), strict=True)
    ):
        comparison = read_comparison(path)
        settings, tables, notes = comparison.settings, comparison.tables, comparison.notes
        labels = [row["label"] for row in settings["checkpoints"]]
        about = (
            f"k = {settings['k']}, token rule {settings['token']}, {settings['factoids']:,} facts, "
            f"{settings['draws']:,} draws, against {settings['reference']}"
        )
        if settings["base"] not in (None, settings["reference"]):
            about += f" and {settings['base']}"
        table = (
            tables["differences"]
            .filter(pl.col("on") == "all")
            .select("reference", "checkpoint", "statistic", "n", "difference", "low", "high")
            .with_columns(against=pl.lit(f"comparison-{position}"))
        )
        claims = tables["claims"].filter(pl.col("held").is_not_null() | pl.col("also_in").is_not_null())
        lenses = bool(claims["also_in"].is_not_null().any())
        held = [claim_head(lenses=lenses)]
        held += [claim_cells(row, lenses=lenses) for row in claims.iter_rows(named=True)]
        figures = []
        for statistic in shown("compared"):
            part = table.filter(pl.col("statistic") == statistic) if len(table) else table
            if len(part):
                several = part["reference"].n_unique() > 1
                if several:
                    part = part.filter(pl.col("reference") == settings["reference"])
                block = f"comparison-{position}-{statistic}"
                figure = plots.difference_forest.sketch(
                    part,
                    x=axis(statistic, difference=True),
                    percent=PER_FACTOID[statistic].share,
                    checkpoints=labels,
                )
                blocks[block] = embedded(figure_json(figure))
                figures.append([block, called(statistic, k=settings["k"])])
        entries.append(
            {
                "name": name,
                "about": about,
                "answer": comparison.verdict(),
                "notes": notes,
                "figures": figures,
                "claims": held[1:] and held,
            }
        )
    return entries, blocks


def outcomes_room(paths: Sequence[Path], draws: int) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Which facts checkpoints give, by results of other tools: differences and fates, for the room of comparisons.

    Args:
        paths: results directories and ``outcomes.json`` files.
    """
    entries, blocks = [], {}
    folders = [path if path.is_dir() else path.parent for path in paths]
    for position, (path, name) in enumerate(zip(paths, short_names(folders), strict=True)):
        outcomes = outcomes_of(path, draws=draws)
        settings = outcomes.settings
        figures = []
        for statistic in outcomes.tables["differences"]["statistic"].unique(maintain_order=True):
            part = outcomes.tables["differences"].filter(statistic=statistic)
            figure = plots.difference_forest.sketch(
                part.with_columns(against=pl.lit(f"outcomes-{position}")),
                x=axis(statistic, difference=True),
                percent=STATISTICS[statistic].share,
                checkpoints=[row["label"] for row in settings["checkpoints"]],
            )
            block = f"outcomes-{position}-{statistic}"
            blocks[block] = embedded(figure_json(figure))
            figures.append([block, called(statistic)])
        shown = outcomes.headline()
        entries.append(
            {
                "name": name,
                "about": f"Answers alone: {settings['factoids']:,} facts, {settings['draws']:,} draws, "
                f"against {settings['reference']}",
                "answer": outcomes.verdict(),
                "notes": outcomes.notes,
                "figures": figures,
                "claims": [],
                "table": [f"{shown.title}. {shown.says}", [list(shown.columns), *map(list, shown.rows)]],
            }
        )
    return entries, blocks
