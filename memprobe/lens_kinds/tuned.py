"""``tuned``: the affine map whose readout has the least KL to the model's own output.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112): for each
depth, KL(model ‖ lens) averaged over positions. Unlike theirs it starts from the least-squares map of the same half
of the corpus (:mod:`memprobe.lens_kinds.linear`) and moves in coordinates standardised on it, so that one step size
fits every depth and model:

    W x + b = W_linear x + b_linear + sd(y) (B (x − mean x) / sd(x) + c)

with y the last stream, sd(x) by coordinate, sd(y) over all of them, and B and c from 0 by Adam, its step falling
linearly to 0. Each half takes its own steps, at most one pass over its sequences, and the lens is the mean of
both halves' maps. At each depth the Logit Lens, the least-squares map and the tuned one are then held against each
other on held-out text, and the best of them is kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from memprobe.fitting.streams import SKIP, frozen, streams_of
from memprobe.lens_files import AffineMap
from memprobe.lens_kinds.linear import LinearFit

if TYPE_CHECKING:
    from memprobe.fitting.corpus import Corpus
    from memprobe.lenses import Readout
    from memprobe.models import LensModel

RATE = 1e-3
"""Adam's step, in standard deviations of the last stream for each of those of the depth's."""
BETAS = (0.9, 0.99)

_STEP_TOKENS = 256
_LOGITS = 1 << 24  # of one chunk: rows x vocabulary


class TunedFit:
    """See the module. Units of work: those of the linear fit, then a step of each half in turn.

    Attributes:
        units: how many there are.
    """

    def __init__(self, lens_model: LensModel, corpus: Corpus, rate: float = RATE, steps: int | None = None):
        self.lens_model, self.corpus, self.rate = lens_model, corpus, rate
        self.linear = LinearFit(lens_model, corpus)
        size = max(1, _STEP_TOKENS // corpus.validation.shape[1])
        pairs = list(zip(*(half.split(size) for half in corpus.halves), strict=True))[:steps]
        self.steps = [(place, ids) for pair in pairs for place, ids in enumerate(pair)]
        self.units = self.linear.units + len(self.steps)
        self.tokens = self.linear.tokens
        depths, width = lens_model.n_layers, lens_model.d_model
        # For each half: B with c as its last column, and Adam's two moments.
        self.moves = torch.zeros(2, 3, depths, width, width + 1)
        self.started: list[dict[int, AffineMap]] | None = None
        self.chosen: dict[int | None, dict[int, AffineMap]] = {}

    def run(self, unit: int) -> None:
        """A batch of the linear fit, or one step at every depth."""
        if unit < self.linear.units:
            self.linear.run(unit)
            return
        step = unit - self.linear.units
        half, ids = self.steps[step]
        streams = streams_of(self.lens_model, ids)[:, :, SKIP:].flatten(1, 2)
        rate = self.rate * (1 - step / len(self.steps))
        gradients = self._gradients(half, streams)
        moves, first, second = self.moves[half]
        count = step // 2 + 1
        first.lerp_(gradients, 1 - BETAS[0])
        second.lerp_(gradients.square(), 1 - BETAS[1])
        corrected = math.sqrt(1 - BETAS[1] ** count) / (1 - BETAS[0] ** count)
        moves -= rate * corrected * first / (second.sqrt() + 1e-12)

    def _gradients(
        self, half: int, streams: Float[Tensor, "depth row d_model"]
    ) -> Float[Tensor, "depth d_model d_model_and_1"]:
        """Of the mean KL over the rows with respect to B and c, at every depth."""
        readout = self.lens_model.lens.readout
        maps = [self._map(half, depth) for depth in range(self.lens_model.n_layers)]
        gradients = torch.zeros_like(self.moves[half, 0])
        rows = streams.shape[1]
        with frozen(self.lens_model):
            for chunk in streams.split(max(1, _LOGITS // readout.vocab_size), dim=1):
                with torch.no_grad():
                    target = readout(chunk[-1]).log_softmax(-1)
                for depth, map_ in enumerate(maps):
                    mean, scale_x, scale_y = self._scales(half, depth)
                    given = chunk[depth]
                    moved = map_(given).requires_grad_()
                    kl = divergence(readout, target, moved).sum() / rows
                    (pull,) = torch.autograd.grad(kl, moved)
                    pull = pull * scale_y
                    gradients[depth, :, :-1] += (pull.T @ ((given - mean) / scale_x)).cpu()
                    gradients[depth, :, -1] += pull.sum(0).cpu()
        return gradients

    def _map(self, half: int, depth: int) -> AffineMap:
        start = self._start(half)[depth]
        mean, scale_x, scale_y = self._scales(half, depth)
        move = self.moves[half, 0, depth].to(mean.device)
        assert start.bias is not None
        turn = scale_y * move[:, :-1] / scale_x
        return AffineMap(start.weight + turn, start.bias + scale_y * move[:, -1] - turn @ mean)

    def _start(self, half: int) -> dict[int, AffineMap]:
        if self.started is None:
            self.started = [self.linear.maps(place) for place in range(2)]
        return self.started[half]

    def _scales(self, half: int, depth: int) -> tuple[Tensor, Tensor, float]:
        """Mean and standard deviation of the depth's stream by coordinate, and that of the last one over all."""
        mean, scale_x, scale_y = self.linear.moments[half].scales(depth)
        return mean.float(), (scale_x + 1e-6 * scale_x.max() + 1e-30).float(), float(scale_y)

    def state(self) -> dict[str, Tensor]:
        """What a killed fit goes on from."""
        return self.linear.state() | {"moves": self.moves}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        self.linear.restore(state)
        self.moves = state["moves"]

    def maps(self, half: int | None = None) -> dict[int, AffineMap]:
        """The maps of one half, or the mean of both; at each depth the best of three on held-out text."""
        if not self.chosen:
            self.chosen = self._choose()
        return self.chosen[half]

    def _choose(self) -> dict[int | None, dict[int, AffineMap]]:
        depths, width = self.lens_model.n_layers, self.lens_model.d_model
        device = self.lens_model.device
        eye = AffineMap(torch.eye(width, device=device), torch.zeros(width, device=device))
        halves = [{depth: self._map(place, depth) for depth in range(depths)} for place in range(2)]
        linear = {None: self.linear.maps(), 0: self._start(0), 1: self._start(1)}
        tuned = {None: _mean(halves), 0: halves[0], 1: halves[1]}
        asked = [dict.fromkeys(range(depths), eye), *linear.values(), *tuned.values()]
        divergences = held_out_divergence(self.lens_model, self.corpus.validation, asked)
        chosen = {}
        for place, half in enumerate(linear):
            rivals = [0, 1 + place, 4 + place]
            best = divergences[rivals].argmin(0).tolist()
            chosen[half] = {depth: asked[rivals[best[depth]]][depth] for depth in range(depths)}
        return chosen


def divergence(
    readout: Readout, target: Float[Tensor, "row vocab"], moved: Float[Tensor, "row d_model"]
) -> Float[Tensor, " row"]:
    """KL(target ‖ readout of ``moved``) of each row, in nats; ``target`` are log-probabilities."""
    log_probs = readout(moved).log_softmax(-1)
    return (target.exp() * (target - log_probs)).sum(-1)


def held_out_divergence(
    lens_model: LensModel, ids: Tensor, asked: list[dict[int, AffineMap]]
) -> Float[Tensor, "lens depth"]:
    """The mean KL to the model's own output on held-out text, of several lenses at every depth."""
    readout = lens_model.lens.readout
    total = torch.zeros(len(asked), lens_model.n_layers, dtype=torch.float64)
    count = 0
    with torch.no_grad():
        for sequence in ids:
            streams = streams_of(lens_model, sequence[None])[:, 0, SKIP:]
            count += streams.shape[1]
            for chunk in streams.split(max(1, _LOGITS // readout.vocab_size), dim=1):
                target = readout(chunk[-1]).log_softmax(-1)
                for place, maps in enumerate(asked):
                    for depth, map_ in maps.items():
                        total[place, depth] += float(divergence(readout, target, map_(chunk[depth])).sum())
    return total / count


def _mean(fits: list[dict[int, AffineMap]]) -> dict[int, AffineMap]:
    def bias(depth: int) -> Tensor:
        return torch.stack([fit[depth].bias for fit in fits]).mean(0)  # pyrefly: ignore[bad-argument-type]

    return {
        depth: AffineMap(torch.stack([fit[depth].weight for fit in fits]).mean(0), bias(depth))
        for depth in fits[0]
    }


FIT = TunedFit
