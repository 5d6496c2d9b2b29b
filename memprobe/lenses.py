"""The lens family: residual vectors → logits, by one affine map for each depth and one readout.

    residual [rows, d_model] ──map of the depth──> ──final norm──> ──unembedding──> ──scale, softcap──> logits

    logit      no map: what the depth would say if it were the last (nostalgebraist 2020)
    linear     least squares to the last stream (Din et al. 2023, arXiv 2303.09435)
    tuned      least KL to the model's own output (Belrose et al. 2023, arXiv 2303.08112)
    jacobian   the mean Jacobian of the last stream (Gurnee et al. 2026, Transformer Circuits)

The readout is the model's own, or another checkpoint's; at full depth there is no map. The readout is computed in
fp32 whatever the model's own precision; :func:`memprobe.models.wrap` checks it against the model's logits.
:mod:`memprobe.fitting` makes fitted lenses, :mod:`memprobe.lens_files` keeps them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memprobe.errors import MemprobeError
from memprobe.lens_files import AffineMap, in_short
from memprobe.splitting import home_of, own_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Readout(nn.Module):
    """What a model makes of its last residual vector: final norm and unembedding.

    Attributes:
        final: what the model applies after its last block, in order: the final norm, and for OPT the
            projection to the embedding width.
        unembedding: the output head, with its bias where the family has one.
        scale: factor on the logits (Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``).
        softcap: logits become softcap · tanh(logits / softcap) (Gemma 2); ``None`` for most.
    """

    def __init__(
        self,
        final: list[nn.Module],
        unembedding: nn.Module,
        scale: float,
        softcap: float | None,
        home: torch.device | None = None,
    ):
        super().__init__()
        home = None if home is None else torch.device(home)
        self.final = nn.ModuleList(_in_fp32(module, home) for module in final)
        self.unembedding = _in_fp32(unembedding, home)
        self.scale = scale
        self.softcap = softcap

    @classmethod
    def of(cls, model: PreTrainedModel, final: list[nn.Module]) -> Readout:
        """The readout of a model whose modules after the last block are ``final``.

        Raises:
            MemprobeError: the model has no output head.
        """
        head = model.get_output_embeddings()
        if head is None:
            raise MemprobeError(
                f"{type(model).__name__} has no output head, so there is nothing to read with"
            )
        config = model.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(final, head, _logit_scale(model, config), softcap, home_of(model))

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        weight = self.unembedding.weight
        assert isinstance(weight, Tensor)
        return weight.shape[0]

    def norm(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_head"]:
        """The final norm (and projection), in fp32."""
        hidden = residual.float()
        for module in self.final:
            hidden = module(hidden)
        return hidden

    def unembed(self, hidden: Float[Tensor, "*batch d_head"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of normed vectors, with the model's own scale and softcap."""
        logits = self.unembedding(hidden)
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def forward(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Logits that the model would give if this residual stream were its last."""
        return self.unembed(self.norm(residual))


@dataclass(frozen=True, eq=False)
class Lens:
    """An affine map for each depth, and a readout.

    Attributes:
        name: what tables call it: ``logit``, ``logit@base``, ``tuned`` …
        readout: final norm and unembedding.
        kind: which of the family it is.
        maps: by depth; a depth without one is read as by the Logit Lens. Full depth never has one.
        about: what a fitted lens says of itself: weights, corpus, tokens, floor.
        other: label of the checkpoint whose readout it is; ``None`` for the model's own.
        digest: SHA-256 of a fitted lens's file.
        notes: what a reader of its results must know, a line each.
    """

    name: str
    readout: Readout
    kind: str = "logit"
    maps: Mapping[int, AffineMap] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    other: str | None = None
    digest: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.readout.vocab_size

    @property
    def computes(self) -> tuple[int, str | int | None]:
        """What makes its numbers, whatever its name: equal for two lenses that say the same of every residual.

        The readout, and the maps: by their file where they come from one, else these very maps. Two lenses whose
        maps are equal but made apart count as two. It holds while both lenses are in memory.
        """
        return id(self.readout), (self.digest or id(self.maps)) if self.maps else None

    def transform_hidden(
        self, residual: Float[Tensor, "*batch d_model"], depth: int | None = None
    ) -> Float[Tensor, "*batch d_head"]:
        """The map of a depth, then the final norm (and projection), in fp32.

        Args:
            depth: 0 … n_layers; ``None`` stands for full depth, which has no map.
        """
        hidden = residual.float()
        if depth is not None and (map_ := self.maps.get(depth)) is not None:
            hidden = map_(hidden)
        return self.readout.norm(hidden)

    def unembed(self, hidden: Float[Tensor, "*batch d_head"]) -> Float[Tensor, "*batch vocab"]:
        """Logits of what :meth:`transform_hidden` gives."""
        return self.readout.unembed(hidden)

    def __call__(
        self, residual: Float[Tensor, "*batch d_model"], depth: int | None = None
    ) -> Float[Tensor, "*batch vocab"]:
        """What the lens says of residual vectors at a depth."""
        return self.unembed(self.transform_hidden(residual, depth))

    def to_dict(self) -> dict[str, Any]:
        """What the lens is, as JSON: the same for every model that it reads."""
        return {
            "name": self.name,
            "kind": self.kind,
            "readout": self.other or "own",
            "sha256": self.digest,
            "fitted": in_short(self.about),
        }


def _logit_scale(model: PreTrainedModel, config: Any) -> float:
    scale = 1.0
    if hasattr(config, "logit_scale") and config.logit_scale is not None:  # Cohere
        scale *= float(config.logit_scale)
    if hasattr(config, "logits_scaling") and config.logits_scaling is not None:  # Granite
        scale /= float(config.logits_scaling)
    return scale


def _in_fp32(module: nn.Module, home: torch.device | None) -> nn.Module:
    """The module itself where it is fp32 and at home already, else an fp32 copy; the model keeps its own precision."""
    if any(hasattr(part, "_hf_hook") for part in module.modules()) and home is not None:
        with torch.inference_mode(False):
            return own_copy(module, home)
    if all(parameter.dtype == torch.float32 for parameter in module.parameters()):
        return module
    with torch.inference_mode(False):  # fits take gradients through it
        return copy.deepcopy(module).float()
