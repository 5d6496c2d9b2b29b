"""What a reader can tell apart: contrast of texts and lines, colours without colour vision, dashes, short labels."""

from __future__ import annotations

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from memprobe import palette, wording
from memprobe.plots.prompts import FRAME

# Machado, Oliveira and Fernandes (2009), deuteranopia, for linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
# Ottosson's OKLab.
LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def linear(colour: str) -> np.ndarray:
    share = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def oklab(light: np.ndarray) -> np.ndarray:
    return np.cbrt(light @ LMS.T) @ LAB.T


def variables() -> dict[str, dict[str, str]]:
    text = resources.files("memprobe.dashboard.page").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root[^{]*\{([^}]*)\}", text)[:2]
    return {
        theme: dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", part))
        for theme, part in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_and_lines_stand_out(theme):
    found = variables()[theme]
    assert found["page"] == palette.TEMPLATES[theme]["paper"]
    for name in ("ink", "text", "faint", "accent", "good", "bad"):
        assert contrast(found[name], found["page"]) >= 4.5, name
    for name in ("ink", "text", "faint"):  # also where the pointer is
        assert contrast(found[name], found["raised"]) >= 4.5, name
    assert contrast(found["ink"], found["mark"]) >= 4.5, "selected rows are in ink alone"
    for name in ("text", "faint"):
        assert contrast(palette.TEMPLATES[theme][name], found["page"]) >= 4.5, name
    drawn = [
        *palette.COLOURS,
        *palette.ALONG,
        *palette.FATES,
        *(look["colour"] for look in palette.along(20)),
    ]
    for colour in drawn:
        assert contrast(colour, found["page"]) >= 3, colour


def test_white_text_stands_out_in_every_cell():
    for _, colour in palette.HEAT:
        assert contrast(colour, "#ffffff") >= 4.5
        assert contrast(colour, FRAME) >= 3, "the frame around the answer"


@pytest.mark.parametrize("colours", [palette.COLOURS, palette.FATES])
def test_colours_differ_without_colour_vision(colours):
    light = np.array([linear(colour) for colour in colours])
    for seen in (light, np.clip(light @ DEUTERANOPIA.T, 0, 1)):
        apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(oklab(seen), 2)]
        assert min(apart) >= 0.1


def test_no_colour_comes_twice_with_one_dash():
    looks = [palette.style(position) for position in range(60)]
    assert len({(look["colour"], look["dash"]) for look in looks}) == 60
    assert len({look["colour"] for look in palette.along(20)}) == 20


def test_no_dash_of_a_checkpoint_looks_like_the_dots_of_chance():
    for dash in palette.DASHES[1:]:
        assert max(int(length.removesuffix("px")) for length in dash.split(",")[::2]) >= 8, dash


def test_labels_are_shortened_where_they_differ():
    long = [f"runs/smollm2-study/remix-generic-stage-1/seed-{seed}/2-lama" for seed in (0, 1)]
    short = wording.shortened([*long, "base"], 28)
    assert short["base"] == "base"
    assert all(len(short[label]) <= 28 for label in long) and short[long[0]] != short[long[1]]
    assert "0" in short[long[0]] and "1" in short[long[1]]
    arms = [f"REMIX random-words prompt {end}" for end in ("sentence", "words", "words redraw true")]
    kept = wording.shortened(arms, 30)
    assert all(short.startswith("REMIX") and len(short) <= 30 for short in kept.values()), (
        "not only how they end"
    )
    same = ["x" * 40 + str(i) + "y" * 40 for i in range(2)]
    found = wording.shortened(same, 20)
    assert len(set(found.values())) == 2, "never two checkpoints under one name"
    assert wording.shortened(["short"]) == {"short": "short"}
