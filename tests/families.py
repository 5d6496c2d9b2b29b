"""Tiny random models of a hundred families, each held against one unpadded forward pass.

``python -m tests.families docs/reference/families.md`` writes the table of the documentation: which families are read,
how their prompts may share a forward pass, and which are refused with what words.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from memprobe.answers import budget, cut, stop_ids
from memprobe.batching import sharing
from memprobe.blocks import residual_hooks
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.interventions import Put, applied
from memprobe.models import LensModel, wrap
from memprobe.modes import evaluating
from memprobe.patch_plan import plan_patches
from memprobe.patching import patch_batches
from memprobe.templates import Template, tokenise
from tests.tiny import tiny_tokenizer

FACTS = [
    make_factoid("The river of Oria is the", "Lunn", "test"),
    make_factoid("2", "19", "test"),
    make_factoid("The tallest hill of Selva, which few have climbed and many know, is", "Peak Nine", "test"),
    make_factoid("The opposite of hot is", "cold", "test"),
]

_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "head_dim": 8,
}  # fmt: skip
_GENTLE = ("mamba", "mamba2", "falcon_mamba", "bamba", "jamba")  # states that larger weights let explode

# fmt: off
# ruff: noqa: E501
FAMILIES: dict[str, dict[str, Any]] = {
    'afmoe': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16, 'num_dense_layers': 1, 'num_experts_per_tok': 2},
    'apertus': _LLAMA,
    'arcee': _LLAMA,
    'bailing_hybrid': _LLAMA | {'num_experts': 8, 'moe_intermediate_size': 16, 'num_experts_per_token': 2, 'num_expert_group': 2, 'topk_group': 1},
    'bamba': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'num_hidden_layers': 4, 'attn_layer_indices': [1], 'mamba_n_heads': 8, 'mamba_d_head': 8, 'mamba_d_state': 8, 'mamba_chunk_size': 16},
    'bart': {'d_model': 32, 'decoder_layers': 4, 'encoder_layers': 4, 'decoder_attention_heads': 4, 'encoder_attention_heads': 4, 'decoder_ffn_dim': 48, 'encoder_ffn_dim': 48, 'is_decoder': True, 'is_encoder_decoder': False},
    'bert': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_hidden_layers': 4, 'is_decoder': True},
    'biogpt': {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 4, 'num_attention_heads': 4, 'max_position_embeddings': 256},
    'bitnet': _LLAMA,
    'codegen': {'n_embd': 32, 'n_head': 4, 'n_layer': 4, 'rotary_dim': 4, 'n_positions': 256},
    'cohere2': _LLAMA | {'logit_scale': 0.3, 'sliding_window': 8},
    'cohere2_moe': _LLAMA,
    'ctrl': {'n_embd': 32, 'dff': 48, 'n_layer': 4, 'n_head': 4, 'n_positions': 256},
    'cwm': _LLAMA,
    'deepseek_v2': {'hidden_size': 32, 'intermediate_size': 48, 'moe_intermediate_size': 16, 'num_hidden_layers': 4, 'num_attention_heads': 4, 'num_key_value_heads': 4, 'n_routed_experts': 4, 'n_group': 1, 'topk_group': 1, 'num_experts_per_tok': 2, 'kv_lora_rank': 8, 'q_lora_rank': 8, 'qk_rope_head_dim': 8, 'v_head_dim': 8, 'qk_nope_head_dim': 8, 'first_k_dense_replace': 1},
    'deepseek_v3': {'hidden_size': 32, 'intermediate_size': 48, 'moe_intermediate_size': 16, 'num_hidden_layers': 4, 'num_attention_heads': 4, 'num_key_value_heads': 4, 'n_routed_experts': 4, 'n_group': 1, 'topk_group': 1, 'num_experts_per_tok': 2, 'kv_lora_rank': 8, 'q_lora_rank': 8, 'qk_rope_head_dim': 8, 'v_head_dim': 8, 'qk_nope_head_dim': 8, 'first_k_dense_replace': 1},
    'deepseek_v4': _LLAMA | {'n_routed_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'diffllama': _LLAMA,
    'doge': _LLAMA | {'sliding_window': None},
    'dots1': _LLAMA | {'n_routed_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2, 'n_group': 1, 'topk_group': 1, 'first_k_dense_replace': 1, 'n_shared_experts': 1},
    'ernie4_5': _LLAMA,
    'exaone4': _LLAMA | {'sliding_window': 8},
    'exaone_moe': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'falcon_h1': _LLAMA | {'mamba_d_ssm': 32, 'mamba_n_heads': 4, 'mamba_d_head': 8, 'mamba_d_state': 8, 'lm_head_multiplier': 0.3, 'embedding_multiplier': 2.0, 'mamba_chunk_size': 16},
    'falcon_mamba': {'hidden_size': 32, 'num_hidden_layers': 4, 'state_size': 8},
    'flex_olmo': _LLAMA | {'num_experts': 4, 'num_experts_per_tok': 2},
    'gemma': _LLAMA,
    'gemma3': {'text_config': _LLAMA | {'vocab_size': 320, 'sliding_window': 8, 'max_position_embeddings': 256}, 'vision_config': {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 4, 'num_attention_heads': 2, 'image_size': 16, 'patch_size': 8}, 'mm_tokens_per_image': 4},
    'gemma3n_text': _LLAMA | {'laurel_rank': 4, 'hidden_size_per_layer_input': 8, 'altup_num_inputs': 2, 'num_kv_shared_layers': 0, 'vocab_size_per_layer_input': 320, 'sliding_window': 8, 'activation_sparsity_pattern': [0.0, 0.0, 0.0, 0.0]},
    'gemma4_text': _LLAMA | {'sliding_window': 8, 'hidden_size_per_layer_input': 0, 'num_kv_shared_layers': 0},
    'glm': _LLAMA,
    'glm4': _LLAMA,
    'glm4_moe': _LLAMA | {'n_routed_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2, 'n_group': 1, 'topk_group': 1, 'first_k_dense_replace': 1},
    'glm4_moe_lite': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 4, 'num_hidden_layers': 4, 'moe_intermediate_size': 16, 'n_routed_experts': 4, 'num_experts_per_tok': 2, 'n_group': 1, 'topk_group': 1, 'first_k_dense_replace': 1, 'kv_lora_rank': 8, 'q_lora_rank': 8, 'qk_rope_head_dim': 8, 'v_head_dim': 8, 'qk_nope_head_dim': 8},
    'gpt_bigcode': {'n_embd': 32, 'n_head': 4, 'n_layer': 4, 'n_positions': 256},
    'gpt_neo': {'hidden_size': 32, 'num_layers': 4, 'num_heads': 4, 'attention_types': [[['global', 'local'], 2]], 'window_size': 8, 'max_position_embeddings': 256},
    'gpt_neox_japanese': {'hidden_size': 32, 'intermediate_multiple_size': 2, 'num_attention_heads': 4, 'num_hidden_layers': 4},
    'gpt_oss': _LLAMA | {'num_local_experts': 4, 'num_experts_per_tok': 2, 'sliding_window': 8, 'layer_types': None},
    'gptj': {'n_embd': 32, 'n_head': 4, 'n_layer': 4, 'rotary_dim': 4, 'n_positions': 256},
    'granite_swa': _LLAMA,
    'granitemoe': _LLAMA | {'num_local_experts': 4, 'num_experts_per_tok': 2, 'logits_scaling': 3.0},
    'granitemoehybrid': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'num_hidden_layers': 4, 'layer_types': ['mamba', 'attention', 'mamba', 'attention'], 'num_local_experts': 2, 'num_experts_per_tok': 1, 'shared_intermediate_size': 16, 'mamba_n_heads': 8, 'mamba_d_head': 8, 'mamba_d_state': 8, 'mamba_chunk_size': 16, 'logits_scaling': 4.0},
    'helium': _LLAMA,
    'hrm_text': _LLAMA,
    'hunyuan_v1_dense': _LLAMA,
    'hy_v3': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'hyperclovax': _LLAMA | {'logits_scaling': 0.3},
    'inkling_text': _LLAMA | {'n_routed_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'internlm3': _LLAMA,
    'iquestcoder': _LLAMA,
    'jais2': _LLAMA,
    'jamba': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'num_hidden_layers': 4, 'attn_layer_period': 2, 'attn_layer_offset': 1, 'expert_layer_period': 2, 'expert_layer_offset': 1, 'num_experts': 2, 'use_mamba_kernels': False, 'mamba_d_state': 8, 'mamba_dt_rank': 4},
    'jetmoe': {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 4, 'num_key_value_heads': 2, 'kv_channels': 8, 'num_local_experts': 2, 'num_experts_per_tok': 1},
    'kimi_linear': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 4, 'num_hidden_layers': 4, 'num_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_token': 2, 'linear_attn_config': {'kda_layers': [1, 2, 3], 'full_attn_layers': [4], 'num_heads': 4, 'head_dim': 8, 'short_conv_kernel_size': 4}, 'kv_lora_rank': 8, 'q_lora_rank': 8, 'qk_rope_head_dim': 8, 'v_head_dim': 8, 'qk_nope_head_dim': 8},
    'kolibri1': _LLAMA | {'num_local_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'laguna': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'lfm2': _LLAMA,
    'lfm3': _LLAMA,
    'llama4': {'text_config': _LLAMA | {'vocab_size': 320, 'num_local_experts': 2, 'intermediate_size_mlp': 48, 'attention_chunk_size': 8}, 'vision_config': {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2}},
    'llama4_text': _LLAMA | {'num_local_experts': 2, 'intermediate_size_mlp': 48, 'interleave_moe_layer_step': 2, 'attention_chunk_size': 8},
    'longcat_flash': _LLAMA | {'num_layers': 2, 'ffn_hidden_size': 48, 'expert_ffn_hidden_size': 16, 'n_routed_experts': 4, 'zero_expert_num': 1, 'moe_topk': 2, 'kv_lora_rank': 8, 'q_lora_rank': 8, 'qk_rope_head_dim': 8, 'v_head_dim': 8, 'qk_nope_head_dim': 8},
    'mamba': {'hidden_size': 32, 'num_hidden_layers': 4, 'state_size': 8},
    'mamba2': {'hidden_size': 32, 'num_hidden_layers': 4, 'state_size': 8, 'num_heads': 8, 'head_dim': 8, 'n_groups': 1, 'chunk_size': 16},
    'mellum': _LLAMA | {'num_local_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'mimo_v2_flash': _LLAMA | {'n_routed_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'minicpm3': {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 4, 'num_attention_heads': 4, 'num_key_value_heads': 4, 'kv_lora_rank': 8, 'q_lora_rank': 8, 'qk_rope_head_dim': 8, 'v_head_dim': 8, 'qk_nope_head_dim': 8, 'scale_emb': 3.0, 'dim_model_base': 8, 'scale_depth': 1.4},
    'minimax': _LLAMA | {'num_local_experts': 2, 'num_experts_per_tok': 1, 'block_size': 8},
    'minimax_m2': _LLAMA | {'num_local_experts': 4, 'num_experts_per_tok': 2},
    'ministral': _LLAMA | {'sliding_window': 8},
    'mixtral': _LLAMA | {'num_local_experts': 4},
    'modernbert-decoder': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_hidden_layers': 4, 'local_attention': 8},
    'mpt': {'d_model': 32, 'n_heads': 4, 'n_layers': 4, 'max_seq_len': 256},
    'nanochat': _LLAMA,
    'nemotron': _LLAMA,
    'nemotron_h': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8, 'layers_block_type': ['mamba', 'attention', 'mamba', 'moe'], 'mamba_num_heads': 8, 'mamba_head_dim': 8, 'ssm_state_size': 8, 'n_groups': 1, 'chunk_size': 16, 'n_routed_experts': 4, 'moe_intermediate_size': 16, 'moe_shared_expert_intermediate_size': 16, 'num_experts_per_tok': 2, 'n_group': 1, 'topk_group': 1},
    'olmo': _LLAMA,
    'olmo3': _LLAMA | {'sliding_window': 8},
    'olmo_hybrid': _LLAMA,
    'olmoe': _LLAMA | {'num_experts': 4, 'num_experts_per_tok': 2},
    'openai-gpt': {'n_embd': 32, 'n_layer': 4, 'n_head': 4, 'n_positions': 256},
    'opt': {'hidden_size': 32, 'ffn_dim': 48, 'num_attention_heads': 4, 'num_hidden_layers': 4, 'word_embed_proj_dim': 32},
    'persimmon': _LLAMA,
    'phi3': _LLAMA | {'pad_token_id': 2},
    'phimoe': _LLAMA | {'num_local_experts': 2},
    'qwen2_moe': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16, 'shared_expert_intermediate_size': 16, 'num_experts_per_tok': 2},
    'qwen3_5': {'text_config': _LLAMA | {'vocab_size': 320, 'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 8, 'linear_value_head_dim': 8}, 'vision_config': {'hidden_size': 16, 'intermediate_size': 16, 'depth': 2, 'num_heads': 2, 'out_hidden_size': 32}},
    'qwen3_5_text': _LLAMA | {'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 8, 'linear_value_head_dim': 8},
    'qwen3_moe': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2},
    'qwen3_next': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2, 'shared_expert_intermediate_size': 16, 'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 8, 'linear_value_head_dim': 8},
    'recurrent_gemma': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'num_hidden_layers': 4, 'lru_width': 32, 'attention_window_size': 8},
    'reformer': {'hidden_size': 32, 'num_attention_heads': 2, 'attention_head_size': 16, 'feed_forward_size': 48, 'attn_layers': ['local', 'local'], 'is_decoder': True, 'axial_pos_shape': [16, 16], 'axial_pos_embds_dim': [16, 16], 'local_attn_chunk_length': 8},
    'rwkv': {'hidden_size': 32, 'attention_hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 8, 'rescale_every': 2, 'context_length': 256},
    'seed_oss': _LLAMA,
    'smollm3': _LLAMA,
    'solar_open': _LLAMA | {'n_routed_experts': 4, 'moe_intermediate_size': 16, 'num_experts_per_tok': 2, 'n_group': 1, 'topk_group': 1},
    'stablelm': _LLAMA,
    'starcoder2': _LLAMA,
    'vaultgemma': _LLAMA | {'sliding_window': 8},
    'xglm': {'d_model': 32, 'ffn_dim': 48, 'num_layers': 4, 'attention_heads': 4, 'max_position_embeddings': 256},
    'xlnet': {'d_model': 32, 'n_layer': 4, 'n_head': 4, 'd_inner': 48},
    'xlstm': {'hidden_size': 32, 'num_blocks': 4, 'num_heads': 4, 'embedding_dim': 32, 'num_hidden_layers': 4},
    'youtu': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 4, 'num_hidden_layers': 4, 'kv_lora_rank': 8, 'q_lora_rank': 8, 'qk_rope_head_dim': 8, 'v_head_dim': 8, 'qk_nope_head_dim': 8},
    'zamba2': {'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4, 'num_key_value_heads': 4, 'num_hidden_layers': 4, 'mamba_d_state': 8, 'n_mamba_heads': 8, 'mamba_headdim': 8, 'mamba_ngroups': 1, 'layers_block_type': ['mamba', 'hybrid', 'mamba', 'hybrid'], 'num_mem_blocks': 1, 'chunk_size': 16, 'attention_head_dim': 16},
    'zaya': _LLAMA | {'num_experts': 4, 'moe_intermediate_size': 16},
}
# fmt: on


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model, every parameter perturbed so that no unit gain or zero bias hides an error."""
    settings = dict(FAMILIES[family])
    if "text_config" not in settings:
        settings = {"vocab_size": 320, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1} | settings
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                (0.05 if family in _GENTLE else 0.15) * torch.randn(parameter.shape, generator=random)
            )
    return model


@dataclass(frozen=True)
class Found:
    """What came of a family.

    Attributes:
        architecture: the class.
        refused: why it is not read; ``None`` where it is.
        together: how its prompts may share a forward pass (:class:`memprobe.batching.Sharing`).
        log_prob: largest difference of a log-probability at full depth from one unpadded pass, nats.
        ranks: how many ranks at full depth differ.
        predictions: how many predictions differ from greedy decoding without cache, batch or filling.
        alone: how many records or predictions differ between one batch and one factoid at a time.
        unpatched: why its states cannot be patched; ``None`` where they can.
        patched: largest difference of a log-probability after a patch from hooks on a whole pass, nats.
    """

    architecture: str
    refused: str | None = None
    together: str = ""
    log_prob: float = 0.0
    ranks: int = 0
    predictions: int = 0
    alone: int = 0
    unpatched: str | None = None
    patched: float = 0.0


def examine(family: str) -> Found:
    """Reads a family's tiny model and holds what was read against its own forward passes."""
    model = build(family)
    name = type(model).__name__
    try:
        read = wrap(model, tiny_tokenizer(), label=family)
        tables = capture(read, FACTS)
    except MemprobeError as error:
        return Found(name, refused=str(error).removeprefix(f"{family}: "))
    single = capture(read, FACTS, batch_size=1)
    keys = ["factoid", "token", "depth"]
    both = tables.records.join(single.records, on=keys, suffix="_alone")
    far = both.filter((pl.col("log_prob") - pl.col("log_prob_alone")).abs() > 1e-3).height
    said = tables.outcomes.sort("factoid"), single.outcomes.sort("factoid")
    log_prob, ranks, predictions = _by_hand(read, tables.records, tables.outcomes)
    unpatched, patched = None, 0.0
    try:
        patched = _patched_by_hand(read, wrap(build(family, seed=1), read.tokenizer, label="source"))
    except MemprobeError as error:
        unpatched = str(error).removeprefix(f"{family}: ")
    return Found(
        name,
        together=sharing(read).name.lower(),
        log_prob=log_prob,
        ranks=ranks,
        predictions=predictions,
        alone=far + (said[0]["prediction"] != said[1]["prediction"]).sum(),
        unpatched=unpatched,
        patched=patched,
    )


@torch.no_grad()
def _patched_by_hand(target: LensModel, source: LensModel) -> float:
    """The largest difference of patches at the last positions from the same states put in by hooks."""
    plan = plan_patches(source, target, FACTS, controls=[])
    table = pl.concat(list(patch_batches(source, target, plan)))
    item = next(question.item for question in plan.questions if question.item.factoid == FACTS[0])
    ids, columns = torch.tensor([item.inputs]), list(range(len(item.prompt) - 1, len(item.inputs)))
    kept: dict[int, torch.Tensor] = {}
    with evaluating(source.model), residual_hooks(source.blocks, kept.__setitem__):
        source.model(input_ids=ids, use_cache=False)
    worst = 0.0
    for depth in range(target.n_layers + 1):
        with (
            evaluating(target.model),
            applied(target, Put(depth, kept[depth][:, columns], positions=columns)),
        ):
            lines = target.model(input_ids=ids, use_cache=False).logits[0, columns].float().log_softmax(-1)
        found = table.filter(factoid=item.factoid.id, depth=depth).sort("token")["log_prob"]
        wanted = [lines[j, token].item() for j, token in enumerate(item.targets)]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, wanted, strict=True)))
    return worst


@torch.no_grad()
def _by_hand(read: LensModel, records: pl.DataFrame, outcomes: pl.DataFrame) -> tuple[float, int, int]:
    """Differences from one plain forward pass for each factoid, and for each new token."""
    worst, ranks, predictions = 0.0, 0, 0
    deepest = records.filter(depth=read.n_layers)
    stops = stop_ids(read, None)
    for fact in FACTS:
        item = tokenise(fact, Template("plain"), read.tokenizer)
        logits = read.model(input_ids=torch.tensor([item.inputs]), use_cache=False).logits[0].float()
        rows = {row["token"]: row for row in deepest.filter(factoid=fact.id).iter_rows(named=True)}
        exact = True
        for j, (index, target) in enumerate(zip(item.target_indices, item.targets, strict=True)):
            line = logits[len(item.prompt) - 1 + j]
            worst = max(worst, abs(float(line.log_softmax(-1)[target]) - rows[index]["log_prob"]))
            low, high = ((line > line[target] + sign * 1e-4).sum() for sign in (1, -1))
            ranks += not low <= rows[index]["rank"] <= high
            exact &= int(line.argmax()) == target
        ids = list(item.prompt)
        while len(ids) < len(item.prompt) + budget(item, read.tokenizer) and not (
            len(ids) > len(item.prompt) and ids[-1] in stops
        ):
            ids.append(int(read.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        text = read.tokenizer.decode(ids[len(item.prompt) :], skip_special_tokens=True).split("\n")[0]
        prediction = outcomes.filter(factoid=fact.id)["prediction"].item()
        predictions += prediction != (fact.answer if exact else cut(text, fact.answer))
    return worst, ranks, predictions


def table() -> str:
    """The page of the documentation."""
    lines = [
        "# Families",
        "",
        "Tiny random models of each family that transformers builds as a causal LM, read by memprobe and held against",
        "one unpadded forward pass for each factoid: log-probabilities and ranks at full depth, and greedy predictions",
        "alone and in a batch. `python -m tests.families docs/reference/families.md` writes this page; `make test`",
        "repeats every row.",
        "",
        "*Together* is what was measured of prompts in one forward pass of generation: `filled`: any, filled up on the",
        "left; `equal`: those of one length; `alone`: one at a time; `no_cache`: one at a time, every token from a",
        "whole pass, because the family's cache gives other logits than its forward pass.",
        "",
        "*Patched*: states of another random model, patched in at every depth as `memprobe patch` does it, give the",
        "log-probabilities that hooks on a whole forward pass give.",
        "",
        "| family | class | read | together | patched |",
        "|---|---|---|---|---|",
    ]
    for family in sorted(FAMILIES):
        found = examine(family)
        read = "yes" if found.refused is None else f"no: {found.refused}"
        patched = "" if found.refused else "yes" if found.unpatched is None else f"no: {found.unpatched}"
        lines.append(f"| {family} | {found.architecture} | {read} | {found.together} | {patched} |")
        print(family, found, file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
