"""What manifests say of where checkpoints come from."""

from __future__ import annotations

from memprobe.lineage import lineage


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


def test_a_ring_of_manifests_ends():
    ring = {"a": entry("a", "c"), "c": entry("c", "a")}
    assert lineage(ring, "a") == (("c", "a"), "")
