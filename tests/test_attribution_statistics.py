"""Statistics of contributions on tables worked by hand, and a probe that holds such tables."""

import numpy as np
import polars as pl
import pytest

from memprobe.errors import MemprobeError
from memprobe.probes import open_probe
from memprobe.records import ATTRIBUTIONS
from memprobe.statistics.attributions import (
    contribution_by_depth,
    contributions,
    largest_contribution,
    paired_contributions,
)


def table(values, checkpoint="a", part="block"):
    """``values``: {factoid: {token: ([logit by depth], [shuffled by depth], a draw or several, or None)}}."""

    def controls(shuffled, depth):
        if shuffled is None:
            return None, None
        at = shuffled[depth - 1]
        draws = at if isinstance(at, list) else [at]
        there = [one for one in draws if one is not None]
        return sum(there) / len(there), draws

    rows = [
        (checkpoint, factoid, token, 7, depth, part, logit, *controls(shuffled, depth))
        for factoid, tokens in values.items()
        for token, (logits, shuffled) in tokens.items()
        for depth, logit in enumerate(logits, 1)
    ]
    rows += [(checkpoint, factoid, 0, 7, 0, "embedding", 9.0, 9.0, [9.0]) for factoid in values]
    return pl.DataFrame(rows, schema=ATTRIBUTIONS, orient="row")


VALUES = {
    "x": {0: ([1.0, 5.0, 2.0], [1.0, 1.0, 3.0]), 1: ([3.0, 1.0, 0.0], None)},
    "y": {0: ([4.0, 1.0, 3.0], None)},
    "z": {0: ([-2.0, 0.0, 4.0], [2.0, 0.0, 0.0])},
}


DRAWS = {  # the mean of both draws is largest at depth 2, where neither is
    "x": {0: ([1.0, 5.0, 2.0], [[5.0, 0.0], [3.0, 3.0], [0.0, 5.0]])},
    "y": {0: ([1.0, 5.0, 2.0], [[0.0, 2.0, 9.0], [1.0, 1.0, 0.0], [2.0, 0.0, None]])},
}


def test_token_rules():
    for token, wanted in (("first", [1, 5, 2]), ("last", [3, 1, 0]), ("all", [2, 3, 1])):
        assert contributions(table(VALUES), token=token).filter(factoid="x")["logit"].to_list() == wanted
        assert contributions(table(VALUES), token=token).filter(factoid="y")["logit"].to_list() == [4, 1, 3]


def test_means_shares_and_net_by_depth():
    found = contribution_by_depth(table(VALUES), draws=500)
    assert found["depth"].to_list() == [1, 2, 3] and found["n"].to_list() == [3, 3, 3]
    assert found["logit"].to_list() == pytest.approx([1.0, 2.0, 3.0])
    assert found["share"].to_list() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    # net over x and z: (0, 4, -1) and (-4, 0, 4)
    assert found["n_net"].to_list() == [2, 2, 2]
    assert found["net"].to_list() == pytest.approx([-2.0, 2.0, 1.5])
    assert (found["low"] <= found["logit"]).all() and (found["logit"] <= found["high"]).all()
    both = pl.concat([table(VALUES), table({"x": {0: ([0.5, 0.5, 0.5], None)}}, part="attn")])
    assert set(contribution_by_depth(both.filter(factoid="x"), draws=50)["part"]) == {"block", "attn"}


def test_what_is_written_by_chance_is_no_earlier_than_chance():
    """Contributions to own and shuffled answers are alike, noisier in early blocks: no draw is largest where the mean
    over draws is."""
    rng = np.random.default_rng(0)
    scale = np.linspace(3.0, 0.5, 12)
    values = {
        f"f{fact}": {
            0: (
                (rng.normal(size=12) * scale + 1).tolist(),
                (rng.normal(size=(12, 5)) * scale[:, None] + 1).tolist(),
            )
        }
        for fact in range(300)
    }
    found = largest_contribution(table(values))
    net = (found["depth"] - found["depth_shuffled"]).to_numpy()
    assert abs(net.mean()) < 3 * net.std() / len(net) ** 0.5


def test_where_the_most_is_written():
    found = largest_contribution(table(VALUES)).sort("factoid")
    assert found["depth"].to_list() == [2, 1, 3] and found["logit"].to_list() == [5, 4, 4]
    assert found["depth_shuffled"].to_list() == [3, None, 1]
    several = largest_contribution(table(DRAWS))
    assert several["depth_shuffled"].to_list() == pytest.approx([(1 + 3) / 2, (3 + 1 + 1) / 3])
    old = largest_contribution(table(DRAWS).with_columns(shuffled_draws=pl.lit(None, pl.List(pl.Float32))))
    assert old["depth_shuffled"].null_count() == 2 and old["depth"].to_list() == several["depth"].to_list()
    tied = largest_contribution(table({"x": {0: ([2.0, 2.0, 1.0], None)}}))
    assert tied["depth"].to_list() == [1]


def test_differences_are_paired_by_factoid():
    other = {"x": {0: ([2.0, 5.0, 6.0], None)}, "y": {0: ([4.0, 2.0, 5.0], None)}}
    both = pl.concat([table(VALUES), table(other, "b")])
    answers = pl.DataFrame({"id": ["x", "y", "z"], "answer": ["1", "2", "3"]})
    found = paired_contributions(both, "a", answers, draws=200)
    assert found["checkpoint"].unique().to_list() == ["b"] and found["n"].to_list() == [2] * 4
    assert found["difference"].to_list() == pytest.approx([0.5, 0.5, 3.0, 1.5])  # z is in a alone
    assert found["measure"].to_list() == ["logit"] * 3 + ["largest"]
    assert found["depth"].to_list() == [1, 2, 3, None]
    with pytest.raises(MemprobeError, match="no attributions of 'c'; there are a, b"):
        paired_contributions(both, "c", answers)


def test_unknown_rules_and_parts_are_one_line():
    with pytest.raises(MemprobeError, match="choose first, last, all"):
        contributions(table(VALUES), token="middle")
    with pytest.raises(MemprobeError, match="not a part of a block"):
        contributions(table(VALUES), part="embedding")
    with pytest.raises(MemprobeError, match="given by block; there is no mlp"):
        contributions(table(VALUES), part="mlp")


def test_a_probe_holds_attributions_where_they_were_asked_for(cli, tiny_checkpoint, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        "".join(
            f'{{"prompt": "The river of {name} is the", "answer": "{answer}"}}\n'
            for name, answer in (("Oria", "cold"), ("Selva", "hot"), ("Tolm", "Paris"))
        )
    )
    options = ["layers", "--ckpt", tiny_checkpoint, "--factoids", facts, "--out", tmp_path / "probe"]
    assert cli(*options)[0] == 0
    probe = open_probe(tmp_path / "probe")
    before = (tmp_path / "probe" / "records").glob("*")
    kept = {file: file.read_bytes() for file in before}
    with pytest.raises(MemprobeError, match=r"holds no attributions .*--attributions"):
        _ = probe.attributions
    code, _, told = cli(*options, "--attributions")  # added to a finished checkpoint
    assert code == 0, told
    probe = open_probe(tmp_path / "probe")
    probe.check()
    assert probe.attributions.schema == ATTRIBUTIONS
    assert set(probe.attributions["part"]) == {"embedding", "constant", "block", "attn", "mlp"}
    assert probe.attributions["factoid"].n_unique() == 3
    assert probe.run["checkpoints"]["tiny"]["attributions"] == {"parts": ["block", "attn", "mlp"]}
    assert {file: file.read_bytes() for file in kept} == kept
    [file] = (tmp_path / "probe" / "attributions").iterdir()
    assert file.relative_to(tmp_path / "probe") in probe.files()
    both = ["--attributions", "--fresh"]
    assert cli(*options, *both)[0] == 0 and file.exists()
    assert cli(*options, "--fresh")[0] == 0 and not file.exists()
