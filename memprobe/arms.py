"""Arms: what is done against forgetting, parsed once from the text in a recipe, a manifest or a table.

======================================  =============================================================
``none``                                naive fine-tuning
``joint``                               one stage on the rows of all stages, for the most epochs of any
``remix(data=generic, stages=1)``       mixing rows beside the stage's own; ``data`` and ``stages`` always
                                        both named; ``ratio`` (2) rows per own row; ``words`` (50) each;
                                        ``prompt`` (words): with words in it, or one ``sentence``;
                                        ``order=shuffled``: its words in a random order
``matched(to=steps, data=…, stages=…)``  naive, as long as that mixing would have taken (``steps``, ``tokens``)
``replay(ratio=0.1)``                   rows of earlier stages beside the stage's own; ``redraw=true``
``ewc(strength=…)``, ``kl(strength=…)``  a penalty in every later stage
``lora(rank=16)``                       low-rank adapters, merged when a stage ends
======================================  =============================================================

Arms are combined with ``+``. ``stages`` is optional outside of remix and matched: all for lora, all but the
first for what needs a stage before it.

>>> arm = Arm.parse("remix(data=generic, stages=1)+replay(ratio=0.1)")
>>> arm.kinds, arm.sees_again, arm.parts[1].stages_of(3)
(('remix', 'replay'), True, (2, 3))
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from memprobe.errors import MemprobeError, among

NAIVE = "none"
"""Training on, with nothing done against forgetting."""
# A file's folder may have brackets in its name.
_PART = re.compile(r"\s*([a-z][a-z0-9_-]*)\s*(?:\((.*)\))?\s*")
_PLUS = re.compile(r"\+(?![^(]*\))")  # in brackets a + belongs to a number, as in 1e+07
_ARGUMENT = re.compile(r"\s*([a-z_]+)\s*=\s*(.*?)\s*(?:,(?=\s*[a-z_]+\s*=)|$)")
_MIXING = frozenset({"data", "stages", "ratio", "words", "prompt", "order", "redraw"})


@dataclass(frozen=True)
class Kind:
    """One way of doing something against forgetting.

    Attributes:
        options: what may be said of it; ``None`` where training says so (of penalties each has its own).
        needed: of these, what must be said.
        example: as an error shows it.
        label: in names.
        place: in the order of tables and figures.
        first: the stage from which it is done where ``stages`` is not said.
    """

    options: frozenset[str] | None
    place: int
    needed: tuple[str, ...] = ()
    example: str = ""
    label: str = ""
    first: int = 2


KINDS = {
    NAIVE: Kind(frozenset(), 0, label="naive"),
    "matched": Kind(
        _MIXING | {"to"}, 1, ("to", "data", "stages"), "matched(to=steps, data=random-words, stages=1)"
    ),
    "lora": Kind(frozenset({"rank", "alpha", "stages"}), 3, label="LoRA", first=1),
    "remix": Kind(_MIXING, 4, ("data", "stages"), "remix(data=random-words, stages=1)", "REMIX"),
    "replay": Kind(frozenset({"ratio", "stages", "redraw"}), 5, ("ratio",), "replay(ratio=0.1)"),
    "joint": Kind(frozenset(), 6),
}
"""By name; what else has a strength is a penalty, whose names are those of :mod:`training.penalties`."""
_PENALTY = Kind(None, 2, ("strength",))
_OTHER = Kind(None, 7)
_SIZES = ("ratio", "words")
"""Of mixing: how many rows, and how long."""
_ABBREVIATION = 4
"""Letters of a penalty's name that is spelled in capitals: EWC, KL."""


@dataclass(frozen=True)
class Part:
    """One of the things that an arm does: a name, and its options as they are written."""

    name: str
    options: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        """What it is; of a name that memprobe does not know, a penalty where it has a strength."""
        return KINDS.get(self.name) or (_PENALTY if self.is_penalty else _OTHER)

    @property
    def is_penalty(self) -> bool:
        """Whether it adds a term to the loss."""
        return self.name not in KINDS and "strength" in self.options

    @property
    def label(self) -> str:
        """In names: REMIX, EWC, replay."""
        short = self.is_penalty and len(self.name) <= _ABBREVIATION
        return self.kind.label or (self.name.upper() if short else self.name)

    @property
    def sources(self) -> tuple[str, ...]:
        """Of mixing: where its rows come from."""
        return tuple(source.strip() for source in self.options.get("data", "").split(",") if source.strip())

    @property
    def words(self) -> tuple[str, str]:
        """Of mixing: how many words a row's prompt has, and its answer; 50 each where that is not said."""
        given = [number.strip() for number in self.options.get("words", "50").split(",")]
        return given[0], given[-1]

    def stages_of(self, n: int) -> tuple[int, ...]:
        """The stages of ``n``, from 1, in which it is done.

        Raises:
            MemprobeError: ``stages`` names one that is not there, or one twice.
        """
        given = self.options.get("stages")
        if given is None:
            return tuple(range(self.kind.first, n + 1)) if self.name not in (NAIVE, "joint") else ()
        numbers = [part.strip() for part in given.split(",")]
        if not all(part.isdecimal() and 1 <= int(part) <= n for part in numbers):
            raise MemprobeError(
                f"arm: {self.name}: stages={given}: give numbers from 1 to {n}, as in stages=1,2"
            )
        if len(set(numbers)) < len(numbers):
            raise MemprobeError(f"arm: {self.name}: stages={given}: names a stage twice")
        return tuple(sorted(map(int, numbers)))

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({inside})" if inside else self.name


@dataclass(frozen=True)
class Arm:
    """What is done against forgetting.

    Attributes:
        text: as it is written.
        parts: what is done; nothing where the text is no arm of memprobe's (a checkpoint made elsewhere).
    """

    text: str
    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> Arm:
        """An arm as a recipe writes it.

        Raises:
            MemprobeError: it cannot be read, or lacks something.
        """
        parts = tuple(_parsed(piece) for piece in _PLUS.split(text))
        if len(parts) > 1 and any(part.name == NAIVE for part in parts):
            raise MemprobeError("arm: none cannot be combined with another arm")
        return cls(text, parts)

    @classmethod
    def of(cls, text: str) -> Arm:
        """An arm as a manifest has it: what memprobe cannot read is an arm of that name, and of no kind."""
        try:
            return cls.parse(text)
        except MemprobeError:
            return cls(text, ())

    @classmethod
    def made_of(cls, parts: Sequence[Part]) -> Arm:
        """The arm that does these, in its canonical spelling; ``none`` where that is nothing."""
        parts = tuple(parts) or (Part(NAIVE, {}),)
        return cls("+".join(map(str, parts)), parts)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Names of what it does, each once: ``("remix", "replay")``."""
        return tuple(dict.fromkeys(part.name for part in self.parts))

    @property
    def is_naive(self) -> bool:
        """Whether nothing is done."""
        return self.kinds == (NAIVE,)

    @property
    def is_joint(self) -> bool:
        """Whether there is one stage, on the rows of all."""
        return "joint" in self.kinds

    @property
    def is_control(self) -> bool:
        """Whether it is naive training as long as some mixing would have taken, and nothing else."""
        return self.kinds == ("matched",)

    def is_control_of(self, arm: Arm) -> bool:
        """Whether it trains longer in the stages in which ``arm`` mixes, and in no other."""
        return self.is_control and arm.mixes and self._longer() == arm._longer()

    def _longer(self) -> set[str]:
        """The stages in which rows are mixed in, or would be."""
        mixing = (part.options["stages"] for part in self.parts if part.name in ("remix", "matched"))
        return {stage.strip() for stages in mixing for stage in stages.split(",")}

    @property
    def mixes(self) -> bool:
        """Whether it mixes rows in, be it beside other things."""
        return "remix" in self.kinds

    @property
    def sees_again(self) -> bool:
        """Whether it trains on rows of an earlier stage in a later one."""
        return self.is_joint or "replay" in self.kinds

    @property
    def alone(self) -> Part | None:
        """What it does, where that is one thing in every stage that it is done in."""
        return self.parts[0] if len(self.parts) == 1 else None

    def mixes_in_stage_1_alone(self) -> bool:
        """Whether all that it does is mixing, in stage 1 and no other."""
        return self.kinds == ("remix",) and all(part.options["stages"].strip() == "1" for part in self.parts)

    def is_plain_in(self, stage: int, n: int) -> bool:
        """Whether stage ``stage`` of ``n`` is training on its own rows and nothing more."""
        return bool(self.parts) and not self.is_joint and all(stage not in p.stages_of(n) for p in self.parts)

    def in_chain(self, n: int) -> Arm:
        """Itself among chains of other lengths than ``n``: a part that is done wherever it can be names no stages.

        ``replay(ratio=0.1, stages=2)`` of two stages and ``replay(ratio=0.1, stages=2,3)`` of three are one arm.
        """
        parts = []
        for part in self.parts:
            rest = {key: value for key, value in part.options.items() if key != "stages"}
            everywhere = Part(part.name, rest)
            optional = "stages" not in part.kind.needed
            parts.append(everywhere if optional and part.stages_of(n) == everywhere.stages_of(n) else part)
        return Arm.made_of(parts) if parts else self

    def without(self, option: str) -> Arm:
        """Itself with one option unsaid in all that it does: one arm, in one spelling, for all that differ in it alone.

        ``remix(data=generic, stages=1, ratio=4)`` without ``ratio`` is ``remix(data=generic, stages=1)``.
        """
        parts = []
        for part in self.parts:
            said = {
                key: ",".join(piece.strip() for piece in value.split(","))
                for key, value in sorted(part.options.items())
                if key != option
            }
            parts.append(Part(part.name, said))
        return Arm.made_of(parts) if parts else self

    @property
    def order(self) -> tuple[int, str]:
        """Sorts arms as tables and figures do: naive and its controls, penalties, mixing, what sees D_A again."""
        places = [part.kind.place for part in self.parts]
        return (max(places, default=_OTHER.place), self.text)

    def name(self, *, options: bool = False) -> str:
        """``REMIX generic``; with all options that tell arms of that name apart: ``REMIX generic ratio 1``."""
        return " + ".join(_named(part, options=options) for part in self.parts) or self.text

    def __str__(self) -> str:
        return self.text


def _parsed(piece: str) -> Part:
    match = _PART.fullmatch(piece)
    if match is None:
        raise MemprobeError(
            f"arm: {piece.strip()!r}: write name(key=value, key=value), as in replay(ratio=0.1)"
        )
    name, inside = match[1], match[2] or ""
    given = _ARGUMENT.findall(inside)
    part = Part(name, dict(given))
    if len(part.options) < len(given):
        keys = [key for key, _ in given]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MemprobeError(
            f"arm: {name}: {twice} is given twice; give it once, several values as in data=generic,random-words"
        )
    if rest := _ARGUMENT.sub("", inside).strip():
        raise MemprobeError(f"arm: {name}: cannot read {rest!r}; write key=value, key=value")
    kind = part.kind
    if unknown := [key for key in part.options if kind.options is not None and key not in kind.options]:
        instead = among(unknown[0], sorted(kind.options or ()), before="it has")
        raise MemprobeError(f"arm: {name}: no option {unknown[0]!r}; {instead}")
    for key in dict.fromkeys([*kind.needed, *part.options]):
        # An empty value is what a variable leaves that is not set.
        if not all(piece.strip() for piece in part.options.get(key, "").split(",")):
            raise MemprobeError(f"arm: {name}: give its {key}, as in {kind.example or f'{name}({key}=…)'}")
    return part


def _named(part: Part, *, options: bool) -> str:
    if part.name == NAIVE:
        return part.label
    given = part.options
    words = [part.label]
    keys = ("to", "data", *(("ratio",) if part.name == "replay" else ()), "strength", "rank")
    words += [
        given[key] for key in keys if key in given and (key != "data" or part.name != "matched" or options)
    ]
    if part.name in ("remix", "matched") and given.get("stages", "1") != "1":
        words.append(f"(stage {given['stages']})")
    if part.name == "remix" and "order" in given:  # shuffled, its rows are no text any more
        words.append(f"order {given['order']}")
    if options:
        words += [f"{key} {given[key]}" for key in _SIZES if key in given and part.name != "replay"]
    return " ".join(words)


def arm_names(texts: Collection[str]) -> dict[str, str]:
    """Short names of arms: ``remix(data=generic, stages=1)`` is "REMIX generic".

    Arms that would then have one name say all options in which they differ, as in "REMIX generic prompt sentence", and
    where ratio or words are among them, both of these; and, if need be, their whole text.
    """
    arms = {text: Arm.of(text) for text in texts}
    names = {text: arm.name() for text, arm in arms.items()}
    for longer in (_with_what_differs, _with_all):
        counts = Counter(names.values())
        for name in [name for name, n in counts.items() if n > 1]:
            names |= longer({text: arms[text] for text in arms if names[text] == name})
    return names


def _with_what_differs(alike: Mapping[str, Arm]) -> dict[str, str]:
    given = {
        text: {
            (place, key): value for place, part in enumerate(arm.parts) for key, value in part.options.items()
        }
        for text, arm in alike.items()
    }
    keys = dict.fromkeys(key for options in given.values() for key in options)
    differ = [key for key in keys if len({options.get(key) for options in given.values()}) > 1]
    sized = any(key in (*_SIZES, "data") for _, key in differ)
    others = [one for one in differ if one[1] not in (*_SIZES, "data")]
    return {
        text: " ".join(
            [
                arm.name(options=sized),
                *(f"{one[1]} {given[text][one]}" for one in others if one in given[text]),
            ]
        )
        for text, arm in alike.items()
    }


def _with_all(alike: Mapping[str, Arm]) -> dict[str, str]:
    return {text: text for text in alike}


def by_kind(texts: Collection[str]) -> list[str]:
    """Arms in the order of figures: naive and its controls, penalties, mixing, then what sees D_A again."""
    return sorted(texts, key=lambda text: Arm.of(text).order)
