"""Pairs of checkpoints × factoids → ``patches/`` in a probe directory: resumable, appendable.

For each pair and kind of patch the two models are loaded, at most two at a time, and what :mod:`memprobe.patching` or,
for weights, :mod:`memprobe.grafting` yields is written by :mod:`memprobe.patch_writer`.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import __version__
from memprobe.checkpoints import Checkpoint, refuse_unused_base, resolve
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, content_hash, factoids_hash
from memprobe.identity import identity_of
from memprobe.lineage import trained_as
from memprobe.load_options import LoadOptions
from memprobe.patch_writer import (
    Batches,
    Progress,
    check_same,
    key_of,
    locked,
    open_or_start,
    parts_dir,
    write_pair,
)
from memprobe.patches import FOLDER, SCHEMA_VERSION, Patches, open_patches
from memprobe.splitting import is_split
from memprobe.subjects import subject_in
from memprobe.templates import TOKENISATION, Template

if TYPE_CHECKING:
    from memprobe.models import LensModel

_PACKAGES = ("torch", "transformers", "polars")


@dataclass(frozen=True)
class Pair:
    """Which checkpoint's states or weights are put into which."""

    source: Checkpoint | LensModel
    target: Checkpoint | LensModel


def pair_up(
    sources: Sequence[str], targets: Sequence[str], loading: LoadOptions = LoadOptions()
) -> list[Pair]:
    """``--from`` and ``--into`` in the order given; one that stands once goes with every one of the other.

    Raises:
        MemprobeError: their numbers do not fit, a label means two things, or a base model of adapters is named where
            none is one.
    """
    if len(sources) != len(targets) and 1 not in (len(sources), len(targets)):
        raise MemprobeError(
            f"--from stands {len(sources)} times and --into {len(targets)} times; "
            "give one of them once, or both equally often"
        )
    known = {spec: resolve(spec, loading) for spec in dict.fromkeys([*sources, *targets])}
    refuse_unused_base(loading, known.values())
    _check_labels(known.values())
    size = max(len(sources), len(targets))
    froms, intos = (list(given) * (size if len(given) == 1 else 1) for given in (sources, targets))
    return [Pair(known[source], known[target]) for source, target in zip(froms, intos, strict=True)]


def _check_labels(checkpoints: Iterable[Checkpoint | LensModel]) -> None:
    """Refuses two checkpoints of one label, by which models are kept."""
    labels: dict[str, Checkpoint | LensModel] = {}
    for one in checkpoints:
        other = labels.setdefault(one.label, one)
        of_files = isinstance(one, Checkpoint) and isinstance(other, Checkpoint)
        if (other.spec, other.path) != (one.spec, one.path) if of_files else other is not one:
            raise MemprobeError(
                f"two checkpoints are called {one.label!r}; name them, as in --from LABEL=SPEC"
            )


def patch(
    pairs: Sequence[Pair],
    factoids: Sequence[Factoid],
    out: str | Path,
    *,
    what: Sequence[str] = ("residual",),
    positions: Sequence[str] = ("last",),
    depths: Sequence[int] | None = None,
    controls: bool = True,
    corrupt: bool = False,
    noise: float = 3.0,
    windows: Sequence[int] = (1,),
    parts: Sequence[str] = ("all",),
    template: str = "plain",
    batch_size: int | None = None,
    seed: int = 0,
    loading: LoadOptions = LoadOptions(),
    progress: Progress | None = None,
) -> Patches:
    """Patches every pair into a directory.

    Args:
        what: ``residual``, ``attn``, ``mlp``; ``weights`` for the sweep of grafts.
        positions: ``last``, ``subject``, ``prompt``; see :mod:`memprobe.patch_plan`. Not for weights.
        depths: all by default. Not for weights.
        controls: also patch another factoid's states and random ones (random weights).
        corrupt: causal tracing: the target's run has noise on the subject's embeddings. Not for weights.
        noise: in standard deviations of the embeddings.
        windows, parts: see :func:`memprobe.grafting.sweep_batches`.
        progress: told of every batch.

    Raises:
        MemprobeError: bad input, ``out`` holds patches made otherwise, is in use, or cannot be written.
    """
    from memprobe import models
    from memprobe.grafting import check_sweep
    from memprobe.patch_plan import check_states

    out = Path(out)
    parsed = Template.parse(template)
    where = models.choose_device(loading.device)
    given = [one for pair in pairs for one in (pair.source, pair.target)]
    in_memory = [one for one in given if isinstance(one, models.LensModel)]
    dtype = in_memory[0].model.dtype if in_memory else models.choose_dtype(loading.dtype, where)
    loading = replace(loading, dtype=str(dtype).removeprefix("torch."))
    cache: dict[str, LensModel] = {}

    def loaded(item: Checkpoint | LensModel, keep: Sequence[str]) -> LensModel:
        if isinstance(item, models.LensModel):
            return item
        if item.label not in cache:
            for label in [label for label in cache if label not in keep]:
                del cache[label]  # no more than two models at a time
            cache[item.label] = models.load(item, **vars(loading))
        return cache[item.label]

    unit_kinds = [(part, name) for part in what if part != "weights" for name in positions]
    if "weights" in what:
        unit_kinds.append(("weights", "all"))
    if not pairs or not unit_kinds:
        raise MemprobeError("there is nothing to patch")
    # All of it before the first pair, which may take hours.
    _check_labels(given)
    if states := [part for part in what if part != "weights"]:
        check_states(states, positions)
        if corrupt or "subject" in positions:
            for factoid in factoids:
                subject_in(factoid)
    if "weights" in what:
        check_sweep(windows, parts)
    if "weights" in what and is_split(loading.device):
        raise MemprobeError("--weights grafts into a model on one device; it does not go with --device-map")
    with locked(out):
        run = open_or_start(
            out,
            {
                "schema": SCHEMA_VERSION,
                "memprobe": __version__,
                "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
                "template": parsed.name,
                "tokenisation": TOKENISATION,
                "dtype": loading.dtype,
                "seed": seed,
                "factoids": {
                    "n": len(factoids),
                    "hash": factoids_hash(factoids),
                    "content": content_hash(factoids),
                },
                "pairs": {},
            },
            factoids,
        )
        for pair in pairs:
            for part, name in unit_kinds:
                grafted = part == "weights"
                wanted: dict[str, Any] = {
                    "source": pair.source.label,
                    "target": pair.target.label,
                    "into": f"{pair.target.label} corrupted"
                    if corrupt and not grafted
                    else pair.target.label,
                    "what": part,
                    "positions": name,
                    **_known_by(pair),
                    "source_manifest": _made(pair.source),
                    "target_manifest": _made(pair.target),
                    "depths": None if grafted or depths is None else sorted(set(depths)),
                    "controls": controls,
                    "corrupt": corrupt and not grafted,
                    "noise": noise if corrupt and not grafted else None,
                    "windows": list(windows) if grafted else None,
                    "parts": list(parts) if grafted else None,
                }
                key = key_of(wanted)
                entry = run["pairs"].get(key)
                if entry is not None:
                    check_same(out, entry, wanted)
                    if entry["complete"]:
                        shutil.rmtree(parts_dir(out, key), ignore_errors=True)
                        continue
                batches = (
                    _weights(pair, loaded, factoids, parsed, wanted, seed, batch_size)
                    if grafted
                    else _states(pair, loaded, factoids, parsed, wanted, seed, batch_size)
                )
                write_pair(out, run, key, wanted, batches, factoids, progress)
        shutil.rmtree(out / FOLDER / "parts", ignore_errors=True)
        return open_patches(out)


_Load = Callable[["Checkpoint | LensModel", Sequence[str]], "LensModel"]


def _states(
    pair: Pair, loaded: _Load, factoids: Sequence[Factoid], template: Template, wanted: dict[str, Any],
    seed: int, batch_size: int | None,
) -> Batches:  # fmt: skip
    def start(done: frozenset[str]) -> tuple[int, Iterator[pl.DataFrame]]:
        from memprobe.patch_plan import CONTROLS, plan_patches
        from memprobe.patching import patch_batches

        labels = (pair.source.label, pair.target.label)
        source, target = loaded(pair.source, labels), loaded(pair.target, labels)
        plan = plan_patches(
            source,
            target,
            factoids,
            template,
            what=[wanted["what"]],
            positions=[wanted["positions"]],
            depths=wanted["depths"],
            controls=CONTROLS if wanted["controls"] else (),
            corrupt=wanted["corrupt"],
            noise=wanted["noise"] or 0.0,
            seed=seed,
        )
        return target.n_layers, patch_batches(source, target, plan, batch_size=batch_size, done=done)

    return start


def _weights(
    pair: Pair, loaded: _Load, factoids: Sequence[Factoid], template: Template, wanted: dict[str, Any],
    seed: int, batch_size: int | None,
) -> Batches:  # fmt: skip
    def start(done: frozenset[str]) -> tuple[int, Iterator[pl.DataFrame]]:
        from memprobe.grafting import donor_of, sweep_batches
        from memprobe.patch_plan import check_same_tokens
        from memprobe.templates import tokenise_for

        source = loaded(pair.source, ())
        theirs = tokenise_for(source, factoids, template)
        donor = donor_of(source, theirs)
        del source  # from here on its weights are kept, and no second model
        target = loaded(pair.target, ())
        items = tokenise_for(target, factoids, template)
        check_same_tokens(f"{pair.source.label} into {pair.target.label}", items, theirs)
        batches = sweep_batches(
            donor,
            target,
            items,
            windows=wanted["windows"],
            parts=wanted["parts"],
            control=wanted["controls"],
            seed=seed,
            batch_size=batch_size,
            done=done,
        )
        return target.n_layers, batches

    return start


def _known_by(pair: Pair) -> dict[str, str]:
    """``source_fingerprint``, ``target_tokenizer`` and so on; see :func:`memprobe.identity.identity_of`."""
    sides = {"source": pair.source, "target": pair.target}
    return {
        f"{side}_{part}": mark for side, item in sides.items() for part, mark in identity_of(item).items()
    }


def _made(item: Checkpoint | LensModel) -> dict[str, Any] | None:
    """How a checkpoint was trained; a graft is no stage of a run."""
    checkpoint = item if isinstance(item, Checkpoint) else item.checkpoint
    manifest = checkpoint.manifest if checkpoint and checkpoint.kind != "graft" else None
    return None if manifest is None else trained_as(manifest)
