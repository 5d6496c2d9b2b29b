"""Every verdict of all stored studies, below what the paper says: the page ``findings/claims.md`` of the site."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from memprobe.wording import markdown_table

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Study:
    """A folder of stored results below ``analyses``, and what distinguishes it, in few words."""

    folder: str
    title: str
    model: str = "SmolLM2-135M"


STUDIES = (
    Study("study", "64 keys"),
    Study("study-ewc", "64 keys, EWC again"),
    Study("study-kinds", "64 keys, other D_B"),
    Study("study-500", "500 keys"),
    Study("study-paper", "64 keys or real facts, other D_B, three stages"),
    Study("study-real", "64 real facts, random words"),
    Study("study-stages", "64 keys, three stages again, UltraChat again"),
    Study("study-random", "64 keys, random words, every D_B"),
    Study("study-controls", "64 keys, controls and mixing in bfloat16"),
    Study("study-later", "64 keys, while D_B is learned"),
    Study("study-questions", "64 keys or facts, asked otherwise"),
    Study("study-gemma", "64 keys, Gemma", "Gemma-3-270M"),
)

PAPER = {
    "forgetting": "A second stage makes the model forget the first",
    "second stages": "What D_B is decides how much is kept",
    "mixing": "REMIX keeps what naive training forgets, and more than training longer does",
    "baselines": "Replay and weight regularisation help little (what is *seen* here speaks against it)",
    "nats": "The same, in the log-probability of an answer's first token",
    "placement, after stage 1": "REMIX stores facts earlier: after stage 1",
    "placement, after the last stage": "REMIX stores facts earlier: after the last stage",
    "kept": "What is kept was in earlier layers",
    "kept by degrees": "The same by degrees: the earlier a fact surfaces, the more probable it stays",
    "spread": "REMIX spreads facts over more diverse layers",
    "other questions, after stage 1": "REMIX makes facts easier to recall and manipulate: after stage 1",
    "other questions, after the last stage": "The same, after the last stage",
    "other questions in nats, after stage 1": "The same after stage 1, in the log-probability of the answers",
    "other questions in nats, after the last stage": "The same after the last stage, in the log-probability",
    "gradients": "What harms the facts shows in the gradients before stage 2",
}
"""What the paper says, or would have to show, by family of the book of claims."""

PAGE = """# The paper, claim by claim

What Chen et al. (arXiv 2411.07175) say of Llama-3-8B and other large models, and what is seen in the studies here
({studies}). At least three seeds an arm. A verdict is *seen*, *contradicted*, *equivalent* (the whole interval lies
within bounds that count as nothing), *undecided*, or *not tested*; tests of one family are corrected together, within
a study ([more](../concepts/verdicts.md)). *Would be seen from*: the smallest difference that such a test finds in
eight of ten studies. Differences are shares of facts, nats or depths, with 95 % intervals over seeds and facts. The
notebook `analyses/10_what_the_paper_claims.ipynb` puts the studies side by side, with costs and controls.

{claims}
"""


def verdicts_table(claims: pl.DataFrame, *more: str) -> str:
    """Rows of ``claims.csv`` as Markdown, after further columns of theirs.

    A permutation test has no interval, and its estimate stands alone.
    """
    interval = pl.format("{} [{}, {}]", "estimate", "low", "high")
    shown = claims.with_columns(pl.col("estimate", "low", "high", "detectable").round(2)).select(
        *more,
        "claim",
        pl.col("arm").fill_null(""),
        pl.col("against").fill_null(""),
        "verdict",
        pl.coalesce(interval, pl.col("estimate").cast(pl.String)).alias("difference"),
        pl.col("detectable").alias("would be seen from"),
        "seeds",
    )
    return markdown(shown)


def markdown(table: pl.DataFrame) -> str:
    """A table as Markdown; what is missing is a dash."""
    rows = [["–" if value is None else str(value) for value in row] for row in table.iter_rows()]
    return "\n".join(markdown_table(table.columns, rows))


def stages(folder: Path) -> pl.DataFrame:
    """What is trained in each set-up of a study up to each stage: [setup, stage, stages], as ``kvr → lama``; all of it
    where ``stage`` is null, as in claims about whole cells."""
    cells = pl.read_parquet(folder / "cells.parquet").select("setup", "d_a", "d_b", "d_c")
    rows = [
        (setup, stage, " → ".join(datasets[:stage]))  # a slice up to None is the whole
        for setup, *chain in cells.unique("setup").iter_rows()
        for datasets in [[name for name in chain if name]]
        for stage in (None, *range(1, len(datasets) + 1))
    ]
    return pl.DataFrame(
        rows, schema={"setup": pl.String, "stage": pl.Int64, "stages": pl.String}, orient="row"
    )


def verdicts() -> pl.DataFrame:
    """The headline verdicts of all studies: the columns of ``claims.csv``, ``study`` and ``stages``."""
    headline = pl.col("k").is_null() | ((pl.col("k") == 10) & (pl.col("token") == "first"))
    texts = ("token", "arm", "against")
    numbers = ("estimate", "low", "high", "detectable")
    columns = dict.fromkeys(texts, pl.String) | dict.fromkeys(numbers, pl.Float64)
    found = [  # a column that is empty in one study has no kind there
        pl.read_csv(ROOT / one.folder / "tables" / "claims.csv", schema_overrides=columns | {"k": pl.Int64})
        .filter(headline)
        .join(
            stages(ROOT / one.folder),
            on=["setup", "stage"],
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )
        .with_columns(study=pl.lit(one.title))
        for one in STUDIES
    ]
    return pl.concat(found, how="diagonal_relaxed")


def page() -> str:
    """The page, as Markdown.

    Raises:
        ValueError: a family of claims for which :data:`PAPER` has no sentence.
    """
    found = verdicts()
    if missing := sorted(set(found["family"]) - set(PAPER)):
        raise ValueError(f"no sentence of the paper for {missing}")
    parts = []
    for family, said in PAPER.items():
        of_family = found.filter(family=family)
        tested = of_family.filter(pl.col("verdict") != "not tested")
        told = "; ".join(
            f"{study}: " + ", ".join(f"{row['len']} {row['verdict']}" for row in rows.to_dicts())
            for (study,), rows in tested.group_by("study", "verdict", maintain_order=True)
            .len()
            .group_by("study", maintain_order=True)
        )
        left_out = len(of_family) - len(tested)
        more = f"\n\nNot tested, as the tables of the studies say why: {left_out}." if left_out else ""
        shown = f"\n\n{verdicts_table(tested, 'study', 'stages')}" if len(tested) else ""
        parts.append(f"## {said}\n\n{told or 'Nothing could be tested'}.{shown}{more}")
    titles = "; ".join(f"*{one.title}*, {one.model}, `analyses/{one.folder}`" for one in STUDIES)
    return PAGE.format(studies=titles, claims="\n\n".join(parts))
