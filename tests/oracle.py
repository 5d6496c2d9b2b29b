"""The independent computation that capture is held against: plain Hugging Face modules, one factoid at a time.

No batches, no padding, no hooks, and nothing of ``memprobe.models``, ``lenses`` or ``capture``. Residual
streams come from ``output_hidden_states`` of a copy whose final norm is taken out (in the model itself the last
entry is normed already); norms, heads, scales and softcaps are written out by hand for each family, in fp64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

NORM_OF = {
    "llama": "model.norm",
    "mistral": "model.norm",
    "qwen2": "model.norm",
    "qwen3": "model.norm",
    "olmo2": "model.norm",
    "granite": "model.norm",
    "gemma2": "model.norm",
    "gemma3_text": "model.norm",
    "cohere": "model.norm",
    "phi": "model.final_layernorm",
    "gpt2": "transformer.ln_f",
    "bloom": "transformer.ln_f",
    "falcon": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}
"""Where each architecture keeps its final norm."""


@dataclass(frozen=True)
class Row:
    """One answer token at one depth, by brute force over ``logits`` [vocab]."""

    logits: np.ndarray
    target: int

    @property
    def rank(self) -> int:
        return sum(1 for logit in self.logits.tolist() if logit >= self.logits[self.target]) - 1

    @property
    def rank_bounds(self) -> tuple[int, int]:
        """Ranks that are right within DESIGN's 1e-4 on a logit."""
        value = self.logits[self.target]
        return int((self.logits > value + 1e-4).sum()), int((self.logits > value - 1e-4).sum()) - 1

    @property
    def log_probs(self) -> np.ndarray:
        shifted = self.logits - self.logits.max()
        return shifted - np.log(np.exp(shifted).sum())

    @property
    def log_prob(self) -> float:
        return float(self.log_probs[self.target])

    @property
    def entropy(self) -> float:
        return float(-(np.exp(self.log_probs) * self.log_probs).sum())


def residuals(model: PreTrainedModel, ids: list[int]) -> np.ndarray:
    """The residual stream [n_layers + 1, positions, d_model] of one sequence, before the final norm."""
    bare = copy.deepcopy(model)
    _replace(bare, NORM_OF[model.config.model_type], nn.Identity())
    if model.config.model_type == "opt":
        bare.model.decoder.project_out = None
    with torch.no_grad():
        hidden = bare.base_model(
            input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False
        ).hidden_states
    assert len(hidden) == model.config.num_hidden_layers + 1
    return torch.stack([state[0] for state in hidden]).double().numpy()


def readout(model: PreTrainedModel, hidden: np.ndarray) -> np.ndarray:
    """Logits [..., vocab] of residual vectors [..., d_model], by each family's own formula."""
    kind, config = model.config.model_type, model.config
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    name = NORM_OF[kind]
    gain, shift = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
    if kind in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "granite"):
        hidden = _rms(hidden, config.rms_norm_eps) * gain
    elif kind in ("gemma2", "gemma3_text"):
        hidden = _rms(hidden, config.rms_norm_eps) * (1 + gain)
    elif kind == "cohere":  # LayerNorm without a bias
        hidden = _standardised(hidden, config.layer_norm_eps) * gain
    elif kind in ("gpt2", "bloom", "falcon"):
        hidden = _standardised(hidden, config.layer_norm_epsilon) * gain + shift
    elif kind in ("phi", "gpt_neox"):
        hidden = _standardised(hidden, config.layer_norm_eps) * gain + shift
    elif kind == "opt":
        if config.do_layer_norm_before:  # else the last block has normed the stream itself
            hidden = _standardised(hidden, 1e-5) * gain + shift
        if config.word_embed_proj_dim != config.hidden_size:
            hidden = hidden @ weights["model.decoder.project_out.weight"].T
    head = "embed_out" if "embed_out.weight" in weights else "lm_head"
    logits = hidden @ weights[f"{head}.weight"].T
    if kind == "phi":
        logits = logits + weights[f"{head}.bias"]
    if kind == "cohere":
        logits = logits * config.logit_scale
    if kind == "granite":
        logits = logits / config.logits_scaling
    if kind == "gemma2":
        logits = np.tanh(logits / config.final_logit_softcapping) * config.final_logit_softcapping
    return logits


def answer_logits(
    model: PreTrainedModel,
    prompt: tuple[int, ...],
    targets: tuple[int, ...],
    reader: PreTrainedModel | None = None,
) -> np.ndarray:
    """Logits [n_layers + 1, targets, vocab] at the positions that predict ``targets``, each read alone.

    Every target gets a forward pass of its own over exactly the tokens before it.
    """
    columns = []
    for done in range(len(targets)):
        stream = residuals(model, [*prompt, *targets[:done]])[:, -1]
        columns.append(readout(reader or model, stream))
    return np.stack(columns, axis=1)


def greedy(model: PreTrainedModel, prompt: tuple[int, ...], n: int, stops: frozenset[int]) -> list[int]:
    """At most ``n`` argmax tokens after a prompt, one whole forward pass each; a stop token is kept."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def _rms(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def _standardised(x: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    if getattr(model.get_submodule(parent), leaf) is not None:
        setattr(model.get_submodule(parent), leaf, module)
