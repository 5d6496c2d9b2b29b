"""What a training step's time goes to, by kind of operation, as torch.profiler counts it."""

from __future__ import annotations

from collections import Counter
from typing import Any

PRODUCTS = "products of the blocks"
UNEMBEDDING = "product with the unembedding"
KINDS = {
    PRODUCTS: ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("scaled_dot_product", "flash_attention", "aten::_softmax"),
    "softmax and loss": ("log_softmax", "nll_loss", "cross_entropy"),
    "optimiser, clipping, gradients set back": ("adam", "foreach", "norm", "zero_", "fill_"),
    "norms, activations, sums, copies": ("aten::",),
}
OTHER = "Python, data, callbacks"


def by_kind(profile: Any, vocabulary: int) -> dict[str, float]:
    """Seconds by kind; the products of a forward and a backward pass with the unembedding count apart.

    Args:
        profile: of torch.profiler, with ``record_shapes``.
        vocabulary: rows of the unembedding.
    """
    found: Counter[str] = Counter()
    for event in profile.key_averages(group_by_input_shape=True):
        found[_kind(event.key, event.input_shapes or [], vocabulary)] += event.self_cpu_time_total / 1e6
    return dict(found)


def _kind(name: str, shapes: list[Any], vocabulary: int) -> str:
    short = name.lower()
    for kind, parts in KINDS.items():
        if any(part in short for part in parts):
            wide = any(vocabulary in shape for shape in shapes if isinstance(shape, list | tuple))
            return UNEMBEDDING if kind == PRODUCTS and wide else kind
    return OTHER
