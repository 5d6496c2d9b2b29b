"""Which instrument finds the fact? Instruments that name a depth, held against facts whose block is known.

    plan file ──> cells ──> facts planted, each set into its own block ──> truth verified by resetting blocks
                                      │
                      instruments (model, base, facts) ──> depth and scores ──> marked against the truth ──> report

``python -m analyses.instruments run | report``; see :mod:`analyses.instruments.plan` for what a plan says.
"""
