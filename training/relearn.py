"""Gone, or only out of reach? How fast facts that a stage took come back, and whether a cue brings them back.

From a stage's checkpoint, two sets of equal size are trained, each from the same weights and in the same way: facts of
stage 1 that the checkpoint no longer recalls, and facts of the same kind that it never learned. A fact is back at the
first step after which all its tokens are the argmax. ``savings`` (Ebbinghaus 1885) is the share of the steps of
never-learned facts that the lost ones do without: 0 says that nothing is left of them, 1 that they were there.

Cueing trains nothing: solved examples, other facts of stage 1 with their answers, stand before the question. What a
cue does for the never-learned facts is its chance level.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

from memprobe.checkpoints import Checkpoint, resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.files import read_valid
from memprobe.lineage import lineage
from memprobe.manifests import Manifest
from memprobe.models import LensModel, load
from memprobe.modes import evaluating
from memprobe.patching import own_log_probs
from memprobe.sources import load as load_rows
from memprobe.sources import load_factoids
from memprobe.statistics.intervals import FEWEST, percentile_interval
from memprobe.templates import Template, tokenise_for
from training.batches import micro_batches, model_inputs
from training.data import PREPARED
from training.drawing import mixes_facts, mixing_rows
from training.examples import ExampleMaker
from training.mixing import Example
from training.prepared import PreparedFile, facts_in
from training.recipe import parse_recipe

DRAWS = 2_000


@dataclass(frozen=True)
class Relearned:
    """One checkpoint's row.

    Attributes:
        checkpoint, arm, seed, stage: of its manifest.
        asked: stage 1's facts; ``lost``: those that it no longer recalls.
        n: facts in each of the two sets.
        steps_lost, steps_fresh: mean steps until a fact is back, or learned; never counts as ``limit`` + 1.
        examples_lost, examples_fresh: the same in examples seen.
        back_lost, back_fresh: shares that came within the limit.
        savings, savings_low, savings_high: 1 - steps_lost / steps_fresh, with expanded percentiles of resampling both
            sets; ends are null for sets of fewer than ``memprobe.statistics.intervals.FEWEST["mean"]``. All three are
            null where nothing of either set came within the limit, which says nothing of either.
        cued_lost, cued_fresh: shares that are recalled with the cue alone.
        gain_lost, gain_fresh: nats that the cue adds to the answer's log-probability, means.
        limit: steps at most.
        stage_name, before, rows: of the manifest: the stage's name, fingerprints of the checkpoints that this one was
            trained from, and the hash of stage 1's rows.
        why: why there are no savings; empty where there are.
    """

    checkpoint: str
    arm: str
    seed: int
    stage: int
    asked: int
    lost: int
    n: int
    steps_lost: float
    steps_fresh: float
    examples_lost: float
    examples_fresh: float
    back_lost: float
    back_fresh: float
    savings: float | None
    savings_low: float | None
    savings_high: float | None
    cued_lost: float
    cued_fresh: float
    gain_lost: float
    gain_fresh: float
    limit: int
    stage_name: str = ""
    before: tuple[str, ...] = ()
    rows: str = ""
    why: str = ""

    @property
    def stage_title(self) -> str:
        """Number and name of the stage: ``2-lama``."""
        return f"{self.stage}-{self.stage_name}" if self.stage_name else str(self.stage)


def relearn(
    spec: str,
    *,
    fresh: str | None = None,
    lr: float = 1e-4,
    batch: int = 4,
    limit: int = 60,
    shots: int = 4,
    n: int | None = None,
    seed: int = 0,
    device: str = "auto",
    data_dir: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Relearned:
    """Evaluates one stage's checkpoint.

    Args:
        spec: of a checkpoint of :mod:`training`, at stage 2 or later.
        fresh: a source of never-learned facts of the same kind; for KVR others are made. Of either, those count whose
            prompt no stage that made the checkpoint was shown.
        lr: of AdamW without decay.
        batch: facts a step.
        limit: steps at most.
        shots: solved examples of a cue.
        n: facts in each set at most.
        seed: of the choice and the order.

    Raises:
        MemprobeError: no manifest, a first stage, nothing lost, too few never-learned facts, or a loss that is not
            finite.
    """
    checkpoint, manifest = later_stage(spec)
    first = load_factoids(str(manifest.stage_factoids()), data_dir=data_dir)
    model = load(checkpoint, device=device, dtype="float32")
    recalled, _ = _recalled(model, first, manifest.template)
    lost = [fact for fact, right in zip(first, recalled, strict=True) if not right]
    if not lost:
        raise MemprobeError(
            f"{spec}: still recalls all {len(first)} facts of stage 1, so there is nothing to learn again"
        )
    order = np.random.default_rng([seed, 1])
    picked = [lost[i] for i in order.permutation(len(lost))[: n or len(lost)]]
    others = _never_learned(checkpoint, manifest, first, len(picked), fresh, data_dir, seed, say)
    known, _ = _recalled(model, others, manifest.template)
    others = [fact for fact, right in zip(others, known, strict=True) if not right][: len(picked)]
    size = min(len(picked), len(others))
    if size < 2:
        raise MemprobeError(
            f"{spec}: {size} facts to compare; at least two are needed (--never-learned gives more)"
        )
    sets = {"lost": picked[:size], "fresh": others[:size]}
    cue = [fact for fact in first if fact not in sets["lost"]][:shots] or first[:shots]
    start = copy.deepcopy(model.model.state_dict())
    steps: dict[str, np.ndarray] = {}
    row: dict[str, float] = {}
    for name, facts in sets.items():
        _, plain = _recalled(model, facts, manifest.template)
        cued, with_cue = _recalled(model, [_cued(fact, cue) for fact in facts], manifest.template)
        row |= {f"cued_{name}": float(cued.mean()), f"gain_{name}": float((with_cue - plain).mean())}
        steps[name] = _steps(
            model,
            facts,
            manifest.template,
            lr,
            batch,
            limit,
            seed,
            f"{spec}: {name}",
            lambda text, name=name: say(f"{name}: {text}"),
        )
        model.model.load_state_dict(start)
        row |= {
            f"steps_{name}": float(steps[name].mean()),
            f"examples_{name}": float((steps[name] * min(batch, size)).mean()),
            f"back_{name}": float((steps[name] <= limit).mean()),
        }
    savings, low, high = _savings(steps["lost"], steps["fresh"], limit, seed)
    label = checkpoint.label
    before, rows = lineage({label: {"manifest": manifest.data}}, label)
    return Relearned(
        checkpoint=label,
        arm=manifest.arm,
        seed=manifest.seed,
        stage=manifest.stage,
        asked=len(first),
        lost=len(lost),
        n=size,
        savings=savings,
        savings_low=low,
        savings_high=high,
        limit=limit,
        stage_name=manifest.stage_name,
        before=before,
        rows=rows,
        why="" if savings is not None else f"nothing of either set came within {limit} steps",
        **row,
    )


def later_stage(spec: str) -> tuple[Checkpoint, Manifest]:
    """A checkpoint that something can be learned again from, and its manifest.

    Raises:
        MemprobeError: there is none, it has no manifest, or it is of a first stage.
    """
    checkpoint = resolve(spec)
    manifest = checkpoint.manifest
    if manifest is None or manifest.stage < 2:
        raise MemprobeError(f"{spec}: give a checkpoint of `python -m training`, of stage 2 or later")
    return checkpoint, manifest


def relearn_table(relearned: Sequence[Relearned]) -> pl.DataFrame:
    """One row a checkpoint, arms beside each other in the order given."""
    rows = [asdict(row) | {"before": list(row.before)} for row in relearned]
    types = dict.fromkeys(("savings", "savings_low", "savings_high"), pl.Float64) | {
        "before": pl.List(pl.String)
    }
    return pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)


def _never_learned(
    checkpoint: Checkpoint,
    manifest: Manifest,
    first: Sequence[Factoid],
    n: int,
    fresh: str | None,
    data_dir: Path | None,
    seed: int,
    say: Callable[[str], None],
) -> list[Factoid]:
    """Facts of which no stage that made the checkpoint was shown the prompt; at most ``n`` of those made here."""
    taught = _prompts_taught(checkpoint, manifest, data_dir)
    if fresh is not None:
        loaded = load_rows(fresh, "factoids", data_dir=data_dir, seed=seed)
        facts = [fact for fact in loaded.factoids if fact.prompt not in taught]
        for line in loaded.left_out():
            say(f"never-learned: left out {line}")
        if known := len(loaded.rows) - len(facts):
            say(f"never-learned: left out {known:,} of {len(loaded.rows):,} facts of {fresh}: taught before")
        return facts
    if {fact.source for fact in first} != {"kvr"}:
        raise MemprobeError(
            "--never-learned: name facts of the same kind that no stage taught (only KVR's can be made)"
        )
    from memprobe.sources.kvr import generate_kvr

    # No prompt occurs twice, so that those taught take away as many as they are at most.
    made = generate_kvr(n + len(taught), seed=seed, split="test")
    return [fact for fact in made if fact.prompt not in taught][:n]


def _prompts_taught(checkpoint: Checkpoint, manifest: Manifest, data_dir: Path | None) -> set[str]:
    """The prompts of every row that a checkpoint's stages trained on, mixing rows too.

    Raises:
        MemprobeError: a stage's rows are gone, or facts that were mixed in cannot be drawn again.
    """
    taught: set[str] = set()
    for entry in manifest.data["stages"]:
        file = manifest.stage_factoids(entry["index"])
        lines = file.read_text(encoding="utf-8").split("\n")
        taught |= {str(json.loads(line).get("prompt")) for line in lines if line}
    # A stage lies in its run's directory, and a checkpoint along the way two folders deeper.
    folders = checkpoint.path.resolve().parents[:3:2]
    if (run := next((one for one in folders if (one / PREPARED).exists()), None)) is not None:
        stages = read_valid(run / PREPARED, PreparedFile)["stages"]
        mixed = [row for stage in stages for rows in stage["mixing"] for row in rows]
        return taught | {str(row.get("prompt")) for row in mixed}
    recipe = parse_recipe(manifest.data["recipe"], str(manifest.path))
    stages = list(zip(recipe.stages, manifest.data["stages"], strict=False))
    own = [
        fact
        for stage, entry in stages
        if stage.kind == "factoids"
        for fact in load_factoids(str(manifest.stage_factoids(entry["index"])))
    ]
    for stage, entry in stages:
        without = list(own)  # as training.data draws them
        for part in stage.mixing:
            if mixes_facts(part):
                rows, _ = mixing_rows(recipe, stage, part, entry["n"], data_dir, without=without)
                without += facts_in(rows)
        taught |= {fact.prompt for fact in without}
    return taught


def _cued(fact: Factoid, cue: Sequence[Factoid]) -> Factoid:
    solved = "\n".join(f"{other.prompt} {other.answer}" for other in cue if other.prompt != fact.prompt)
    return Factoid(f"{solved}\n{fact.prompt}", fact.answer, fact.source, fact.id)


def _recalled(model: LensModel, facts: Sequence[Factoid], template: str) -> tuple[np.ndarray, np.ndarray]:
    """Whether every token is the argmax, and the answer's log-probability (nats), [fact]."""
    items = tokenise_for(model, facts, Template.parse(template))
    own = own_log_probs(model, items).group_by("factoid", maintain_order=True)
    rows_by_fact = own.agg(
        right=(pl.col("rank") == 0).all(), log_prob=pl.col("log_prob").cast(pl.Float64).sum()
    )
    rows = {factoid: (right, log_prob) for factoid, right, log_prob in rows_by_fact.iter_rows()}
    return np.array([rows[fact.id][0] for fact in facts]), np.array([rows[fact.id][1] for fact in facts])


def _steps(
    model: LensModel,
    facts: Sequence[Factoid],
    template: str,
    lr: float,
    batch: int,
    limit: int,
    seed: int,
    what: str,
    say: Callable[[str], None],
) -> np.ndarray:
    """The first step after which each fact is recalled; ``limit`` + 1 for those that never are.

    Raises:
        MemprobeError: a loss or a gradient is not finite; it names ``what`` is learned, and the step.
    """
    maker = ExampleMaker(template, model.tokenizer, model.max_length or 2048)
    examples: list[Example] = [maker(fact) for fact in facts]
    network: Any = model.model
    parameters = [parameter for parameter in network.parameters() if parameter.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    random = np.random.default_rng([seed, 2])
    first_step = np.full(len(facts), limit + 1)
    queue: list[int] = []
    for step in range(1, limit + 1):
        if len(queue) < min(batch, len(examples)):
            queue += random.permutation(len(examples)).tolist()
        rows, queue = [examples[i] for i in queue[:batch]], queue[batch:]
        numbers: dict[str, float] = {}
        for part in micro_batches(rows, batch):
            inputs = {key: value.to(model.device) for key, value in model_inputs(part).items()}
            keep = inputs.pop("logits_to_keep")
            logits = network(**inputs, use_cache=False).logits[keep]
            loss = F.cross_entropy(logits.float(), part["labels"].to(model.device))
            loss.backward()
            numbers["loss"] = numbers.get("loss", 0.0) + loss.item()
        numbers["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise MemprobeError(
                    f"{what}: {name} is {number} at step {step}, so nothing can be learned again; lower --lr"
                )
        optimiser.step()
        optimiser.zero_grad()
        with evaluating(network):
            right, _ = _recalled(model, facts, template)
        first_step[right & (first_step > limit)] = step
        say(f"step {step}, {int((first_step <= limit).sum())} of {len(facts)}")
        if (first_step <= limit).all():
            break
    for parameter in parameters:
        parameter.requires_grad_(False)
    return first_step


def _savings(
    lost: np.ndarray, fresh: np.ndarray, limit: int, seed: int
) -> tuple[float | None, float | None, float | None]:
    """1 - mean(lost) / mean(fresh), with the expanded percentiles of resampling both sets; none of too few.

    Where every fact of both is cut at the limit, nothing was observed that could be compared.
    """
    if (lost > limit).all() and (fresh > limit).all():
        return None, None, None
    value, n = float(1 - lost.mean() / fresh.mean()), min(len(lost), len(fresh))
    if n < FEWEST["mean"]:
        return value, None, None
    random = np.random.default_rng([seed, 3])
    draws = [random.integers(0, len(side), (DRAWS, len(side))) for side in (lost, fresh)]
    low, high = percentile_interval(1 - lost[draws[0]].mean(1) / fresh[draws[1]].mean(1), n)
    return value, float(low), float(high)
