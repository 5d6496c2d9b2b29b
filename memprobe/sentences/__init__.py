"""The answer first: what the tables say, in sentences, for the terminal, the page, notebooks and Markdown alike."""

from memprobe.sentences.checkpoints import (
    FEWEST_STEPS,
    MOST,
    of_checkpoint,
    of_placement,
    of_steps,
    of_summary,
    verdict,
)
from memprobe.sentences.checkpoints import _of_arms as of_arms
from memprobe.sentences.differences import against, of_pairs, recalled, seeds_of
from memprobe.sentences.prompts import names_lens, of_prompt
from memprobe.sentences.studies import SURFACES, of_placements, of_retention, of_verdicts

__all__ = [
    "FEWEST_STEPS",
    "MOST",
    "SURFACES",
    "against",
    "names_lens",
    "of_arms",
    "of_checkpoint",
    "of_pairs",
    "of_placement",
    "of_placements",
    "of_prompt",
    "of_retention",
    "of_steps",
    "of_summary",
    "of_verdicts",
    "recalled",
    "seeds_of",
    "verdict",
]
