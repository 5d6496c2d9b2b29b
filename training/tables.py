"""What a grid found: one row per cell, and the study's tables, from records and evaluations alone.

    collect(OUT) -> Results ─ write, read ─> cells.parquet, stages.parquet, … (no weights, no records)
                        └─ tables -> forgetting, curves, three stages, placement, interference, cost, claims

Statistics of placement are :mod:`memprobe.compare`'s; here they are laid out by arm and seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from scipy.stats import spearmanr

from memprobe.arms import BEYOND_NAIVE, by_kind
from memprobe.compare import compare, kept_facts
from memprobe.errors import MemprobeError
from memprobe.files import read_json, write_parquet
from memprobe.probes import Probe, open_probe
from memprobe.statistics.arms import MIN_SEEDS
from memprobe.studies import CELL, GRID

SETTINGS = ((10, "first"), (1, "all"))
"""(k, token rule) of every table of placement: the paper's top 10, and the strict reading that an answer from a
small alphabet needs."""
READOUTS = ("own", "base-readout")
NAIVE = "none"

_PLACED = (
    "exact",
    "lof_mean",
    "lof_sd",
    "share_never",
    "lof_median",
    "lof_restricted_mean",
    "settled_restricted_mean",
    "depths_per_factoid",
    "effective_layers",
    "chance_lof_restricted_mean",
)
_KEYS = ["setup", "k", "token", "readout"]


@dataclass(frozen=True)
class Results:
    """What is published of a grid; :func:`tables` needs no more.

    Attributes:
        cells: one row per finished cell.
        stages: one row per cell, stage and evaluated dataset.
        placement: one row per set-up, reading, readout and checkpoint.
        arms: over seeds; see :func:`memprobe.statistics.arms.arm_means`.
        differences: over seeds, against naive; see :func:`memprobe.statistics.arms.arm_differences`.
        spread: sd of the LoF against what the ceiling explains, seed by seed against naive.
        lost: of the facts lost to a later stage, what the lens still reads.
        kept: of the facts kept by it, where they had surfaced before; see :func:`memprobe.compare.kept_facts`.
    """

    cells: pl.DataFrame
    stages: pl.DataFrame
    placement: pl.DataFrame
    arms: pl.DataFrame
    differences: pl.DataFrame
    spread: pl.DataFrame
    lost: pl.DataFrame
    kept: pl.DataFrame

    def write(self, folder: Path) -> None:
        """One Parquet file per table."""
        for name, table in vars(self).items():
            write_parquet(table, folder / f"{name}.parquet")


def read_results(folder: Path) -> Results:
    """Results as :meth:`Results.write` left them.

    Raises:
        MemprobeError: a table is missing or broken.
    """
    found = {}
    for name in Results.__dataclass_fields__:
        path = folder / f"{name}.parquet"
        try:
            found[name] = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise MemprobeError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return Results(**found)


def flat(table: pl.DataFrame) -> pl.DataFrame:
    """Lists as texts, joined by spaces, for CSV; a missing number is ``-``."""
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    texts = [
        pl.col(name).list.eval(pl.element().cast(pl.String).fill_null("-")).list.join(" ") for name in lists
    ]
    return table.with_columns(texts)


# --------------------------------------------------------------------------------------------- collecting


def collect(out: Path, *, draws: int = 2000, say: Callable[[str], None] = lambda line: None) -> Results:
    """Gathers a grid's finished cells; those that are not finished are not there.

    Args:
        draws: of the bootstrap.
        say: called with one line about each set-up, before its records are read.

    Raises:
        MemprobeError: the directory holds no grid, or no finished cell.
    """
    if not (out / GRID).exists():
        raise MemprobeError(f"{out}: holds no {GRID}, so this is no grid (python -m training grid makes one)")
    found = sorted((out / "runs").glob(f"*/*/{CELL}"))
    if not found:
        raise MemprobeError(f"{out}: no cell is finished yet")
    cells, stages = [], []
    for path in found:
        cell, rows = _cell(path, out)
        cells.append(cell)
        stages += rows
    frame = pl.DataFrame(cells, infer_schema_length=None)
    rank = pl.col("arm_text").replace_strict(
        {arm: i for i, arm in enumerate(by_kind(set(frame["arm_text"])))}
    )
    frame = frame.sort("setup", rank, "seed", maintain_order=True)
    parts: dict[str, list[pl.DataFrame]] = {}
    for (setup,), group in frame.group_by("setup", maintain_order=True):
        learned = group.filter(pl.col("learned"))  # what was not learned says nothing of what is kept
        say(f"{setup}: {len(group)} cells, {len(learned)} of them learned; reading where their facts surface")
        for name, table in _placed(out, str(setup), learned["labels"].to_list(), draws):
            parts.setdefault(name, []).append(table)
    placed = {
        name: pl.concat(parts[name], how="diagonal_relaxed") if name in parts else pl.DataFrame()
        for name in ("placement", "arms", "differences", "spread", "lost", "kept")
    }
    return Results(frame, pl.DataFrame(stages, infer_schema_length=None), **placed)


def _cell(path: Path, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A cell's row, and one for each stage and dataset."""
    ended = read_json(path)
    run = path.parent
    folders = [run / stage["stage"] for stage in ended["stages"]]
    manifest = read_json(folders[-1] / "memprobe.json")
    recipe = manifest["recipe"]
    evaluations = [read_json(folder / "evaluation.json") for folder in folders]
    names = [stage["name"] for stage in recipe["stages"]]
    keys = {"setup": ended["setup"], "arm": ended["arm"], "seed": ended["seed"]}
    rows = []
    for evaluation in evaluations:
        for dataset, one in evaluation["sets"].items():
            score = one["scores"][one["metric"]]
            rows.append(
                keys
                | {"stage": evaluation["stage"], "dataset": dataset, "metric": one["metric"], "n": one["n"]}
                | score
            )
    first, last = evaluations[0]["sets"], evaluations[-1]
    kept = last["retention"].get(f"1-{names[0]}", {})
    own = last["sets"][f"{len(names)}-{names[-1]}"]
    d_a = _score(last["sets"].get(f"1-{names[0]}"))
    mixing = [part for stage in recipe["stages"] for part in stage["mixing"]]
    replay = [stage["replay"]["ratio"] for stage in recipe["stages"] if stage.get("replay")]
    # Joint training has no second dataset whose gradient could pull against the first one's.
    interference = {} if recipe["joint"] else last.get("interference") or {}
    cell = {
        "block": ended["block"],
        **keys,
        "d_a": names[0],
        "d_b": names[1],
        "d_c": names[2] if len(names) > 2 else None,
        "n": first[f"1-{names[0]}"]["n"],
        "arm_text": manifest["arm"],
        "mixing": ",".join(part["source"] for part in mixing) or None,
        "mixing_ratio": mixing[0]["ratio"] if mixing else None,
        "mixing_words": mixing[0]["words"][-1] if mixing else None,
        "replay_ratio": replay[0] if replay else None,
        "plain_last": not recipe["joint"] and not any(recipe["stages"][-1][key] for key in BEYOND_NAIVE),
        "labels": [stage["label"] for stage in ended["stages"]],
        "learned": ended["learned"],
        "why": ended["why"],
        # A joint run has one stage, which is its first and its last.
        "d_a_after_1": None if recipe["joint"] else _score(first[f"1-{names[0]}"])["value"],
        "retention": d_a["value"],
        "retention_low": d_a["low"],
        "retention_high": d_a["high"],
        "retention_replayed": _part(kept, "replayed"),
        "retention_unseen": _part(kept, "unseen"),
        "last_metric": own["metric"],
        "last_score": _score(own)["value"],
        "known_after_1": _score(first.get("known"))["value"],
        "known": _score(last["sets"].get("known"))["value"],
        "perplexity_after_1": _score(first.get("texts"))["value"],
        "perplexity": _score(last["sets"].get("texts"))["value"],
        "steps": sum(stage["steps"] for stage in ended["stages"]),
        "tokens": sum(stage["tokens"] for stage in ended["stages"]),
        "seconds": _total(stage["seconds"] for stage in ended["stages"]),
        "cosine_start": _overall(interference, "start", "cosine_a_b"),
        "cosine_end": _overall(interference, "end", "cosine_a_b"),
        "first_order_harm": _overall(interference, "end", "gradient_a_delta"),
        "weight_change": _overall(interference, "end", "delta_norm"),
    }
    return cell, rows


def _score(result: dict[str, Any] | None) -> dict[str, Any]:
    if result is None:
        return {"value": None, "low": None, "high": None}
    return result["scores"][result["metric"]]


def _part(kept: dict[str, Any], name: str) -> float | None:
    part = kept.get(name)
    return part["scores"]["exact_match"]["value"] if part and part["n"] else None


def _overall(interference: dict[str, Any], end: str, name: str) -> float | None:
    return interference.get(end, {}).get(name, {}).get("overall")


def _total(values: Iterable[float | None]) -> float | None:
    given = list(values)
    return None if any(value is None for value in given) else sum(value or 0 for value in given)


def _placed(
    out: Path, setup: str, chains: Sequence[list[str]], draws: int
) -> Iterable[tuple[str, pl.DataFrame]]:
    """Tables of placement of one set-up, for each readout and reading.

    Args:
        chains: labels of each cell's stages, from stage 1 on.
    """
    for readout in READOUTS if chains else ():
        folder = out / "probes" / setup / readout
        if not (folder / "run.json").exists():
            continue  # D_A has no factoids, or the grid wants no second readout
        probe = open_probe(folder)
        made = {
            label: entry["manifest"] or {}
            for label, entry in probe.run["checkpoints"].items()
            if entry["complete"] and (entry["manifest"] is None or any(label in chain for chain in chains))
        }
        for k, token in SETTINGS:
            keys = {"setup": setup, "k": k, "token": token, "readout": readout}
            for name, table in _read_out(probe, made, chains, {"k": k, "token": token, "draws": draws}):
                yield name, _keyed(table, keys)


def _read_out(
    probe: Probe, made: dict[str, dict[str, Any]], chains: Sequence[list[str]], options: dict[str, Any]
) -> Iterable[tuple[str, pl.DataFrame]]:
    """Tables of one readout and reading; ``made`` holds each checkpoint's manifest, nothing for the base."""
    naive = [label for label, manifest in made.items() if manifest.get("arm") == NAIVE]
    trained = [label for label in made if made[label]]
    whole = compare([probe.only(made)], reference=(naive or trained)[0], **options).tables
    named = [
        {"checkpoint": label} | {key: made[label][key] for key in ("arm", "seed", "stage")}
        for label in trained
    ]
    yield (
        "placement",
        whole["placement"]
        .select("checkpoint", *_PLACED)
        .join(pl.DataFrame(named), on="checkpoint", how="left", maintain_order="left"),
    )
    yield "arms", whole["arms"]
    firsts = {made[label]["arm"]: label for label in reversed(trained)}
    for arm, label in firsts.items():
        if arm == NAIVE or arm.startswith("matched("):  # what an arm is held against
            yield (
                "differences",
                compare([probe.only(made)], reference=label, **options).tables["arm_differences"],
            )
    for reference in naive:  # an arm's spread is held against naive of the same seed, after the same stage
        same = [made[reference][key] for key in ("seed", "stage")]
        like = [label for label in trained if [made[label][key] for key in ("seed", "stage")] == same]
        if len(like) > 1:
            pair = compare([probe.only(like)], reference=reference, base=reference, **options).tables
            yield "spread", pair["spread"].filter(pl.col("on") == "all").drop("on")
    for chain in chains:
        for before, after in itertools.pairwise(chain):
            if before in made and after in made:
                pair = compare([probe.only([before, after])], reference=before, base=before, **options).tables
                gone = (
                    pair["fates"]
                    .filter(pl.col("path") == "1→0")
                    .rename({"n": "n_lost", "share": "share_lost"})
                )
                gone = gone.drop("path", "low", "high")
                yield "lost", gone.join(pair["lost"], on=["reference", "checkpoint"], how="left")
    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for chain in chains:
        for before, after in itertools.pairwise(chain):
            if before in made and after in made:
                stage = pairs.setdefault(str(made[after]["stage"]), {})
                stage.setdefault(made[after]["arm"], []).append((before, after))
    for stage_name, arms in pairs.items():
        kept = kept_facts(probe.only(made), arms, **options)
        if len(kept):
            yield "kept", kept.select(pl.lit(stage_name).alias("stage"), pl.all())


def _keyed(table: pl.DataFrame, keys: dict[str, Any]) -> pl.DataFrame:
    return table.select(*(pl.lit(value).alias(name) for name, value in keys.items()), pl.all())


# ------------------------------------------------------------------------------------------------- tables


def tables(results: Results) -> dict[str, pl.DataFrame]:
    """The study's tables by name, each from stored results alone; those without data are left out."""
    made = {
        "forgetting": forgetting(results),
        "placement": placement(results),
        "spread": spread(results),
        "kept_facts": kept_before(results),
        "lost_facts": lost_facts(results),
        "replay_ratio": curve(results, "replay_ratio"),
        "mixing_ratio": curve(results, "mixing_ratio"),
        "mixing_words": curve(results, "mixing_words"),
        "three_stages": three_stages(results),
        "interference": interference(results),
        "other_losses": other_losses(results),
        "cost": cost(results),
        "claims": claims(results),
    }
    names = dict(results.cells.select("arm_text", "arm").iter_rows())
    return {name: _with_names(table, names) for name, table in made.items() if len(table)}


def _with_names(table: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
    """Arms by their names in the grid file, where a text stands for them."""
    texts = [name for name in ("arm", "against") if name in table.columns]
    return table.with_columns(pl.col(texts).replace(names))


def forgetting(results: Results) -> pl.DataFrame:
    """Retention of D_A after the last stage, D_B's score and the cost beside it, by arm.

    Means are over learned cells. Intervals resample seeds, then factoids, and need three seeds.

    Returns:
        [setup, arm, arm_text, cells, failed, d_a_after_1, retention, low, high, by_seed, last_metric, last_score,
        steps, tokens]; steps and tokens as multiples of naive's.
    """
    learned = results.cells.filter("learned")
    found = _over_seeds(
        learned, ["setup", "arm", "arm_text", "last_metric"], ["d_a_after_1", "last_score", "steps", "tokens"]
    )
    kept = learned.group_by("setup", "arm", maintain_order=True).agg(
        retention=pl.col("retention").mean(), by_seed=pl.col("retention").sort_by("seed")
    )
    counts = results.cells.group_by("setup", "arm", maintain_order=True).agg(
        cells=pl.len(), failed=pl.col("learned").not_().sum()
    )
    edges = _of_arms(results.arms, "exact", last=True).select("setup", "arm_text", "low", "high")
    naive = found.filter(pl.col("arm_text") == NAIVE).select(
        "setup", naive_steps="steps", naive_tokens="tokens"
    )
    table = (
        counts.join(kept, on=["setup", "arm"], how="left", maintain_order="left")
        .join(found, on=["setup", "arm"], how="left", maintain_order="left")
        .join(edges, on=["setup", "arm_text"], how="left", maintain_order="left")
        .join(naive, on="setup", how="left", maintain_order="left")
    )
    ratios = [(pl.col(name) / pl.col(f"naive_{name}")).alias(name) for name in ("steps", "tokens")]
    front = [
        "setup",
        "arm",
        "arm_text",
        "cells",
        "failed",
        "d_a_after_1",
        "retention",
        "low",
        "high",
        "by_seed",
    ]
    return table.with_columns(ratios).select(*front, "last_metric", "last_score", "steps", "tokens")


def placement(results: Results) -> pl.DataFrame:
    """Where D_A surfaces, by arm and stage: the paper's figure 4 as numbers. Means over seeds, seeds beside them.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, exact, lof_mean, lof_mean_by_seed, lof_sd, lof_sd_by_seed,
        share_never, lof_restricted_mean, chance_lof_restricted_mean, effective_layers, depths_per_factoid]
    """
    if not len(results.placement):
        return pl.DataFrame()
    table = results.placement.with_columns(pl.col("arm").fill_null("base"), pl.col("stage").fill_null(0))
    means = ["exact", "share_never", "lof_restricted_mean", "chance_lof_restricted_mean", "effective_layers"]
    return (
        table.group_by(*_KEYS, "stage", "arm", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            pl.col("lof_mean").mean(),
            pl.col("lof_mean").sort_by("seed").alias("lof_mean_by_seed"),
            pl.col("lof_sd").mean(),
            pl.col("lof_sd").sort_by("seed").alias("lof_sd_by_seed"),
            *(pl.col(name).mean() for name in [*means, "depths_per_factoid"]),
        )
        .sort(*_KEYS, "stage", maintain_order=True)
    )


def curve(results: Results, over: str) -> pl.DataFrame:
    """Retention by a setting of one arm, all else equal; naive is its zero.

    Args:
        over: ``replay_ratio``, ``mixing_ratio`` or ``mixing_words``.

    Returns:
        [setup, kind, other settings, over, seeds, retention, by_seed, last_score, tokens]
    """
    learned = results.cells.filter("learned")
    plain = pl.col("arm_text").str.starts_with("remix(") & ~pl.col("arm_text").str.contains("+", literal=True)
    if over == "replay_ratio":
        some = learned.filter(pl.col("arm_text").str.contains(r"^replay\([^+]*$"))
        keys = ["setup"]
    else:
        other = "mixing_words" if over == "mixing_ratio" else "mixing_ratio"
        stage_1 = pl.col("arm_text").str.contains(r"stages=1[,)]") & ~pl.col("arm_text").str.contains(
            "stages=1,2"
        )
        some = learned.filter(plain & stage_1)
        keys = ["setup", "mixing", other]
    groups = some.group_by(keys, maintain_order=True).agg(pl.col(over).n_unique().alias("values"))
    some = some.join(groups.filter(pl.col("values") > 1).drop("values"), on=keys, how="semi")
    if not len(some):
        return pl.DataFrame()
    found = some.group_by(*keys, over, maintain_order=True).agg(
        pl.len().alias("seeds"),
        pl.col("retention").mean(),
        pl.col("retention").sort_by("seed").alias("by_seed"),
        pl.col("last_score").mean(),
        pl.col("tokens").mean(),
    )
    naive = (
        learned.filter(pl.col("arm_text") == NAIVE)
        .group_by("setup")
        .agg(
            pl.lit(0).alias(over),
            pl.len().alias("seeds"),
            pl.col("retention").mean(),
            pl.col("retention").sort_by("seed").alias("by_seed"),
            pl.col("last_score").mean(),
            pl.col("tokens").mean(),
        )
    )
    zeros = found.select(keys).unique(maintain_order=True).join(naive, on="setup", how="inner")
    return pl.concat([zeros, found], how="diagonal_relaxed").sort(*keys, over)


def spread(results: Results) -> pl.DataFrame:
    """Spread of the LoF over depths, seed by seed: its sd minus the sd that the ceiling explains, against naive's.

    Returns:
        [setup, k, token, readout, arm, stage, seed, sd, sd_expected, difference, low, high]; see
        :func:`memprobe.statistics.paired.spread_against_shift`.
    """
    if not len(results.spread):
        return pl.DataFrame()
    who = results.placement.select(*_KEYS, "checkpoint", "arm", "stage", "seed").drop_nulls()
    order = list(dict.fromkeys(results.cells["arm_text"]))
    table = results.spread.join(who, on=[*_KEYS, "checkpoint"], how="inner", maintain_order="left")
    rank = pl.col("arm").replace_strict({arm: place for place, arm in enumerate(order)}, default=len(order))
    table = table.sort(
        "setup",
        "k",
        "token",
        "readout",
        "stage",
        rank,
        "seed",
        descending=[False, True, False, True, False, False, False],
    )
    numbers = ["sd", "sd_expected", "difference", "low", "high"]
    return table.select(*_KEYS, "arm", "stage", "seed", *numbers)


def kept_before(results: Results) -> pl.DataFrame:
    """Where the facts that a stage left had surfaced before it, against those that it took; negative is earlier.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, kept, lost, lof, low, high, by_seed, lof_net, net_low, net_high,
        net_by_seed]; ``lof`` is the difference of mean LoF in depths (never as n + 1), ``lof_net`` the same net of
        shuffled answers.
    """
    if not len(results.kept):
        return pl.DataFrame()
    keys = [*_KEYS, "stage", "arm"]
    rows = results.kept.filter(statistic="lof_restricted").rename({"difference": "lof"}).drop("statistic")
    net = results.kept.filter(statistic="lof_restricted_net").select(
        *keys, lof_net="difference", net_low="low", net_high="high", net_by_seed="by_seed"
    )
    table = rows.join(net, on=keys, how="left", maintain_order="left")
    counts = ["seeds", "kept", "lost"]
    edges = ["lof", "low", "high", "by_seed", "lof_net", "net_low", "net_high", "net_by_seed"]
    return table.select(*keys, *counts, *edges).sort(
        _KEYS, descending=[False, True, False, True], maintain_order=True
    )


def lost_facts(results: Results) -> pl.DataFrame:
    """Of the facts that a stage took, those that still surface at some depth, and those that D_B's answers outrank.

    Returns:
        [setup, k, token, readout, stage, arm, seeds, lost, surfaces, deepest, intruded]: ``lost`` counts facts in each
        seed; ``surfaces``, ``deepest`` (mean depth of those that surface) and ``intruded`` are means over seeds.
    """
    if not len(results.lost):
        return pl.DataFrame()
    who = results.placement.select(*_KEYS, "checkpoint", "arm", "stage", "seed").drop_nulls()
    table = results.lost.join(who, on=[*_KEYS, "checkpoint"], how="inner", maintain_order="left")
    return (
        table.group_by(*_KEYS, "stage", "arm", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            pl.col("n_lost").sort_by("seed").alias("lost"),
            pl.col("surfaces", "deepest", "intruded").mean(),
        )
        .sort(_KEYS, descending=[False, True, False, True], maintain_order=True)
    )


def three_stages(results: Results) -> pl.DataFrame:
    """Every dataset's score after every stage, for cells of three stages; means over seeds.

    Returns:
        [setup, arm, dataset, metric, stage, seeds, value, by_seed]
    """
    long = results.cells.filter(pl.col("learned") & pl.col("d_c").is_not_null()).select(
        "setup", "arm", "seed"
    )
    rows = results.stages.join(long, on=["setup", "arm", "seed"], how="semi")
    return rows.group_by("setup", "arm", "dataset", "metric", "stage", maintain_order=True).agg(
        pl.len().alias("seeds"), pl.col("value").mean(), pl.col("value").sort_by("seed").alias("by_seed")
    )


def interference(results: Results) -> pl.DataFrame:
    """Gradient conflict of D_A and the last stage's rows beside retention, cell by cell (the paper's figure 2).

    Returns:
        [setup, arm, seed, cosine_start, cosine_end, first_order_harm, weight_change, retention]; ``cosine`` is
        cos(∇L_A, ∇L_B) at the stage's start and end, ``first_order_harm`` ∇L_A·Δθ at its end.
    """
    columns = ["cosine_start", "cosine_end", "first_order_harm", "weight_change", "retention"]
    known = results.cells.filter(pl.col("learned") & pl.col("cosine_start").is_not_null())
    return known.select("setup", "arm", "seed", *columns)


def other_losses(results: Results) -> pl.DataFrame:
    """What else was lost: facts that the base model knew, and perplexity on held-out text, after stage 1 and last."""
    names = ["known_after_1", "known", "perplexity_after_1", "perplexity"]
    table = _over_seeds(results.cells.filter("learned"), ["setup", "arm"], names)
    return table.filter(pl.any_horizontal(pl.col(names).is_not_null()))


def cost(results: Results) -> pl.DataFrame:
    """Optimiser steps, input tokens and wall time of all stages of a cell, by arm; means over seeds."""
    return _over_seeds(results.cells, ["setup", "arm"], ["steps", "tokens", "seconds"])


def _over_seeds(cells: pl.DataFrame, keys: list[str], values: list[str]) -> pl.DataFrame:
    means = [pl.col(name).mean() for name in values]
    return cells.group_by(keys, maintain_order=True).agg(pl.len().alias("seeds"), *means)


def _of_arms(table: pl.DataFrame, statistic: str, *, last: bool) -> pl.DataFrame:
    """Rows of a table over arms in the headline reading; ``last``: after each set-up's last stage."""
    if not len(table):
        columns = dict.fromkeys(("setup", "arm_text"), pl.String) | dict.fromkeys(("low", "high"), pl.Float64)
        return pl.DataFrame(schema=columns)
    k, token = SETTINGS[0]
    rows = table.filter(
        pl.col("statistic") == statistic,
        pl.col("k") == k,
        pl.col("token") == token,
        pl.col("readout") == READOUTS[0],
    ).with_columns(pl.col("stage").cast(pl.Int64))
    if last:
        rows = rows.filter(pl.col("stage") == pl.col("stage").max().over("setup"))
    return rows.rename({"arm": "arm_text"})


# ------------------------------------------------------------------------------------------------- claims


SEEN, NOT_SEEN, NOT_TESTED = "seen", "not seen at this scale", "not tested"
PAPER = {
    "naive": {"kvr": 17.8, "popqa": 46.0, "triviaqa": 37.8},
    "kl": {"kvr": 17.5, "popqa": 40.7, "triviaqa": 38.9},
    "ewc": {"kvr": 27.3, "popqa": 52.1, "triviaqa": 48.9},
    "remix": {"kvr": 67.4, "popqa": 85.7, "triviaqa": 88.4},
}
"""Per cent of D_A kept after stage 2 by Llama-3-8B, over D_B, in Chen et al. 2024 (arXiv 2411.07175); as others
quote it."""


def claims(results: Results) -> pl.DataFrame:
    """Claim by claim, what was found. A claim about an arm needs three seeds.

    ============  =============================================================================================
    forgets       naive keeps less than half of D_A
    keeps more    retention above naive's: the interval of the difference lies above 0
    beats …       a mixing arm's retention above that of its matched control, naive with as many steps or tokens
    earlier       restricted mean LoF below naive's in the checkpoints' own readout, in the base model's, and in the
                  own one net of shuffled answers (the base model's LoF is the same for every arm). Never counts as
                  one more than the last depth, so after a later stage an arm is earlier by keeping more alone;
                  after stage 1, where every arm has all facts, it is not
    kept earlier  the facts that a stage left had surfaced earlier before it than those that it took, all of them said
                  then: mean LoF, in both readouts, and net of shuffled answers
    more diverse  sd of the LoF above what the ceiling explains in every seed, in both readouts
    gradients     a larger cosine of gradients at the start of the last stage goes with more retention (Spearman's rank
                  correlation, p < 0.05), over cells whose last stage is plain training: what is done in the last
                  stage alone does not change the cosine at its start
    ============  =============================================================================================

    Returns:
        [setup, claim, arm, against, k, token, finding, evidence, paper]; ``paper`` is what it says of the same D_A
        (:data:`PAPER`), where it says anything.
    """
    rows: list[dict[str, Any]] = []
    for row in forgetting(results).filter(pl.col("arm_text") == NAIVE).iter_rows(named=True):
        seeds = row["cells"] - row["failed"]
        finding = NOT_TESTED if seeds < MIN_SEEDS else SEEN if row["retention"] < 0.5 else NOT_SEEN
        evidence = f"retention {_listed(row['by_seed'])}" if seeds else "no learned cell"
        rows.append(_claim(row["setup"], "forgets", NAIVE, "", finding, evidence))
    rows += (
        _differences_found(results)
        + _kept_found(results)
        + _spread_found(results)
        + _gradients_found(results)
    )
    d_a = dict(results.cells.select("setup", "d_a").iter_rows())
    rows = [row | {"paper": _in_paper(row["claim"], d_a[row["setup"]], row["arm"])} for row in rows]
    schema = ["setup", "claim", "arm", "against", "k", "token", "finding", "evidence", "paper"]
    return pl.DataFrame(rows, schema=schema, infer_schema_length=None)


def _in_paper(claim: str, d_a: str, arm: str) -> str:
    """What the paper says of a claim: of naive training, and of single methods against it."""
    family = "naive" if arm == NAIVE else arm.partition("(")[0]
    if claim in ("forgets", "keeps more") and "+" not in arm and d_a in PAPER.get(family, {}):
        return f"{PAPER[family][d_a]:.1f} % kept" + (
            "" if arm == NAIVE else f", naive {PAPER['naive'][d_a]:.1f} %"
        )
    if family == "remix" and claim.startswith(("earlier", "more diverse")):
        return "so in its figure 4"
    return "so in its figure 2" if claim == "gradients" else ""


def _claim(
    setup: str,
    claim: str,
    arm: str,
    against: str,
    finding: str,
    evidence: str,
    k: int | None = None,
    token: str = "",
) -> dict[str, Any]:
    values = (setup, claim, arm, against, k, token, finding, evidence)
    return dict(
        zip(("setup", "claim", "arm", "against", "k", "token", "finding", "evidence"), values, strict=True)
    )


def _differences_found(results: Results) -> list[dict[str, Any]]:
    if not len(results.differences):
        return []
    rows = []
    table = results.differences.with_columns(pl.col("stage").cast(pl.Int64))
    exact = _of_arms(table, "exact", last=True)
    for row in exact.iter_rows(named=True):
        if row["reference"] != NAIVE and not row["arm_text"].startswith("remix("):
            continue  # a matched control is what a mixing arm is held against
        finding = NOT_TESTED if row["low"] is None else SEEN if row["low"] > 0 else NOT_SEEN
        claim = "keeps more" if row["reference"] == NAIVE else "beats its matched control"
        rows.append(_claim(row["setup"], claim, row["arm_text"], row["reference"], finding, _interval(row)))
    net = pl.lit("net of shuffled answers").alias("readout")
    depths = pl.concat(
        [
            table.filter(pl.col("statistic") == "lof_restricted"),
            table.filter(
                pl.col("difference").is_not_null(), statistic="lof_restricted_net", readout=READOUTS[0]
            ).with_columns(net),
        ]
    ).filter(pl.col("reference") == NAIVE)
    for key, group in depths.group_by("setup", "k", "token", "stage", "arm", maintain_order=True):
        setup, k, token, stage, arm = key
        both = {row["readout"]: row for row in group.iter_rows(named=True)}
        if not both.keys() >= set(READOUTS) or any(row["low"] is None for row in both.values()):
            finding = NOT_TESTED
        else:
            finding = SEEN if all(row["high"] < 0 for row in both.values()) else NOT_SEEN
        evidence = "; ".join(f"{readout}: {_interval(row)}" for readout, row in both.items())
        name = f"earlier after stage {stage}"
        rows.append(_claim(str(setup), name, str(arm), NAIVE, finding, evidence, k, str(token)))  # type: ignore[arg-type]
    return rows


def _kept_found(results: Results) -> list[dict[str, Any]]:
    rows = []
    table = kept_before(results)
    for key, group in (
        table.group_by("setup", "k", "token", "stage", "arm", maintain_order=True) if len(table) else ()
    ):
        setup, k, token, stage, arm = key
        both = {row["readout"]: row for row in group.iter_rows(named=True)}
        own = both.get(READOUTS[0])
        if own is None:
            continue
        highs = [row["high"] for row in both.values()] + [own["net_high"]]
        if not both.keys() >= set(READOUTS) or any(high is None for high in highs):
            finding = NOT_TESTED
        else:
            finding = SEEN if max(highs) < 0 else NOT_SEEN
        told = [f"{readout}: {_interval(row | {'difference': row['lof']})}" for readout, row in both.items()]
        net = {
            "difference": own["lof_net"],
            "low": own["net_low"],
            "high": own["net_high"],
            "seeds": own["seeds"],
        }
        told += [] if own["lof_net"] is None else [f"net of shuffled answers: {_interval(net)}"]
        name = f"kept facts were earlier before stage {stage}"
        rows.append(_claim(str(setup), name, str(arm), "", finding, "; ".join(told), k, str(token)))  # type: ignore[arg-type]
    return rows


def _spread_found(results: Results) -> list[dict[str, Any]]:
    table, rows = spread(results), []
    if not len(table):
        return []
    for key, group in table.group_by("setup", "k", "token", "stage", "arm", maintain_order=True):
        setup, k, token, stage, arm = key
        known = group.filter(pl.col("low").is_not_null())  # else too few facts occur at any depth
        seeds = known.group_by("readout").agg(pl.col("seed").n_unique())["seed"].to_list()
        if len(seeds) < len(READOUTS) or min(seeds) < MIN_SEEDS:
            finding = NOT_TESTED
        else:
            finding = SEEN if (known["low"] > 0).all() else NOT_SEEN
        own = group.filter(pl.col("readout") == READOUTS[0]).sort("seed")
        evidence = f"sd - expected (own readout, by seed) {_listed(own['difference'].to_list(), '{:+.2f}')}"
        name = f"more diverse after stage {stage}"
        rows.append(_claim(str(setup), name, str(arm), NAIVE, finding, evidence, k, str(token)))  # type: ignore[arg-type]
    return rows


def _gradients_found(results: Results) -> list[dict[str, Any]]:
    rows = []
    cells = results.cells.filter("plain_last")
    table = interference(results).join(cells, on=["setup", "arm", "seed"], how="semi")
    for (setup,), group in table.group_by("setup", maintain_order=True):
        enough = group["seed"].n_unique() >= MIN_SEEDS and len(group) >= 4
        if enough:
            rho, p = spearmanr(group["cosine_start"], group["retention"])
            finding = SEEN if p < 0.05 and rho > 0 else NOT_SEEN
            evidence = f"rho {rho:+.2f}, p {p:.3f}, {len(group)} cells"
        else:
            finding, evidence = NOT_TESTED, f"{len(group)} cells"
        rows.append(_claim(str(setup), "gradients", "", "", finding, evidence))
    return rows


def _interval(row: dict[str, Any]) -> str:
    edges = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['difference']:+.3f}{edges}, {row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"


def _listed(values: Sequence[float | None], pattern: str = "{:.1%}") -> str:
    return ", ".join("–" if value is None else pattern.format(value) for value in values)


# ----------------------------------------------------------------------------------------------- Markdown


def markdown(made: dict[str, pl.DataFrame], command: str) -> str:
    """All tables as one Markdown page, with the command that makes it."""
    parts = [f"Made by `{command}`.\n"]
    for name, table in made.items():
        parts.append(f"## {name.replace('_', ' ').capitalize()}\n")
        parts.append("| " + " | ".join(table.columns) + " |")
        parts.append("|" + "|".join("---:" if dtype.is_numeric() else "---" for dtype in table.dtypes) + "|")
        parts += ["| " + " | ".join(shown(value) for value in row) + " |" for row in table.iter_rows()]
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
    return str(value).replace("|", "\\|")
