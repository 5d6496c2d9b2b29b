"""Gone, or only out of reach? How fast facts that a stage took come back, and whether a cue brings them back.

From a stage's checkpoint, two sets of equal size are trained, each from the same weights and in the same way: facts
that stage 1 recalled and the checkpoint no longer does, and facts of the same kind that it never learned. A fact is
back at the first step after which all its tokens are the argmax. ``savings`` (Ebbinghaus 1885) is the share of the
steps of never-learned facts that the lost ones do without: 0 says that nothing is left of them, 1 that they were there.

Cueing trains nothing: solved examples, other facts of stage 1 with their answers, stand before the question, as many
before each. What a cue does for the never-learned facts is its chance level.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

from memprobe.checkpoints import Checkpoint, resolve
from memprobe.errors import MemprobeError
from memprobe.evaluations import EXACT
from memprobe.factoids import Factoid
from memprobe.files import sha256_of
from memprobe.identity import identity_of
from memprobe.lineage import lineage, trained_as
from memprobe.manifests import Manifest
from memprobe.models import LensModel, load
from memprobe.modes import evaluating
from memprobe.patching import own_log_probs
from memprobe.runs import EVALUATION
from memprobe.sources import files_of, load_factoids
from memprobe.statistics.intervals import FEWEST, percentile_interval
from memprobe.templates import Template, tokenise_for
from training.ancestors import Ancestor, ancestors
from training.batches import micro_batches, model_inputs
from training.examples import ExampleMaker
from training.memory import free
from training.mixing import Example
from training.never_learned import never_learned
from training.recipe import without_folder

DRAWS = 2_000


@dataclass(frozen=True)
class Relearned:
    """One checkpoint's row.

    Attributes:
        checkpoint, arm, seed, stage: of its manifest.
        asked: stage 1's facts, as far as it is known whether stage 1 recalled them.
        lost: those of them that stage 1 recalled and this checkpoint does not.
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
        stage_name, rows, recipe_mark: of the manifest: the stage's name, the hash of stage 1's rows, and what stands
            for all that the recipe says of training but for seeds and arm, the base model among it.
        before: fingerprints of the checkpoints that this one was trained from, as far as they are there.
        why: why there are no savings; empty where there are.
        unlearned: those of ``asked`` that stage 1 did not recall, which no later stage can have taken.
        fingerprint, settings, tokenizer: what the checkpoint is known by (:func:`memprobe.identity.identity_of`).
        lr, batch, shots, n_most, relearn_seed, never_learned, never_learned_hash: how it was asked, beside ``limit``;
            see :func:`asked_with`.
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
    recipe_mark: str | None = None
    unlearned: int = 0
    fingerprint: str = ""
    settings: str | None = None
    tokenizer: str | None = None
    lr: float = 1e-4
    batch: int = 4
    shots: int = 4
    n_most: int | None = None
    relearn_seed: int = 0
    never_learned: str | None = None
    never_learned_hash: str | None = None

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
        fresh: a source of never-learned facts of the same kind; for KVR others are made. Of either, those count that no
            stage which made the checkpoint was shown.
        lr: of AdamW without decay.
        batch: facts a step.
        limit: steps at most.
        shots: solved examples of a cue.
        n: facts in each set at most.
        seed: of the choice and the order.

    Raises:
        MemprobeError: no manifest, a first stage, nothing that says what stage 1 recalled, nothing lost, mixed facts
            that cannot be drawn again, too few never-learned facts, or a loss that is not finite.
    """
    checkpoint, manifest, before = later_stage(spec)
    facts = load_factoids(str(manifest.stage_factoids()), data_dir=data_dir)
    learned = _learned(before[-1], facts, manifest.template, device, say)
    first = [fact for fact in facts if fact.id in learned]
    if not any(learned.values()):
        raise MemprobeError(
            f"{spec}: stage 1 recalled none of its {len(first)} facts, so there was nothing to lose"
        )
    model = load(checkpoint, device=device, dtype="float32")
    recalled, _ = _recalled(model, first, manifest.template)
    lost = [fact for fact, right in zip(first, recalled, strict=True) if learned[fact.id] and not right]
    if not lost:
        raise MemprobeError(
            f"{spec}: still recalls all {sum(learned.values())} facts that stage 1 recalled, so there is nothing to "
            "learn again"
        )
    order = np.random.default_rng([seed, 1])
    picked = [lost[i] for i in order.permutation(len(lost))[: n or len(lost)]]
    others = never_learned(checkpoint, manifest, facts, len(picked), fresh, data_dir, seed, say)
    known, _ = _recalled(model, others, manifest.template)
    others = [fact for fact, right in zip(others, known, strict=True) if not right][: len(picked)]
    size = min(len(picked), len(others))
    if size < 2:
        raise MemprobeError(
            f"{spec}: {size} facts to compare; at least two are needed (--never-learned gives more)"
        )
    sets = {"lost": picked[:size], "fresh": others[:size]}
    # Facts that are not asked come first, and are too few where all are lost.
    cues = cued(sets, sorted(facts, key=lambda fact: fact in sets["lost"]), shots)
    start = copy.deepcopy(model.model.state_dict())
    steps: dict[str, np.ndarray] = {}
    row: dict[str, float] = {}
    for name, asked in sets.items():
        _, plain = _recalled(model, asked, manifest.template)
        came, with_cue = _recalled(model, cues[name], manifest.template)
        row |= {f"cued_{name}": float(came.mean()), f"gain_{name}": float((with_cue - plain).mean())}
        steps[name] = _steps(
            model,
            asked,
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
    entries = {
        one.fingerprint: {"fingerprint": one.fingerprint, "manifest": one.manifest.data} for one in before
    }
    made_from, rows = lineage({**entries, label: {"manifest": manifest.data}}, label)
    how: dict[str, Any] = {
        **asked_with(
            fresh=fresh, lr=lr, batch=batch, limit=limit, shots=shots, n=n, seed=seed, data_dir=data_dir
        ),
        **identity_of(checkpoint),
        **row,
    }
    return Relearned(
        checkpoint=label,
        arm=manifest.arm,
        seed=manifest.seed,
        stage=manifest.stage,
        asked=len(first),
        lost=len(lost),
        unlearned=len(first) - sum(learned.values()),
        n=size,
        savings=savings,
        savings_low=low,
        savings_high=high,
        stage_name=manifest.stage_name,
        before=made_from,
        rows=rows,
        recipe_mark=trained_as(manifest)["recipe_mark"],
        why="" if savings is not None else f"nothing of either set came within {limit} steps",
        **how,
    )


def asked_with(
    *,
    fresh: str | None,
    lr: float,
    batch: int,
    limit: int,
    shots: int,
    n: int | None,
    seed: int,
    data_dir: Path | None,
) -> dict[str, Any]:
    """What a row says of how it was measured: rows that differ in it are not held against each other.

    Arguments are those of :func:`relearn`.

    Returns:
        Fields of :class:`Relearned`: ``n_most`` is ``n``, ``relearn_seed`` the seed, ``never_learned`` the source
        ``fresh``, a file without its folder, and ``never_learned_hash`` the SHA-256 of the files that it is read from.
    """
    files = [] if fresh is None else files_of(fresh, data_dir)
    digest = hashlib.sha256(" ".join(map(sha256_of, files)).encode()).hexdigest()
    return {
        "lr": lr,
        "batch": batch,
        "limit": limit,
        "shots": shots,
        "n_most": n,
        "relearn_seed": seed,
        "never_learned": None if fresh is None else without_folder(fresh),
        "never_learned_hash": digest if files else None,
    }


def later_stage(spec: str) -> tuple[Checkpoint, Manifest, list[Ancestor]]:
    """A checkpoint that something can be learned again from, its manifest, and the stages before it, stage 1 last.

    Raises:
        MemprobeError: there is none, it has no manifest, it is of a first stage, or nothing says what stage 1 recalled.
    """
    checkpoint = resolve(spec)
    manifest = checkpoint.manifest
    if manifest is None or manifest.stage < 2:
        raise MemprobeError(f"{spec}: give a checkpoint of `python -m training`, of stage 2 or later")
    before = ancestors(checkpoint)
    first = before[-1] if before and before[-1].manifest.stage == 1 else None
    if first is None or (first.checkpoint is None and first.evaluated() is None):
        raise MemprobeError(
            f"{spec}: what stage 1 recalled is not known, as neither its weights nor its {EVALUATION} are there; give "
            "the checkpoint in its run's directory"
        )
    return checkpoint, manifest, before


def _learned(
    stage: Ancestor, facts: Sequence[Factoid], template: str, device: str, say: Callable[[str], None]
) -> dict[str, bool]:
    """By id, whether stage 1 itself recalled a fact: what it never learned, no later stage takes.

    Its weights are asked, as the later checkpoint is. Where they are gone, its evaluation says it of the facts that it
    holds.
    """
    if stage.checkpoint is not None:
        recalled, _ = _recalled(load(stage.checkpoint, device=device, dtype="float32"), facts, template)
        free()
        return {fact.id: bool(right) for fact, right in zip(facts, recalled, strict=True)}
    evaluated = stage.evaluated()
    exact = {row.id: row.share(EXACT) for row in evaluated.rows} if evaluated else {}
    found = {fact.id: share == 1 for fact in facts if (share := exact.get(fact.id)) is not None}
    say(f"stage 1's weights are gone: {len(found)} of its {len(facts)} facts are in its {EVALUATION}")
    return found


def cued(
    sets: Mapping[str, Sequence[Factoid]], solved: Sequence[Factoid], shots: int
) -> dict[str, list[Factoid]]:
    """The facts with solved examples before their questions: as many before each, and never its own question.

    Args:
        solved: the examples, those to be taken before others in front.
        shots: examples of each, or as many as there are for all.
    """
    cues = {
        name: [[one for one in solved if one.prompt != fact.prompt][:shots] for fact in facts]
        for name, facts in sets.items()
    }
    shots = min(len(cue) for some in cues.values() for cue in some)
    return {
        name: [_cued(fact, cue[:shots]) for fact, cue in zip(facts, cues[name], strict=True)]
        for name, facts in sets.items()
    }


def _cued(fact: Factoid, cue: Sequence[Factoid]) -> Factoid:
    prompt = "\n".join([*(f"{other.prompt} {other.answer}" for other in cue), fact.prompt])
    return Factoid(prompt, fact.answer, fact.source, fact.id)


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
