"""Which readouts of probes are the same one, and whose checkpoints they are of: several probes, side by side."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from memprobe.compare import TABLES
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.probes import open_probe
from memprobe.probing import probe
from memprobe.readings import Readings
from memprobe.studies import asked_alike, in_fixed_readout
from tests.tiny import save_tiny

FACTS = [make_factoid(f"The river of land {i} is the", word, "test") for i, word in enumerate("abcdefghijkl")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "other", "a", "b")):
        save_tiny(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    """Makes a probe of some of the models in their own readout and in another's, once each."""
    folder, known = tmp_path_factory.mktemp("probes"), {}

    def make(name, labels, lenses=("logit", "logit@base")):
        if name not in known:
            asked = [f"{label}={models / label}" for label in labels]
            probe(asked, FACTS, folder / name, lenses=list(lenses))
            known[name] = folder / name
        return known[name]

    return make


@pytest.fixture(scope="module")
def shared(made):
    """Two probes that both hold the base model."""
    return made("p1", ["base", "a"]), made("p2", ["base", "b"])


@pytest.fixture(scope="module")
def apart(models, made):
    """Two probes whose second readouts are called alike and are of different models."""
    paths = []
    for name, label in (("base", "a"), ("other", "b")):
        home = models / f"of-{name}" / "base"
        shutil.copytree(models / name, home)
        paths.append(made(f"with-{name}", [label], ["logit", f"logit@{home}"]))
    return tuple(paths)


def readings(*paths, **options):
    return Readings.of(paths, draws=200, **options)


def claims(found):
    return TABLES["claims"](found).filter(statistic="lof_restricted")


@pytest.mark.parametrize("reference", [None, "a"])
def test_checkpoints_of_one_name_keep_their_second_readout(shared, reference):
    found = readings(*shared, reference=reference)
    assert found.labels == ["p1/base", "a", "p2/base", "b"]
    assert found.second is not None and found.second.labels == found.labels
    assert found.second.base is not None and found.second.base.label == "p1/base"
    assert claims(found)["held"].null_count() == 0


def test_the_commands_take_probes_that_share_a_checkpoint(shared, tmp_path):
    outs = {"compare": tmp_path / "out", "figures": tmp_path / "figures", "dashboard": tmp_path / "page.html"}
    for command, out in outs.items():
        more = ["--only", "lof"] if command == "figures" else []
        words = [sys.executable, "-m", "memprobe", command, *map(str, shared), "--out", str(out), *more]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        assert ended.returncode == 0 and out.exists(), ended.stderr


def test_a_name_alone_makes_no_readout_the_same(apart):
    """Read with a ``base`` of each one's own: not comparable, nor a second readout for one another."""
    with pytest.raises(MemprobeError, match=r"readout 'base' of weights \w{8}, but .* has 'base' of weights"):
        readings(*apart, lens="logit@base")
    own = [open_probe(path) for path in apart]
    fixed = [one.under("logit@base") for one in own]
    with pytest.raises(MemprobeError, match="probe both alike"):
        readings(*own, fixed_readout=fixed)
    assert [len(group) for group in asked_alike(fixed)] == [1, 1]
    assert len(asked_alike(own)) == 1 and in_fixed_readout(own, fixed) == []
    found = readings(*own)
    assert list(found.by_lens) == ["logit"], "one name, two readouts"
    assert found.second is not None and found.second.labels == ["a"], "the other's is no second readout"
    assert claims(found)["held"].to_list() == [None]


def test_the_same_readout_is_the_same_in_every_probe(made, models):
    first, second = made("p1", ["base", "a"]), made("alone", ["b"], ["logit", f"logit@{models / 'base'}"])
    found = readings(first, second)
    assert found.second is not None and found.second.labels == ["base", "a", "b"]
    assert set(found.by_lens) == {"logit", "logit@base"}
    views = [open_probe(path).under("logit@base") for path in (first, second)]
    assert len(asked_alike(views)) == 1 and readings(*views).labels == ["base", "a", "b"]


def test_a_probe_without_a_second_readout_stands_beside_one_that_has_it(made):
    """What no pair has in the second readout is not checked there, which is no error."""
    found = readings(made("p4", ["a"], ["logit"]), made("p5", ["base", "b"]))
    assert claims(found).filter(checkpoint="b")["held"].null_count() == 1
    one = readings(made("p6", ["base", "a"], ["logit"]), made("p7", ["b"], ["logit"]))
    assert one.second is None


def test_no_claim_is_held_where_no_pair_of_one_depth_is_in_the_second_readout(shared):
    """Of the pairs that are there, none has two checkpoints whose depths can be compared."""
    found = readings(shared[0])
    assert found.second is not None
    found.second = replace(found.second, members=[one for one in found.second.members if one.label == "a"])
    assert claims(found)["held"].to_list() == [None]
