"""What a run started from: files of rows, by their content."""

import pytest

from tests.training.runs import small
from training.starts import edited_files, revision_of


@pytest.mark.parametrize("now", ["as it was", "edited"])
def test_a_dataset_in_the_folder_of_data_is_held_against_what_was_read(now, tmp_path):
    file = tmp_path / "popqa.tsv"
    file.write_text("as it was")
    origins = [[{"source": "popqa", "via": "folder", "location": file.name, "revision": revision_of(file)}]]
    recipe = small(tmp_path, stages=[{"name": "a", "data": "popqa"}])
    file.unlink()
    file.write_text(now)
    assert edited_files(recipe, origins, tmp_path) == ([] if now == "as it was" else [file])
    assert edited_files(recipe, origins) == [], "no folder of data was named"
