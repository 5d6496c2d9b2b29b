"""Results as a page, tables and a figure.

::

    OUT/report.md     the page; planting first, then the main table, what it depends on, controls
    OUT/scores.csv    every instrument in every condition, all measures with intervals and chance
    OUT/by_block.csv  the same by true block   OUT/planting.csv   OUT/where.csv   where named depths lie
    OUT/agreement.csv whether two instruments name the same depths, fact by fact
    OUT/told_apart.csv   whether the strength of a verdict tells planted facts from others
    OUT/cells.json, verdicts.parquet, lenses.json   from which all of this is made again
    FIGURES/found.png, agreement.png, and what is drawn in them as .json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from analyses.instruments.agreement import agreement, ought_to_agree
from analyses.instruments.alarms import told_apart
from analyses.instruments.formats import as_markdown, interval, number_of, percent, whole
from analyses.instruments.results import Results, facts_of, keep
from analyses.instruments.scores import (
    CONDITION,
    DRAWS,
    costs,
    planting,
    quartiles,
    scores,
    unlearned,
)
from analyses.instruments.without_truth import agreements, controls, nobody_planted, strengths
from memprobe.files import write_json, write_text
from memprobe.wording import markdown_table

MAIN = {
    "several": "Several sets in one model, each trained into a block of its own",
    "single": "One set a model, trained into one block alone",
}
"""Kinds of models that a main table is about, the first that there is; what such a model is."""


def write_report(
    results: Results, out: Path, figures: Path | None = None, *, draws: int = DRAWS
) -> list[Path]:
    """Writes everything, and keeps the results that it was made of.

    Returns:
        The files for people: the page, the tables, the figures.
    """
    from analyses.instruments.drawing import draw_agreement, draw_found
    from memprobe.figures.writing import save

    facts = facts_of(results)
    found = scores(facts, draws=draws)
    pairs = agreement(facts, draws=draws)
    truth = facts.filter(pl.col("first").is_not_null())
    by_block = scores(truth, [*CONDITION, "first"], draws=draws) if len(truth) else pl.DataFrame()
    main = main_table(found)
    alike = ought_to_agree(pairs, main)
    apart = told_apart(facts, draws=draws)
    keep(results, out)
    files = [out / "report.md"]
    write_text(page(results, facts, found, by_block, alike, apart), files[0])
    for name, table in {
        "scores": found,
        "by_block": by_block,
        "planting": planting(results.cells),
        "where": quartiles(facts),
        "agreement": pairs,
        "told_apart": apart,
    }.items():
        if table.width:
            files.append(out / f"{name}.csv")
            write_text(table.write_csv(float_precision=4), files[-1])
    drawn = {"found": (main, draw_found(main))} if figures is not None and len(main) else {}
    if drawn and len(alike):
        planted = (pl.col("kind") == main["kind"][0]) & (pl.col("size") == main["size"][0])
        shown = pairs.filter(planted | (pl.col("kind") == "full"), source=alike["source"][0])
        shown = shown.select("kind", "one", "other", "correlation")
        drawn["agreement"] = (shown, draw_agreement(shown))
    for name, (table, figure) in drawn.items():
        figures.mkdir(parents=True, exist_ok=True)
        files.append(save(figure, figures / f"{name}.png"))
        write_json({"command": "python -m analyses.instruments report", "data": table.to_dict(as_series=False)},
                   figures / f"{name}.json")  # fmt: skip
    return files


def main_table(found: pl.DataFrame) -> pl.DataFrame:
    """Scores of instruments on sets in whole blocks of their own, best first: of one kind of models and size."""
    rows = _of_main(found)
    if rows.is_empty():
        return rows
    order = rows.group_by("instrument").agg(
        pl.col("exact").mean().alias("order"), pl.col("rank").mean().alias("then")
    )
    by = ["order", "then", "instrument", "source"]
    ordered = rows.join(order, on="instrument").sort(by, descending=[True, False, False, False])
    return ordered.drop("order", "then")


def _of_main(found: pl.DataFrame, scored: pl.DataFrame | None = None) -> pl.DataFrame:
    """The rows of the first kind of :data:`MAIN` that there is; of sizes of a set, the one that most models have.

    One whose sets lie in several blocks goes before: where one block alone learned its set, a constant guess is right.

    Args:
        scored: further rows, such as those by block, instead of ``found``, which decides.
    """
    whole = found.filter(planted="all")
    placed = whole.filter(pl.col("exact_constant") < 1)
    kinds = [kind for rows in (placed, whole) for kind in MAIN if kind in rows["kind"]]
    if not kinds:
        return whole.clear()
    sizes = whole.filter(kind=kinds[0]).group_by("size").agg(pl.col("models", "n").sum()).sort("models", "n")
    rows = found if scored is None else scored
    return rows.filter(planted="all", kind=kinds[0], size=sizes["size"][-1])


def page(
    results: Results,
    facts: pl.DataFrame,
    found: pl.DataFrame,
    by_block: pl.DataFrame,
    alike: pl.DataFrame,
    apart: pl.DataFrame,
) -> str:
    """The report as Markdown."""
    bases = sorted({cell["base"] for cell in results.cells})
    devices = sorted({cell["device"] for cell in results.cells})
    finished = sum(cell["finished"] for cell in results.cells)
    lines = [
        "# Which instrument finds the fact?",
        "",
        f"{len(results.cells)} models planted in {', '.join(bases)} ({finished} asked by every instrument), on "
        f"{', '.join(devices)}. `python -m analyses.instruments report` makes this page from what is stored beside it.",
        "",
        "## Planting",
        "",
        "`invalid`: resetting a learned set's block does not lose it, or takes the other sets with it; such models do "
        "not count. `own`, `others`: what is then still said, of the set and of the others.",
        "",
        *as_markdown(planting(results.cells), {"own": percent, "others": percent, "steps": whole}),
    ]
    missed = unlearned(results.cells)
    lines += ["", f"Sets that were not learned: {len(missed)}."]
    if len(missed):
        lines += ["", *as_markdown(missed, {"said": percent})]
    lines += ["", *_main(results, facts, found)]
    lines += ["", *_conditions(found)]
    if len(by_block):
        lines += ["", *_blocks(found, by_block)]
    lines += ["", *nobody_planted(results, facts), *strengths(apart), *controls(facts, found)]
    lines += agreements(alike)
    return "\n".join(lines) + "\n"


def _main(results: Results, facts: pl.DataFrame, found: pl.DataFrame) -> list[str]:
    main = main_table(found)
    if main.is_empty():
        return ["No model with planted sets is finished."]
    sources = main["source"].unique(maintain_order=True).sort().to_list()
    kind, size = main["kind"][0], main["size"][0]
    alarms = found.filter(kind="null", size=size, planted="all")
    cells = [
        cell
        for cell in results.cells
        if cell["costs"] and (cell["kind"], cell["part"], cell["facts"]) == (kind, "all", size)
    ]
    devices = [cell["device"] for cell in cells]
    device = max(sorted(set(devices)), key=devices.count)
    cost = {row["instrument"]: row for row in costs(cells, device).iter_rows(named=True)}
    header = ["instrument"]
    for source in sources:
        header += [f"exact, {source}", "±1", "error", "rank", "among"]
    header += ["names one, null", "passes", "seconds"]
    rows = []
    for name in main["instrument"].unique(maintain_order=True):
        row = [name]
        for source in sources:
            one = _row(main, instrument=name, source=source)
            row += (
                [""] * 5
                if one is None
                else [
                    interval(one, "exact"),
                    percent(one["within1"]),
                    number_of(one["error"]),
                    number_of(one["rank"]),
                    percent(one["among"]),
                ]
            )
        told = [
            f"{percent(one['named'])} ({source})" if len(sources) > 1 else percent(one["named"])
            for source in sources
            if (one := _row(alarms, instrument=name, source=source)) is not None
        ]
        spent = cost.get(name, {})
        passes = number_of(spent.get("forwards"))
        if spent.get("backwards"):
            passes += f" + {spent['backwards']:.0f} back"
        row += ["; ".join(told), passes, number_of(spent.get("seconds"))]
        rows.append(row)
    first = main.row(0, named=True)
    chance = "; ".join(
        f"{source}: exact {percent(one['exact_constant'])}, ±1 {percent(one['within1_constant'])}, error "
        f"{number_of(one['error_constant'])}"
        for source in sources
        if (one := _row(main, instrument=first["instrument"], source=source)) is not None
    )
    n_layers = int(facts["n_layers"].max())  # pyrefly: ignore[bad-argument-type]
    counted = ", ".join(
        f"{source} {one['n']} facts of {one['sets']} sets in {one['models']} models"
        for source in sources
        if (one := _row(main, instrument=first["instrument"], source=source)) is not None
    )
    return [
        "## The main table",
        "",
        f"{MAIN[first['kind']]}: {counted}. 95 % intervals in brackets, over "
        "models, sets and facts. `error`: blocks to the true one, where one is named. `rank` of the true block by the "
        f"instrument's scores, of {n_layers} (a mean of {(n_layers + 1) / 2:g} is chance). `among`: the true block has "
        "the highest score of the planted ones. `names one, null`: share of facts that were never planted, in a model "
        "where others were, for which a block is named all the same. `passes` forwards, for one fact; `seconds` for "
        f"one model ({device}, beside other processes).",
        "",
        f"The best constant guess: {chance}.",
        "",
        *markdown_table(header, rows),
    ]


def _conditions(found: pl.DataFrame) -> list[str]:
    true = found.filter(pl.col("exact").is_not_null())
    if true.is_empty():
        return []
    conditions = true.select(CONDITION).unique(maintain_order=True)
    names = [
        f"{kind}, {source}" + (f", {part}" if part != "all" else "") + f", {size}"
        for kind, source, part, size in conditions.iter_rows()
    ]
    rows = []
    for name in _ordered(true):
        row = [name]
        for condition in conditions.iter_rows(named=True):
            one = _row(true, instrument=name, **condition)
            row.append("" if one is None else percent(one["exact"]))
        rows.append(row)
    for label, key in (("best constant guess", "exact_constant"), ("models", "models"), ("facts", "n")):
        row = [f"*{label}*"]
        for condition in conditions.iter_rows(named=True):
            one = true.filter(**condition)
            value = one[key].max()
            row.append(percent(value) if key.startswith("exact") else f"{value}")
        rows.append(row)
    return [
        "## What it depends on",
        "",
        "Share of facts whose block is named exactly, by kind of model, source, part of the block that was trained, "
        "and facts of a set. Of a pair either block is right.",
        "",
        *markdown_table(["instrument", *names], rows),
    ]


def _blocks(found: pl.DataFrame, by_block: pl.DataFrame) -> list[str]:
    main = _of_main(found, by_block)
    if main.is_empty():
        return []
    places = main.select("source", "first").unique().sort("source", "first").rows()
    rows = []
    for name in _ordered(main):
        cells = [_row(main, instrument=name, source=source, first=first) for source, first in places]
        rows.append(
            [
                name,
                *(
                    "" if one is None else f"{percent(one['exact'])} · {number_of(one['error'])}"
                    for one in cells
                ),
            ]
        )
    header = ["instrument", *(f"{source}, block {first:.0f}" for source, first in places)]
    return [
        "## By depth",
        "",
        "Exact · mean error in blocks, by the block that holds the set.",
        "",
        *markdown_table(header, rows),
    ]


def _ordered(found: pl.DataFrame) -> list[str]:
    """Instruments, best first."""
    return found.group_by("instrument", maintain_order=True).agg(pl.col("exact").mean()).sort(
        "exact", "instrument", descending=[True, False]
    )["instrument"].to_list()  # fmt: skip


def _row(table: pl.DataFrame, **keys: Any) -> dict[str, Any] | None:
    """The one row of these keys; ``None`` where there is none."""
    found = table.filter(**keys)
    assert len(found) < 2, f"several rows of {keys}"
    return found.row(0, named=True) if len(found) else None
