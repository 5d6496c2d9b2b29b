"""Tables of :mod:`memprobe.retention` as figures take them: the same rows, with names for readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import polars as pl

from memprobe.arms import Arm, arm_names, by_kind
from memprobe.evaluations import EXACT, SHARES
from memprobe.figures.look import is_narrow
from memprobe.retention import STAGES, Retention, curve, forgetting, interference, other_questions, stages
from memprobe.retention.asked import BASE
from memprobe.retention.tables import titles
from memprobe.statistics.vocabulary import QUESTIONS

NAMES = (
    "forgetting",
    "stages",
    "replay_ratio",
    "mixing_ratio",
    "mixing_length",
    "penalty_strength",
    "interference",
    "other_questions",
)
"""Figures of training runs."""
_BY_SETUP = ("stages", "penalty_strength", "other_questions")
PAGE = 230
"""Millimetres that a figure may be high, before each set-up gets one of its own."""
NOT_LEARNED = "no run has learned all its stages"
_POINT = ("retention", "low", "high", "by_seed")
_OF_CURVE = (*_POINT, "seed_numbers")
_OF_D_B = ("last_metric", "last_score", "last_by_seed")


def of_retention(retention: Retention) -> dict[str, pl.DataFrame | str]:
    """What training runs can be drawn as: by figure its table or, in words, why there is none."""
    if not len(retention.cells):
        return dict.fromkeys(NAMES, "no training run of two stages or more has ended there")
    facts = retention.scores.filter(metric=EXACT).join(
        retention.cells.select("setup", dataset=pl.format("1-{}", "d_a")).unique(),
        on=["setup", "dataset"],
        how="semi",
    )
    cells = retention.cells.join(facts, on="setup", how="semi", maintain_order="left")
    with_facts = Retention(
        cells,
        retention.scores,
        retention.over_seeds,
    )
    tables: dict[str, tuple[Callable[[], pl.DataFrame], str]] = {
        "forgetting": (
            lambda: _forgetting(with_facts),
            NOT_LEARNED if len(cells) else "no run has factoids as D_A",
        ),
        "stages": (lambda: _stages(retention), NOT_LEARNED),
        "interference": (lambda: _interference(with_facts), "no run measured how its gradients interfere"),
        "other_questions": (
            lambda: _asked(retention),
            "no run that has learned asked D_A otherwise (evaluate.paraphrases, manipulations)",
        ),
        "replay_ratio": (
            lambda: _curve(with_facts, "replay_ratio", ["rows", "others"]),
            "there are not two replay ratios with all else equal",
        ),
        "mixing_ratio": (
            lambda: _curve(with_facts, "mixing_ratio", ["mixing", "mixing_words", "others"]),
            "there are not two mixing ratios with all else equal",
        ),
        "mixing_length": (
            lambda: _curve(with_facts, "mixing_words", ["mixing", "mixing_ratio", "others"]),
            "there are not two lengths of mixing rows with all else equal",
        ),
        "penalty_strength": (
            lambda: _curve(with_facts, "penalty_strength", ["penalty", "others"]),
            "there are not two strengths of a penalty with all else equal",
        ),
    }
    made: dict[str, pl.DataFrame | str] = {}
    names = titles(retention.cells)
    for name, (table, why) in tables.items():
        drawn = table()
        made[name] = drawn.with_columns(pl.col("setup").replace(names)) if len(drawn) else why
    return made


def pages(name: str, table: pl.DataFrame, width: int) -> dict[str, pl.DataFrame]:
    """One figure, or one a set-up: always of those of :data:`_BY_SETUP`, of forgetting where one fits no page."""
    setups = table["setup"].unique(maintain_order=True).to_list()
    rows = len(setups) if is_narrow(width) else -(-len(setups) // 2)
    fits = name == "forgetting" and rows * (4.6 * table["arm"].n_unique() + 13) <= PAGE
    if len(setups) == 1 or fits or name not in (*_BY_SETUP, "forgetting"):
        return {"": table}
    return {setup: table.filter(setup=setup) for setup in setups}


def _named(table: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """``arm`` as readers know it, and its text beside it."""
    texts = cells.select("setup", "arm", "arm_text", n=STAGES).unique()
    table = table.drop("arm_text", strict=False)
    table = table.join(texts, on=["setup", "arm"], how="left", maintain_order="left")
    arms = [Arm.of(text).in_chain(n).text for text, n in table.select("arm_text", "n").iter_rows()]
    names = arm_names(by_kind(set(arms)))
    return table.with_columns(arm=pl.Series([names[arm] for arm in arms])).drop("n")


def _forgetting(retention: Retention) -> pl.DataFrame:
    learned = retention.cells.filter("learned") if len(retention.cells) else retention.cells
    if not len(learned):
        return pl.DataFrame()
    some = retention.cells.join(learned, on="setup", how="semi", maintain_order="left")
    retention = replace(retention, cells=some)
    table = _named(forgetting(retention), retention.cells).with_columns(pl.col("by_seed").fill_null([]))
    costs = ("failed", "last_metric", "last_score", "steps", "tokens")
    return table.select("setup", "arm", "arm_text", *_POINT, *costs)


def _stages(retention: Retention) -> pl.DataFrame:
    table = stages(retention)
    if not len(table):
        return table
    table = _named(table, retention.cells)
    joint = [text for text in table["arm_text"].unique() if Arm.of(text).is_joint]
    table = table.filter(
        pl.col("dataset").str.contains(r"^\d+-"),
        pl.col("metric").is_in(SHARES),
        ~pl.col("arm_text").is_in(joint),
    ).with_columns(pl.col("dataset").str.replace(r"^\d+-", ""))
    rank = pl.col("arm_text").replace_strict(
        {text: i for i, text in enumerate(by_kind(set(table["arm_text"])))}
    )
    table = table.sort("setup", rank, maintain_order=True)
    columns = ("value", "low", "high", "by_seed", "seed_numbers")
    return table.select("setup", "arm", "dataset", "metric", "stage", *columns)


def _interference(retention: Retention) -> pl.DataFrame:
    table = interference(retention) if len(retention.cells) else pl.DataFrame()
    if not len(table):
        return table
    table = (
        _named(table, retention.cells).sort("setup", "arm_text", "seed").rename({"cosine_start": "cosine"})
    )
    return table.select("setup", "arm", "arm_text", pl.col("seed").cast(pl.String), "cosine", "retention")


def _asked(retention: Retention) -> pl.DataFrame:
    """Arms as readers know them, the base model before all."""
    table = other_questions(retention)
    if not len(table):
        return table
    lengths = retention.cells.select("setup", n=STAGES).unique()
    table = table.join(lengths, on="setup", how="inner", maintain_order="left")
    texts = [Arm.of(text).in_chain(n).text for text, n in table.select("arm", "n").iter_rows()]
    order = by_kind({text for text in texts if text != BASE})
    rank = {BASE: -1} | {text: place for place, text in enumerate(order)}
    names = {BASE: "base model"} | arm_names(order)
    shown = table.with_columns(
        arm=pl.Series([names[text] for text in texts]), rank=pl.Series([rank[text] for text in texts])
    ).sort("setup", pl.col("question").cast(pl.Enum(list(QUESTIONS))), "rank", "stage", maintain_order=True)
    return shown.select("setup", "question", "arm", "stage", "share", "low", "high", "by_seed")


def _curve(retention: Retention, over: str, keys: list[str]) -> pl.DataFrame:
    table = curve(retention, over) if len(retention.cells) else pl.DataFrame()
    if not len(table):
        return table
    numbers = [name for name in chain(keys, [over]) if name.startswith(("mixing_", "replay_", "penalty_"))]
    drawn = (*_OF_CURVE, *(_OF_D_B if over == "penalty_strength" else ()))
    return table.select("setup", *keys, over, *drawn).with_columns(pl.col(numbers).cast(pl.Float64))
