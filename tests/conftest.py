"""What many tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A tiny Llama with a byte-level tokenizer, as a Hugging Face directory. Copy it before changing it."""
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")
