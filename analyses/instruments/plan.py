"""A plan: what is planted where, as a TOML file, and the cells that it unfolds into.

A cell is one planted model and all verdicts on it. Kinds:

    several   disjoint sets, each trained into a block of its own, together in one model
    pair      the same, each set into two adjacent blocks
    single    one set, into one block, in a model of its own
    full      the same sets by ordinary fine-tuning of all weights: no truth, what do instruments say?
    null      planted as ``several``, and asked about facts of the same source that were not planted

Cells are worked on in the order of the file, so that the ones that matter most come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from memprobe.errors import MemprobeError
from memprobe.files import read_toml
from memprobe.grafts import Graft
from memprobe.sources.rows import ROW_FILES
from training.settings import Settings, TemplateText, validated

Kind = Literal["several", "pair", "single", "full", "null"]
Places = Literal["all", "attn", "mlp"]


class Planting(Settings):
    """How sets are trained.

    Attributes:
        rate: AdamW's learning rate for a set's block; ``full_rate`` for all weights.
        steps: at most so many.
        settle: once all facts are said for the first time, the rate is this part of what it was.
        kept: training ends when all facts are said, and this share at least of the others with any one block reset.
        absent: the chance that a step on one set draws what it sees of the others: each one's block is then the base's
            or stays, evenly. So a set learns to be said by its own block, whatever the others hold.
        every: steps between two looks at what the model says.
        clip: a set's gradients are shortened to this length.
    """

    rate: float = Field(1e-3, gt=0)
    full_rate: float = Field(2e-4, gt=0)
    steps: int = Field(300, ge=1)
    settle: float = Field(0.3, gt=0, le=1)
    kept: float = Field(0.9, ge=0, le=1)
    absent: float = Field(0.5, ge=0, le=1)
    every: int = Field(5, ge=1)
    clip: float = Field(1.0, gt=0)


class Fits(Settings):
    """Lenses that are fitted to the base where ``--lens`` gives none; no tokens: that kind is left out.

    Attributes:
        texts: a source or file of passages.
        linear, tuned, jacobian: tokens to fit on.
        tuned_steps: of each half.
    """

    texts: str = "generic"
    length: int = Field(64, ge=2)
    jacobian_length: int = Field(48, ge=18)
    linear: int = Field(24_000, ge=0)
    tuned: int = Field(12_000, ge=0)
    tuned_steps: int = Field(24, ge=1)
    jacobian: int = Field(192, ge=0)
    held_out: int = Field(8, ge=2)


class Row(Settings):
    """Cells of one kind: every combination of what is listed, for every seed.

    Attributes:
        facts: how many a set has (default: the plan's).
        parts: what of a block is trained.
        blocks: instead of the plan's.
        seeds: instead of the plan's.
    """

    kind: Kind
    sources: tuple[str, ...] = ("kvr",)
    parts: tuple[Places, ...] = ("all",)
    facts: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None


class PlanFile(Settings):
    """A whole plan.

    Attributes:
        base: checkpoint spec.
        blocks: one set each, counted from 1.
        facts: of a set.
        instruments: names, or words that names begin with (default: all).
    """

    base: str
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    blocks: tuple[int, ...] = Field(min_length=1)
    facts: int = Field(16, ge=2)
    template: TemplateText = "plain"
    instruments: tuple[str, ...] = ()
    planting: Planting = Planting()
    fits: Fits = Fits()
    cells: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _blocks(self) -> PlanFile:
        for blocks in (self.blocks, *(row.blocks for row in self.cells if row.blocks)):
            if len(set(blocks)) < len(blocks) or min(blocks) < 1:
                raise ValueError("blocks: each once, counted from 1")
        for row in self.cells:
            blocks = sorted(row.blocks or self.blocks)
            if row.kind == "pair" and any(b - a < 2 for a, b in pairwise(blocks)):
                raise ValueError("cells of kind pair: sets share a block; leave a block between them")
        return self


class PlanStored(BaseModel):
    """``plan.json`` as it was begun with: compared key by key, so that any object will do."""

    model_config = ConfigDict(extra="allow", strict=True)


class CellFile(BaseModel):
    """``cells/NAME.json``: a planted model, and whether every instrument has said its verdict."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    finished: bool


class CellsFile(RootModel[list[CellFile]]):
    """``cells.json``: the cells of stored results."""


@dataclass(frozen=True)
class Cell:
    """One planted model.

    Attributes:
        places: for each set, where it is trained; empty for ``full``.
        facts: of a set.
        sets: how many.
    """

    kind: Kind
    source: str
    part: Places
    facts: int
    seed: int
    places: tuple[Graft, ...]
    sets: int

    @property
    def name(self) -> str:
        """For files: ``several-kvr-mlp-16-s0``; one set in a block or pair: ``single-kvr-all-16-b5-s0``."""
        alone = self.kind in ("single", "pair") and len(self.places) == 1 and self.places[0].blocks
        block = f"-b{alone[0]}" if alone else ""
        return f"{self.kind}-{self.source_name}-{self.part}-{self.facts}{block}-s{self.seed}"

    @property
    def source_name(self) -> str:
        """The source in tables: of a file, its name without folder and suffix."""
        bare = Path(self.source.removeprefix("jsonl:"))
        return (
            bare.stem if bare.suffix.lower() in ROW_FILES else self.source.replace(":", "+").replace("/", "+")
        )

    @property
    def truth(self) -> list[tuple[int, int]] | None:
        """For each set its first and last block; ``None`` where nobody knows."""
        if self.kind in ("full", "null"):
            return None
        return [place.blocks for place in self.places if place.blocks is not None]


def read_plan(path: Path) -> PlanFile:
    """A validated plan.

    Raises:
        MemprobeError: with the file, the key and what is wrong with it.
    """
    return parse_plan(read_toml(path), str(path))


def parse_plan(data: dict[str, Any], where: str = "plan") -> PlanFile:
    """A validated plan from plain data.

    Raises:
        MemprobeError: see :func:`read_plan`, or two cells are the same.
    """
    plan = validated(PlanFile, data, where)
    names = [cell.name for cell in cells_of(plan)]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise MemprobeError(f"{where}: cells: {repeated} stands twice")
    return plan


def cells_of(plan: PlanFile) -> list[Cell]:
    """The cells, in the order in which they are worked on."""
    found = []
    for row in plan.cells:
        blocks = row.blocks or plan.blocks
        for seed, source, part, facts in product(
            row.seeds or plan.seeds, row.sources, row.parts, row.facts or (plan.facts,)
        ):
            parts = (part,)
            if row.kind == "single":
                groups = [(Graft((block, block), parts),) for block in blocks]
            elif row.kind == "pair":
                groups = [tuple(Graft((block, block + 1), parts) for block in blocks)]
            elif row.kind == "full":
                groups = [()]
            else:
                groups = [tuple(Graft((block, block), parts) for block in blocks)]
            found += [
                Cell(row.kind, source, part, facts, seed, places, len(places) or len(blocks))
                for places in groups
            ]
    return found


@dataclass(frozen=True)
class Options:
    """How a plan is worked on: what does not change its results.

    Attributes:
        lenses: by kind, a fitted lens.
        until: the time (of ``time.time``) at which work stops.
    """

    out: Path
    scratch: Path
    data_dir: Path | None = None
    device: str = "auto"
    lenses: tuple[tuple[str, Path], ...] = ()
    until: float | None = None
    quiet: bool = False
