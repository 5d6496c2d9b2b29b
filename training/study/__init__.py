"""What a grid found: one row per cell, and the study's tables, from records and evaluations alone.

::

    collect(OUT) -> Results ─ write, read ─> cells.parquet, stages.parquet, … (no weights, no records)
                        └─ tables.py -> forgetting, curves, three stages, placement, interference, cost
                           claims.py -> claim by claim, what was found
                           published.py, figures.py -> CSV, Markdown, images
"""
