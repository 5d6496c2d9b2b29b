"""``jacobian``: the mean Jacobian of the last stream with respect to the stream at a depth.

Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models" (Transformer
Circuits), with the estimator of their reference implementation and of TransformerLens 4.3: over sequences, the mean
of

    1 / |V| · sum over t, t' in V, t' ≥ t, of ∂ h_last(t') / ∂ h_d(t)

with V all positions but the first :data:`SKIP` and the last. Row i is one vector-Jacobian product, with a one at
coordinate i of every position in V: causal attention leaves only t' ≥ t. :data:`ROWS` rows are computed at a time,
on as many copies of the sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memprobe.errors import MemprobeError
from memprobe.fitting.streams import frozen, streams_with_gradient
from memprobe.lens_files import AffineMap

if TYPE_CHECKING:
    from memprobe.fitting.corpus import Corpus
    from memprobe.models import LensModel

SKIP = 16
ROWS = 16


class JacobianFit:
    """See the module. A unit of work is some rows of one sequence; the halves' sequences take turns.

    Attributes:
        units: how many there are.
    """

    def __init__(self, lens_model: LensModel, corpus: Corpus, skip: int = SKIP, rows: int = ROWS):
        length = corpus.validation.shape[1]
        if length < skip + 2:
            raise MemprobeError(
                f"--length {length}: a Jacobian lens leaves out the first {skip} positions and the last, so give at "
                f"least {skip + 2}"
            )
        self.lens_model, self.skip, self.rows = lens_model, skip, rows
        self.sequences = [ids for pair in zip(*corpus.halves, strict=True) for ids in pair]
        self.chunks = -(-lens_model.d_model // rows)
        self.units = len(self.sequences) * self.chunks
        depths, width = lens_model.n_layers, lens_model.d_model
        self.sums = torch.zeros(2, depths, width, width)
        self.graph: tuple[int, list[Tensor]] | None = None
        self.tokens = sum(ids.numel() for ids in corpus.halves)

    def run(self, unit: int) -> None:
        """Adds some rows of one sequence's Jacobians."""
        number, chunk = divmod(unit, self.chunks)
        with frozen(self.lens_model):
            streams = self._streams(number)
            first = chunk * self.rows
            rows = min(self.rows, self.lens_model.d_model - first)
            cotangent = torch.zeros_like(streams[-1])
            place = torch.arange(rows)
            cotangent[place, self.skip : -1, first + place] = 1.0
            last_chunk = chunk == self.chunks - 1
            gradients = torch.autograd.grad(streams[-1], streams[:-1], cotangent, retain_graph=not last_chunk)
            if last_chunk:
                self.graph = None
        for depth, gradient in enumerate(gradients):
            mean = gradient[:rows, self.skip : -1].float().mean(1)
            self.sums[number % 2, depth, first : first + rows] += mean.cpu()

    def _streams(self, number: int) -> list[Tensor]:
        """The streams of a sequence's copies; its graph is kept while its rows are computed."""
        if self.graph is None or self.graph[0] != number:
            copies = self.sequences[number].expand(self.rows, -1)
            self.graph = number, streams_with_gradient(self.lens_model, copies)
        return self.graph[1]

    def state(self) -> dict[str, Tensor]:
        """What a killed fit goes on from."""
        return {"sums": self.sums}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        self.sums = state["sums"]

    def maps(self, half: int | None = None) -> dict[int, AffineMap]:
        """The Jacobians averaged over one half, or over both."""
        total = self.sums.sum(0) if half is None else self.sums[half]
        n = len(self.sequences) // (1 if half is None else 2)
        return {depth: AffineMap(total[depth] / n) for depth in range(self.lens_model.n_layers)}


FIT = JacobianFit
