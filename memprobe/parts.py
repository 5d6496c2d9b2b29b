"""The parts of a model's blocks, which weights belong to which, and grafts: some weights of one model in another.

No model is loaded or run here: what the blocks are and what follows them is told by :mod:`memprobe.models`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memprobe.errors import MemprobeError
from memprobe.grafts import OUTER_PARTS, Graft
from memprobe.quantised import is_quantised
from memprobe.settings import forward_of

Part = Literal["residual", "attn", "mlp"]
"""The residual stream, or what a block's attention or MLP gives."""
PARTS: tuple[Part, ...] = ("residual", "attn", "mlp")

Places = dict[str, tuple[int, frozenset[str]]]
"""By name of a parameter: its block (0 outside the blocks), and the parts that it is in."""

# What the families call the parts of a block. OPT has no module around its two MLP layers.
_BARE_MLP = ("fc1", "fc2")
MODULE_NAMES: dict[str, tuple[str, ...]] = {
    "attn": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe"),
}


def part_of(block: nn.Module, part: Part, label: str) -> nn.Module:
    """The module of a block that is its attention or its MLP.

    Raises:
        MemprobeError: the block has none that is called so, or it gives the stream together with its own output.
    """
    for name in MODULE_NAMES[part]:
        if isinstance(module := getattr(block, name, None), nn.Module):
            if "residual" in inspect.signature(module.forward).parameters:  # BLOOM
                raise MemprobeError(
                    f"{label}: the {part} of a {type(block).__name__} adds the residual stream itself, so that its "
                    "output cannot be edited alone"
                )
            return module
    raise MemprobeError(
        f"{label}: a {type(block).__name__} has no module known as its {part} "
        f"({', '.join(name for name, _ in block.named_children())})"
    )


def parameter_places(
    model: PreTrainedModel, blocks: Sequence[nn.Module], final: Sequence[nn.Module]
) -> Places:
    """Where each parameter belongs. A matrix that is both embedding and unembedding is in both parts.

    Args:
        blocks: the transformer blocks, in order.
        final: what is applied after them, without the output head.
    """
    head = model.get_output_embeddings()
    last = [*final, *([head] if head is not None else [])]
    in_head = {id(parameter) for module in last for parameter in module.parameters()}
    embedded = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    inside: dict[int, tuple[int, frozenset[str]]] = {}
    for number, block in enumerate(blocks, 1):
        known: dict[int, str] = {}
        for part, names in MODULE_NAMES.items():
            module = next(
                (m for name in names if isinstance(m := getattr(block, name, None), nn.Module)), None
            )
            known |= {id(parameter): part for parameter in module.parameters()} if module is not None else {}
        for name, parameter in block.named_parameters():
            part = known.get(id(parameter), "")
            if not part:
                owner = type(block.get_submodule(name.rpartition(".")[0])).__name__
                part = "norms" if "norm" in owner.lower() else "mlp" if name.startswith(_BARE_MLP) else ""
            inside[id(parameter)] = number, frozenset({"all", part} - {""})
    places: Places = {}
    for name, parameter in model.named_parameters():
        outer = {"head"} if id(parameter) in in_head else {"embeddings"}
        if id(parameter) in embedded:
            outer.add("embeddings")
        places[name] = inside.get(id(parameter), (0, frozenset(outer)))
    return places


def check_rows(output: Tensor, where: str) -> None:
    """Raises a MemprobeError for outputs that are not [row, position, d_model], of which no position can be told."""
    if output.dim() != 3:
        raise MemprobeError(
            f"{where}: the model lays all rows of a batch in one axis here, so that positions cannot be told apart; "
            "use another part"
        )


def graft_weights(
    model: PreTrainedModel,
    other: PreTrainedModel,
    graft: Graft,
    places: Places,
    label: str,
) -> None:
    """Gives a model the other's weights that a graft names. Where only one of a tied embedding and unembedding is
    grafted, they are two matrices afterwards.

    Raises:
        MemprobeError: the models differ in shape, or have no such block or part.
    """
    theirs = check_alike(model, other, label)
    chosen = chosen_names(places, graft, label)
    outer = set(graft.parts) & set(OUTER_PARTS)
    tied = {name for name, (_, parts) in places.items() if parts >= set(OUTER_PARTS)}
    if tied and len(outer) == 1:
        head = model.get_output_embeddings()
        assert head is not None
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)  # pyrefly: ignore
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False
        if outer == {"head"}:
            chosen -= tied
            [name] = tied
            with torch.no_grad():
                head.weight.copy_(theirs[name])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in chosen:
                parameter.copy_(theirs[name])


def chosen_names(places: Places, graft: Graft, label: str) -> set[str]:
    """The parameters that a graft names.

    Raises:
        MemprobeError: a block that the model does not have, or a part that none of its blocks has.
    """
    n_layers = max(block for block, _ in places.values())
    first, last = graft.blocks or (1, 0)
    if last > n_layers:
        raise MemprobeError(f"{label}: blocks={first}-{last}, but there are blocks 1 to {n_layers}")
    chosen: set[str] = set()
    for part in graft.parts:
        outer = part in OUTER_PARTS
        names = {
            name
            for name, (block, parts) in places.items()
            if part in parts and (block == 0 if outer else first <= block <= last)
        }
        if not names:
            raise MemprobeError(f"{label}: has no weights known as {part}")
        chosen |= names
    return chosen


def check_alike(model: PreTrainedModel, other: PreTrainedModel, label: str) -> dict[str, Tensor]:
    """The other model's parameters by name.

    Raises:
        MemprobeError: names or shapes differ, or weights are quantised.
    """
    if is_quantised(model) or is_quantised(other):
        raise MemprobeError(f"{label}: weights are quantised, of which none can be exchanged alone")
    theirs = {name: parameter.data for name, parameter in other.named_parameters()}
    ours = {name: parameter.shape for name, parameter in model.named_parameters()}
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())[0]
        raise MemprobeError(f"{label}: the two models are built differently (only one has {odd})")
    for name, shape in ours.items():
        if theirs[name].shape != shape:
            raise MemprobeError(
                f"{label}: the two models differ in shape ({name} is {list(shape)} and {list(theirs[name].shape)})"
            )
    check_beside(beside_weights(model), beside_weights(other), label)
    return theirs


@dataclass(frozen=True)
class Beside:
    """What a model computes with beside its weights: settings, and tensors that are saved and never trained."""

    settings: Mapping[str, Any]
    buffers: Mapping[str, Tensor]


def beside_weights(model: PreTrainedModel) -> Beside:
    """Of a model; its buffers without copies."""
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in weights}
    return Beside(forward_of(model.config.to_dict()), buffers)


def check_beside(ours: Beside, theirs: Beside, label: str) -> None:
    """Refuses models that would differ with the same weights: a graft brings along weights alone.

    Raises:
        MemprobeError: a setting or a buffer differs.
    """
    for key in sorted(ours.settings.keys() | theirs.settings.keys()):
        one, other = ours.settings.get(key), theirs.settings.get(key)
        if one != other:
            raise MemprobeError(
                f"{label}: the two models compute otherwise ({key} is {one} and {other}), which no weight brings along"
            )
    for name, tensor in ours.buffers.items():
        other = theirs.buffers.get(name)
        if other is None or not torch.equal(tensor, other.to(tensor.device)):
            raise MemprobeError(
                f"{label}: the two models differ in {name}, which is saved and is no weight, so that no graft brings "
                "it along"
            )
