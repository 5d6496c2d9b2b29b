"""A study's tables as files and text: CSV, and one Markdown page with the command that makes it."""

from __future__ import annotations

from typing import Any

import polars as pl

from memprobe import retention
from memprobe.wording import markdown_table
from training.study import tables as surfacing
from training.study.claims import claims, specification
from training.study.results import Results


def tables(results: Results) -> dict[str, pl.DataFrame]:
    """The study's tables by name, each from stored results alone; those without data are left out."""
    kept = results.retention
    tested = claims(results)
    made = {
        "claims": tested.filter("headline").drop("headline"),
        "specification": specification(tested),
        "forgetting": retention.forgetting(kept),
        "nats": surfacing.nats(results),
        "placement": surfacing.placement(results),
        "spread": surfacing.spread(results),
        "kept_facts": surfacing.kept_before(results),
        "depth_and_retention": surfacing.depth_and_retention(results),
        "lost_facts": surfacing.lost_facts(results),
        "other_questions": retention.other_questions(kept),
        **{over: retention.curve(kept, over) for over in retention.CURVES},
        "stages": retention.stages(kept),
        "first_stages": retention.first_stages(kept),
        "interference": retention.interference(kept),
        "other_losses": retention.other_losses(kept),
        "cost": retention.cost(kept),
    }
    names = dict(results.cells.select("arm_text", "arm").iter_rows())
    return {name: _with_names(table, names) for name, table in made.items() if len(table)}


def _with_names(table: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
    """Arms by their names in the grid file, where a text stands for them."""
    texts = [name for name in ("arm", "against") if name in table.columns]
    return table.with_columns(pl.col(texts).replace(names))


def flat(table: pl.DataFrame) -> pl.DataFrame:
    """Lists as texts, joined by spaces, for CSV; a missing number is ``-``."""
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    texts = [
        pl.col(name).list.eval(pl.element().cast(pl.String).fill_null("-")).list.join(" ") for name in lists
    ]
    return table.with_columns(texts)


def markdown(made: dict[str, pl.DataFrame], command: str) -> str:
    """All tables as one Markdown page, with the command that makes it."""
    parts = [f"Made by `{command}`.\n"]
    for name, table in made.items():
        parts.append(f"## {name.replace('_', ' ').capitalize()}\n")
        numbers = {at for at, dtype in enumerate(table.dtypes) if dtype.is_numeric()}
        rows = [[shown(value) for value in row] for row in table.iter_rows()]
        parts += markdown_table(table.columns, rows, right=numbers, gap="")
        parts.append("")
    return "\n".join(parts)


def shown(value: Any) -> str:
    """A cell of a table as text: three digits, lists joined by commas."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
