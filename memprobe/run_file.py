"""What ``run.json`` and ``summary.json`` of a probe may say: schemas, validated where the files are read.

Keys are only ever added, so that unknown ones are kept; those that memprobe relies on are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from memprobe.errors import MemprobeError
from memprobe.files import check_valid, read_json
from memprobe.records import LENS
from memprobe.statistics.holding import TokenRule

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
MAX_DEPTH = 2**15 - 1  # depths are int16
MAX_TOKENS = 2**31 - 1  # token ids are int32


class Open(BaseModel):
    """Keeps keys that it does not know; takes no text for a number."""

    model_config = ConfigDict(extra="allow", strict=True)


class TableMark(Open):
    """Of a table as it was written; see :func:`memprobe.parquet.mark_of`."""

    rows: Count
    columns: Count
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ManifestEntry(Open):
    """What training said of a checkpoint."""

    arm: str | None = None
    seed: int | str | None = None
    stage: int | str | None = None
    stage_name: str | None = None
    steps: int | None = None
    template: str | None = None


class PrecisionEntry(Open):
    """How far ranks of a probe in less than fp32 can be trusted."""

    dtype: str
    k: int
    factoids: Count
    ranks: Count
    changed: Share | None
    crossed: Share | None
    why: str | None = None


class CheckpointEntry(Open):
    """One checkpoint of a probe."""

    fingerprint: str
    n_layers: Annotated[int, Field(ge=1, le=MAX_DEPTH)]
    complete: bool
    settings: str | None = None
    tokenizer: str | None = None
    tokenizer_from: str | None = None
    readout_fingerprint: str | None = None
    spec: str | None = None
    note: str | None = None
    reading: str | None = None
    vocab: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = MAX_TOKENS
    manifest: ManifestEntry | None = None
    step: int | None = None
    tokens: dict[str, str] = {}
    tables: dict[str, TableMark] = {}
    precision: PrecisionEntry | None = None
    precision_of: str | None = None


class LensEntry(Open):
    """One lens of a probe: ``kind`` names its family, ``readout`` whose norm and unembedding it reads with."""

    kind: str
    readout: str
    readout_fingerprint: str | None = None
    readout_settings: str | None = None
    sha256: str | None = None


class FactoidsEntry(Open):
    """What factoids were asked."""

    n: Count
    hash: str
    source: str | None = None
    content: str | None = None


class RunFile(Open):
    """``run.json``."""

    version: Literal[1, 2] = Field(alias="schema")
    lens: str = LENS
    readout: str = "own"
    lenses: dict[str, LensEntry] = {}
    positions: list[Literal["answer", "subject"]] = ["answer"]
    template: str
    tokenisation: str
    dtype: str
    seed: int
    memprobe: str
    versions: dict[str, str | None]
    k: Annotated[int, Field(ge=1)]
    token: TokenRule
    factoids: FactoidsEntry
    checkpoints: dict[str, CheckpointEntry]
    tokens: dict[str, str] = {}
    tables: dict[str, TableMark] = {}

    @model_validator(mode="after")
    def _lens_named(self) -> RunFile:
        written = {"lenses", "positions"} <= self.model_fields_set
        if self.version > 1 and not (written and self.lenses and self.positions):
            raise ValueError("names no lens or no position")
        return self


Curve = list[float | None]


class SummaryEntry(Open):
    """The numbers of one checkpoint; see :func:`memprobe.summary.summarise`."""

    n: Count
    errors: Count
    exact_match: Share | None
    exact_tokens: Share | None
    recall: dict[str, Curve]
    recall_low: dict[str, Curve]
    shuffled: dict[str, Curve]
    normalised_frequency: Curve
    lof: dict[str, float | None]
    shuffled_lof: dict[str, float | None]
    settled: dict[str, float | None]
    diversity: dict[str, float | None]

    @model_validator(mode="after")
    def _numbers_named(self) -> SummaryEntry:
        for name, numbers, keys in (
            ("lof", self.lof, ("median", "never")),
            ("shuffled_lof", self.shuffled_lof, ("restricted_mean", "never")),
        ):
            if missing := [key for key in keys if key not in numbers]:
                raise ValueError(f"{name} has no {missing[0]}")
        return self


class SummaryFile(Open):
    """``summary.json``."""

    version: Literal[1, 2] = Field(alias="schema")
    k: Annotated[int, Field(ge=1)]
    token: TokenRule
    checkpoints: dict[str, SummaryEntry]
    lenses: dict[str, dict[str, SummaryEntry]] = {}
    positions: dict[str, dict[str, SummaryEntry]] = {}

    @model_validator(mode="after")
    def _curves_of_k(self) -> SummaryFile:
        for label, entry in self.checkpoints.items():
            curves = {"recall": entry.recall, "recall_low": entry.recall_low, "shuffled": entry.shuffled}
            for name, by_k in curves.items():
                for k in ("1", str(self.k)):
                    if k not in by_k:
                        raise ValueError(f"checkpoints.{label}.{name} has no {k}")
                    if len(by_k[k]) != len(entry.recall[k]):
                        raise ValueError(f"checkpoints.{label}.{name}.{k} is of other depths than recall")
        return self


class PairEntry(Open):
    """One file of patches: what was put into what, and its mark once it is whole."""

    source: str
    target: str
    into: str
    what: str
    positions: str
    source_fingerprint: str
    target_fingerprint: str
    source_settings: str | None = None
    target_settings: str | None = None
    source_tokenizer: str | None = None
    target_tokenizer: str | None = None
    n_layers: Annotated[int, Field(ge=1)]
    complete: bool
    mark: TableMark | None = None
    errors: dict[str, str] = {}


class PatchesFile(Open):
    """``patches/run.json``."""

    pairs: dict[str, PairEntry]


def read_run_file(folder: Path) -> dict[str, Any]:
    """``run.json`` of a probe directory, as it stands there.

    Raises:
        MemprobeError: it is missing, broken, or says what it may not.
    """
    path = folder / "run.json"
    run = read_json(path)
    written = run.get("schema") if isinstance(run, dict) else None
    if isinstance(written, int) and written not in (1, 2):
        raise MemprobeError(
            f"{folder}: written under schema {written}, this memprobe reads 1 and 2; use a later one, or probe again"
        )
    check_valid(run, RunFile, path)
    return run


def read_summary(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """``summary.json`` of a probe directory; under schema 1 it may leave to ``run.json`` under which k and rule it is.

    Args:
        run: what ``run.json`` says.

    Raises:
        MemprobeError: see :func:`read_run_file`.
    """
    path = folder / "summary.json"
    summary = read_json(path)
    if isinstance(summary, dict) and summary.get("schema") == 1:
        summary = {"k": run["k"], "token": run["token"]} | summary
    check_valid(summary, SummaryFile, path)
    return summary
