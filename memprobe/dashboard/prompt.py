"""One prompt through one or several lenses -> a page: depth by position, with the statistic to choose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memprobe import palette, sentences
from memprobe.dashboard import page
from memprobe.dashboard.embedding import figure_json, rounded
from memprobe.files import write_text
from memprobe.plots.prompts import LENS_STATISTICS, lens_heatmap, statistics_of

if TYPE_CHECKING:
    from memprobe.prompt_lens import PromptReading


def write_prompt(readings: Sequence[PromptReading], path: str | Path, *, label: str, prompt: str) -> None:
    """Writes the page on one prompt as one HTML file.

    Args:
        readings: of the same prompt, one for each lens.
        label: of the checkpoint.

    Raises:
        MemprobeError: ``path`` cannot be written.
    """
    named = sentences.names_lens(readings)
    data = {
        "title": f"{label}: {prompt}",
        "sentences": [sentences.of_prompt(reading, named=named) for reading in readings],
        "named": named,
        "lenses": [reading.lens for reading in readings],
        "statistics": [
            [name, LENS_STATISTICS[name].label, LENS_STATISTICS[name].greener]
            for name in statistics_of(readings)
        ],
        "figures": {
            name: [figure_json(lens_heatmap.sketch(reading, name)) for reading in readings]
            for name in statistics_of(readings)
        },
        "templates": {theme: palette.template(theme) for theme in ("light", "dark")},
    }
    text = page.assemble(
        title=f"{label}: {prompt} · memprobe",
        body="prompt.html",
        scripts=("core.js", page.PLOTLY, "prompt.js"),
        data={"prompt-data": rounded(data)},
        blocks={},
    )
    write_text(text, Path(path))
