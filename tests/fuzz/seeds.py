"""Whole inputs, small ones, that the damage is done to; made once, and copied for every input."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from memprobe.files import write_json, write_text
from tests.probes import write_probe
from tests.test_studies import write_metrics, write_stage
from tests.tiny import save_tiny

FACTS = [
    {
        "prompt": "The river of Oria is the",
        "answers": ["Lunn", "the Lunn"],
        "relation": "river",
        "popularity": 12,
    },
    {
        "question": "The river of Selva is the",
        "answer": "Brack",
        "relation": "river",
        "aliases": ["Brack River"],
    },
    {"prompt": "The tallest hill of Oria is", "answer": "Mount Grey", "relation": "hill", "subject": "Oria"},
    {
        "prompt": "The tallest hill of Tolm is",
        "answer": 1931,
        "relation": "hill",
        "id": "mine",
        "source": "tolm",
    },
    {"prompt": "Ünïcode “quotes” of São are", "answer": "日本", "relation": "hill"},
]
CSV = (
    "prompt,answer,aliases,relation,popularity\n"
    'The river of Oria is the,Lunn,"[""the Lunn""]",river,12\n'
    "The river of Selva is the,Brack,,river,3.5\n"
    '"The tallest hill, of Oria, is",Mount Grey,"[\'Grey\']",hill,\n'
)
RECIPE = """base = "BASE"
template = "plain"
arm = "replay(ratio=0.5)"
seed = 1
[optimiser]
lr = 1e-3
batch = 2
micro_batch = 2
[evaluate]
paraphrases = false
[[stages]]
name = "a"
data = "kvr:2"
epochs = 1
[[stages]]
name = "b"
data = "kvr:2:validation"
epochs = 1
stop = { exact_match = true }
"""
GRID = """keep = "records"
[recipe]
base = "BASE"
[recipe.optimiser]
lr = 3e-3
batch = 4
micro_batch = 4
[data.a]
data = "kvr:{n}"
epochs = 1
[data.b]
data = "kvr:{n}:validation"
epochs = 1
[arms]
naive = "none"
remix = "remix(data=kvr:8:test, stages=1, ratio={ratio})"
[[blocks]]
name = "first"
stages = [["a", "b"]]
arms = ["naive", "remix"]
seeds = [0, 1]
axes = { n = [2, 4], ratio = [1, 2] }
"""
MANIFEST = {
    "schema": 1, "template": "plain", "arm": "none", "seed": 3, "stage": 1, "stage_name": "a", "steps": 5, "tokens": 9,
    "stages": [],
}  # fmt: skip


def make(folder: Path) -> Path:
    """Writes them all into a folder: facts, a probe, a checkpoint, a study, a comparison and figures."""
    write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in FACTS), folder / "facts.jsonl")
    write_text(CSV, folder / "facts.csv")
    pl.DataFrame(
        {
            "prompt": [str(row.get("prompt", row.get("question"))) for row in FACTS],
            "answers": [["a", "b"]] * len(FACTS),
            "popularity": [1.0, None, 3.0, 4.0, 5.0],
        }
    ).write_parquet(folder / "facts.parquet")
    manifests = {
        f"s{stage}": {"arm": "none", "seed": 0, "stage": stage, "stage_name": str(stage), "steps": 3}
        for stage in (1, 2)
    }
    depths = {"base": 3.0, "s1": 2.0, "s2": 2.5}
    options = {"n": 12, "n_layers": 3, "manifests": manifests, "intrusion": True}
    write_probe(folder / "probe", depths, schema=2, **options)
    write_probe(folder / "older", depths, schema=1, **options)
    save_tiny(folder / "checkpoint")
    write_json(MANIFEST, folder / "checkpoint" / "memprobe.json")
    for seed in (0, 1):
        run = folder / "runs" / f"r{seed}"
        stages = "".join(f'[[stages]]\nname = "{name}"\nepochs = 1\n' for name in ("kvr", "known"))
        write_text(f'arm = "none"\nseed = {seed}\n{stages}', run / "recipe.toml")
        for number, scores in enumerate(
            ({"1-kvr": (1.0, 0.8, 1.0)}, {"1-kvr": (0.25, 0.1, 0.5), "2-known": (1, 0.8, 1)}), 1
        ):
            stage = run / f"{number}-{('kvr', 'known')[number - 1]}"
            write_stage(stage, scores)
            write_json(MANIFEST | {"stage": number}, stage / "memprobe.json")
        write_metrics(run / ".state" / "2-known" / "metrics.jsonl", 2)
    from memprobe.compare import compare
    from memprobe.figures import write_figures

    compare([folder / "probe"], draws=100).write(folder / "compared")
    write_figures(
        [folder / "probe", *(folder / "runs").iterdir()], folder / "figures", draws=100, formats=["svg"]
    )
    write_text(RECIPE.replace("BASE", str(folder / "checkpoint")), folder / "recipe.toml")
    write_text(GRID.replace("BASE", str(folder / "checkpoint")), folder / "grid.toml")
    return folder
