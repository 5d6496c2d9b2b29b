"""The room of a published study: what can be shown of its tables, without records, runs or weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from memprobe import plots, sentences
from memprobe.arms import Arm, arm_names
from memprobe.dashboard.embedding import embedded, figure_json
from memprobe.errors import MemprobeError
from memprobe.files import short_names
from memprobe.studies import RESULTS

MOST_ROWS = 500
"""Rows of a table that the page holds; the file has the others."""


def results_room(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """An entry for each study, and the blocks that wait: figures of what is kept, and every table as texts.

    Raises:
        MemprobeError: a table is broken.
    """
    entries, blocks = [], {}
    for position, (folder, name) in enumerate(zip(folders, short_names(folders), strict=True)):
        tables = {path.stem: _read(path) for path in sorted((folder / RESULTS).glob("*.csv"))}
        figures, answer, names = [], [], {}
        if (kept := tables.get("forgetting")) is not None:
            names = _names(kept)
            later = _later(tables.get("stages"))
            kept = kept.with_columns(_not_learned(kept, later))
            kept = _typed(kept, folder).with_columns(_named("arm", names))
            answer = sentences.of_retention(kept)
            several = kept["setup"].n_unique() > 1
            for (setup,), part in kept.group_by("setup", maintain_order=True):
                block = f"results-{position}-{len(figures)}"
                blocks[block] = embedded(figure_json(plots.retention_points.sketch(part)))
                figures.append([block, f"What is left of D_A{f': {setup}' if several else ''}"])
        if (placed := tables.get("placement")) is not None:
            order = [] if kept is None else kept["arm"].unique(maintain_order=True).to_list()
            for title, part in _stages(
                _numbers(placed, PLACED, folder / RESULTS / "placement.csv", names), order
            ):
                block = f"results-{position}-{len(figures)}"
                blocks[block] = embedded(figure_json(plots.placement_points.sketch(part)))
                figures.append([block, title])
        claims = tables.get("claims")
        if claims is not None and set(CLAIMS) <= set(claims.columns):
            typed = _numbers(claims, CLAIMS, folder / RESULTS / "claims.csv", names)
            answer += sentences.of_placements(
                typed.filter(pl.col("claim").str.starts_with(sentences.SURFACES))
            )
        if claims is not None and "verdict" in claims.columns:
            answer.append(sentences.of_verdicts(claims["verdict"].to_list()))
        shown = []
        for table, rows in tables.items():
            block = f"results-{position}-table-{table}"
            told, shared = _without_shared(
                rows.with_columns(_named(name, names) for name in ("arm", "against") if name in rows.columns)
            )
            head = [column.replace("_", " ") for column in told.columns]
            body = [list(map(_short, row)) for row in told.head(MOST_ROWS).rows()]
            blocks[block] = embedded([head, *body])
            shown.append([block, table.replace("_", " "), max(0, len(rows) - MOST_ROWS), shared])
        setups = [] if kept is None else kept["setup"].unique().to_list()
        about = setups[0] if len(setups) == 1 else ""
        entries.append({"name": name, "about": about, "answer": answer, "figures": figures, "tables": shown})
    return entries, blocks


def _without_shared(rows: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """A table without the columns that say nothing, or the same in every row, and what those say."""
    rows = rows.select(one.name for one in rows if not one.fill_null("").is_in(["", "–"]).all())
    if len(rows) < 2:
        return rows, ""
    same = [name for name in rows.columns if rows[name].n_unique() == 1]
    if len(same) == len(rows.columns):
        return rows, ""
    parts = [f"{name.replace('_', ' ')} {value}" for name in same if (value := _short(rows[name][0])) != "–"]
    return rows.drop(same), f"In every row: {', '.join(parts)}." if parts else ""


def _read(path: Path) -> pl.DataFrame:
    """A table as texts: nothing is computed from them but what :func:`_typed` reads."""
    try:
        return pl.read_csv(path, infer_schema=False).with_columns(pl.all().fill_null("–"))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise MemprobeError(f"{path}: cannot be read as a table ({error})") from error


PLACED = {
    "setup": pl.String,
    "k": pl.Int64,
    "token": pl.String,
    "readout": pl.String,
    "stage": pl.String,
    "arm": pl.String,
    "lof_restricted_mean": pl.Float64,
    "lof_restricted_mean_low": pl.Float64,
    "lof_restricted_mean_high": pl.Float64,
    "chance_lof_restricted_mean": pl.Float64,
}
NEWER = ("lof_restricted_mean_low", "lof_restricted_mean_high")
"""Columns that tables of before do not have."""
CLAIMS = {
    **dict.fromkeys(("setup", "claim", "arm", "against", "verdict"), pl.String),
    **dict.fromkeys(("estimate", "low", "high"), pl.Float64),
    "seeds": pl.Int64,
}


def _stages(placed: pl.DataFrame, order: Sequence[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Placement in the paper's reading and the models' own readout, for each pair of datasets and stage.

    Args:
        order: of the arms.
    """
    own = placed.filter(k=10, token="first", readout="own").filter(pl.col("stage") != "0")
    several = placed["setup"].n_unique() > 1
    for (setup, stage), part in own.group_by("setup", "stage", maintain_order=True):
        rows = part.drop_nulls("lof_restricted_mean")
        place = rows["arm"].map_elements(
            lambda arm: order.index(arm) if arm in order else len(order), pl.Int64
        )
        rows = rows.sort(place, maintain_order=True)
        if len(rows):
            yield f"Where D_A surfaces after stage {stage} (top 10){f': {setup}' if several else ''}", rows


def _names(kept: pl.DataFrame) -> dict[str, str]:
    """What a grid calls an arm -> its name in figures; as it is called where two would have one name."""
    if not {"arm", "arm_text"} <= set(kept.columns):
        return {}
    named = kept.filter(pl.col("arm_text") != "–")  # an arm of which no cell is finished has no text
    texts = dict(named.select("arm", "arm_text").iter_rows())
    names = arm_names(list(dict.fromkeys(texts.values())))
    return {arm: names[text] for arm, text in texts.items()}


def _later(stages: pl.DataFrame | None) -> str:
    """What those after the first stage train on."""
    three = stages is not None and "stage" in stages.columns and (stages["stage"] == "3").any()
    return "a later stage" if three else "D_B"


def _not_learned(kept: pl.DataFrame, later: str) -> pl.Series:
    """``missing``: why an arm has no number, where none of its seeds learned what it trains on."""

    def why(arm: str, cells: str, failed: str) -> str | None:
        if arm == "–" or cells != failed or not failed.strip("0–"):
            return None
        # An arm that is naive in stage 1 goes on from a checkpoint that learned it.
        return f"did not learn {later if Arm.of(arm).is_plain_in(1, 9) else 'its data'}"

    if not {"arm_text", "cells", "failed"} <= set(kept.columns):
        return pl.Series("missing", [None] * len(kept), pl.String)
    rows = kept.select("arm_text", "cells", "failed").iter_rows()
    return pl.Series("missing", [why(*row) for row in rows], pl.String)


def _named(column: str, names: Mapping[str, str]) -> pl.Expr:
    return pl.col(column).replace(names) if names else pl.col(column)


def _numbers(
    table: pl.DataFrame, schema: Mapping[str, Any], path: Path, names: Mapping[str, str]
) -> pl.DataFrame:
    """Columns of a table of texts, as they are typed, with the arms' names.

    Raises:
        MemprobeError: it lacks one.
    """
    try:
        lacking = [pl.lit("–").alias(name) for name in NEWER if name in schema and name not in table.columns]
        typed = table.with_columns(lacking).select(
            pl.col(name).cast(kind, strict=False) for name, kind in schema.items()
        )
        return typed.with_columns(_named(name, names) for name in ("arm", "against") if name in schema)
    except pl.exceptions.PolarsError as error:
        raise MemprobeError(f"{path}: not as python -m training report writes it ({error})") from error


def _rounded(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _short(text: str) -> str:
    """Numbers, also several in a cell, with three digits."""
    return re.sub(r"-?\d+\.\d{3,}(?:e-?\d+)?", lambda found: _rounded(float(found[0])), text)


def _typed(table: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """[setup, arm, retention, low, high, by_seed, missing] of the table ``forgetting``, as numbers; ``arm_text`` too,
    where it has texts."""
    numbers = [pl.col(name).cast(pl.Float64, strict=False) for name in ("retention", "low", "high")]
    seeds = (
        pl.col("by_seed").str.split(" ").list.eval(pl.element().cast(pl.Float64, strict=False).drop_nulls())
    )
    try:
        texts = [name for name in ("arm_text",) if name in table.columns]
        return table.select("setup", "arm", *texts, *numbers, seeds, "missing")
    except pl.exceptions.PolarsError as error:
        raise MemprobeError(
            f"{folder / RESULTS / 'forgetting.csv'}: not as python -m training report writes it ({error})"
        ) from error
