"""What a language model that is read rightly must be able to do: a wrong forward pass shows here.

The lens equals the model's logits also where both are wrong, as when a release computes rotary embeddings wrongly on
most layers. Ordinary text is then improbable, and facts that everyone knows are lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memprobe.answers import answer
from memprobe.checkpoints import checkpoints_of, default_template
from memprobe.errors import MemprobeError
from memprobe.models import LensModel
from memprobe.modes import evaluating
from memprobe.sources import load_factoids
from memprobe.templates import Template, TokenisedFactoid, tokenise_for

TEXT = (
    "Water boils when it is heated enough, and then it turns into steam. In winter the lake behind the house freezes, "
    "and the children walk across it to school. Their teacher lives on the other side, in a small house with a red "
    "door. On Mondays she brings apples from her garden, and everyone gets one before the first lesson begins."
)
FACTS = 20


@dataclass(frozen=True)
class Soundness:
    """What :func:`measure` found.

    Attributes:
        loss: mean negative log-likelihood of a token of :data:`TEXT` after the first, nats. A language model of
            English is well below 4; the logarithm of the vocabulary is a guess.
        exact_match: how many of the facts it recalls.
        facts: how many it was asked.
    """

    loss: float
    exact_match: int
    facts: int


def measure(lens_model: LensModel) -> Soundness:
    """Loss on a fixed text, and exact match on the first of the built-in facts."""
    ids = torch.tensor([lens_model.tokenizer.encode(TEXT)[: lens_model.max_length]], device=lens_model.device)
    with evaluating(lens_model.model):
        logits = lens_model.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        items = _items(lens_model)
        right = sum(verdict.exact_match for batch in answer(lens_model, items) for verdict in batch.values())
    return Soundness(float(loss), right, len(items))


def _items(lens_model: LensModel) -> list[TokenisedFactoid]:
    """The facts that the tokenizer can write within the model's context."""
    template = Template.parse(default_template(checkpoints_of([lens_model])))
    items = []
    for factoid in load_factoids("known")[:FACTS]:
        try:
            items += tokenise_for(lens_model, [factoid], template)
        except MemprobeError:
            continue
    return items
