"""Stages of training by name, ``2`` or ``2-lama``: their order, and how a sentence names one."""

from __future__ import annotations

import re


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
