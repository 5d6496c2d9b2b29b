"""Stages of training by name, ``2`` or ``2-lama``: their order, and how a sentence names one."""

from __future__ import annotations

import re

STEP = r"(?<![A-Za-z])(?i:step|checkpoint)[-_= ]?(\d+)"
"""A pattern: of a step in a name, as in ``checkpoint-200``, ``global_step200`` and ``Step 200``; its number."""
STAGE = re.compile(r"(\d+)-(.+)")
"""Of a stage's folder, ``2-lama``; 0 is the base model's evaluation, no checkpoint."""


def stage_number(stage: str | None) -> int | None:
    """That a stage's name begins with."""
    number = re.match(r"\d+", stage or "")
    return int(number[0]) if number else None


def stage_order(stage: str | None) -> tuple[int, str]:
    """Sorts stages by number; those without one last."""
    number = stage_number(stage)
    return (10**9 if number is None else number, stage or "")


def after_stage(stage: str | None) -> str:
    """`` after stage 2``; nothing where a checkpoint is of no stage."""
    return f" after stage {stage}" if stage else ""
