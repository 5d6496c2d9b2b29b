"""``linear``: the least-squares map from a depth to the last stream, in closed form.

Din et al. 2023, "Jump to Conclusions" (arXiv 2303.09435), with a bias, and ridge towards the Logit Lens: with
x the centred stream at a depth, y the centred last one and strength s,

    W = 1 + (S_yx − S_xx) (S_xx + s · tr(S_xx) / d)⁻¹,     b = mean y − W mean x

so that a strength without bound gives W = 1. The strength is the one of :data:`STRENGTHS` with the least squared
error on held-out text, depth by depth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from memprobe.fitting.streams import SKIP, streams_of
from memprobe.lens_files import AffineMap

if TYPE_CHECKING:
    from memprobe.fitting.corpus import Corpus
    from memprobe.models import LensModel

STRENGTHS = tuple(10.0**power for power in range(-7, 3))
_BATCH_TOKENS = 1024


class Moments:
    """Sums over positions: how many, x, y, x xᵀ and y xᵀ for each depth, and y², of streams less a shift.

    Streams have coordinates that hardly leave a value far from 0. Products of what is left beside their mean over some
    text keep in fp32 what those of the whole streams lose.

    Attributes:
        tensors: the sums in fp64, by name; depths 0 … n_layers - 1 lead. ``shift`` is of depths 0 … n_layers, and the
            same in sums that are added up.
    """

    def __init__(self, lens_model: LensModel):
        depths, width = lens_model.n_layers, lens_model.d_model
        wide = {"dtype": torch.float64, "device": lens_model.device}
        self.tensors = {
            "n": torch.zeros(1, **wide),
            "x": torch.zeros(depths, width, **wide),
            "y": torch.zeros(width, **wide),
            "xx": torch.zeros(depths, width, width, **wide),
            "yx": torch.zeros(depths, width, width, **wide),
            "y2": torch.zeros(1, **wide),
            "shift": torch.zeros(depths + 1, width, device=lens_model.device),
        }

    def add(self, streams: Float[Tensor, "depth row d_model"]) -> None:
        """Adds the rows of a batch."""
        sums = self.tensors
        streams = streams - sums["shift"][:, None]
        last = streams[-1]
        sums["n"] += last.shape[0]
        sums["y"] += last.double().sum(0)
        sums["y2"] += last.double().square().sum()
        for depth, stream in enumerate(streams[:-1]):
            sums["x"][depth] += stream.double().sum(0)
            sums["xx"][depth] += stream.T @ stream
            sums["yx"][depth] += last.T @ stream

    def __add__(self, other: Moments) -> Moments:
        total = object.__new__(Moments)
        total.tensors = {name: tensor + other.tensors[name] for name, tensor in self.tensors.items()}
        total.tensors["shift"] = self.tensors["shift"]
        return total

    def centred(self, depth: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of x and y, and covariances S_xx and S_yx, of a depth."""
        sums = self.tensors
        n, shift = sums["n"], sums["shift"].double()
        x, y = sums["x"][depth] / n, sums["y"] / n
        s_xx, s_yx = sums["xx"][depth] / n - torch.outer(x, x), sums["yx"][depth] / n - torch.outer(y, x)
        return x + shift[depth], y + shift[-1], s_xx, s_yx

    def scales(self, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of x by coordinate, and the standard deviation of y over all of them."""
        sums = self.tensors
        n = sums["n"]
        x, y = sums["x"][depth] / n, sums["y"] / n
        scale_x = (sums["xx"][depth].diagonal() / n - x.square()).clamp(min=0).sqrt()
        scale_y = ((sums["y2"] / n - y.square().sum()) / len(y)).clamp(min=0).sqrt()
        return x + sums["shift"][depth], scale_x, scale_y

    def squared_error(self, depth: int, map_: AffineMap) -> float:
        """Mean squared error of a map on these rows, up to the part that no map changes."""
        sums = self.tensors
        n, shift = sums["n"], sums["shift"].double()
        assert map_.bias is not None
        weight = map_.weight.double()
        bias = map_.bias.double() + weight @ shift[depth] - shift[-1]
        x, y = sums["x"][depth] / n, sums["y"] / n
        square = ((weight @ (sums["xx"][depth] / n)) * weight).sum() + bias @ bias + 2 * bias @ (weight @ x)
        cross = (weight * (sums["yx"][depth] / n)).sum() + bias @ y
        return float(square - 2 * cross)


class LinearFit:
    """See the module. A unit of work is one batch of one half, or of the validation text.

    Attributes:
        units: how many there are.
    """

    def __init__(self, lens_model: LensModel, corpus: Corpus):
        self.lens_model = lens_model
        size = max(1, _BATCH_TOKENS // corpus.validation.shape[1])
        sets = [*corpus.halves, corpus.validation]
        self.batches = [(place, batch) for place, ids in enumerate(sets) for batch in ids.split(size)]
        self.units = len(self.batches)
        self.moments = [Moments(lens_model) for _ in sets]
        self.tokens = sum(ids.numel() for ids in corpus.halves)

    def run(self, unit: int) -> None:
        """Adds a batch to its moments."""
        place, ids = self.batches[unit]
        streams = streams_of(self.lens_model, ids)[:, :, SKIP:].flatten(1, 2)
        if unit == 0:
            for moments in self.moments:
                moments.tensors["shift"] = streams.mean(1)
        self.moments[place].add(streams)

    def state(self) -> dict[str, Tensor]:
        """What a killed fit goes on from."""
        return {
            f"{place}.{name}": tensor
            for place, moments in enumerate(self.moments)
            for name, tensor in moments.tensors.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state`."""
        for place, moments in enumerate(self.moments):
            moments.tensors = {
                name: state[f"{place}.{name}"].to(self.lens_model.device) for name in moments.tensors
            }

    def maps(self, half: int | None = None) -> dict[int, AffineMap]:
        """The maps fitted on one half, or on both."""
        fitted = self.moments[0] + self.moments[1] if half is None else self.moments[half]
        return {depth: ridge(fitted, self.moments[2], depth) for depth in range(self.lens_model.n_layers)}


def ridge(fitted: Moments, held_out: Moments, depth: int) -> AffineMap:
    """The map of a depth, with the strength that is best on held-out text."""
    x, y, s_xx, s_yx = fitted.centred(depth)
    values, vectors = torch.linalg.eigh(s_xx)
    width = len(x)
    unit = values.clamp(min=0).sum() / width
    eye = torch.eye(width, dtype=torch.float64, device=x.device)
    turned = (s_yx - s_xx) @ vectors

    def solve(strength: float) -> AffineMap:
        weight = eye + (turned / (values.clamp(min=0) + strength * unit)) @ vectors.T
        return AffineMap(weight.float(), (y - weight @ x).float())

    return min(
        (solve(strength) for strength in STRENGTHS), key=lambda map_: held_out.squared_error(depth, map_)
    )


FIT = LinearFit
