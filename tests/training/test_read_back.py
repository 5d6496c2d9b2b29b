"""A resolved recipe is read back as it is, whatever its numbers, files and options are."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memprobe.errors import MemprobeError
from training.recipe import parse_recipe, read_recipe, to_toml

TWO = [{"name": "a", "data": "kvr:4"}, {"name": "b", "data": "kvr:4:test"}]
RATIOS = st.floats(0.001, 1.0)


def recipe_of(arm, **more):
    return parse_recipe({"base": "b", "arm": arm, "stages": [dict(stage) for stage in TWO]} | more)


def again(recipe):
    return parse_recipe(tomllib.loads(to_toml(recipe)))


@given(ratio=RATIOS, strength=st.floats(1e-3, 1e9), alpha=st.floats(0.01, 512))
def test_numbers_of_any_length(ratio, strength, alpha):
    for arm in (f"replay(ratio={ratio!r})+kl(strength={strength!r})", f"lora(rank=4, alpha={alpha!r})"):
        recipe = recipe_of(arm)
        assert again(recipe) == recipe
    mixed = recipe_of(f"remix(data=generic, stages=1, ratio={ratio!r})")
    assert mixed.stages[0].mixing[0].ratio == ratio and again(mixed) == mixed


def test_numbers_that_differ_are_other_arms():
    one, other = (recipe_of(f"replay(ratio={ratio})").arm_name for ratio in (0.33333333, 0.33333334))
    assert one != other
    assert recipe_of("ewc(strength=10000000)").arm_name == "ewc(strength=1e+07, stages=2)"


@pytest.mark.parametrize("folder", ["my study (copy)", "a,b", "a+b (c)", "stages=2, x"])
def test_files_in_any_folder(folder, tmp_path):
    place = tmp_path / folder
    place.mkdir()
    (place / "texts.jsonl").write_text('{"text": "some words that make up a passage of their own here"}\n')
    file = place / "r.toml"
    stages = "".join(f'[[stages]]\nname = "{one["name"]}"\ndata = "{one["data"]}"\n' for one in TWO)
    file.write_text(f'base = "b"\narm = "remix(data=texts.jsonl, stages=1, words=5)"\n{stages}')
    recipe = read_recipe(file)
    found = again(recipe)
    assert (found.stages, found.arm_name) == (recipe.stages, recipe.arm_name)
    assert found.stages[0].mixing[0].source.endswith("texts.jsonl")


def test_parts_of_one_stage_keep_their_order():
    arm = (
        "remix(data=generic, stages=1)+remix(data=random-words, stages=1, ratio=1)+remix(data=self, stages=1)"
    )
    recipe = recipe_of(arm)
    assert again(recipe) == recipe
    assert [part.source for part in again(recipe).stages[0].mixing] == ["generic", "random-words", "self"]


def test_a_source_is_named_once():
    with pytest.raises(MemprobeError, match="data=generic,generic: names generic twice"):
        recipe_of("remix(data=generic,generic, stages=1)")


def test_joint_passes_over_no_stop_of_an_earlier_stage():
    stages = [TWO[0] | {"stop": {"exact_match": True}}, TWO[1]]
    with pytest.raises(MemprobeError, match=r"stages\.1\.stop: joint trains one stage"):
        recipe_of("joint", stages=stages)
    both = [stage | {"stop": {"exact_match": True}} for stage in TWO]
    assert recipe_of("joint", stages=both).joint
