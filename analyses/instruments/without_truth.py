"""What a report says where no block is the right one: of facts that nobody planted, and of ordinary fine-tuning."""

from __future__ import annotations

import polars as pl

from analyses.instruments.agreement import RIGHT
from analyses.instruments.alarms import KEPT
from analyses.instruments.formats import as_markdown, fraction, interval, number_of, percent
from analyses.instruments.results import Results
from analyses.instruments.scores import quartiles
from memprobe.wording import markdown_table


def nobody_planted(results: Results, facts: pl.DataFrame) -> list[str]:
    """Where instruments place facts that nobody planted: in blocks that were trained on others, or elsewhere."""
    null = facts.filter("counts", kind="null")
    if null.is_empty():
        return []
    trained = pl.DataFrame(
        [
            {"cell": cell["name"], "depth": float(block), "trained": True}
            for cell in results.cells
            for block in sorted({block for first, last in cell["blocks"] for block in range(first, last + 1)})
        ],
        schema={"cell": pl.String, "depth": pl.Float32, "trained": pl.Boolean},
    )
    by = ["source", "instrument"]
    placed = null.filter(pl.col("depth").is_not_null()).join(trained, on=["cell", "depth"], how="left")
    shares = placed.group_by(by).agg(trained=pl.col("trained").fill_null(False).mean())
    table = (
        quartiles(null).drop("kind", "planted", "size").join(shares, on=by, how="left", maintain_order="left")
    )
    return [
        "## Facts that nobody planted",
        "",
        "Asked of models in which others were planted. `named`: a block is named all the same; `trained`: of the "
        "named ones, it is one that was trained on the others.",
        "",
        *as_markdown(
            table,
            {"named": percent, "trained": percent, "q1": number_of, "median": number_of, "q3": number_of},
        ),
        "",
    ]


def strengths(apart: pl.DataFrame) -> list[str]:
    """Whether a strength above some threshold would tell a planted fact from another."""
    if apart.is_empty():
        return []
    rows = [
        [
            one["instrument"],
            one["source"],
            one["kind"],
            f"{one['models']}",
            f"{one['n']}, {one['others']}",
            fraction(one, "auc"),
            percent(one["alarms"]),
        ]
        for one in apart.filter(planted="all")
        .sort("auc", descending=True, maintain_order=True)
        .iter_rows(named=True)
    ]
    return [
        "## Does the strength of a verdict tell planted facts from others?",
        "",
        "Strength: the largest score of any block, in the instrument's own unit. `AUC`: the chance that of a planted "
        "fact and one that nobody planted, asked of the same model, the planted one has the larger strength (0.5 is "
        "chance), with 95 % intervals over models, sets and facts. `alarms`: share of the others that reach the "
        f"strength which {100 * KEPT:.0f} % of the model's planted facts reach. Instruments that give a depth alone "
        "have no strength.",
        "",
        *markdown_table(["instrument", "source", "kind", "models", "planted, others", "AUC", "alarms"], rows),
        "",
    ]


def controls(facts: pl.DataFrame, found: pl.DataFrame) -> list[str]:
    lines: list[str] = []
    where = quartiles(facts.filter(kind="full"))
    if len(where):
        lines += [
            "## Ordinary fine-tuning",
            "",
            "All weights trained on the same sets: nobody knows the truth. Where instruments place the facts "
            "(quartiles of the named depths):",
            "",
            *as_markdown(
                where.drop("kind", "planted", "size"),
                {"named": percent, "q1": number_of, "median": number_of, "q3": number_of},
            ),
        ]
    parts = found.filter(pl.col("right_part").is_not_null())
    keys = ("instrument", "source", "planted")
    if len(parts):
        lines += [
            "",
            "## Attention or MLP",
            "",
            "Instruments that tell the two apart, on sets trained into one of them:",
            "",
            *markdown_table(
                ["instrument", "source", "trained", "names the part", "exact block"],
                [
                    [*(one[key] for key in keys), interval(one, "right_part"), interval(one, "exact")]
                    for one in parts.iter_rows(named=True)
                ],
            ),
        ]
    return lines


def agreements(alike: pl.DataFrame) -> list[str]:
    """Whether instruments that are right about planted truth name the same depths where nobody knows the truth."""
    if alike.is_empty():
        return []
    rows = [
        [
            f"{one['one']}, {one['other']}",
            one["source"],
            fraction(one, "correlation", "_planted"),
            percent(one["within1_planted"]),
            fraction(one, "correlation"),
            percent(one["within1"]),
            percent(one["within1_shuffled"]),
        ]
        for one in alike.iter_rows(named=True)
    ]
    header = [
        "instruments",
        "source",
        "planted: correlation",
        "±1",
        "ordinary: correlation",
        "±1",
        "±1 by chance",
    ]
    return [
        "",
        "## Do instruments agree, fact by fact?",
        "",
        f"Pairs of instruments that are each right about {100 * RIGHT:.0f} % of planted facts at least: Spearman's "
        "correlation of the depths that they name, within models, with 95 % intervals over models, sets and facts; and "
        "the share of facts with depths at most one apart. Of several readings of the same evidence the one is taken "
        "that is right most often. `by chance`: the same, were the depths of one dealt to the facts of the model at "
        "random. All pairs are in `agreement.csv`.",
        "",
        *markdown_table(header, rows),
    ]
