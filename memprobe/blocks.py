"""A model's blocks, and the residual stream between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def residual_hooks(blocks: list[nn.Module], receive: Any) -> Iterator[None]:
    """Calls ``receive(depth, residual [batch, position, d_model])`` for depths 0 … n_layers in a forward pass."""

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        receive(0, args[0] if args else kwargs["hidden_states"])

    def leaving(depth: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            receive(depth, first_of(output))

        return hook

    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [block.register_forward_hook(leaving(depth)) for depth, block in enumerate(blocks, 1)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_of(output: Any) -> Any:
    """What a block, or a part of one, adds up to or gives: the first of what it returns, where it returns several."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first(output: Any, value: Any) -> Any:
    """What a block returned, with another :func:`first_of`."""
    return type(output)((value, *output[1:])) if isinstance(output, tuple | list) else value


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The model without its output head: a forward pass through it computes no logits."""
    return model.base_model


def blocks_of(model: PreTrainedModel, label: str = "model") -> list[nn.Module]:
    """The transformer blocks of a model, in order.

    Args:
        label: names the model in the error.

    Raises:
        MemprobeError: it holds no list of as many modules as its configuration names layers.
    """
    return list(block_list(model, label)[1])


def block_list(model: PreTrainedModel, label: str) -> tuple[nn.Module, nn.ModuleList]:
    """The list of transformer blocks (the outermost one of the right length), behind the module that holds it."""
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise MemprobeError(f"{label}: {type(model).__name__} has no list of {n_layers} transformer blocks")
    name, blocks = min(lists, key=lambda item: item[0].count("."))
    return model.get_submodule(name.rpartition(".")[0]), blocks
