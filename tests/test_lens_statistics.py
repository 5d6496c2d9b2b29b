"""Facts through several lenses, against first occurrences counted by hand."""

import numpy as np
import polars as pl
import pytest

from memprobe.factoids import make_factoid
from memprobe.lens_files import AffineMap, write_about, write_maps
from memprobe.models import wrap
from memprobe.probing import probe
from memprobe.statistics.lenses import compare_lenses
from tests.tiny import N_LAYERS, tiny_model, tiny_tokenizer

FACTS = [
    make_factoid(f"The river of {name} is the", answer, "tiny", relation="river")
    for name, answer in (
        ("Oria", "cold"),
        ("Selva", "hot"),
        ("Tolm", "Paris"),
        ("Peak", "of"),
        ("Grey", "is"),
    )
]


def test_first_occurrence_by_lens(tmp_path):
    import torch

    tokenizer = tiny_tokenizer()
    read = wrap(tiny_model("llama", len(tokenizer)), tokenizer, label="tiny")
    torch.manual_seed(0)
    maps = {depth: AffineMap(torch.randn(read.d_model, read.d_model)) for depth in range(N_LAYERS)}
    write_maps(tmp_path / "lens.safetensors", "jacobian", maps)
    write_about(tmp_path, {"kind": "jacobian", "fingerprint": read.fingerprint})
    made = probe([read], FACTS, tmp_path / "probe", lenses=["logit", f"jacobian={tmp_path}"])
    k = 60
    table = compare_lenses(made, k=k, near=1, draws=200)
    assert table["lens"].to_list() == ["logit", "jacobian"]
    placed = {}
    for lens in ("logit", "jacobian"):
        records = made.under(lens).records.filter(pl.col("token") == 0)
        controls = made.under(lens).controls.filter(pl.col("token") == 0)
        for fact in FACTS:

            def lof(rows):
                held = rows.filter((pl.col("rank") < k) & (pl.col("depth") > 0))["depth"].to_list()
                return min(held, default=N_LAYERS + 1)

            placed[lens, fact.id] = lof(records.filter(factoid=fact.id))
            draws = controls.filter(factoid=fact.id).partition_by("control")
            placed[lens, fact.id, "chance"] = np.mean([lof(draw) for draw in draws]) if draws else np.nan
    for row in table.iter_rows(named=True):
        own = np.array([placed[row["lens"], fact.id] for fact in FACTS])
        chance = np.array([placed[row["lens"], fact.id, "chance"] for fact in FACTS])
        apart = own - np.array([placed["logit", fact.id] for fact in FACTS])
        assert row["n"] == row["n_net"] == len(FACTS)
        assert row["lof"] == pytest.approx(own.mean()) and row["never"] == (own > N_LAYERS).mean()
        assert row["chance"] == pytest.approx(chance.mean())
        assert row["net"] == pytest.approx((own - chance).mean())
        if row["lens"] == "logit":
            assert row["difference"] is None and row["agree"] is None
        else:
            assert row["difference"] == pytest.approx(apart.mean())
            assert row["agree"] == pytest.approx((np.abs(apart) <= 1).mean())
    assert len({placed["logit", fact.id] - placed["jacobian", fact.id] for fact in FACTS}) > 1
