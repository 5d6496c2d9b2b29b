"""The loss of many positions over a large vocabulary, without a copy of all their logits for each step towards it.

Logits, their logarithms, the gradient of both and casts of all are each [kept, vocab]: with 262,144 tokens in a
vocabulary that is as much to hold and to move as all else in a small model's step. Here the logits of one product, in
its own type, are turned in place into their own gradient, a few positions at a time, such that what lies between stays
in the processor's cache. The products are those of all positions at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memprobe.modes import another_forward, evaluating
from training.batches import model_inputs
from training.mixing import IGNORED

if TYPE_CHECKING:
    from training.batches import MicroBatch

_BLOCK_BYTES = 4 << 20
"""Of the logits, in fp32, that are worked on at once."""
_LOSS_OFF = 1e-4
"""Of the model's own loss, by which rounding may shift this one."""


@dataclass(frozen=True)
class PositionLosses:
    """A micro-batch's loss, and what is known of each of its positions.

    Attributes:
        loss: [], in nats, from which gradients flow: the sum of all positions' over the number of items.
        nats: [kept], the loss of each position; 0 where it is ignored.
        right: [kept] bool, whether the label is the argmax; False where it was not asked for.
    """

    loss: Tensor
    nats: Tensor
    right: Tensor


class BlockwiseHead:
    """A model's unembedding, whose loss is computed block by block."""

    def __init__(self, model: Any, autocast: torch.dtype | None):
        """Takes hold of a model's unembedding; :meth:`unfit` says whether it may be used.

        Args:
            autocast: type of the matrix products; None: that of the weights.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.head, self.autocast = base.get_output_embeddings(), autocast
        embedding = base.get_input_embeddings()
        tied = isinstance(embedding, nn.Embedding) and embedding.weight is getattr(self.head, "weight", None)
        self.tied = embedding if tied and not embedding.sparse else None
        self.room: Tensor | None = None

    def unfit(self, model: Any, batch: MicroBatch) -> str | None:
        """Why the model's own loss is something else than this one; None: it is the same.

        Args:
            batch: a few rows, on the model's device.
        """
        if type(self.head) is not nn.Linear:
            return "its unembedding is not a plain linear layer"
        inputs = model_inputs(batch)
        labels = {key: batch[key] for key in ("labels", "shift_labels")}
        wanted: list[Tensor] = []

        def any_logits(states: Tensor) -> Tensor:  # so large that a cap or a scale would show
            generator = torch.Generator().manual_seed(0)
            some = torch.randn(*states.shape[:-1], self.head.out_features, generator=generator)
            wanted.append(50 * some.to(states.device))
            return wanted[-1]

        with evaluating(model):
            with another_forward(self.head, any_logits):
                given = model(**inputs, use_cache=False).logits
            if given.ndim != 2 or len(given) != len(batch["labels"]):
                return "it does not take a boolean logits_to_keep"
            if given.shape != wanted[-1].shape or not torch.equal(given.float(), wanted[-1]):
                return "it does something to its logits"
            theirs = model(**inputs, **labels, num_items_in_batch=1, use_cache=False).loss
            with another_forward(self.head, _states):
                states = model(**inputs, use_cache=False).logits
            logits = self.head(states)
            ours = _into_gradient(logits, batch["labels"], torch.zeros_like(batch["labels"]), 1)[0].sum()
        off = float((ours - theirs).abs() / theirs.abs().clamp_min(1e-6))
        return None if off <= _LOSS_OFF else f"its loss is {float(theirs):.6g} and not {float(ours):.6g}"

    def __call__(
        self, model: Any, inputs: MicroBatch, labels: Tensor, asked: Tensor, items: Tensor | int
    ) -> PositionLosses:
        """The loss of a micro-batch.

        Args:
            inputs: what the model takes.
            labels: int64 [kept], the next token of each position with a loss.
            asked: bool [kept], positions of which it is asked whether the label is the argmax.
            items: positions with a loss in the whole step.
        """
        with another_forward(self.head, _states), self._few_looked_up():
            states = model(**inputs, use_cache=False).logits
        head = self.head
        into = self._room(len(labels), self.autocast or head.weight.dtype)
        return PositionLosses(*_Loss.apply(states, head.weight, head.bias, labels, asked, items, into))  # type: ignore

    def _room(self, kept: int, dtype: torch.dtype) -> Tensor:
        """[kept, vocab] in memory that is taken once: of ever other sizes, it would leave gaps that nothing fits into.

        The next micro-batch's logits come where the last one's gradient is, which is of no use after its backward pass.
        """
        if self.room is None or len(self.room) < kept or self.room.dtype != dtype:
            self.room = None  # first, so that both need not fit
            self.room = torch.empty(kept, self.head.out_features, dtype=dtype, device=self.head.weight.device)
        return self.room[:kept]

    @contextmanager
    def _few_looked_up(self) -> Iterator[None]:
        """Of weights tied to the unembedding, lookups give the gradient of the rows that were looked up alone.

        It is added to the unembedding's, which is of all rows; else it would be made as large, of zeros, first.
        """
        if self.tied is not None:
            self.tied.sparse = True
        try:
            yield
        finally:
            if self.tied is not None:
                self.tied.sparse = False


class _Loss(torch.autograd.Function):
    """From states [kept, width], the unembedding [vocab, width] and its bias [vocab] or None to what
    :class:`PositionLosses` holds. The logits come into memory that is given."""

    @staticmethod
    def forward(ctx, states, weight, bias, labels, asked, items, logits):
        dtype = logits.dtype
        mine, matrix = states.to(dtype), weight.to(dtype)
        with torch.autocast(states.device.type, enabled=False):
            if bias is None:
                torch.mm(mine, matrix.T, out=logits)
            else:
                torch.addmm(bias.to(dtype), mine, matrix.T, out=logits)
            nats, right = _into_gradient(logits, labels, asked, items)
        ctx.save_for_backward(mine, matrix, logits)
        ctx.types = states.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nats, right)
        return nats.sum() / items, nats, right

    @staticmethod
    def backward(ctx, *grad_outputs):
        mine, matrix, gradient = ctx.saved_tensors
        of_states, of_weight, of_bias = ctx.needs_input_grad[:3]
        with torch.autocast(mine.device.type, enabled=False):
            found = [
                gradient @ matrix if of_states else None,
                gradient.T @ mine if of_weight else None,
                gradient.sum(0, dtype=torch.float32) if of_bias else None,
            ]
        factor = float(grad_outputs[0])
        scaled = [
            None if each is None else each.to(dtype) if factor == 1 else each.to(dtype) * factor
            for each, dtype in zip(found, ctx.types, strict=True)
        ]
        return *scaled, None, None, None, None


@torch.no_grad()
def _into_gradient(
    logits: Tensor, labels: Tensor, asked: Tensor, items: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Turns logits [kept, vocab], in place, into the gradient of the loss by them.

    Returns:
        ``nats`` and ``right`` of :class:`PositionLosses`.
    """
    nats = torch.zeros(labels.shape, device=logits.device)
    right = torch.zeros_like(labels, dtype=torch.bool)
    size = max(1, _BLOCK_BYTES // (4 * logits.shape[-1]))
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        label, block = labels[part], logits[part].float()
        some = asked[part].nonzero()[:, 0]
        right[start + some] = block[some].argmax(-1) == label[some]
        counts = label != IGNORED
        place = label.where(counts, 0)[:, None]
        logs = block.log_softmax(-1)
        nats[part] = torch.where(counts, -logs.gather(1, place)[:, 0], 0.0)
        slope = logs.exp_()
        slope.scatter_add_(1, place, torch.full_like(place, -1, dtype=slope.dtype))
        logits[part] = slope.mul_((counts / items)[:, None])
    return nats, right


def _states(states: Tensor) -> Tensor:
    return states
