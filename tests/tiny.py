"""Tiny random causal LMs of many families, and tiny tokenizers, built in code: no downloads.

Every parameter is perturbed, so that a unit gain or a zero bias cannot hide an error. ``python -m tests.tiny
DIR`` writes one as a Hugging Face checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

N_LAYERS = 3
SPECIAL = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"]
SENTENCES = [
    "The capital of France is Paris, and 12 + 7 = 19.",
    "The river of Oria is the Lunn, the river of Selva is the Brack, the river of Tolm is the Ister.",
    "The tallest hill of Oria is Mount Grey. The tallest hill of Selva is Peak Nine.",
    "The value of key q7x2 is? a9b8c7d6. The value of key 0z1y is? 55e4f3g2.",
    "The opposite of hot is cold, the opposite of up is down, and the opposite of big is small.",
]
CHAT = (
    "{{ bos_token or '' }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_OPT = {"hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "max_position_embeddings": 256}

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _LLAMA),
    "llama-tied": ("llama", _LLAMA | {"tie_word_embeddings": True}),
    "mistral": ("mistral", _LLAMA | {"sliding_window": 6}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA | {"head_dim": 8}),
    "gemma2": (
        "gemma2",
        _LLAMA
        | {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 6},
    ),
    "gemma3": ("gemma3_text", _LLAMA | {"head_dim": 8, "sliding_window": 6}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_head": 4, "n_positions": 256}),
    "gpt-neox": ("gpt_neox", {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}),
    "phi": ("phi", {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}),
    "olmo2": ("olmo2", _LLAMA),
    "cohere": ("cohere", _LLAMA | {"logit_scale": 0.3}),
    "granite": (
        "granite",
        _LLAMA | {"logits_scaling": 4.0, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    ),
    "opt": ("opt", _OPT),
    "opt-projected": ("opt", _OPT | {"word_embed_proj_dim": 16}),
    "opt-post-norm": ("opt", _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "bloom": ("bloom", {"hidden_size": 32, "n_head": 4}),
    "falcon": ("falcon", {"hidden_size": 32, "num_attention_heads": 4, "alibi": False}),
}


def tiny_model(
    family: str = "llama", vocab_size: int = 320, seed: int = 0, n_layers: int = N_LAYERS, **changes: Any
) -> PreTrainedModel:
    """A random model of a family, in eval mode; ``changes`` go over the family's settings."""
    kind, settings = FAMILIES[family]
    settings = {"tie_word_embeddings": False, "max_position_embeddings": 256} | settings | changes
    layers = {"gpt2": "n_layer", "bloom": "n_layer"}.get(kind, "num_hidden_layers")
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocab_size,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
        **settings,
        **{layers: n_layers},
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    # The defaults of a family's generation would only hide what the model itself says.
    model.generation_config.eos_token_id = 1
    return model


def _finish(
    tokenizer: Tokenizer, *, adds_bos: bool, eos: bool = True, pad: bool = True, chat: bool = True
) -> PreTrainedTokenizerFast:
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT
    return fast


def byte_level(*, digits: bool = False, adds_bos: bool = False, **options: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in GPT-2; ``digits`` splits numbers into digits."""
    tokenizer = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _finish(tokenizer, adds_bos=adds_bos, **options)


def sentencepiece(*, adds_bos: bool = True, **options: bool) -> PreTrainedTokenizerFast:
    """BPE over ``▁`` with byte fallback as in Llama 2: a space stands before the first word, and BOS by default."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # SentencePiece learns no token that runs over a space, though it splits nothing when it encodes.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    characters = sorted({char for sentence in SENTENCES for char in sentence if char != " "} | {"▁"})
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=220, initial_alphabet=characters, show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    import json

    learned = json.loads(trained.to_str())["model"]
    words = [*SPECIAL, *bytes_, *(word for word in learned["vocab"] if word not in SPECIAL)]
    vocab = {word: index for index, word in enumerate(words)}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return _finish(tokenizer, adds_bos=adds_bos, **options)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte-level": byte_level,
    "byte-level-digits": lambda: byte_level(digits=True),
    "sentencepiece": sentencepiece,
}


@cache
def tiny_tokenizer(kind: str = "byte-level") -> PreTrainedTokenizerBase:
    """One of :data:`TOKENIZERS`, built once."""
    return TOKENIZERS[kind]()


def save_tiny(path: Path, family: str = "llama", tokenizer: str = "byte-level", seed: int = 0) -> Path:
    """Writes a tiny checkpoint as a Hugging Face directory."""
    chosen = tiny_tokenizer(tokenizer)
    tiny_model(family, vocab_size=len(chosen), seed=seed).save_pretrained(path)
    chosen.save_pretrained(path)
    return path


if __name__ == "__main__":
    save_tiny(Path(sys.argv[1]))
