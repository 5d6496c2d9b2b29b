"""Residual vectors → logits. The Logit Lens reads any depth with the model's own final norm and unembedding.

    residual [rows, d_model] ──final norm──> ──unembedding──> ──scale, softcap──> logits [rows, vocab]

nostalgebraist (2020), "interpreting GPT: the logit lens". The readout is computed in fp32 whatever the
model's own precision; :func:`memprobe.models.wrap` checks it against the model's logits.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memprobe.errors import MemprobeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LogitLens(nn.Module):
    """The model's own readout as a function of one residual vector.

    Attributes:
        final: what the model applies after its last block, in order: the final norm, and for OPT the
            projection to the embedding width.
        unembedding: the output head, with its bias where the family has one.
        scale: factor on the logits (Cohere's ``logit_scale``, 1 / Granite's ``logits_scaling``).
        softcap: logits become softcap · tanh(logits / softcap) (Gemma 2); ``None`` for most.
    """

    def __init__(self, final: list[nn.Module], unembedding: nn.Module, scale: float, softcap: float | None):
        super().__init__()
        self.final = nn.ModuleList(_in_fp32(module) for module in final)
        self.unembedding = _in_fp32(unembedding)
        self.scale = scale
        self.softcap = softcap

    @classmethod
    def of(cls, model: PreTrainedModel, final: list[nn.Module]) -> LogitLens:
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
        return cls(final, head, _logit_scale(model, config), getattr(config, "final_logit_softcapping", None))

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        weight = self.unembedding.weight
        assert isinstance(weight, Tensor)
        return weight.shape[0]

    def transform_hidden(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_head"]:
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
        return self.unembed(self.transform_hidden(residual))


def _logit_scale(model: PreTrainedModel, config: Any) -> float:
    scale = 1.0
    if hasattr(config, "logit_scale") and config.logit_scale is not None:  # Cohere
        scale *= float(config.logit_scale)
    if hasattr(config, "logits_scaling") and config.logits_scaling is not None:  # Granite
        scale /= float(config.logits_scaling)
    return scale


def _in_fp32(module: nn.Module) -> nn.Module:
    """The module itself where it is fp32 already, else an fp32 copy; the model keeps its own precision."""
    if all(parameter.dtype == torch.float32 for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).float()
