"""Checkpoints × factoids → a probe directory: resumable, appendable, always readable.

A checkpoint under way leaves finished batches in ``parts/``; when it is complete they are merged into its own
tables, and only then does ``run.json`` call it complete (:mod:`memprobe.probe_writer`). Killed at any moment, the
same call goes on. A second process on the same directory is refused.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import __version__, prober, residuals
from memprobe.chats import CHAT_DATE
from memprobe.checkpoints import Checkpoint, check_labels, checkpoints_of, default_template
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, check_made, content_hash, factoids_hash
from memprobe.files import write_parquet
from memprobe.hands import Do, Evict, Flow, Hands, Here, Read, Turn
from memprobe.identity import identity_of
from memprobe.load_options import LoadOptions
from memprobe.parquet import mark_of
from memprobe.planning import check_positions
from memprobe.probe_writer import (
    Parts,
    finish,
    locked,
    mark_of_parts,
    merge,
    open_or_start,
    remove_parts,
    write_run,
    write_summary,
)
from memprobe.prober import ProbeRequest, bases_ahead, read_by_others
from memprobe.probes import Probe, probe_of, table_file
from memprobe.records import POSITION, SCHEMA_VERSION
from memprobe.sameness import other_checkpoint
from memprobe.sequences import Deferred, find_all
from memprobe.sources import load_factoids
from memprobe.statistics.holding import TokenRule
from memprobe.templates import CHAT, TOKENISATION, Template

if TYPE_CHECKING:
    from memprobe.capturing import BatchSize
    from memprobe.cluster import Engine
    from memprobe.lens_set import LensSet
    from memprobe.models import LensModel

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
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    seed: int = 0,
    attributions: bool = False,
    keep_residuals: str | None = None,
    steps: Mapping[str, int] | None = None,
    origin: Mapping[str, Any] | None = None,
    evict: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Probes checkpoints into a directory, one model in memory at a time.

    A directory that already holds checkpoints probed in the same way keeps them; finished ones are not
    probed again, so that the same call continues a killed one and further checkpoints can be added.

    While a model computes, the files of the next checkpoint are fetched and read (:mod:`memprobe.loading`), and
    factoids are tokenised once for each tokenizer.

    In bf16 or fp16, the first checkpoint of each architecture is loaded once more in fp32 for its first
    :data:`memprobe.prober.PRECISION_SAMPLE` factoids, and ``run.json`` says under ``precision`` how many ranks of the
    first lens the shorter numbers changed; under ``precision_of`` the others name it. Models in memory are taken as
    they are.

    Args:
        checkpoints: specs (also of many, :mod:`memprobe.sequences`), resolved checkpoints, or models in memory.
        factoids: what is asked; a text is a source's name or a file.
        out: the probe directory.
        template: see :class:`memprobe.templates.Template`; ``None``: that of the manifests, else ``plain``.
        lenses: what reads the residual stream, all in one forward pass, see :func:`memprobe.lens_specs.parse_lens`;
            by default the Logit Lens. The spec after ``@`` may be the label of one of the checkpoints. The first
            one is what is looked through first when the probe is opened.
        readout: short for the one lens ``logit@SPEC``: reads every checkpoint with this one's norm and unembedding
            instead of its own.
        positions: where, in any order, see :data:`memprobe.records.POSITIONS`; the answer's own is what is looked at
            first. A factoid whose subject is not known or not in its prompt is not read there, and ``run.json`` counts
            those under ``without_subject``.
        intrusions: by name, factoids whose answers are watched for.
        k: the top-k of the summary.
        token: the token rule of the summary.
        batch_size: factoids a batch.
        seed: of the shuffled controls.
        device, dtype, base, tokenizer, allow_pickle, trust_remote_code: see :class:`memprobe.load_options.LoadOptions`.
        attributions: also writes what each block adds to the answer's logit (:mod:`memprobe.attributions`), in a
            forward pass of its own; asked of a finished checkpoint, it is added.
        keep_residuals: depths whose residual stream is kept as well, ``all`` or ``0,10,20-25``, at the positions that
            are read, in bf16 (:mod:`memprobe.residuals`); asked of a finished checkpoint, they are added.
        steps: training steps by label, for probes along a training run.
        origin: where the factoids came from, for ``run.json`` (:meth:`memprobe.sources.Origin.to_dict`).
        evict: delete each hub checkpoint from the hub's cache when it is probed, unless a lens, or another checkpoint
            (an adapter onto it, a graft), is read from it.
        engine: read the units on a Ray cluster (:mod:`memprobe.engine`); by default in this process, in order. The
            directory is the same, byte for byte.
        progress: told of every batch.

    Raises:
        MemprobeError: bad input, ``out`` holds something else, is in use, or cannot be written; on Ray also, when all
            others are finished, checkpoints of which a unit failed three times.
    """
    from memprobe.lens_set import LensSet
    from memprobe.models import LensModel

    out = Path(out)
    positions = check_positions(positions)
    if isinstance(factoids, str):
        factoids = load_factoids(factoids, seed=seed)
    check_made(factoids)
    for others in (intrusions or {}).values():
        check_made(others)
    loading = LoadOptions(device, dtype, base, tokenizer, allow_pickle, trust_remote_code)
    named, found_steps = _named(checkpoints, loading, evict)
    parsed = Template.parse(template or default_template(checkpoints_of(named)))
    if in_memory := [item for item in named if isinstance(item, LensModel)]:
        loading = replace(loading, dtype=str(in_memory[0].model.dtype).removeprefix("torch."))
    if not isinstance(lenses, LensSet):
        lenses = LensSet.of(lenses, readout, named, loading)
    asked = ProbeRequest(
        factoids=factoids,
        template=parsed,
        lenses=lenses,
        positions=positions,
        intrusions=intrusions,
        steps={**found_steps, **(steps or {})},
        seed=seed,
        batch_size=batch_size,
        loading=loading,
        keep_residuals=keep_residuals,
        evict=evict,
        unit=prober.UNIT,
        kept=read_by_others(named, lenses, loading) if evict else frozenset(),
        kept_models=bases_ahead(named, loading) if evict else frozenset(),
    )
    first = lenses.first
    with locked(out), _hands(engine, asked, in_memory, out) as hands:
        wanted = {
            "schema": SCHEMA_VERSION,
            "memprobe": __version__,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "lens": first.spec.kind,
            "readout": first.readout,
            "lenses": {lens.name: lens.entry() for lens in lenses.lenses},
            "positions": list(positions),
            "template": parsed.name,
            "chat_date": CHAT_DATE.isoformat() if parsed.name == CHAT else None,
            "tokenisation": TOKENISATION,
            "dtype": hands.dtype,
            "seed": seed,
            "factoids": _describe(factoids) | {"content": content_hash(factoids)},
            "origin": dict(origin) if origin is not None else None,
            "intrusions": {name: _describe(others) for name, others in (intrusions or {}).items()},
            "k": k,
            "token": token,
            "tables": {},
            "checkpoints": {},
            "tokens": {},
        }
        run = open_or_start(out, wanted, factoids)
        order = _order(run["checkpoints"], [item.label for item in named])
        run["checkpoints"] = {
            label: run["checkpoints"][label] for label in order if label in run["checkpoints"]
        }
        work = _Work(
            out,
            run,
            asked,
            attributions=attributions,
            template_given=template is not None,
            named=named,
            order=order,
            progress=progress or (lambda *_: None),
            hands=hands,
        )
        failed = hands.run([(item, work.flow(item)) for item in named])
        write_summary(out, run)
        if failed:
            raise MemprobeError(
                f"{len(failed)} of {len(named)} checkpoints could not be probed, the others are there; "
                f"first {failed[0]}; the same command tries them again"
            )
        return probe_of(out, run)


def _order(there: Mapping[str, Any], named: Sequence[str]) -> list[str]:
    """Labels as they are to stand: where they are, a new one behind the one that is named before it, else at the end.

    Several checkpoints may be under way in a directory, or finished before one that failed; which came first does not
    show: one that others named after it were faster than stands before them.
    """
    order = list(there)
    for place, label in enumerate(named):
        if label not in order:
            later = [order.index(one) for one in named[place + 1 :] if one in order]
            before = [order.index(one) + 1 for one in named[:place][-1:]]
            order.insert((before or later or [len(order)])[0], label)
    return order


def _hands(engine: Engine | None, asked: ProbeRequest, in_memory: Sequence[LensModel], out: Path) -> Hands:
    """Who reads the units: this process, or actors on Ray.

    Raises:
        MemprobeError: models in memory for another machine, or a cluster that cannot be reached.
    """
    if engine is None:
        return Here(asked)
    from memprobe.engine import OnRay

    if in_memory or any(lens.in_memory for lens in asked.lenses.lenses):
        raise MemprobeError("a model in memory stays in this process: give Ray checkpoints by their specs")
    return OnRay(engine, asked, out)


@dataclass
class _Work:
    """What is to be done for a probe directory, as steps that whoever has hands for them takes."""

    out: Path
    run: dict[str, Any]
    asked: ProbeRequest
    attributions: bool
    template_given: bool
    named: Sequence[Checkpoint | Deferred | LensModel]
    order: Sequence[str]
    progress: Progress
    hands: Hands

    def flow(self, item: Checkpoint | Deferred | LensModel) -> Flow:
        """The steps of one checkpoint; each yields what is to be done, and is sent what it gave."""
        from memprobe.models import LensModel

        keep = self.asked.keep_residuals
        every = len(self.asked.factoids)
        entry = self.run["checkpoints"].get(item.label)
        if isinstance(item, Deferred) and entry is not None and self._tokenizer_named_otherwise(entry):
            self._refuse_other(item.label, identity_of(item.find()))
        if isinstance(item, Deferred) and _is_done(item, self.run) and not (self.attributions or keep):
            remove_parts(self.out, item.label)  # nothing is fetched for it
            self.progress(item.label, every, every)
            return
        if not isinstance(item, Deferred):
            self._refuse_other(item.label, identity_of(item))
        if entry is not None and entry["complete"]:
            remove_parts(self.out, item.label)
            self.progress(item.label, every, every)
        else:
            yield from self._read(item)
        entry = self.run["checkpoints"][item.label]
        if self.attributions and "attributions" not in entry["tables"]:
            rows, about = yield Do("attribute", item)
            file = table_file(self.out, item.label, "attributions")
            write_parquet(rows, file)
            entry["attributions"] = about
            entry["tables"]["attributions"] = mark_of(file)
            write_run(self.run, self.out)
        if keep is not None:
            if not residuals.are_kept(entry, self.out, item.label):
                entry.pop("residuals", None)  # they were deleted, or did not come along
            residuals.refuse_other_depths(entry, keep, f"{self.out}: {item.label}")
            if "residuals" not in entry:
                entry["residuals"] = yield Do("keep_residuals", item, (self.out,))
                write_run(self.run, self.out)
        yield Turn("precision", after="held against fp32")  # of a shape one is, and the others name it
        in_memory = isinstance(item, LensModel) or self.asked.lenses.first.in_memory
        if not in_memory and self.run["dtype"] != "float32":
            yield from self._hold_against_fp32(item, entry)
        yield Turn("held against fp32")
        if self.asked.evict and not isinstance(item, LensModel):
            yield Evict(item)

    def _read(self, item: Checkpoint | Deferred | LensModel) -> Flow:
        """What is left of a checkpoint under way, or not begun."""
        label, run, out = item.label, self.run, self.out
        parts = Parts(out, label)
        opened = yield Do("open", item, (frozenset(parts.done),))
        if opened.checkpoint is not None and not self.template_given:
            _check_template(opened.checkpoint, self.asked.template)
        self._refuse_other(label, opened.entry)
        if label not in run["checkpoints"]:
            entries = run["checkpoints"] | {label: opened.entry}
            run["checkpoints"] = {name: entries[name] for name in self.order if name in entries}
            write_run(run, out)
        if self.hands.fetch(out, label, mark_of_parts(run, opened.entry)):
            parts = Parts(out, label)
            opened = yield Do("open", item, (frozenset(parts.done),))

        def tell() -> None:
            self.progress(label, len(parts.done), len(self.asked.factoids))

        tell()
        yield Read(item, opened.units, parts, tell, self._following(label))
        yield Turn("merge")
        tokens = merge(out, run, label)
        texts = yield Do("texts", item, (tokens,))
        finish(out, run, label, texts)
        self.hands.forget(label)

    def _following(self, label: str) -> Checkpoint | Deferred | None:
        """The checkpoint that is loaded after this one."""
        from memprobe.models import LensModel

        place = [one.label for one in self.named].index(label)
        later = (one for one in self.named[place + 1 :] if not isinstance(one, LensModel))
        return next((one for one in later if not _is_done(one, self.run)), None)

    def _tokenizer_named_otherwise(self, entry: Mapping[str, Any]) -> bool:
        """Whether a checkpoint whose files are not looked at for it was asked with another ``--tokenizer``."""
        now = self.asked.loading.tokenizer
        return entry.get("tokenizer_from", now) != now

    def _refuse_other(self, label: str, given: Mapping[str, Any]) -> None:
        entry = self.run["checkpoints"].get(label)
        if entry is not None and (held := other_checkpoint(entry, given)):
            raise MemprobeError(
                f"{self.out}: holds {held} under the label {label!r}; use another label or --out"
            )

    def _hold_against_fp32(self, item: Checkpoint | Deferred, entry: dict[str, Any]) -> Flow:
        """How many of the stored ranks of some factoids are other ones in fp32, or which checkpoint says so.

        ``precision``: ``dtype``, ``k``; ``factoids``, ``ranks``: how many were compared; ``changed``: share of ranks
        that differ; ``crossed``: share in the top k in one of the two alone. Where fp32 weights do not fit into memory
        the shares are null and ``why`` says so.
        """
        if {"precision", "precision_of"} & entry.keys():
            return
        if (other := _same_architecture(item.label, self.run)) is not None:
            entry["precision_of"] = other
        else:
            exact = yield Do("exactly", item, (entry["parameters"],))
            entry["precision"] = _precision(self.out, self.run, item.label, exact)
        write_run(self.run, self.out)


def _precision(out: Path, run: dict[str, Any], label: str, exact: pl.DataFrame | str) -> dict[str, Any]:
    """Stored ranks against exact ones, or why there are none."""
    k = run["k"]
    precision = {"dtype": run["dtype"], "k": k, "factoids": 0, "ranks": 0, "changed": None, "crossed": None}
    if isinstance(exact, str):
        return precision | {"why": exact}
    stored = probe_of(out, run).read("records", checkpoints=[label], position=POSITION)
    both = exact.lazy().join(stored, on=["factoid", "token", "depth"], suffix="_stored").collect()
    ranks = pl.col("rank"), pl.col("rank_stored")
    shares = both.select(
        changed=(ranks[0] != ranks[1]).mean(), crossed=((ranks[0] < k) != (ranks[1] < k)).mean()
    )
    return (
        precision | {"factoids": both["factoid"].n_unique(), "ranks": len(both)} | shares.row(0, named=True)
    )


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
    items: Sequence[str | Checkpoint | Deferred | LensModel], loading: LoadOptions, defer: bool
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
                f"a {type(item).__name__} is not a checkpoint; memprobe.wrap(model, tokenizer, label=...) makes one"
            )
        if isinstance(item, str):
            checkpoints, steps_found = find_all([item], loading, defer=defer)
            named += checkpoints
            steps |= steps_found
        else:
            named.append(item)
    check_labels(item.label for item in named)
    return named, steps


def _describe(factoids: Sequence[Factoid]) -> dict[str, Any]:
    sources = sorted({factoid.source for factoid in factoids})
    return {"source": ", ".join(sources), "n": len(factoids), "hash": factoids_hash(factoids)}
