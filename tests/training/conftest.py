"""What several tests of training share."""

import pytest

from tests.training.grids import write
from training.grid import read_grid, run_grid


@pytest.fixture(scope="session")
def done(tiny_checkpoint, tmp_path_factory):
    """A grid of four cells on a tiny model that has learned both stages; weights are dropped."""
    folder = tmp_path_factory.mktemp("grid")
    path = write(folder, tiny_checkpoint, seeds="[0]", epochs=40)
    assert run_grid(read_grid(path), path, folder / "out", quiet=True) == []
    return path, folder / "out"
