"""What manifests say of where checkpoints come from."""

from __future__ import annotations

import pytest

from memprobe.lineage import base_named, lineage


def entry(fingerprint: str, parent: str | None = None, rows: str | None = None) -> dict:
    manifest = {"parent": {"fingerprint": parent}, "stages": [{"hash": rows}, {"hash": "later"}]}
    return {"fingerprint": fingerprint, "manifest": manifest if parent else None}


ENTRIES = {
    "base": entry("b"),
    "one": entry("1", "b", "r"),
    "two": entry("2", "1", "r"),
    "three": entry("3", "2", "r"),
    "stray": entry("9", "unknown"),
}


def test_ancestors_go_back_as_far_as_manifests_do():
    assert lineage(ENTRIES, "three") == (("2", "1", "b"), "r")
    assert lineage(ENTRIES, "one") == (("b",), "r")
    assert lineage(ENTRIES, "base") == ((), "")
    assert lineage(ENTRIES, "stray") == (("unknown",), "")
    # Without the stage before among the probed ones, its own parent is not known.
    assert lineage({"three": ENTRIES["three"]}, "three")[0] == ("2",)


def test_a_chain_that_breaks_off_ends_with_the_base_model_that_its_manifest_names():
    alone = entry("3", "2", "r")
    alone["manifest"] |= {"base": {"fingerprint": "b"}, "stage": 3}
    assert lineage({"three": alone}, "three") == (("2", "b"), "r")
    assert lineage(ENTRIES | {"three": alone}, "three")[0] == ("2", "1", "b")


@pytest.mark.parametrize(
    ("manifest", "wanted"),
    [
        ({}, None),
        ({"stage": 1, "parent": {"fingerprint": "b"}}, "b"),
        ({"stage": "1-kvr", "parent": {"fingerprint": "b"}}, "b"),
        ({"stage": 2, "parent": {"fingerprint": "1"}}, None),
        ({"stage": 2, "parent": {"fingerprint": "1"}, "base": {"fingerprint": "b"}}, "b"),
        ({"stage": 1, "parent": None, "base": None}, None),
    ],
)
def test_the_base_model_that_a_manifest_names(manifest, wanted):
    assert base_named(manifest) == wanted


def test_a_ring_of_manifests_ends():
    ring = {"a": entry("a", "c"), "c": entry("c", "a")}
    assert lineage(ring, "a") == (("c", "a"), "")
