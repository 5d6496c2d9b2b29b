"""A directory of patches without models: states and weights, of facts that the target took and kept."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from memprobe.factoids import make_factoid
from memprobe.files import write_json, write_parquet
from memprobe.records import PATCHES, factoids_frame

N_LAYERS = 4


def write_patched(folder: Path) -> Path:
    """Writes it: fact number i comes back at depth 1 + i % N_LAYERS, and block 2 gives most of each back."""
    facts = [make_factoid(f"Key {i} is", f"v{i}", "tiny") for i in range(12)]
    write_parquet(factoids_frame(facts), folder / "factoids.parquet")
    pairs = {}
    for what, positions, places in (
        ("residual", "last", range(N_LAYERS + 1)),
        ("weights", "all", range(1, N_LAYERS + 1)),
    ):
        rows = []
        for i, fact in enumerate(facts):
            for place in places:
                back = place >= 1 + i % N_LAYERS if what == "residual" else place == 2
                for control in ("", "other") if what == "residual" else ("",):
                    moved = (0.9 if back else 0.1) if not control else -12.0
                    rows.append(
                        {"source": "s1", "target": "s2", "what": what, "positions": positions, "parts": ""}
                        | {"control": control, "depth": place, "last": place, "factoid": fact.id, "token": 0}
                        | {"token_id": 7 + i, "rank": 0, "log_prob": -10.0 + 10 * moved, "source_rank": 0}
                        | {
                            "source_log_prob": 0.0,
                            "target_rank": 0 if i == 0 else 3,
                            "target_log_prob": -10.0,
                        }
                    )
        table = pl.DataFrame(rows, schema=PATCHES)
        if what == "weights":
            table = table.with_columns(parts=pl.lit("all"))
        key = f"s1-into-s2.{what}.{positions}"
        write_parquet(table, folder / "patches" / f"{key}.parquet")
        pairs[key] = {"source": "s1", "target": "s2", "into": "s2", "what": what, "positions": positions}
        pairs[key] |= {
            "source_fingerprint": "a",
            "target_fingerprint": "b",
            "n_layers": N_LAYERS,
            "complete": True,
        }
    run = {"schema": 1, "template": "plain", "factoids": {"n": len(facts), "hash": "c"}, "pairs": pairs}
    write_json(run, folder / "patches" / "run.json")
    return folder
