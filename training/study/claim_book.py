"""The book of claims (``claims.toml``): what a study asks, of which arms, by which statistic and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from memprobe.files import read_toml
from memprobe.statistics.vocabulary import DIFFERENCE_UNITS, STATISTICS
from memprobe.wording import form_of
from training.settings import Settings, validated
from training.study.results import READOUTS

BOOK = Path(__file__).with_name("claims.toml")
OWN, NET = READOUTS[0], "net"
"""Lenses of a claim: the checkpoints' own readout, and that net of shuffled answers."""
_CORRELATIONS = ("ranks", "gradients")


class Criterion(Settings):
    """What counts as holding an answer."""

    k: int
    token: str

    def __str__(self) -> str:
        return f"top {self.k}, {self.token}"


class Claim(Settings):
    """One claim; the fields are explained at the head of ``claims.toml``."""

    name: str
    family: str
    says: str
    about: Literal["mean", "difference", "kept", "ranks", "spread", "gradients", "second stage"]
    side: Literal["above", "below"]
    statistic: str | None = None
    against: Literal["naive", "matched"] | None = None
    reference: str | None = None
    arms: Literal["every", "all", "naive", "mixing", "not mixing"] = "every"
    stages: Literal["first", "last", "every"] = "last"
    threshold: float = 0.0
    equivalent: float | None = None
    lenses: tuple[str, ...] = (OWN,)

    @property
    def unit(self) -> str:
        """Of its estimate."""
        if self.about == "spread":
            return "log of the ratio of scales"
        if self.about in _CORRELATIONS:
            return "rank correlation"
        named = DIFFERENCE_UNITS[STATISTICS[self.measured].unit]
        return f"{named} above {self.threshold:.0%}" if self.threshold else named

    @property
    def form(self) -> str:
        """The format of its estimate."""
        measured = self.about not in ("spread", *_CORRELATIONS)
        return form_of(self.measured, signed=True) if measured else "+.2f"

    @property
    def measured(self) -> str:
        """The statistic of :mod:`memprobe.statistics.vocabulary`; of two set-ups what each keeps is compared."""
        return self.statistic or "exact"

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        if self.about in ("mean", "difference", "kept", "ranks") and self.statistic is None:
            raise ValueError(f"claim {self.name!r}: say which statistic")
        if (self.about == "difference") != (self.against is not None):
            raise ValueError(
                f"claim {self.name!r}: 'against' belongs to claims about differences, and only there"
            )
        if (self.about == "second stage") != (self.reference is not None):
            raise ValueError(
                f"claim {self.name!r}: 'reference' belongs to claims about second stages, and only there"
            )
        return self


class Book(Settings):
    """The claims of a study, the readings that each is shown in (the headline first), and the families."""

    schema_: Literal[1] = Field(alias="schema")
    readings: tuple[Criterion, ...]
    families: dict[str, str]
    claims: tuple[Claim, ...]

    @model_validator(mode="after")
    def _known(self) -> Book:
        if not self.readings:
            raise ValueError("no reading: give at least the headline")
        for claim in self.claims:
            if claim.family not in self.families:
                raise ValueError(
                    f"claim {claim.name!r}: family {claim.family!r} is not one of {[*self.families]}"
                )
        return self


def read_book(path: Path = BOOK) -> Book:
    """The claims of a file.

    Raises:
        MemprobeError: the file is missing, no TOML, or holds what no claim has.
    """
    return validated(Book, read_toml(path), str(path))
