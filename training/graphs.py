"""A micro-batch's forward and backward pass as one CUDA graph.

A small model's step is some thousand short kernels, and starting them one by one takes longer than they run. A graph
is started as one. It is recorded for fixed shapes, so micro-batches are filled up to a few shapes: rows to a multiple
of 8, tokens of a row to a multiple of 16, positions with a loss to an eighth of a power of two. What is filled in
carries no loss, and stands where causal attention does not look.

Fewer kernels go into a graph than into an eager pass. Autocast casts every weight by itself, and its gradient back;
here the weights of all linear layers are copied at once, and the copies stand in their place for the pass.

Nothing is taken on trust: a stage's first micro-batch also goes through the model's own forward pass, and where loss
or gradients differ from it, the stage goes on without graphs and says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.batches import own_nats, own_rows_exact
from training.mixing import IGNORED, Example

if TYPE_CHECKING:
    from training.batches import MicroBatch

_ROWS, _WIDTH, _FEWEST_KEPT = 8, 16, 64
_MOST_GRAPHS = 64
_LOSS_OFF, _GRADIENT_OFF = 0.02, 0.05
_MASKS = ("create_causal_mask", "create_sliding_window_causal_mask")


class Unfit(Exception):
    """A model that cannot be graphed, and why."""


@dataclass(frozen=True)
class Counted:
    """What a micro-batch's pass tells beside its gradients, on its device.

    Attributes:
        loss: [], the summed loss over the step's positions with a loss.
        rows: [2], own rows that are exact, and all.
        nats: [2], the summed loss of own rows' tokens, and of how many.
    """

    loss: Tensor
    rows: Tensor
    nats: Tensor

    def copied(self) -> Counted:
        """The same numbers in memory of their own."""
        return Counted(self.loss.clone(), self.rows.clone(), self.nats.clone())


def in_shapes(
    collate: Callable[[Sequence[Example]], MicroBatch],
) -> Callable[[Sequence[Example]], MicroBatch]:
    """A collator of padded rows whose micro-batches come in few shapes.

    They hold ``kept_at`` too, int64 [kept]: the positions with a loss in the flattened micro-batch.
    """

    def filled(rows: Sequence[Example]) -> MicroBatch:
        batch = dict(collate(rows))
        ids, keep, own = batch["input_ids"], batch["logits_to_keep"], batch["own"]
        more = (0, -ids.shape[1] % _WIDTH, 0, -ids.shape[0] % _ROWS)
        batch["input_ids"], batch["logits_to_keep"] = F.pad(ids, more), F.pad(keep, more)
        batch["own"] = F.pad(own, (0, more[3]))
        batch["kept_at"] = batch["logits_to_keep"].flatten().nonzero()[:, 0]
        return batch

    return filled


class GraphedSteps:
    """Passes of a model through graphs, which add to the parameters' gradients as ``backward`` does."""

    def __init__(self, model: Any, autocast: torch.dtype | None, *, longest: int | None = None):
        """Takes hold of a model.

        Args:
            longest: tokens of the longest row.
            autocast: type of the matrix products; None: that of the weights.

        Raises:
            Unfit: the model cannot be graphed.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder, self.head = base.get_decoder(), base.get_output_embeddings()
        if self.head is None or self.decoder is base:
            raise Unfit("its decoder and its unembedding are not told apart")
        config = base.config.get_text_config()
        if getattr(config, "_attn_implementation", None) != "sdpa":
            raise Unfit("its attention is not torch's own")
        window = getattr(config, "sliding_window", None)
        if window is not None and longest is not None and longest + _WIDTH > window:
            raise Unfit(f"rows of {longest} tokens are longer than its attention window")
        self.autocast = autocast
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradients = [torch.zeros_like(p) for p in self.parameters]
        self.device = self.parameters[0].device
        self.copies = _Copies((self.decoder, self.head), self.parameters, autocast)
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.pool = torch.cuda.graph_pool_handle() if self.stream else None
        self.seen: set[tuple[int, ...]] = set()
        self.graphs: dict[tuple[int, ...], _Graph] = {}

    def __call__(self, batch: MicroBatch, items: Tensor | int) -> Counted:
        """The pass of a micro-batch of :func:`in_shapes`; its gradients are added to the parameters'.

        Args:
            items: positions with a loss in the whole optimiser step.
        """
        if self.parameters[0].grad is not self.gradients[0]:  # it was dropped after a step
            torch._foreach_zero_(self.gradients)
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                parameter.grad = gradient
        static = _filled(batch, items)
        key = (*static["input_ids"].shape, len(static["labels"]))
        if key in self.graphs:
            return self.graphs[key](static)
        # A shape's first pass loads its kernels, which may not be done while a graph is recorded.
        if key not in self.seen or len(self.graphs) >= _MOST_GRAPHS or self.stream is None:
            self.seen.add(key)
            return self._beside(static)
        self.graphs[key] = _Graph(static, self._pass, self.stream, self.pool)
        return self.graphs[key](static)

    def differs(self, batch: MicroBatch, items: Tensor | int, loss: Tensor) -> str | None:
        """Whether a micro-batch's pass differs from the model's own, whose gradients the parameters hold now.

        Afterwards they hold those of the graph instead. It is recorded for this, so that it is what is compared.

        Args:
            loss: of the model's own pass.

        Returns:
            What differs; None: nothing.
        """
        theirs = [p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        if self.stream:
            self(batch, items)
            for parameter in self.parameters:
                parameter.grad = None
        ours = self(batch, items)  # recorded, as this shape is seen for the second time
        off = float((ours.loss - loss).abs() / loss.abs().clamp_min(1e-6))
        if not off <= _LOSS_OFF:
            return f"its loss is {float(ours.loss):.6g} in a graph and {float(loss):.6g} without"
        apart, length = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for mine, other in zip(self.gradients, theirs, strict=True):
            other = torch.zeros_like(mine) if other is None else other
            apart += (mine - other).float().square().sum()
            length += other.float().square().sum()
        share = float((apart / length.clamp_min(1e-20)).sqrt())
        return None if share <= _GRADIENT_OFF else f"its gradient differs by {share:.1%} in a graph"

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        """Adds gradients of the parameters, and of copies to those that they stand for."""
        targets = [*self.gradients, *(self.gradients[index] for index in self.copies.of)]
        for same in (True, False):  # of one type, all are added by a few kernels
            pairs = [
                (target, gradient)
                for target, gradient in zip(targets, gradients, strict=True)
                if gradient is not None and (gradient.dtype == target.dtype) is same
            ]
            if pairs:
                torch._foreach_add_([target for target, _ in pairs], [gradient for _, gradient in pairs])

    def _beside(self, static: MicroBatch) -> Counted:
        """A pass without a graph, on the stream on which graphs are recorded."""
        if self.stream is None:
            return self._pass(static)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            counted = self._pass(static)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return counted.copied()

    def _pass(self, static: MicroBatch) -> Counted:
        kind, labels = self.device.type, static["labels"]
        cast = (
            torch.autocast(kind, self.autocast, cache_enabled=False)
            if self.autocast is not None
            else nullcontext()
        )
        self.copies.refresh()
        with cast, _without_masks(self.decoder), self.copies.in_place():
            states = self.decoder(input_ids=static["input_ids"], use_cache=False).last_hidden_state
            logits = self.head(states.flatten(0, 1).index_select(0, static["kept_at"]))
        nats = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
        loss = nats.sum() / static["items"]
        leaves = [*self.parameters, *self.copies.trained]
        self._add(torch.autograd.grad(loss, leaves, allow_unused=True))
        with torch.no_grad():
            place = labels, static["kept_row"], static["own"]
            return Counted(loss.detach(), own_rows_exact(logits, *place), own_nats(nats, *place))


class _Copies:
    """Weights of linear layers in the type of the matrix products.

    Attributes:
        trained: copies of weights that are trained.
        of: the index of each one's parameter.
    """

    def __init__(self, parts: Sequence[Any], parameters: Sequence[Tensor], dtype: torch.dtype | None):
        self.trained: list[Tensor] = []
        self.of: list[int] = []
        self.places: list[tuple[Any, str, Tensor]] = []
        index = {id(parameter): place for place, parameter in enumerate(parameters)}
        self.masters: list[Tensor] = []
        linear = [
            module for part in parts for module in part.modules() if isinstance(module, torch.nn.Linear)
        ]
        for module in linear if dtype is not None else []:
            for name, master in module._parameters.items():
                if master is None or master.dtype != torch.float32:
                    continue
                trained = id(master) in index
                copy = torch.nn.Parameter(master.detach().to(dtype), requires_grad=trained)
                self.places.append((module, name, copy))
                if trained:
                    self.trained.append(copy)
                    self.of.append(index[id(master)])
                    self.masters.append(master)

    def refresh(self) -> None:
        """Copies what is trained."""
        if self.trained:
            with torch.no_grad():
                torch._foreach_copy_(self.trained, self.masters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The copies in the place of the weights."""
        weights = [module._parameters[name] for module, name, _ in self.places]
        for module, name, copy in self.places:
            module._parameters[name] = copy
        try:
            yield
        finally:
            for (module, name, _), weight in zip(self.places, weights, strict=True):
                module._parameters[name] = weight


class _Graph:
    """One recorded pass."""

    def __init__(self, like: MicroBatch, run: Callable[[MicroBatch], Counted], stream: Any, pool: Any):
        self.inputs = {key: value.clone() for key, value in like.items()}
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.found = run(self.inputs)

    def __call__(self, static: MicroBatch) -> Counted:
        for key, value in static.items():
            self.inputs[key].copy_(value)
        self.graph.replay()
        return self.found.copied()  # the next graph may write where these stand


def _filled(batch: MicroBatch, items: Tensor | int) -> MicroBatch:
    """What a pass reads of a micro-batch, its positions with a loss filled up."""
    more = _kept(len(batch["labels"])) - len(batch["labels"])
    ids = batch["input_ids"]
    return {
        "input_ids": ids,
        "own": batch["own"],
        "labels": F.pad(batch["labels"], (0, more), value=IGNORED),
        "kept_at": F.pad(batch["kept_at"], (0, more)),
        "kept_row": F.pad(batch["kept_row"], (0, more)),
        "items": torch.as_tensor(items, dtype=torch.float32, device=ids.device).reshape(()),
    }


def _kept(count: int) -> int:
    """A number that few counts share: at least ``count``, and at most a quarter more where that is over 64."""
    step = max(_FEWEST_KEPT, 2 ** (max(count - 1, 1).bit_length() - 3))
    return -(-max(count, 1) // step) * step


@contextmanager
def _without_masks(decoder: Any) -> Iterator[None]:
    """No attention masks: a causal model's rows that are filled at their ends need none.

    Without this a mask is made while a graph is recorded, as its contents cannot be looked at then; attention with a
    mask is another, slower kernel.
    """
    module = sys.modules[type(decoder).__module__]
    theirs = {name: getattr(module, name) for name in _MASKS if hasattr(module, name)}
    for name in theirs:
        setattr(module, name, _no_mask)
    try:
        yield
    finally:
        for name, function in theirs.items():
            setattr(module, name, function)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None
