"""How long a grid's report takes, and where: collecting results, tables, figures.

    python -m tests.benchmarks.study_speed [--arms 10] [--seeds 10] [--facts 500] [--tokens 4] [--depths 31]

Cells are made up, nothing is trained: evaluations with planted shares, records in both readouts as a grid leaves them.
Times are processor seconds of this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from memprobe.factoids import factoids_hash, make_factoid
from memprobe.files import write_json, write_parquet, write_text
from memprobe.parquet import mark_of
from memprobe.probes import table_file
from memprobe.records import BY_CHECKPOINT, TABLES, factoids_frame
from memprobe.runs import CELL, GRID
from training.evaluate import retention, scores
from training.grid.cells import Cell, Node, cells_of
from training.grid.file import read_grid
from training.grid.probing import probe_of_setup
from training.grid.stages import directory
from training.recipe import to_toml
from training.study.collect import collect
from training.study.figures import draw
from training.study.published import tables

ARMS = {
    "naive": "none",
    "matched-steps": "matched(to=steps, data=generic, stages=1, words=12)",
    "matched-tokens": "matched(to=tokens, data=generic, stages=1, words=12)",
    "replay": "replay(ratio=0.1)",
    "remix-generic": "remix(data=generic, stages=1, words=12)",
    "remix-random": "remix(data=random-words, stages=1, words=12)",
    "remix-both": "remix(data=generic, stages=1,2, words=12)",
    "remix-replay": "remix(data=generic, stages=1, words=12)+replay(ratio=0.1)",
    "ewc": "ewc(strength=1e6)",
    "kl": "kl(strength=0.1)",
    "remix-2": "remix(data=generic, stages=2, words=12)",
    "lora": "lora(rank=16, stages=2)",
}
VOCABULARY = 49_152
HEAD = """
[recipe]
base = "none"
[data.a]
data = "kvr:{n}"
[data.b]
data = "kvr:{n}:validation"
"""


def main() -> None:
    """Prints processor seconds and what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in {"arms": 10, "seeds": 10, "facts": 500, "tokens": 4, "depths": 31}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="Keep the grid here; one that is there is taken.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = asked.out or Path(folder) / "grid"
        if not (out / GRID).exists():
            _timed(
                "made up", lambda: make(out, asked.arms, asked.seeds, asked.facts, asked.tokens, asked.depths)
            )
        results = _timed("collect", lambda: collect(out, draws=asked.draws, say=print))
        made = _timed("tables", lambda: tables(results))
        to = Path(folder) / "figures"
        drawn = _timed("figures", lambda: draw(results, made, out, out, to, draws=asked.draws))
        print(f"{len(results.cells)} cells, {len(made)} tables, {len(drawn)} figures")


def _timed(name: str, work: Any) -> Any:
    began = time.process_time()
    result = work()
    print(f"{name:8} {time.process_time() - began:8.1f} s", flush=True)
    return result


def make(out: Path, arms: int, seeds: int, n: int, tokens: int, depths: int) -> None:
    """A grid's directory with every cell finished."""
    some = dict(list(ARMS.items())[:arms])
    out.mkdir(parents=True)
    lines = [HEAD.replace("{n}", str(n)), "[arms]", *(f'{name} = "{arm}"' for name, arm in some.items())]
    lines += ["[[blocks]]", 'name = "block"', 'stages = [["a", "b"]]']
    lines += [f"arms = {[*some]}", f"seeds = {list(range(seeds))}"]
    write_text("\n".join(lines) + "\n", out / GRID)
    cells = cells_of(read_grid(out / GRID), out / GRID)
    rng = np.random.default_rng(0)
    facts = [
        [make_factoid(f"The key {i} of {name} is", f"value {i}", "made") for i in range(n)] for name in "ab"
    ]
    nodes = {node.name: node for cell in cells for node in cell.node.chain}
    for node in nodes.values():
        _write_stage(directory(out, node) / node.stage, node, facts, rng)
        write_text(to_toml(node.recipe), directory(out, node) / "recipe.toml")
    for cell in cells:
        _write_cell(out, cell)
    _write_probe(out, cells, facts[0], tokens, depths, rng)


def _write_stage(folder: Path, node: Node, facts: list[list[Any]], rng: np.random.Generator) -> None:
    number = len(node.recipe.stages)
    sets = {}
    for place, name in list(enumerate("ab", 1))[:number]:
        share = 1.0 if place == number else rng.uniform(0.1, 0.9)
        rows = [_row(fact, rng.random() < share, rng) for fact in facts[place - 1]]
        sets[f"{place}-{name}"] = {
            "kind": "factoids",
            "metric": "exact_match",
            "n": len(rows),
            "scores": scores(rows, "factoids"),
            "rows": rows,
        }
    evaluation: dict[str, Any] = {"stage": number, "sets": sets}
    if number > 1:
        evaluation["retention"] = {"1-a": retention(sets["1-a"])}
    write_json(evaluation, folder / "evaluation.json")
    stage = {"arm": node.recipe.arm_name, "seed": node.recipe.seed, "stage": number, "stage_name": node.stage}
    write_json(stage | {"steps": 100, "tokens": 1000, "seconds": 1.0}, folder / "memprobe.json")


def _row(fact: Any, exact: bool, rng: np.random.Generator) -> dict[str, Any]:
    loss = float(rng.exponential())
    shares = dict.fromkeys(("exact_match", "exact_tokens", "alias_match"), bool(exact))
    return {"id": fact.id, **shares, "rouge_l": float(exact), "nats": 3 * loss, "loss": loss, "tokens": 3}


def _write_cell(out: Path, cell: Cell) -> None:
    folder = directory(out, cell.node)
    for node in cell.node.chain[:-1]:
        (folder / node.stage).symlink_to((directory(out, node) / node.stage).resolve())
    stages = [
        {
            "label": node.label,
            "stage": node.stage,
            "run": node.name,
            "steps": 100,
            "tokens": 1000,
            "seconds": 1.0,
        }
        for node in cell.node.chain
    ]
    ended = {"block": cell.block, "setup": cell.node.setup, "arm": cell.node.arm, "axes": {}}
    ended |= {"seed": cell.node.recipe.seed, "learned": True, "why": "", "stages": stages}
    write_json(ended, folder / CELL)


def _write_probe(
    out: Path, cells: list[Cell], facts: list[Any], tokens: int, depths: int, rng: np.random.Generator
) -> None:
    folder = probe_of_setup(out, cells[0].node.setup)
    write_parquet(factoids_frame(facts), folder / "factoids.parquet")
    lenses = {"logit": "own", "logit@base": "base"}
    nodes = {node.label: node for cell in cells for node in cell.node.chain}
    run: dict[str, Any] = {
        "schema": 2, "memprobe": "", "versions": {}, "lens": "logit", "readout": "own", "template": "tulu",
        "lenses": {name: {"kind": "logit", "readout": readout} for name, readout in lenses.items()},
        "positions": ["answer"], "tokenisation": "", "dtype": "float32", "k": 10, "token": "first", "seed": 0,
        "factoids": {"source": "made", "n": len(facts), "hash": factoids_hash(facts)},
        "intrusions": {}, "tables": {"factoids": mark_of(folder / "factoids.parquet")},
        "checkpoints": {}, "tokens": {},
    }  # fmt: skip
    for label in ["base", *nodes]:
        node = nodes.get(label)
        manifest = None
        if node is not None:
            stage = {
                "stage": len(node.recipe.stages),
                "stage_name": node.stage,
                "steps": 100,
                "run": node.name,
            }
            manifest = {"arm": node.recipe.arm_name, "seed": node.recipe.seed, "template": "tulu"} | stage
        marks = {}
        for name, table in _tables(label, [*lenses], facts, tokens, depths, rng).items():
            file = table_file(folder, label, name)
            write_parquet(table.select(list(TABLES[name])).cast(dict(TABLES[name])), file)
            marks[name] = mark_of(file)
        run["checkpoints"][label] = {
            "spec": label, "fingerprint": f"{label:0>64}", "readout_fingerprint": "", "n_layers": depths - 1,
            "d_model": 8, "vocab": VOCABULARY, "manifest": manifest, "complete": True, "tables": marks,
        }  # fmt: skip
    write_json(run, folder / "run.json")


def _tables(
    label: str, lenses: list[str], facts: list[Any], tokens: int, depths: int, rng: np.random.Generator
) -> dict[str, pl.DataFrame]:
    """Ranks that fall with depth, of most facts, and controls whose ranks do not."""
    n, records, controls = len(facts), [], []
    ids = pl.Series([fact.id for fact in facts]).gather(np.repeat(np.arange(n), tokens * depths))
    surfaces = rng.normal(0.85 * depths, 2, (n, 1, 1)) + rng.normal(0, 1, (n, tokens, 1))
    for lens in lenses:
        late = np.arange(depths) >= surfaces
        shape = late.shape
        rank = np.where(late, rng.integers(0, 9, shape), rng.integers(20, VOCABULARY, shape)).ravel()
        keys = {
            "checkpoint": pl.repeat(label, rank.size, eager=True),
            "lens": pl.repeat(lens, rank.size, eager=True),
            "factoid": ids,
            "position": pl.repeat("answer", rank.size, eager=True),
            "token": np.tile(np.repeat(np.arange(tokens), depths), n),
            "token_id": np.repeat(rng.integers(0, VOCABULARY, n * tokens), depths),
            "depth": np.tile(np.arange(depths), n * tokens),
        }
        top1 = np.where(rank == 0, keys["token_id"], rng.integers(0, 8000, rank.size))
        measures = {"rank": rank, "log_prob": -np.log1p(rank) - 1, "entropy": np.ones(rank.size)}
        records.append(pl.DataFrame(keys | measures | {"top1": top1, "ties": np.zeros(rank.size)}))
        for number in range(5):
            other = {"control": pl.repeat(f"shuffled:{number}", rank.size, eager=True)}
            other["rank"] = rng.integers(0, VOCABULARY, rank.size)
            controls.append(pl.DataFrame(keys | other))
    said = [[label, fact.id, True, True, fact.answer, None, True] for fact in facts]
    outcomes = pl.DataFrame(said, schema=TABLES["outcomes"], orient="row")
    return dict(zip(BY_CHECKPOINT, [pl.concat(records), pl.concat(controls), outcomes], strict=True))


if __name__ == "__main__":
    main()
