"""Checkpoints × factoids → a probe directory: resumable, appendable, always readable.

A checkpoint under way leaves finished batches in ``parts/``; when it is complete they are merged into its own
tables, and only then does ``run.json`` call it complete (:mod:`memprobe.probe_writer`). Killed at any moment, the
same call goes on. A second process on the same directory is refused.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import __version__, residuals
from memprobe.chats import CHAT_DATE
from memprobe.checkpoints import Checkpoint, check_labels, checkpoints_of, default_template, fingerprint
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, factoids_hash
from memprobe.files import write_parquet
from memprobe.hub_cache import evict as evict_snapshot
from memprobe.hub_cache import is_cached_snapshot
from memprobe.lineage import origin
from memprobe.manifests import Manifest
from memprobe.parquet import mark_of
from memprobe.planning import Plan, check_positions, plan_capture
from memprobe.probe_writer import (
    Parts,
    finish,
    locked,
    open_or_start,
    remove_parts,
    write_run,
    write_summary,
)
from memprobe.probes import Probe, probe_of, table_file
from memprobe.records import POSITION, SCHEMA_VERSION
from memprobe.sequences import Deferred, find_all
from memprobe.sources import load_factoids
from memprobe.splitting import is_split
from memprobe.statistics.holding import TokenRule
from memprobe.sweeps import slow_note, sweep_name
from memprobe.templates import CHAT, TOKENISATION, Template

if TYPE_CHECKING:
    import torch

    from memprobe.capturing import BatchSize
    from memprobe.lens_set import AskedLens, LensSet
    from memprobe.loading import Loader
    from memprobe.models import LensModel

PRECISION_SAMPLE = 16
"""Factoids whose ranks are held against fp32 where a probe computes in less."""

_NAMED = 3  # factoids that are named where many are counted
_PACKAGES = ("torch", "transformers", "transformer-lens", "polars")

Progress = Callable[[str, int, int], None]
"""Called with (label, factoids done, factoids in all): first with what is kept of an earlier call, then on."""


def probe(
    checkpoints: Sequence[str | Checkpoint | Deferred | LensModel],
    factoids: Sequence[Factoid] | str,
    out: str | Path,
    *,
    template: str | None = None,
    lenses: Sequence[str] | LensSet = (),
    readout: str | Checkpoint | LensModel | None = None,
    positions: Sequence[str] = (POSITION,),
    intrusions: Mapping[str, Sequence[Factoid]] | None = None,
    k: int = 10,
    token: TokenRule = "first",
    batch_size: BatchSize = "auto",
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    attributions: bool = False,
    keep_residuals: str | None = None,
    steps: Mapping[str, int] | None = None,
    origin: Mapping[str, Any] | None = None,
    evict: bool = False,
    progress: Progress | None = None,
) -> Probe:
    """Probes checkpoints into a directory, one model in memory at a time.

    A directory that already holds checkpoints probed in the same way keeps them; finished ones are not
    probed again, so that the same call continues a killed one and further checkpoints can be added.

    While a model computes, the files of the next checkpoint are fetched and read (:mod:`memprobe.loading`), and
    factoids are tokenised once for each tokenizer.

    In bf16 or fp16, the first checkpoint of each architecture is loaded once more in fp32 for its first
    :data:`PRECISION_SAMPLE` factoids, and ``run.json`` says under ``precision`` how many ranks of the first lens the
    shorter numbers changed; under ``precision_of`` the others name it. Models in memory are taken as they are.

    Args:
        checkpoints: specs (also of many, :mod:`memprobe.sequences`), resolved checkpoints, or models in memory.
        factoids: what is asked; a text is a source's name or a file.
        out: the probe directory.
        template: see :class:`memprobe.templates.Template`; ``None``: that of the manifests, else ``plain``.
        lenses: what reads the residual stream, all in one forward pass, see :func:`memprobe.lenses.parse_lens`;
            by default the Logit Lens. The spec after ``@`` may be the label of one of the checkpoints. The first
            one is what is looked through first when the probe is opened.
        readout: short for the one lens ``logit@SPEC``: reads every checkpoint with this one's norm and unembedding
            instead of its own.
        positions: where, see :data:`memprobe.records.POSITIONS`; a factoid whose subject is not known or not in its
            prompt is not read there, and ``run.json`` counts those under ``without_subject``.
        intrusions: by name, factoids whose answers are watched for.
        k: the top-k of the summary.
        token: the token rule of the summary.
        batch_size: factoids a batch.
        seed: of the shuffled controls.
        allow_pickle, trust_remote_code: see :mod:`memprobe.models`.
        attributions: also writes what each block adds to the answer's logit (:mod:`memprobe.attributions`), in a
            forward pass of its own; asked of a finished checkpoint, it is added.
        keep_residuals: depths whose residual stream is kept as well, ``all`` or ``0,10,20-25``, at the positions that
            are read, in bf16 (:mod:`memprobe.residuals`); asked of a finished checkpoint, they are added.
        steps: training steps by label, for probes along a training run.
        origin: where the factoids came from, for ``run.json`` (:meth:`memprobe.sources.Origin.to_dict`).
        evict: delete each hub checkpoint from the hub's cache when it is probed, unless a lens reads with it.
        progress: told of every batch.

    Raises:
        MemprobeError: bad input, ``out`` holds something else, is in use, or cannot be written.
    """
    from memprobe import models
    from memprobe.capturing import capture_batches
    from memprobe.lens_set import LensSet
    from memprobe.loading import Loader

    out = Path(out)
    check_positions(positions)
    where = models.choose_device(device)
    precision = str(models.choose_dtype(dtype, where)).removeprefix("torch.")

    def loaded(checkpoint: str | Checkpoint | LensModel, exactly: bool = False) -> LensModel:
        if isinstance(checkpoint, models.LensModel):
            return checkpoint
        return models.load(
            checkpoint,
            device=device if is_split(device) else str(where),
            dtype="float32" if exactly else precision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )

    if isinstance(factoids, str):
        factoids = load_factoids(factoids, seed=seed)
    named, told = _named(checkpoints, evict, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    steps = {**told, **(steps or {})}
    chosen_template = template
    parsed = Template.parse(template or default_template(checkpoints_of(named)))
    in_memory = [item for item in named if isinstance(item, models.LensModel)]
    if in_memory:
        precision = str(in_memory[0].model.dtype).removeprefix("torch.")
    asked = lenses
    if not isinstance(asked, LensSet):
        asked = LensSet.of(asked, readout, named, allow_pickle=allow_pickle)
    wanted = {
        "schema": SCHEMA_VERSION,
        "memprobe": __version__,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "lens": asked.first.spec.kind,
        "readout": asked.first.readout,
        "lenses": {lens.name: lens.entry() for lens in asked.lenses},
        "positions": list(positions),
        "template": parsed.name,
        "chat_date": CHAT_DATE.isoformat() if parsed.name == CHAT else None,
        "tokenisation": TOKENISATION,
        "dtype": precision,
        "seed": seed,
        "factoids": _describe(factoids),
        "origin": dict(origin) if origin is not None else None,
        "intrusions": {name: _describe(others) for name, others in (intrusions or {}).items()},
        "k": k,
        "token": token,
        "tables": {},
        "checkpoints": {},
        "tokens": {},
    }

    plans: dict[Any, tuple[Any, Plan]] = {}  # tokenised factoids, by what they depend on of a model

    def plan_for(lens_model: LensModel) -> Plan:
        key = (id(lens_model.tokenizer), lens_model.n_ids, lens_model.max_length)
        if key not in plans:
            plan = plan_capture(
                lens_model, factoids, parsed, positions=positions, intrusions=intrusions, seed=seed
            )
            plans.clear()  # checkpoints of one tokenizer mostly follow each other
            plans[key] = lens_model.tokenizer, plan
        return plans[key][1]

    def capture_one(lens_model: LensModel, run: dict[str, Any]) -> None:
        item = lens_model
        if keep_residuals is not None:
            residuals.depths_of(keep_residuals, lens_model)  # refused before the work
        read_by = asked.build(lens_model, loaded)
        plan = plan_for(lens_model)
        if item.label not in run["checkpoints"]:
            entry = _entry(lens_model, asked.first, steps.get(item.label))
            slow = slow_note(lens_model.device)
            entry["notes"] = [note for lens in read_by for note in lens.notes] + ([slow] if slow else [])
            entry["reading"] = sweep_name(lens_model.device)
            if len(plan.positions) > 1:
                entry["without_subject"] = _without_subject(plan.without_subject)
            run["checkpoints"][item.label] = entry
            write_run(run, out)
        parts = Parts(out, item.label)
        if progress is not None:
            progress(item.label, len(parts.done), len(plan.items))
        batches = capture_batches(
            lens_model, plan, lenses=read_by, batch_size=batch_size, done=frozenset(parts.done)
        )
        try:
            for tables in batches:
                parts.add(tables)
                if progress is not None:
                    progress(item.label, len(parts.done), len(plan.items))
        finally:
            parts.flush()  # what is finished stays, also after Ctrl-C
        finish(out, run, lens_model)
        if attributions:
            attribute_one(lens_model, run)
        if keep_residuals is not None:
            keep_one(lens_model, run, keep_residuals)

    def keep_one(lens_model: LensModel, run: dict[str, Any], depths: str) -> None:
        plan = plan_for(lens_model)
        chosen = residuals.depths_of(depths, lens_model)
        run["checkpoints"][lens_model.label]["residuals"] = residuals.keep_residuals(
            lens_model, plan, chosen, out
        )
        write_run(run, out)

    def attribute_one(lens_model: LensModel, run: dict[str, Any]) -> None:
        from memprobe.attributions import attribute_all

        entry = run["checkpoints"][lens_model.label]
        rows, entry["attributions"] = attribute_all(
            lens_model, plan_capture(lens_model, factoids, parsed, seed=seed)
        )
        file = table_file(out, lens_model.label, "attributions")
        write_parquet(rows, file)
        entry["tables"]["attributions"] = mark_of(file)
        write_run(run, out)

    def probe_one(item: Checkpoint | LensModel, run: dict[str, Any], loader: Loader) -> None:
        mark = item.fingerprint if isinstance(item, models.LensModel) else fingerprint(item)
        entry = run["checkpoints"].get(item.label)
        if entry is not None and entry["fingerprint"] != mark:
            raise MemprobeError(
                f"{out}: holds other weights under the label {item.label!r}; use another label or --out"
            )
        if entry is not None and entry["complete"]:
            remove_parts(out, item.label)
            if progress is not None:
                progress(item.label, len(factoids), len(factoids))
        else:
            if isinstance(item, models.LensModel) or is_split(device):
                lens_model = loaded(item)
            else:
                lens_model = loader.get(item)
                if (ahead := following(item, run)) is not None:
                    loader.announce(ahead)
            capture_one(lens_model, run)
            del lens_model
        entry = run["checkpoints"][item.label]
        if attributions and "attributions" not in entry["tables"]:
            attribute_one(loaded(item), run)
        if keep_residuals is not None:
            residuals.refuse_other_depths(entry, keep_residuals, f"{out}: {item.label}")
            if "residuals" not in entry:
                keep_one(loaded(item), run, keep_residuals)
        if isinstance(item, models.LensModel) or asked.first.in_memory or precision == "float32":
            return
        if not {"precision", "precision_of"} & entry.keys():
            if (other := _same_architecture(item.label, run)) is not None:
                entry["precision_of"] = other
            else:
                loader.release()
                exact = partial(loaded, exactly=True)
                sample = factoids[:PRECISION_SAMPLE]
                entry["precision"] = _precision(out, run, item, asked.first, sample, exact, where)
            write_run(run, out)

    def following(item: Checkpoint | LensModel, run: dict[str, Any]) -> Checkpoint | Deferred | None:
        """The checkpoint that is loaded after this one."""
        labels = [one.label for one in named]
        for one in named[labels.index(item.label) + 1 :]:
            if not isinstance(one, models.LensModel) and not _is_done(one, run):
                return one
        return None

    with locked(out), Loader(str(where), precision, trust_remote_code) as loader:
        run = open_or_start(out, wanted, factoids)
        kept = {lens.other.path for lens in asked.lenses if isinstance(lens.other, Checkpoint)}
        for asked_for in named:
            if (
                isinstance(asked_for, Deferred)
                and _is_done(asked_for, run)
                and not (attributions or keep_residuals)
            ):
                remove_parts(out, asked_for.label)  # nothing is fetched for it
                if progress is not None:
                    progress(asked_for.label, len(factoids), len(factoids))
                continue
            item: Checkpoint | LensModel
            if isinstance(asked_for, Deferred):
                item = loader.find(asked_for)
                if chosen_template is None:
                    _check_template(item, parsed)
            else:
                item = asked_for
            probe_one(item, run, loader)  # one model at a time
            if (
                evict
                and isinstance(item, Checkpoint)
                and item.path not in kept
                and is_cached_snapshot(item.path)
            ):
                evict_snapshot(item.path)
        write_summary(out, run)
        return probe_of(out, run)


def _is_done(item: Checkpoint | Deferred, run: Mapping[str, Any]) -> bool:
    """Whether a probe of this spec is finished; what the spec names may not have changed, or its files are asked."""
    entry = run["checkpoints"].get(item.label)
    done = entry is not None and entry["complete"] and entry.get("spec") == item.spec
    return done and (run["dtype"] == "float32" or bool({"precision", "precision_of"} & entry.keys()))


def _same_architecture(label: str, run: Mapping[str, Any]) -> str | None:
    """Another checkpoint of the same shape whose ranks were held against fp32."""
    keys = ("architecture", "n_layers", "d_model", "vocab", "parameters")
    mine = run["checkpoints"][label]
    return next(
        (
            other
            for other, entry in run["checkpoints"].items()
            if other != label and "precision" in entry and all(entry.get(key) == mine[key] for key in keys)
        ),
        None,
    )


def _check_template(item: Checkpoint, chosen: Template) -> None:
    """Refuses a checkpoint found late whose manifest names another template than those before it."""
    if item.manifest is not None and item.manifest.template != chosen.name:
        raise MemprobeError(
            f"{item.label} was trained with the template {item.manifest.template!r}, those before it are read with "
            f"{chosen.name!r}; give --template"
        )


def _named(
    items: Sequence[str | Checkpoint | Deferred | LensModel], defer: bool, **options: Any
) -> tuple[list[Checkpoint | Deferred | LensModel], dict[str, int]]:
    """Checkpoints and models with labels of their own, and the training steps that specs of many name.

    Raises:
        MemprobeError: a spec that cannot be resolved, something else than a spec or a model to read, or one label
            twice.
    """
    from memprobe.models import LensModel

    if isinstance(items, str | Checkpoint | Deferred | LensModel):
        raise MemprobeError("give checkpoints as a list, also a single one: [checkpoint]")
    named: list[Checkpoint | Deferred | LensModel] = []
    steps: dict[str, int] = {}
    for item in items:
        if not isinstance(item, str | Checkpoint | Deferred | LensModel):
            raise MemprobeError(
                f"a {type(item).__name__} is no checkpoint; memprobe.wrap(model, tokenizer, label=...) makes one"
            )
        if isinstance(item, str):
            found, told = find_all([item], defer=defer, **options)
            named += found
            steps |= told
        else:
            named.append(item)
    check_labels(item.label for item in named)
    return named, steps


def _precision(
    out: Path,
    run: dict[str, Any],
    item: Checkpoint,
    lens: AskedLens,
    factoids: Sequence[Factoid],
    exact: Callable[[Checkpoint], LensModel],
    device: torch.device,
) -> dict[str, Any]:
    """How many of the stored ranks of some factoids are other ones in fp32.

    Args:
        lens: the first one, which is compared.
        exact: loads a checkpoint in fp32.

    Returns:
        ``dtype``, ``k``; ``factoids``, ``ranks``: how many were compared; ``changed``: share of ranks that differ;
        ``crossed``: share in the top k in one of the two alone. Where fp32 weights do not fit into memory the
        shares are null and ``why`` says so.
    """
    from memprobe.capturing import capture

    found = {
        "dtype": run["dtype"],
        "k": run["k"],
        "factoids": 0,
        "ranks": 0,
        "changed": None,
        "crossed": None,
    }
    needed = 4 * run["checkpoints"][item.label]["parameters"] * (1 if lens.other is None else 2)
    if needed > (free := _free_memory(device)):
        return found | {"why": f"fp32 weights need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free"}
    lens_model = exact(item)
    made = lens.make(lens_model, exact)
    table = capture(lens_model, factoids, run["template"], lenses=[made], seed=run["seed"], predictions=False)
    stored = probe_of(out, run).read("records", checkpoints=[item.label])
    keys = ["factoid", "token", "depth"]
    both = table.records.lazy().join(stored, on=keys, suffix="_stored").collect()
    ranks, k = (pl.col("rank"), pl.col("rank_stored")), run["k"]
    shares = both.select(
        changed=(ranks[0] != ranks[1]).mean(), crossed=((ranks[0] < k) != (ranks[1] < k)).mean()
    )
    return found | {"factoids": both["factoid"].n_unique(), "ranks": len(both)} | shares.row(0, named=True)


def _free_memory(device: torch.device) -> int:
    """Bytes that weights may still take: they are read into main memory, then moved to the device."""
    import psutil
    import torch

    free = psutil.virtual_memory().available
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return free


def _entry(lens_model: LensModel, first: AskedLens, step: int | None) -> dict[str, Any]:
    checkpoint = lens_model.checkpoint
    # A graft is asked as the checkpoint that it is made of, but is no stage of a run.
    manifest = checkpoint.manifest if checkpoint and checkpoint.kind != "graft" else None
    return {
        "spec": checkpoint.spec if checkpoint else None,
        "note": checkpoint.note if checkpoint else None,
        "architecture": type(lens_model.model).__name__,
        "fingerprint": lens_model.fingerprint,
        "readout_fingerprint": first.fingerprint or lens_model.fingerprint,
        "n_layers": lens_model.n_layers,
        "d_model": lens_model.d_model,
        "vocab": lens_model.vocab_size,
        "parameters": lens_model.model.num_parameters(),
        "difference": lens_model.difference,
        "manifest": _manifest_entry(manifest) if manifest else None,
        "step": step,
        "complete": False,
    }


def _manifest_entry(manifest: Manifest) -> dict[str, Any]:
    keys = ("arm", "seed", "stage", "stage_name", "steps", "template")
    named = {key: getattr(manifest, key) for key in keys} | {"run": manifest.data.get("run")}
    return named | origin(manifest.data)


def _without_subject(reasons: Mapping[str, str]) -> dict[str, Any]:
    """How many factoids are not read at their subject, and the first of them."""
    return {"n": len(reasons), "first": list(reasons.values())[:_NAMED]}


def _describe(factoids: Sequence[Factoid]) -> dict[str, Any]:
    sources = sorted({factoid.source for factoid in factoids})
    return {"source": ", ".join(sources), "n": len(factoids), "hash": factoids_hash(factoids)}
