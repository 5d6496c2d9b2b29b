"""One prompt, every position and depth: what ``memprobe lens`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memprobe.blocks import decoder_of, residual_hooks
from memprobe.factoids import Factoid, make_factoid
from memprobe.lenses import Lens
from memprobe.logits import read_logits
from memprobe.models import LensModel
from memprobe.modes import evaluating
from memprobe.templates import Template, TokenisedFactoid, tokenise_for


@dataclass(frozen=True)
class PromptReading:
    """A prompt read at every depth.

    Attributes:
        lens: its name.
        tokens: [position] the prompt's tokens.
        top1: [depth][position] the most probable next token.
        probability: [depth][position] its probability.
        best: [depth][position] the top tokens there, with probabilities, the first first.
        entropy: [depth][position] nats.
        kl: [depth][position] nats, from the prediction of the last depth to that of this one, KL(last ‖ this).
        answer: the answer's first token; ``None`` without an answer.
        answer_ranks: [depth][position] rank of the answer's first token; ``None`` without an answer.
        answer_probability: [depth] its probability after the last position.
    """

    lens: str
    tokens: list[str]
    top1: list[list[str]]
    probability: list[list[float]]
    best: list[list[list[tuple[str, float]]]]
    entropy: list[list[float]]
    kl: list[list[float]]
    answer: str | None
    answer_ranks: list[list[int]] | None
    answer_probability: list[float] | None

    @property
    def top(self) -> list[list[tuple[str, float]]]:
        """[depth] the top tokens after the last position, with probabilities."""
        return [by_position[-1] for by_position in self.best]

    @property
    def n_layers(self) -> int:
        """The depth of the model's own readout."""
        return len(self.top1) - 1


def read_prompt(
    lens_model: LensModel, prompt: str, *, answer: str | None = None, template: str = "plain", top_k: int = 5
) -> PromptReading:
    """Reads one prompt through the Logit Lens.

    Raises:
        MemprobeError: the prompt or answer cannot be tokenised, or exceeds the context.
    """
    (reading,) = read_prompt_by(
        [lens_model.lens], lens_model, prompt, answer=answer, template=template, top_k=top_k
    )
    return reading


def read_prompt_by(
    lenses: Sequence[Lens],
    lens_model: LensModel,
    prompt: str,
    *,
    answer: str | None = None,
    template: str = "plain",
    top_k: int = 5,
) -> list[PromptReading]:
    """Reads one prompt through several lenses in one forward pass.

    Raises:
        MemprobeError: see :func:`read_prompt`.
    """
    [item] = tokenise_for(lens_model, [asked_of(prompt, answer)], Template.parse(template))
    streams: dict[int, Tensor] = {}
    ids = torch.tensor([[*item.prompt, *item.lead]], device=lens_model.device)
    with evaluating(lens_model.model):
        with residual_hooks(lens_model.blocks, lambda depth, stream: streams.__setitem__(depth, stream[0])):
            decoder_of(lens_model.model)(input_ids=ids, use_cache=False)
        by_depth = [streams[depth] for depth in range(lens_model.n_layers + 1)]
        return [_read(lens, by_depth, lens_model, item, answer is not None, top_k) for lens in lenses]


def asked_of(prompt: str, answer: str | None) -> Factoid:
    """A prompt with its answer, as templates take it.

    Raises:
        MemprobeError: one is empty.
    """
    # Without an answer any will do to lay out the template: only the tokens before it are read.
    return make_factoid(prompt, answer if answer is not None else "a", "prompt")


def _read(
    lens: Lens,
    streams: Sequence[Tensor],
    lens_model: LensModel,
    item: TokenisedFactoid,
    asked: bool,
    top_k: int,
) -> PromptReading:
    tokenizer, target = lens_model.tokenizer, item.answer[0]
    top1, probability, best, ranks, answer_probability, entropy, kl = [], [], [], [], [], [], []
    last = lens(streams[-1], len(streams) - 1).log_softmax(1)
    for depth, stream in enumerate(streams):
        logits = lens(stream, depth)
        log_probs = logits.log_softmax(1)
        kl.append((last.exp() * (last - log_probs)).sum(1).clamp(min=0).tolist())
        top = log_probs.exp().topk(min(top_k, log_probs.shape[1]))
        texts = [tokenizer.batch_decode([[i] for i in row]) for row in top.indices.tolist()]
        best.append([list(zip(*row, strict=True)) for row in zip(texts, top.values.tolist(), strict=True)])
        answer_probability.append(float(log_probs[-1, target].exp()))
        reading = read_logits(logits, torch.full((len(logits), 1), target, device=logits.device))
        entropy.append(reading.entropy.tolist())
        ranks.append(reading.rank[:, 0].tolist())
        # Of equal logits the same one as the model's own argmax.
        top1.append(tokenizer.batch_decode([[i] for i in reading.top1.tolist()]))
        probability.append(top.values[:, 0].tolist())
    return PromptReading(
        lens=lens.name,
        tokens=tokenizer.batch_decode([[i] for i in (*item.prompt, *item.lead)]),
        top1=top1,
        probability=probability,
        best=best,
        entropy=entropy,
        kl=kl,
        answer=str(tokenizer.decode([target])) if asked else None,
        answer_ranks=ranks if asked else None,
        answer_probability=answer_probability if asked else None,
    )
