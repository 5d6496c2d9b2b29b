"""What several tests of training share."""

import pytest

from tests.once import once
from tests.training.grids import write
from training.grid import read_grid, run_grid


@pytest.fixture(scope="session")
def done(tiny_checkpoint, tmp_path_factory):
    """A grid of four cells on a tiny model that has learned both stages; weights are dropped. All workers read it."""

    def train(folder):
        path = write(folder, tiny_checkpoint, seeds="[0]", epochs=40)
        assert run_grid(read_grid(path), path, folder / "out", quiet=True) == []

    folder = once(tmp_path_factory, "grid-done", train)
    return folder / "grid.toml", folder / "out"
