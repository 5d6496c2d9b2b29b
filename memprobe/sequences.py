"""Specs that stand for many checkpoints: steps of a model on the hub, and folders that a pattern matches.

    owner/name@step{1000..143000..1000}      143 revisions; {a..b} counts by 1, {a,b,c} lists
    runs/*/checkpoint-*                      folders and run directories, in the order of the numbers in their names
    LABEL=…                                  goes before what differs: LABEL/step1000

A hub checkpoint of a sequence is :class:`Deferred`: its files are fetched when its turn comes, not before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memprobe.checkpoints import Checkpoint, check_labels, resolve, split_label
from memprobe.errors import MemprobeError
from memprobe.files import exists
from memprobe.grafts import is_graft
from memprobe.load_options import LoadOptions
from memprobe.stages import STEP

MOST = 10_000
"""Checkpoints that one spec may stand for."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_STEP = re.compile(STEP)
_MARKS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Deferred:
    """A checkpoint that is found when its turn comes.

    Attributes:
        spec: without a label.
        label: its name in tables.
        find: gives the checkpoint; fetches it where it is on the hub.
    """

    spec: str
    label: str
    find: Callable[[], Checkpoint]


@dataclass(frozen=True, slots=True)
class One:
    """One checkpoint of what a user asked for: ``text`` is its spec, ``label`` its name where it has one."""

    text: str
    label: str | None
    one_of_many: bool

    @property
    def step(self) -> int | None:
        """The training step that the spec names, of a checkpoint in a sequence."""
        steps = _STEP.findall(self.text) if self.one_of_many else []
        return int(steps[-1]) if steps else None


def expand(text: str) -> list[One]:
    """What a spec stands for; one that names a single checkpoint is given back as it is.

    Raises:
        MemprobeError: braces that say nothing, a pattern without a match, or more than :data:`MOST`.
    """
    if is_graft(text) or exists(text) or exists(split_label(text)[1]):  # a label may hold marks and braces
        return [One(text, None, False)]
    label, spec = _label_of(text)
    specs = [spec]
    while any(_BRACES.search(one) for one in specs):
        specs = [again for one in specs for again in _unbrace(one)]
        if len(specs) > MOST:
            raise MemprobeError(f"--ckpt {text}: stands for more than {MOST:,} checkpoints")
    expanded: list[str] = []
    for one in specs:
        expanded += _matches(one) if _is_pattern(one) else [one]
    if len(expanded) == 1 and specs == [spec] and not _is_pattern(spec):
        return [One(text, None, False)]
    if len(expanded) > MOST:
        raise MemprobeError(f"--ckpt {text}: stands for more than {MOST:,} checkpoints")
    differing = _what_differs(expanded)
    names = [f"{label}/{name}" if label else name for name in differing]
    return [One(one, name, True) for one, name in zip(expanded, names, strict=True)]


def find_all(
    texts: Sequence[str], loading: LoadOptions = LoadOptions(), *, defer: bool = False
) -> tuple[list[Checkpoint | Deferred], dict[str, int]]:
    """The checkpoints of specs, and the training steps of those that stand in a sequence, by label.

    Args:
        defer: put off hub checkpoints that stand alone, too, so that each is on the disk for its own probe only.

    Raises:
        MemprobeError: see :func:`expand` and :func:`memprobe.checkpoints.resolve`; or two share a label.
    """
    checkpoints: list[Checkpoint | Deferred] = []
    steps: dict[str, int] = {}
    for text in texts:
        for one in expand(text):
            spec = one.text if one.label is None else f"{one.label}={one.text}"

            def find(spec: str = spec) -> Checkpoint:
                return resolve(spec, loading)

            label, bare = split_label(spec)
            on_hub = _may_be_on_hub(bare)
            item = Deferred(bare, label or bare, find) if on_hub and (one.one_of_many or defer) else find()
            if one.label is not None and isinstance(item, Checkpoint) and item.label != one.label:
                raise MemprobeError(f"--ckpt {text}: {one.text} cannot be named {one.label!r}")
            checkpoints.append(item)
            if one.step is not None:
                steps[item.label] = one.step
    check_labels(item.label for item in checkpoints)
    return checkpoints, steps


def _label_of(text: str) -> tuple[str | None, str]:
    """A label before the first ``=`` outside braces that is followed by something with a slash, a brace or a mark."""
    head, equals, rest = text.partition("=")
    if equals and head.strip() and rest.strip() and not _BRACES.search(head) and not _MARKS.search(head):
        if "/" in head or exists(head):  # a path with = in a name
            return None, text
        return head.strip(), rest.strip()
    return None, text


def _unbrace(text: str) -> list[str]:
    """The first braces of a text, written out."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    inside = match[1]
    if numbers := _RANGE.fullmatch(inside):
        first, last = int(numbers[1]), int(numbers[2])
        by = int(numbers[3]) if numbers[3] else 1
        if by < 1 or last < first:
            raise MemprobeError(f"--ckpt {text}: {{{inside}}} counts to nothing; write {{FIRST..LAST..BY}}")
        if (last - first) // by >= MOST:
            raise MemprobeError(f"--ckpt {text}: stands for more than {MOST:,} checkpoints")
        width = len(numbers[1]) if numbers[1].startswith("0") and len(numbers[1]) > 1 else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1, by)]
    elif "," in inside and all(part.strip() for part in inside.split(",")):
        choices = [part.strip() for part in inside.split(",")]
    else:
        raise MemprobeError(f"--ckpt {text}: {{{inside}}} is neither {{FIRST..LAST..BY}} nor {{a,b,c}}")
    return [f"{text[: match.start()]}{choice}{text[match.end() :]}" for choice in choices]


def _is_pattern(text: str) -> bool:
    return bool(_MARKS.search(text)) and not exists(text)


def _matches(pattern: str) -> list[str]:
    """Folders and GGUF files that a pattern matches, by the numbers in their names."""
    parts = Path(pattern).expanduser().parts
    fixed = next(index for index, part in enumerate(parts) if _MARKS.search(part))
    paths = list(Path(*parts[:fixed]).glob("/".join(parts[fixed:])))
    matches = sorted((str(path) for path in paths if _is_checkpoint(path)), key=_in_order)
    if not matches:
        beside = f"; it matches {len(paths)} without a checkpoint in it" if paths else ""
        raise MemprobeError(f"--ckpt {pattern}: no checkpoint matches{beside}")
    return matches


def _is_checkpoint(path: Path) -> bool:
    named = ("config.json", "adapter_config.json", "recipe.toml")
    return path.suffix == ".gguf" or any((path / name).is_file() for name in named)


def _in_order(text: str) -> list[tuple[int, str]]:
    """Digits count as numbers: checkpoint-200 stands before checkpoint-1000."""
    parts = re.findall(r"\d+|\D+", text)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _what_differs(specs: Sequence[str]) -> list[str]:
    """Names for specs: hub ids as they are, else the parts of the paths from the first that differs on."""
    if any(_may_be_on_hub(spec) for spec in specs):
        return list(specs)
    paths = [Path(spec).parts for spec in specs]
    shared = 0
    shortest = min(len(parts) for parts in paths)
    while shared < shortest - 1 and len({parts[shared] for parts in paths}) == 1:
        shared += 1
    names = [list(parts[shared:]) for parts in paths]
    while min(map(len, names)) > 1 and len({name[-1] for name in names}) == 1:
        names = [name[:-1] for name in names]  # the same last folder says nothing
    return ["/".join(name) for name in names]


def _may_be_on_hub(spec: str) -> bool:
    """Whether a spec is a hub id: nothing of that name, and no folder it could be in, is here."""
    return (
        bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec))
        and not exists(spec)
        and not exists(spec.split("/")[0])
    )
