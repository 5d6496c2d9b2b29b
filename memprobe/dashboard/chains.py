"""Training runs as chains of checkpoints, and the pairs whose differences are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memprobe.arms import Arm, arm_names
from memprobe.dashboard.questions import Asked


@dataclass(frozen=True)
class Chain:
    """The checkpoints of one training run, in the order of training."""

    name: str
    arm: str
    naive: bool
    seed: str | None
    stages: list[int]
    stage_names: list[str]
    labels: list[str]


def base_of(asked: Asked) -> str | None:
    """The one checkpoint without a manifest among others that have one, or the one called base."""
    bare = [label for label in asked.labels if not asked.entry(label).get("manifest")]
    if len(bare) == 1 < len(asked.labels):
        return bare[0]
    called = [label for label, (_, name) in asked.sources.items() if name == "base"]
    return called[0] if called else None


def chains_of(asked: Asked, base: str | None) -> list[Chain]:
    """The training runs that the manifests tell of, each from the base model on."""
    made: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    names: dict[str, str] = {}
    for label in asked.labels:
        manifest = asked.entry(label).get("manifest") or {}
        if manifest.get("arm") is None or not str(manifest.get("stage", "")).isdigit():
            continue
        names[label] = f"{manifest['stage']} {manifest.get('stage_name') or ''}".strip()
        stages = made.setdefault((str(manifest["arm"]), str(manifest.get("seed", ""))), {})
        # Of checkpoints along the way, the last one stands for the stage.
        stages.setdefault(int(manifest["stage"]), {})[names[label]] = label
    short = arm_names([arm for arm, _ in made])
    chains = []
    for (arm, seed), stages in made.items():
        numbers = sorted(stages)
        # Runs that share their first stages end on different datasets: one chain for each.
        for last in stages[numbers[-1]]:
            several = len(stages[numbers[-1]]) > 1
            labels = [
                stages[number][last if number == numbers[-1] else next(iter(stages[number]))]
                for number in numbers
            ]
            named = f"{short[arm]} → {last}" if several else short[arm]
            first = [] if base is None or base in labels else [base]
            chains.append(
                Chain(
                    name=f"{named}, seed {seed}" if seed else named,
                    arm=named,
                    naive=Arm.of(arm).is_naive,
                    seed=seed or None,
                    stages=[0] * len(first) + numbers,
                    stage_names=["base"] * len(first) + [names[label] for label in labels],
                    labels=first + labels,
                )
            )
    return [chain for chain in chains if len(chain.labels) > 1]


def pairs_of(asked: Asked, chains: Sequence[Chain], origin: str) -> list[tuple[str, str, str]]:
    """(against what, reference, checkpoint) of every difference that is shown."""
    pairs = [("reference", origin, label) for label in asked.labels if label != origin]
    for chain in chains:
        pairs += [("before", one, other) for one, other in zip(chain.labels, chain.labels[1:], strict=False)]
    naive = {
        (chain.seed, stage, name): label
        for chain in chains
        if chain.naive
        for stage, name, label in zip(chain.stages, chain.stage_names, chain.labels, strict=True)
    }
    for chain in chains:
        for stage, name, label in zip(chain.stages, chain.stage_names, chain.labels, strict=True):
            other = naive.get((chain.seed, stage, name))
            if stage > 0 and other is not None and other != label:
                pairs.append(("naive", other, label))
    depth = asked.n_layers
    return [pair for pair in dict.fromkeys(pairs) if depth[pair[1]] == depth[pair[2]]]
