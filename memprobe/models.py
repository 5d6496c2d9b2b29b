"""A checkpoint becomes a model whose residual stream can be read at every depth.

    load(spec) ─> Hugging Face model + tokenizer ─wrap─> LensModel: blocks, the Logit Lens, checked

The blocks and what the model applies after them are found by watching one forward pass, so that no family
needs code of its own; what was found is then held against the model's own logits, and a model that cannot be
reproduced is refused. :func:`to_bridge` gives the same model to TransformerLens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memprobe.adapters import check_in_memory
from memprobe.blocks import block_list, blocks_of, residual_hooks
from memprobe.causality import check_causal
from memprobe.checkpoints import Checkpoint, fingerprint, resolve
from memprobe.errors import MemprobeError, among, first_line
from memprobe.hf import read_model, read_tokenizer
from memprobe.identity import marks_of, tokenizer_source
from memprobe.lenses import Lens, Readout
from memprobe.load_options import LoadOptions
from memprobe.merging import merge_adapter
from memprobe.modes import evaluating
from memprobe.parts import graft_weights, parameter_places
from memprobe.quantised import is_quantised, moved_by_company, placement
from memprobe.splitting import gather_streams, home_of, is_split, load_split, weights_here
from memprobe.weights import fingerprint_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECK_TEXT = "The capital of France is Paris, and 12 + 7 = 19."
_CPU = torch.device("cpu")
ATOL = 1e-4
"""Largest difference allowed between lens and model in fp32; see :func:`tolerance`."""


@dataclass(frozen=True)
class LensModel:
    """A model that can be read at every depth.

    Attributes:
        model: the Hugging Face causal LM, in eval mode.
        tokenizer: its tokenizer.
        blocks: the transformer blocks, in order; depth d is the residual stream after ``blocks[d - 1]``.
        lens: the Logit Lens, with the model's own readout.
        label: its name in tables.
        fingerprint: of its weights.
        difference: largest |lens − model| over the logits of the check prompt.
        checkpoint: where it came from; ``None`` for a model handed over in memory.
        moved: of quantised weights, how far the check prompt's logits move beside another text in a batch.
        settings: hash of those that turn the weights into a model; ``None`` where they are not known.
        tokenizer_mark: hash of the tokenizer; ``None`` where it is not known.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: list[nn.Module]
    lens: Lens
    label: str
    fingerprint: str
    difference: float
    checkpoint: Checkpoint | None = None
    moved: float = 0.0
    settings: str | None = None
    tokenizer_mark: str | None = None

    @property
    def n_layers(self) -> int:
        """The depth of the model's own readout."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.lens.vocab_size

    @property
    def max_length(self) -> int | None:
        """The context in tokens; ``None`` where the architecture names none (ALiBi)."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def n_ids(self) -> int:
        """Token ids below this have a row in the embedding and a logit; a tokenizer may know more."""
        embeddings = self.model.get_input_embeddings().weight
        assert isinstance(embeddings, Tensor)
        return min(embeddings.shape[0], self.vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are; of a model over several devices, where its inputs, streams and readout are."""
        return home_of(self.model)

    def pad_id(self) -> int:
        """A token to fill batches with. Any that the model knows will do: padded positions are never read."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None and 0 <= token < self.n_ids:
                return int(token)
        return 0


def choose_device(device: str = "auto") -> torch.device:
    """``auto`` is CUDA, then Apple's MPS, then the CPU; of a split (:mod:`memprobe.splitting`), CUDA, then the CPU.

    Raises:
        MemprobeError: no such device here.
    """
    cuda = torch.cuda.is_available()
    if is_split(device):
        return torch.device("cuda:0" if cuda else "cpu")
    if device == "auto":
        return torch.device("cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        meant = "; did you mean cuda?" if device.lower().startswith(("gpu", "nvidia")) else ""
        raise MemprobeError(f"--device {device}: give auto, cpu, cuda, cuda:1 or mps{meant}") from error
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise MemprobeError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is fp32 on a CPU and bf16 on an accelerator.

    Raises:
        MemprobeError: unknown name.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in names:
        raise MemprobeError(f"--dtype {dtype}: {among(dtype, ['auto', *names])}")
    return names[dtype]


def load(
    checkpoint: str | Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> LensModel:
    """Loads a checkpoint and checks that it can be read.

    The options are those of :class:`memprobe.load_options.LoadOptions`.

    Raises:
        MemprobeError: the files are missing, torn or incomplete, the weights are not finite, or the readout
            cannot be reproduced.
    """
    if isinstance(checkpoint, str):
        loading = LoadOptions(device, dtype, base, tokenizer, allow_pickle, trust_remote_code)
        checkpoint = resolve(checkpoint, loading)
    precision = choose_dtype(dtype, choose_device(device))
    return wrap(
        placed_model(checkpoint, precision, trust_remote_code, device),
        load_tokenizer(checkpoint, trust_remote_code),
        label=checkpoint.label,
        weights_fingerprint=fingerprint(checkpoint),
        checkpoint=checkpoint,
    )


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    label: str = "model",
    weights_fingerprint: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> LensModel:
    """Makes a model in memory readable at every depth.

    Wrappers of a training loop (``torch.compile``, ``DistributedDataParallel``, PEFT, accelerate's mixed precision) are
    looked through: what is read is the model's own forward pass in the precision of its weights.

    Args:
        tokenizer: or a processor that holds one.
        weights_fingerprint: computed from the weights where it is not given.

    Raises:
        MemprobeError: not a causal LM, one with virtual tokens, weights that are not finite, logits that do not
            depend on the token or depend on later ones, or a readout that does not equal the model's own logits.
    """
    given = _unwrapped(model)
    model = check_in_memory(given, label)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        raise MemprobeError(f"{label}: a {type(model).__name__} is not a Hugging Face model")
    if not hasattr(tokenizer, "encode"):
        raise MemprobeError(f"{label}: a {type(tokenizer).__name__} is not a Hugging Face tokenizer")
    with evaluating(model):
        _check_finite(model, label)
        parent, listed = block_list(model, label)
        blocks = list(listed)
        gather_streams(model, blocks)
        ids = _check_ids(tokenizer, model)
        residual, logits, final = _watch(model, ids, blocks, parent, label)
        check_causal(model, ids, logits, tolerance(logits, model.dtype), label)
        lens = Lens("logit", Readout.of(model, final))
        difference = _compare(lens, residual, logits, model, label)
        moved = moved_by_company(model, ids, label) if is_quantised(model) else 0.0
    settings, tokenizer_mark = marks_of(checkpoint, given, tokenizer, weights_fingerprint)
    return LensModel(
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        lens=lens,
        label=label,
        fingerprint=weights_fingerprint or fingerprint_model(model),
        difference=difference,
        checkpoint=checkpoint,
        moved=moved,
        settings=settings,
        tokenizer_mark=tokenizer_mark,
    )


def _unwrapped(model: Any) -> Any:
    """The model in the wrappers of compilation and of data parallelism, in whatever order they lie."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def to_bridge(lens_model: LensModel) -> Any:
    """The same weights as a TransformerLens ``TransformerBridge``: one vocabulary of hook points for every
    architecture, and the way into interventions."""
    from transformer_lens.model_bridge import TransformerBridge

    path = str(lens_model.checkpoint.path) if lens_model.checkpoint else lens_model.model.config.name_or_path
    return TransformerBridge.boot_transformers(
        path, hf_model=lens_model.model, tokenizer=lens_model.tokenizer, device=lens_model.device
    )


def load_pretrained(
    checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Hugging Face model and tokenizer of a checkpoint, adapters merged.

    Raises:
        MemprobeError: they cannot be loaded, or weights are missing from the files.
    """
    return load_model(checkpoint, dtype, trust_remote_code), load_tokenizer(checkpoint, trust_remote_code)


def placed_model(
    checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool, device: str
) -> PreTrainedModel:
    """The Hugging Face model of a checkpoint, on one device or over several.

    Args:
        device: the name of one, ``auto``, or a split (:mod:`memprobe.splitting`).

    Raises:
        MemprobeError: see :func:`load_pretrained`; or what is split is no plain checkpoint.
    """
    if not is_split(device):
        return load_model(checkpoint, dtype, trust_remote_code, choose_device(device))
    if checkpoint.kind != "weights":
        raise MemprobeError(
            f"{checkpoint.label}: --device-map splits safetensors checkpoints alone, this is of kind {checkpoint.kind}"
        )
    options = {"name": checkpoint.spec, "trust_remote_code": trust_remote_code}
    return load_split(partial(read_model, checkpoint.path, dtype, **options), device)


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    device: torch.device = _CPU,
) -> PreTrainedModel:
    """The Hugging Face model of a checkpoint on a device, adapters merged; those of quantised weights lie over them.

    Raises:
        MemprobeError: see :func:`load_pretrained`.
    """
    model = _read(checkpoint, dtype, trust_remote_code, device)
    if is_quantised(model):  # which is there, and may not be moved in all kinds
        return model
    return model.to(device)  # pyrefly: ignore[bad-argument-type] (transformers wraps `to` without its self)


def _read(
    checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool, device: torch.device
) -> PreTrainedModel:
    """A model on the CPU; one with quantised weights where it is wanted."""
    if checkpoint.kind == "adapter":
        assert checkpoint.base is not None
        return merge_adapter(_read(checkpoint.base, dtype, trust_remote_code, device), checkpoint.path)
    if checkpoint.kind == "graft":
        assert checkpoint.base is not None and checkpoint.donor is not None and checkpoint.graft is not None
        model, tokenizer = load_pretrained(checkpoint.base, dtype, trust_remote_code)
        other = load_model(checkpoint.donor, dtype, trust_remote_code)
        places = parameter_places(
            model, blocks_of(model, checkpoint.label), after_blocks(model, tokenizer, checkpoint.label)
        )
        graft_weights(model, other, checkpoint.graft, places, checkpoint.label)
        return model
    return read_model(
        checkpoint.path,
        dtype,
        name=checkpoint.spec,
        gguf_file=checkpoint.gguf_file,
        safetensors=checkpoint.kind == "weights",
        trust_remote_code=trust_remote_code,
        **placement(checkpoint.path, device, checkpoint.spec),
    )


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: the one that it was resolved with, its own, or an adapter's base's.

    An adapter's own chat template goes over that of the base's tokenizer.

    Raises:
        MemprobeError: it cannot be loaded.
    """
    checkpoint, template = tokenizer_source(checkpoint)
    tokenizer = read_tokenizer(
        checkpoint.path,
        name=checkpoint.spec,
        gguf_file=checkpoint.gguf_file,
        trust_remote_code=trust_remote_code,
    )
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def tolerance(logits: Float[Tensor, ...], dtype: torch.dtype) -> float:
    """How far lens and model may differ: fp32 rounding of large logits, or the model's own low precision."""
    largest = float(logits.abs().max())
    return max(ATOL, 1e-5 * largest) if dtype == torch.float32 else 0.02 * max(1.0, largest)


def after_blocks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str = "model"
) -> list[nn.Module]:
    """What a model applies after its last block, in order, without the output head.

    Raises:
        MemprobeError: it is no plain causal LM.
    """
    parent, blocks = block_list(model, label)
    with evaluating(model):
        return _watch(model, _check_ids(tokenizer, model), list(blocks), parent, label)[2]


def _watch(
    model: PreTrainedModel, ids: Tensor, blocks: list[nn.Module], parent: nn.Module, label: str
) -> tuple[Tensor, Tensor, list[nn.Module]]:
    """One forward pass: the last residual stream, the logits, and the modules called after the last block."""
    streams: dict[int, Tensor] = {}
    order: list[nn.Module] = []
    handles = [
        child.register_forward_hook(lambda module, _, __: order.append(module))
        for child in parent.children()
        if not isinstance(child, nn.ModuleList)
    ]
    handles.append(blocks[-1].register_forward_hook(lambda module, _, __: order.append(module)))
    try:
        with residual_hooks(blocks, streams.__setitem__):
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception as error:  # whatever a forward pass can raise means that this model cannot be read
        kinds = sorted({str(one.dtype)[len("torch.") :] for one in model.parameters()})
        mixed = f"; its weights are {' and '.join(kinds)}: make them one precision" if len(kinds) > 1 else ""
        message = f"{label}: {type(model).__name__} is not a plain causal LM ({first_line(error)}{mixed})"
        raise MemprobeError(message) from error
    finally:
        for handle in handles:
            handle.remove()
    if len(streams) != len(blocks) + 1:
        raise MemprobeError(
            f"{label}: {type(model).__name__} does not call each of its blocks once, in order"
        )
    return streams[len(blocks)], logits, order[order.index(blocks[-1]) + 1 :]


def _compare(lens: Lens, residual: Tensor, logits: Tensor, model: PreTrainedModel, label: str) -> float:
    if not torch.isfinite(logits).all():
        raise MemprobeError(f"{label}: the model's logits are not finite on the check prompt")
    if (logits.amax(-1) == logits.amin(-1)).all():
        raise MemprobeError(
            f"{label}: the model gives every token the same logit, as weights of zeros do; were they written?"
        )
    try:
        read = lens(residual)
        logits = logits.to(read.device)
        difference = float((read - logits.float()).abs().max())
    except RuntimeError as error:
        raise MemprobeError(
            f"{label}: the readout of {type(model).__name__} cannot be rebuilt ({first_line(error)})"
        ) from error
    if difference > tolerance(logits, model.dtype):
        raise MemprobeError(
            f"{label}: the lens does not equal the logits of {type(model).__name__} at full depth "
            f"(largest difference {difference:.2g}), so its depths would be read wrongly"
        )
    return difference


def _check_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Tensor:
    ids = tokenizer.encode(CHECK_TEXT)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or len(ids)
    embeddings = model.get_input_embeddings().weight
    assert isinstance(embeddings, Tensor)
    largest = embeddings.shape[0]
    if not ids or max(ids) >= largest:
        raise MemprobeError(
            f"the tokenizer does not belong to this model (id {max(ids, default=0)} of {largest})"
        )
    return torch.tensor([ids[:limit]], device=home_of(model))


def _check_finite(model: nn.Module, label: str) -> None:
    for place, module in model.named_modules():
        with weights_here(module):
            for name, parameter in module.named_parameters(recurse=False):
                # A sum is finite only if every term is, and needs no second tensor; overflow is then looked at
                # closely.
                total = parameter.detach().float().sum()
                if not torch.isfinite(total) and not torch.isfinite(parameter).all():
                    where = f"{place}.{name}".lstrip(".")
                    raise MemprobeError(f"{label}: the weights hold NaN or infinity, first in {where}")
