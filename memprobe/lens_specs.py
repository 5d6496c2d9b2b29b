"""A lens as a user asks for it, and the lens that it makes for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError, among
from memprobe.identity import identity_of
from memprobe.lens_files import LensFile, read_lens
from memprobe.lens_kinds import FITTED_KINDS
from memprobe.lenses import Lens
from memprobe.sameness import other_checkpoint, without

if TYPE_CHECKING:
    from memprobe.models import LensModel

LENS_KINDS = ("logit", *FITTED_KINDS)


@dataclass(frozen=True, slots=True)
class LensSpec:
    """A lens as asked for; :meth:`build` makes it for a model.

    Attributes:
        kind: which of the family.
        path: where a fitted one is.
        readout: spec of the checkpoint whose norm and unembedding it reads with; ``None`` for the model's own.
        label: its name in tables; ``None`` for the kind's, as in ``tuned@base``.
    """

    kind: str = "logit"
    path: Path | None = None
    readout: str | None = None
    label: str | None = None

    @property
    def name(self) -> str:
        """What tables call it.

        Raises:
            MemprobeError: there is no such checkpoint to read with.
        """
        if self.label is not None:
            return self.label
        return self.kind if self.readout is None else f"{self.kind}@{resolve(self.readout).label}"

    def build(self, lens_model: LensModel, load: Callable[[str], LensModel] | None = None) -> Lens:
        """The lens for a model.

        Args:
            load: gives the checkpoint of a spec, for lenses with another readout.

        Raises:
            MemprobeError: the file cannot be read, or lens or readout are of another width, depth or vocabulary.
        """
        other = None
        if self.readout is not None:
            if load is None:
                raise MemprobeError(f"{self.kind}@{self.readout}: no way to load that checkpoint was given")
            other = load(self.readout)
        file = None if self.path is None or self.kind == "logit" else read_lens(self.path, self.kind)
        return make_lens(lens_model, file, other, self.label)


def make_lens(
    lens_model: LensModel,
    file: LensFile | None = None,
    other: LensModel | None = None,
    name: str | None = None,
) -> Lens:
    """The lens that reads a model with some maps and a readout, after checking that they fit.

    Args:
        file: the maps; ``None`` for the Logit Lens.
        other: the checkpoint whose readout is used; ``None`` for the model's own.
        name: what tables call it; by default its kind, and ``@`` with the label of ``other``.

    Raises:
        MemprobeError: maps or readout are of another width, depth or vocabulary, also one of the same size.
    """
    kind: str = "logit" if file is None else file.kind
    name = name or (kind if other is None else f"{kind}@{other.label}")
    if other is not None and (mine := _size(lens_model)) != (theirs := _size(other)):
        raise MemprobeError(
            f"lens {name}: {other.label} reads {theirs[0]} x {theirs[1]}, "
            f"but {lens_model.label} is {mine[0]} x {mine[1]} (d_model x vocabulary)"
        )
    if other is not None:
        _check_tokens(name, lens_model, other)
    readout = (lens_model if other is None else other).lens.readout
    label = None if other is None else other.label
    if file is None:
        return Lens(name, readout, other=label)
    _check_size(name, file, lens_model)
    device = lens_model.device
    return Lens(
        name,
        readout,
        kind,
        {depth: map_.to(device) for depth, map_ in file.maps.items()},
        file.about,
        label,
        file.digest,
        tuple(_notes(name, file, lens_model)),
    )


def parse_lens(text: str) -> LensSpec:
    """A lens from ``[LABEL=]logit[@SPEC]`` or ``[LABEL=]KIND=PATH[@SPEC]``, KIND being one of
    :data:`~memprobe.lens_kinds.FITTED_KINDS`.

    Raises:
        MemprobeError: an unknown kind, or a path or checkpoint that is missing.
    """
    asked, label = text.strip(), None
    head, equals, rest = asked.partition("=")
    if equals and head.partition("@")[0] not in LENS_KINDS and _begins_with_kind(rest):
        label, asked = head.strip(), rest.strip()
    kind = asked.partition("@")[0].partition("=")[0]
    if kind not in LENS_KINDS or label == "":
        raise MemprobeError(
            f"--lens {text}: write logit, logit@SPEC, or KIND=PATH, each perhaps with @SPEC; "
            f"{among(kind, LENS_KINDS, before='kinds are')}"
        )
    tail = asked[len(kind) :]
    if kind == "logit":
        if tail and (tail[0] != "@" or not tail[1:].strip()):
            raise MemprobeError(f"--lens {text}: the Logit Lens is written logit or logit@SPEC")
        return LensSpec(kind, None, tail[1:].strip() or None, label)
    if not tail.startswith("="):
        raise MemprobeError(
            f"--lens {text}: a {kind} lens is fitted; write {kind}=PATH (memprobe fit makes one)"
        )
    path, readout = _split_path(tail[1:])
    if not path or readout == "":
        raise MemprobeError(f"--lens {text}: write {kind}=PATH or {kind}=PATH@SPEC")
    return LensSpec(kind, Path(path), readout, label)


def parse_lenses(texts: Iterable[str]) -> list[LensSpec]:
    """:func:`parse_lens` for each; no text at all stands for the Logit Lens.

    Raises:
        MemprobeError: see :func:`parse_lens`; or two lenses share a name.
    """
    specs = [parse_lens(text) for text in texts] or [LensSpec()]
    names = [spec.name for spec in specs]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise MemprobeError(f"two lenses are called {repeated!r}; name them, as in --lens LABEL=tuned=PATH")
    return specs


def _begins_with_kind(text: str) -> bool:
    return text.strip().partition("@")[0].partition("=")[0] in LENS_KINDS


def _split_path(text: str) -> tuple[str, str | None]:
    """PATH and SPEC; an ``@`` may belong to either, so the longest path that exists counts."""
    places = [index for index, character in enumerate(text) if character == "@"]
    for end in [len(text), *reversed(places)]:
        if Path(text[:end]).expanduser().exists() and text[:end]:
            return text[:end], text[end + 1 :].strip() if end < len(text) else None
    path, at, readout = text.partition("@")
    return path.strip(), readout.strip() if at else None


def _size(lens_model: LensModel) -> tuple[int, int]:
    return lens_model.d_model, lens_model.vocab_size


def _check_tokens(name: str, lens_model: LensModel, other: LensModel) -> None:
    """Raises a MemprobeError where most numbers stand for other tokens: the answers' ranks would be those of others.

    A few may: fine-tuning gives names to tokens that were kept free.
    """
    if not all(hasattr(one.tokenizer, "get_vocab") for one in (lens_model, other)):
        return
    mine, theirs = (
        {number: token for token, number in one.tokenizer.get_vocab().items()} for one in (lens_model, other)
    )
    both = mine.keys() & theirs.keys()
    apart = [number for number in sorted(both) if mine[number] != theirs[number]]
    if 2 * len(apart) > len(both):
        first = apart[0]
        raise MemprobeError(
            f"lens {name}: {other.label} reads other tokens than {lens_model.label}: their tokenizers differ in "
            f"{len(apart):,} of {len(both):,} (token {first} is {theirs[first]!r} and {mine[first]!r})"
        )


def _check_size(name: str, file: LensFile, lens_model: LensModel) -> None:
    """Raises a MemprobeError for a lens of another width or depth."""
    label, n_layers = lens_model.label, lens_model.n_layers
    if file.d_model != lens_model.d_model:
        raise MemprobeError(
            f"lens {name}: fitted on a model of width {file.d_model}; {label} is {lens_model.d_model} wide"
        )
    # Jacobian lenses made elsewhere have no map for the embeddings; every depth between must have one.
    between = set(range(1, n_layers))
    if (file.n_layers or n_layers) != n_layers or not between <= set(file.maps) <= between | {0}:
        fitted = file.n_layers or max(file.maps) + 1
        raise MemprobeError(f"lens {name}: fitted on a model of {fitted} blocks; {label} has {n_layers}")


def _notes(name: str, file: LensFile, lens_model: LensModel) -> list[str]:
    notes = []
    unembedding = file.about.get("unembedding hash")
    weights = file.about.get("model") or "weights that its file does not name"
    # Which tokenizer cut the corpus is no part of the model that the maps belong to.
    other = other_checkpoint(without(file.about, "tokenizer"), identity_of(lens_model))
    if other is None and unembedding not in (None, _hash_unembedding(lens_model)):
        other = "other weights"
    if file.about.get("fingerprint") is None and unembedding is None:
        notes.append(
            f"lens {name}: fitted on {weights}; nothing in its file can say whether those are the weights read"
        )
    elif other is not None:
        notes.append(f"lens {name}: fitted on {other} ({weights}) than those of {lens_model.label}")
    if missing := sorted(set(range(lens_model.n_layers)) - set(file.maps)):
        notes.append(f"lens {name}: no map for depth {missing[0]}, which is read as by the Logit Lens")
    return notes


def _hash_unembedding(lens_model: LensModel) -> str:
    """The hash by which tuned-lens knows an unembedding (its ``tensor_hash``): of numpy's abridged print."""
    import hashlib

    import numpy as np

    weight = lens_model.lens.readout.unembedding.weight
    assert isinstance(weight, Tensor)
    return hashlib.sha256(np.array_str(weight.detach().cpu().numpy(), precision=1).encode()).hexdigest()
