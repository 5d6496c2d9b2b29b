"""Makes the checkpoints that memprobe probes: stages, REMIX, and every baseline.

``python -m training run recipe.toml``; see :mod:`training.recipe` for what a recipe says.
"""
