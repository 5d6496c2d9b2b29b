"""How much disk a grid takes: what is written, whatever format the base model comes in."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from memprobe.checkpoints import Checkpoint, resolve
from memprobe.errors import MemprobeError
from memprobe.load_options import LoadOptions
from tests.training.grids import write
from training.grid import plan, read_grid, run_grid
from training.grid.planning import parameters_of


@pytest.fixture(scope="module")
def half(tiny_checkpoint, tmp_path_factory):
    """The tiny model in bfloat16."""
    folder = tmp_path_factory.mktemp("half") / "base"
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("saved", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_stage_takes_the_format_that_it_is_saved_in(saved, size, half, tmp_path):
    path = write(tmp_path, half, arms='["naive"]', seeds="[0]", keep="weights", epochs=1)
    path.write_text(
        path.read_text().replace("[recipe.opt", f'[recipe.precision]\nsave_dtype = "{saved}"\n[recipe.opt', 1)
    )
    grid = read_grid(path)
    planned = plan(grid, path, tmp_path / "out").stage_bytes
    assert planned == size * AutoModelForCausalLM.from_pretrained(half).num_parameters()
    assert run_grid(grid, path, tmp_path / "out", quiet=True) == []
    for file in (tmp_path / "out").rglob("model.safetensors"):
        assert 0 <= file.stat().st_size - planned < 4096, "a header more"


def test_parameters_are_those_of_the_model_that_is_trained(half, tmp_path):
    base = resolve(str(half))
    n = AutoModelForCausalLM.from_pretrained(half).num_parameters()
    assert parameters_of(base) == n
    assert parameters_of(Checkpoint("x", "x", tmp_path, "adapter", base=base)) == n
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((half / "config.json").read_text())
    torch.save({}, pickled / "pytorch_model.bin")
    assert parameters_of(resolve(str(pickled), LoadOptions(allow_pickle=True))) == n
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, shape in (("a", (3, 5)), ("b", (7,))):
        writer.add_tensor(name, np.zeros(shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert parameters_of(resolve(str(tmp_path / "m.gguf"))) == 22


def test_checkpoints_along_the_way_stay_only_where_weights_do(tiny_checkpoint, tmp_path):
    """No cell uses them, so that none would delete them."""
    path = write(tmp_path, tiny_checkpoint, arms='["naive"]', seeds="[0]", epochs=2)
    path.write_text(path.read_text().replace("epochs = 2", "epochs = 2\ncheckpoints = { epochs = 1 }", 1))
    for refused in (plan, run_grid):
        with pytest.raises(MemprobeError, match=r"data\.a\.checkpoints: .*keep = \"weights\""):
            refused(read_grid(path), path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_text(path.read_text().replace('keep = "records"', 'keep = "weights"', 1))
    assert plan(read_grid(path), path, tmp_path / "out").along
