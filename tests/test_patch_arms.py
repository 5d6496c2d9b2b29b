"""Patches by fate, by arm over seeds, and erasure scores beside a reference, on tables worked by hand."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from memprobe.cli import show_patches
from memprobe.cli.terminal import wide_terminal
from memprobe.patch_tables import made_of, tables_of
from memprobe.patches import open_patches
from memprobe.statistics import patch_arms
from memprobe.statistics.patch_arms import Made
from memprobe.statistics.patches import first_depth_summary, first_depths
from memprobe.statistics.vocabulary import PATCHED, STATISTICS, label
from tests.test_patch_statistics import curve, table
from tests.tiny import N_LAYERS, save_tiny

FIRST = {
    "naive": ((1, 2), (2, 2), (2, 3)),
    "kl": ((1, 1), (1, 2), (1, 1)),
}  # by arm and seed, of facts a and b
DEEPEST = 3


def falling(first, factoid):
    """Moves all from depth ``first`` on and nothing below; ``DEEPEST + 1`` is never."""
    return curve(factoid, [-10.0 if depth < first else 0.0 for depth in range(DEEPEST + 1)], 0.0, -10.0)


def arms(first=FIRST):
    """Patches of each seed of each arm, and how its target was made."""
    tables, made = [], {}
    for arm, seeds in first.items():
        for seed, (a, b) in enumerate(seeds):
            pair = (f"{arm}-{seed}-1", f"{arm}-{seed}-2")
            rows = [*falling(a, "a"), *falling(b, "b")]
            tables.append(table(rows, source=pair[0], target=pair[1], target_rank=3))
            made[pair] = Made(arm, str(seed), "1-kvr into 2-lama")
    return pl.concat(tables), made


def test_an_arms_mean_is_over_its_seeds():
    means, differences = patch_arms.by_arm(*arms(), n_layers=DEEPEST)
    taken = means.filter((pl.col("facts") == "overwritten") & (pl.col("statistic") == "moved_first"))
    by_arm = {row["arm"]: row for row in taken.iter_rows(named=True)}
    assert by_arm["naive"]["by_seed"] == [1.5, 2.0, 2.5] and by_arm["naive"]["mean"] == 2.0
    assert by_arm["naive"]["stage"] == "1-kvr into 2-lama" and by_arm["naive"]["seeds"] == 3
    assert by_arm["kl"]["mean"] == pytest.approx(3.5 / 3)
    # no narrower than Student's t over the seeds' means alone
    half = stats.t.ppf(0.975, 2) * np.std([1.5, 2.0, 2.5], ddof=1) / np.sqrt(3)
    assert by_arm["naive"]["low"] <= 2.0 - half + 1e-9 and by_arm["naive"]["high"] >= 2.0 + half - 1e-9
    [row] = differences.filter((pl.col("facts") == "all") & (pl.col("statistic") == "moved_first")).iter_rows(
        named=True
    )
    assert (row["arm"], row["reference"]) == ("kl", "naive")
    assert row["difference"] == pytest.approx(3.5 / 3 - 2.0) and row["low"] < row["difference"] < row["high"]
    assert set(means["facts"]) == {"all", "overwritten"}, (
        "the target recalls none of them, so none is retained"
    )


def test_under_three_seeds_each_seed_is_shown_and_nothing_is_called():
    first = {arm: seeds[:2] for arm, seeds in FIRST.items()}
    means, differences = patch_arms.by_arm(*arms(first), n_layers=DEEPEST)
    assert means["low"].null_count() == len(means)
    assert differences["significant"].null_count() == len(differences)
    assert all(len(seeds) == 2 for seeds in means["by_seed"])


def test_never_counts_as_one_depth_further_and_two_of_one_seed_are_told_apart():
    said, made = arms({"naive": ((1, DEEPEST + 1),)})
    means, differences = patch_arms.by_arm(said, made, n_layers=DEEPEST)
    rows = dict(means.filter(pl.col("facts") == "all").select("statistic", "mean").iter_rows())
    assert rows == {"moved_first": (1 + DEEPEST + 1) / 2, "moved_never": 0.5}
    assert differences.is_empty()
    twice = pl.concat([said, said.with_columns(target=pl.lit("again"))])
    again = made | {("naive-0-1", "again"): next(iter(made.values()))}
    means, _ = patch_arms.by_arm(twice, again, n_layers=DEEPEST)
    assert set(means["arm"]) == {"naive (naive-0-2)", "naive (again)"}


def test_seeds_trained_with_other_settings_are_told_apart():
    said, made = arms()
    marks = {"naive": ["a", "a", "b"], "kl": ["c", None, "c"]}
    told = {pair: replace(one, settings=marks[one.arm][int(one.seed)]) for pair, one in made.items()}
    means, _ = patch_arms.by_arm(said, told, n_layers=DEEPEST)
    assert set(means["arm"]) == {"kl", *(f"naive (naive-{seed}-2)" for seed in range(3))}
    assert set(patch_arms.curves_by_arm(said, told)["arm"]) == set(means["arm"])


def test_curves_of_an_arm_are_means_of_its_seeds_at_every_depth():
    found = patch_arms.curves_by_arm(*arms())
    naive = found.filter(pl.col("arm") == "naive").sort("depth")
    assert naive["depth"].to_list() == list(range(DEEPEST + 1))
    np.testing.assert_allclose(naive["moved"], [0, 1 / 6, 5 / 6, 1], atol=1e-12)
    assert naive["by_seed"][1].to_list() == [0.5, 0.0, 0.0]


def test_fates_are_of_their_own_facts():
    taken = table(falling(2, "a"), target_rank=3)
    kept = table(falling(1, "b"), target_rank=0)
    found = patch_arms.by_fate(pl.concat([taken, kept]), n_layers=DEEPEST)
    rows = {row["fate"]: row for row in found.iter_rows(named=True)}
    assert {fate: (row["facts"], row["n"], row["median"]) for fate, row in rows.items()} == {
        "overwritten": (1, 1, 2.0),
        "retained": (1, 1, 1.0),
    }


def test_erasure_scores_stand_beside_their_reference():
    parts = []
    for source, deltas in (("base", (0.5, 2.0)), ("after", (0.1, 3.0)), ("same", (0.0, 0.0))):
        rows = [("a", 0, depth, "", -1.0 - delta, -9.0, -1.0) for depth, delta in enumerate(deltas, 1)]
        parts.append(table(rows, source=source, target="full"))
    found = patch_arms.erasures(pl.concat(parts), "base")
    scores = dict(found.select("source", "score").iter_rows())
    assert scores == {"after": pytest.approx((0.5 * 0.2 + 2.0) / 2.5, abs=1e-6), "same": 0.0}
    assert patch_arms.erasures(pl.concat(parts), "nobody").is_empty()


def test_every_statistic_of_patches_is_in_the_vocabulary():
    assert set(patch_arms.NAMES) <= set(PATCHED) and set(PATCHED) <= set(STATISTICS)
    for key, row in PATCHED.items():
        assert label(key, n_layers=30) and row.interval != "none" and row.more != row.less
    assert label("moved_first", n_layers=30).endswith("31")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two seeds of two arms, each a pair of stages with manifests, and facts."""
    path = tmp_path_factory.mktemp("arms")
    facts = [
        {"prompt": f"The river of {name} is the", "answer": answer, "subject": name, "id": name}
        for name, answer in (("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister"))
    ]
    (path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))
    for place, (arm, seed, stage) in enumerate(
        (a, s, t) for a in ("none", "kl(0.1)") for s in (0, 1) for t in (1, 2)
    ):
        folder = path / f"{'naive' if arm == 'none' else 'kl'}-{seed}" / f"{stage}-{'ab'[stage - 1]}"
        save_tiny(folder, seed=place)
        manifest = {"schema": 1, "template": "plain", "arm": arm, "seed": seed, "stage": stage}
        manifest |= {"stage_name": "ab"[stage - 1], "steps": 4, "stages": [], "run": folder.parent.name}
        (folder / "memprobe.json").write_text(json.dumps(manifest))
    return path


def test_pairs_of_arms_and_seeds_end_in_one_table(study, tmp_path, cli):
    out, given = tmp_path / "p", []
    for run in ("naive-0", "naive-1", "kl-0", "kl-1"):
        given += ["--from", f"{run}.1={study / run / '1-a'}", "--into", f"{run}.2={study / run / '2-b'}"]
    more = ["--factoids", study / "facts.jsonl", "--threshold", "0.01", "--no-controls", "--out", out]
    code, printed, err = cli("patch", *given, *more, "--reference", "naive-0.1")
    assert code == 0, err
    assert "Over training seeds" in printed and "no interval: too few seeds" in printed
    assert "no erasure score: it takes 'naive-0.1' and another --from into the same checkpoint" in err
    found = open_patches(out)
    assert len(made_of(found)) == 4
    tables = tables_of(found, threshold=0.01)
    rows = tables["arms"].filter((pl.col("facts") == "all") & (pl.col("statistic") == "moved_first"))
    assert set(rows["arm"]) == {"none", "kl(0.1)"} and set(rows["stage"]) == {"1-a into 2-b"}
    by_pair = tables["first_depth"].filter(pl.col("direction") == rows["direction"][0])
    for row in rows.filter(pl.col("direction") == rows["direction"][0]).iter_rows(named=True):
        name = "naive" if row["arm"] == "none" else "kl"
        wanted = by_pair.filter(pl.col("target").str.starts_with(name))["restricted"].to_list()
        np.testing.assert_allclose(row["by_seed"], wanted)
    assert tables["arm_curves"]["depth"].unique().sort().to_list() == list(range(N_LAYERS + 1))
    code, _, err = cli("patch", *given, *more, "--reference", "nobody")
    assert (
        code == 2
        and "--reference nobody: is not a label of --from; there are naive-0.1, naive-1.1, kl-0.1" in err
    )
    # the label of a target is none of a source, and a spec is no label
    for given_as in ("naive-0.2", study / "naive-0" / "1-a"):
        code, _, err = cli("patch", *given, *more, "--reference", given_as)
        assert code == 2 and "is not a label of --from" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(("seeds", "wanted"), [(3, "nothing scatters"), (2, "too few seeds")])
def test_seeds_that_agree_are_not_said_to_be_too_few(seeds, wanted, capsys):
    patched, made = arms({"naive": ((3, 3),) * seeds, "kl": ((2, 2),) * seeds})
    means, differences = patch_arms.by_arm(patched, made)
    tables = {"arms": means, "arm_differences": differences, "fates": patch_arms.by_fate(patched)}
    tables["first_depth"] = first_depth_summary(first_depths(patched))
    show_patches._arms(wide_terminal(), tables)
    assert f"-1.00, no interval: {wanted}" in capsys.readouterr().out
