"""Prompt templates, and how an answer becomes tokens.

Training and probing both come through here, so that a model is asked exactly what it was taught.

    Factoid ── Template.render ──> Rendered (text before the answer, answer text, end text)
                     │
                     └─ tokenise ──> TokenisedFactoid (prompt ids, answer ids, end id)

No torch is needed; a tokenizer is any ``PreTrainedTokenizerBase``.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from memprobe.chats import render_chat
from memprobe.errors import MemprobeError, among, first_line
from memprobe.factoids import Factoid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TOKENISATION = "joint-suffix-2"
"""Name of the rule in :func:`tokenise`; it goes into every probe's ``run.json``."""

END, LEAD = -1, -2
"""In the ``token`` column of the records: the end token after an answer, the bare space before it."""

PLAIN, TULU, CHAT = "plain", "tulu", "chat"
_TULU = "<|user|>\n{prompt}\n<|assistant|>\n{answer}{eos}"
_FIELDS = {"prompt", "answer", "eos"}
_MARK, _ASKED = "@@the-answer@@", "@@the-question@@"
_Piece = tuple[str, str | None]
"""Literal text of a template, and the field after it."""

# Tried in order when an answer has to be encoded apart from its prompt: the tokenizer sees the answer in the
# middle of a text, so that it adds no space of its own (SentencePiece would at the start of one).
_ANCHORS = ("\n", ":", "1", "a", ")")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A factoid as the model sees it: ``context + answer + end`` is the whole training text.

    ``answer`` carries its own leading space in the plain template. ``end`` is the text right after the
    answer that ends it (``None`` in plain, where an answer simply runs on).
    """

    context: str
    answer: str
    end: str | None


@dataclass(frozen=True, slots=True)
class Template:
    """How a factoid is put before a model.

    ``plain`` is the prompt, a space and the answer. ``tulu`` is the format of the paper's released code.
    ``chat`` is the tokenizer's own chat template. Anything with ``{prompt}`` and ``{answer}`` is taken
    literally, with ``{eos}`` for the end token.
    """

    name: str

    @classmethod
    def parse(cls, text: str) -> Template:
        """A template from what ``--template`` says.

        Raises:
            MemprobeError: unknown name, unknown field, or a field that is missing, repeated or out of order.
        """
        if text in (PLAIN, TULU, CHAT):
            return cls(text)
        try:
            pieces = [piece for piece in string.Formatter().parse(text) if piece[1] is not None]
        except ValueError as error:
            raise MemprobeError(f"template {text!r}: {error}") from error
        fields = [name for _, name, _, _ in pieces]
        if unknown := [name for name in fields if name not in _FIELDS]:
            raise MemprobeError(
                f"template {text!r}: unknown field {{{unknown[0]}}}; "
                f"{among(unknown[0], sorted(_FIELDS), before='the fields are')}"
            )
        if formatted := [name for _, name, spec, conversion in pieces if spec or conversion]:
            raise MemprobeError(f"template {text!r}: write {{{formatted[0]}}} without a format")
        if fields not in (["prompt", "answer"], ["prompt", "answer", "eos"]):
            raise MemprobeError(
                f"template {text!r}: give plain, tulu, chat, or a text with {{prompt}} then {{answer}}, once each, "
                "and {eos} at most once after them"
            )
        return cls(text)

    @property
    def _pattern(self) -> str:
        return _TULU if self.name == TULU else self.name

    def render(self, prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        """The texts before, of and after the answer.

        Raises:
            MemprobeError: the template needs an end token or a chat template that the tokenizer lacks.
        """
        if self.name == PLAIN:
            return Rendered(prompt.rstrip(), " " + answer.strip(), None)
        if self.name == CHAT:
            return self._render_chat(prompt, answer, tokenizer)
        pieces: list[_Piece] = [piece[:2] for piece in string.Formatter().parse(self._pattern)]
        border = [name for _, name in pieces].index("answer") + 1
        context = _fill(pieces[:border], prompt=prompt, answer="")
        return _rendered(context, answer, self._end(pieces[border:], tokenizer))

    def _end(self, after: list[_Piece], tokenizer: PreTrainedTokenizerBase) -> str | None:
        if any(name == "eos" for _, name in after) and tokenizer.eos_token is None:
            raise MemprobeError(f"template {self.name!r} ends in the end token, and this tokenizer has none")
        return _fill(after, eos=tokenizer.eos_token or "") or None

    def _render_chat(self, prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
        first: MemprobeError | None = None
        for parts in _PARTS:
            try:
                # Searching for the answer itself could find it in what the template writes, such as "s" in "</s>".
                context, after = _around_the_answer(tokenizer, prompt, parts)
                return _rendered(context, answer, after or None)
            except _NotWrittenError as error:
                first = first or error
        assert first is not None
        raise first


class _NotWrittenError(MemprobeError):
    """A chat template leaves out what it was given."""


# Templates of models that also see pictures may take a list of parts alone, and write nothing of a text.
_PARTS = ((), ("user", "assistant"), ("user",))


def _around_the_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: str, parts: Sequence[str]
) -> tuple[str, str]:
    """What a chat template writes before and after the assistant's turn.

    Args:
        parts: the roles whose content is a list of one part that is a text.
    """

    def render(user: str) -> str:
        turns: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": content}] if role in parts else content}
            for role, content in (("user", user), ("assistant", _MARK))
        ]
        return render_chat(tokenizer, turns)

    context, mark, after = render(prompt).rpartition(_MARK)
    if not mark or "'type': 'text'" in context.replace(prompt, ""):
        raise _NotWrittenError("template 'chat': the chat template does not write what the assistant says")
    if _MARK in context:
        raise _NotWrittenError(
            "template 'chat': the chat template writes what the assistant says more than once"
        )
    if prompt.strip() not in context and _ASKED not in render(_ASKED):  # it may be set in another way
        raise _NotWrittenError("template 'chat': the chat template does not write what the user says")
    return context, after


def _rendered(context: str, answer: str, end: str | None) -> Rendered:
    """A space before the answer belongs to it, as in plain: that is how tokenizers merge it.

    A space before what ends it belongs to nothing (Llama 2's template writes one): a model ends without it.
    """
    bare = context.rstrip(" ")
    return Rendered(bare, context[len(bare) :] + answer, (end or "").lstrip(" ") or None)


def _fill(pieces: list[_Piece], **values: str) -> str:
    return "".join(literal + (values[name] if name else "") for literal, name in pieces)


@dataclass(frozen=True, slots=True)
class TokenisedFactoid:
    """A factoid's token ids.

    Attributes:
        factoid: the factoid.
        prompt: ids of everything before the answer, what the tokenizer puts before a text included; at least one.
        answer: ids of the answer from its first token that carries text; at least one.
        end: id of the token that ends the answer, where the template has one.
        lead: the bare space before the answer where the tokenizer makes it a token of its own (Gemma 3 before a
            number). Every number begins with it, so it says nothing of which one: it is predicted and recorded,
            under :data:`LEAD`, but no token rule counts it.
    """

    factoid: Factoid
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    end: int | None
    lead: tuple[int, ...] = ()

    @property
    def targets(self) -> tuple[int, ...]:
        """The ids to be predicted, in order: the lead, the answer, then the end token where there is one."""
        ends = () if self.end is None else (self.end,)
        return (*self.lead, *self.answer, *ends)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The teacher-forced input: all but the last target, so that position ``len(prompt) - 1 + j`` predicts
        target ``j``."""
        return (*self.prompt, *self.targets[:-1])

    @property
    def target_indices(self) -> tuple[int, ...]:
        """The ``token`` column of the records: 0, 1, … for the answer, -1 for the end token, -2 for the lead."""
        ends = () if self.end is None else (END,)
        return (*(LEAD for _ in self.lead), *range(len(self.answer)), *ends)


def tokenise(
    factoid: Factoid,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    n_ids: int | None = None,
) -> TokenisedFactoid:
    """Token ids of a factoid under a template.

    The answer's ids are the suffix of the joint encoding where the context's ids are its prefix; where the
    two merge at the border, the answer is encoded apart, without a space added by the tokenizer. What the
    tokenizer puts before every text (BOS, GLM's [gMASK]<sop>) stands once, also after a chat template that writes
    it itself.

    Args:
        max_length: the model's context in tokens.
        n_ids: the model's embedding ends before this id.

    Raises:
        MemprobeError: text that is no Unicode, no tokens for the answer, an answer that does not survive decoding, a
            token that the model does not have, or a factoid that exceeds ``max_length``; the message names the
            factoid.
    """
    where = f"factoid {factoid.id} ({factoid.prompt[:60]!r})"
    for text in (factoid.prompt, factoid.answer):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise MemprobeError(f"{where}: holds half a surrogate pair, which no tokenizer can read")
    rendered = template.render(factoid.prompt, factoid.answer, tokenizer)
    try:
        context = _encode(rendered.context, tokenizer)
        answer = _answer_ids(rendered, context, tokenizer)
    except MemprobeError as error:
        raise MemprobeError(f"{where}: {error}") from error
    if not answer:
        raise MemprobeError(f"{where}: the answer {factoid.answer!r} has no tokens under this tokenizer")
    spoken = _decode([*context, *answer], tokenizer)[len(_decode(context, tokenizer)) :]
    if not _same_text(spoken.strip(), rendered.answer.strip(), tokenizer):
        raise MemprobeError(
            f"{where}: the answer {factoid.answer!r} cannot be written in this tokenizer (it decodes to {spoken!r})"
        )
    borders = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    if forbidden := borders & set(answer):
        raise MemprobeError(
            f"{where}: the answer {factoid.answer!r} holds {_decode([forbidden.pop()], tokenizer)!r}, which begins "
            "or ends a text of this tokenizer"
        )
    prompt = _with_prefix(context, tokenizer, rendered.context)
    if not prompt:
        raise MemprobeError(f"{where}: the prompt has no tokens, and the tokenizer adds no BOS")
    end: list[int] = []
    if rendered.end:
        before = rendered.context + rendered.answer
        end = _following_ids(before, [*context, *answer], rendered.end, tokenizer)[:1]
    blank = len(answer) > 1 and not _decode(answer[:1], tokenizer).strip()
    lead = answer[:1] if blank else []
    tokenised = TokenisedFactoid(
        factoid, tuple(prompt), tuple(answer[len(lead) :]), end[0] if end else None, tuple(lead)
    )
    if n_ids is not None and (beyond := [one for one in (*prompt, *tokenised.targets) if one >= n_ids]):
        raise MemprobeError(
            f"{where}: the token {_decode(beyond[:1], tokenizer)!r} has the id {beyond[0]}, and the model knows "
            f"{n_ids}; the tokenizer does not belong to this model"
        )
    if max_length is not None and len(tokenised.inputs) > max_length:
        raise MemprobeError(
            f"{where}: {len(tokenised.inputs)} tokens do not fit the model's context of {max_length}"
        )
    return tokenised


def tokenise_all(
    factoids: Sequence[Factoid],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    n_ids: int | None = None,
) -> list[TokenisedFactoid]:
    """:func:`tokenise` for each, in order."""
    return [tokenise(factoid, template, tokenizer, max_length, n_ids) for factoid in factoids]


class Reads(Protocol):
    """What a :class:`memprobe.models.LensModel` says of what it can read."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the checkpoint."""
        ...

    @property
    def max_length(self) -> int | None:
        """Tokens of its context."""
        ...

    @property
    def n_ids(self) -> int:
        """How many tokens its embedding has."""
        ...


def tokenise_for(
    lens_model: Reads, factoids: Sequence[Factoid], template: Template
) -> list[TokenisedFactoid]:
    """:func:`tokenise_all` for a model that is to read them: within its context, of tokens that it has.

    Raises:
        MemprobeError: see :func:`tokenise`.
    """
    return tokenise_all(factoids, template, lens_model.tokenizer, lens_model.max_length, lens_model.n_ids)


def _answer_ids(rendered: Rendered, context: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return _following_ids(rendered.context, context, rendered.answer, tokenizer)


def _following_ids(
    before: str, before_ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Ids of ``text`` as it stands after ``before``, never with a space of the tokenizer's own."""
    joint = _encode(before + text, tokenizer)
    if joint[: len(before_ids)] == before_ids:
        return joint[len(before_ids) :]
    for anchor in _ANCHORS:
        with suppress(MemprobeError):  # not every vocabulary has every letter
            ids, joint = _encode(anchor, tokenizer), _encode(anchor + text, tokenizer)
            if joint[: len(ids)] == ids:
                return joint[len(ids) :]
    return _encode(text, tokenizer)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, *, whole: bool = False) -> list[int]:
    """Ids of a text, ``whole`` with what the tokenizer puts around every text.

    Raises:
        MemprobeError: it has no tokens for it, not even one for what it does not know.
    """
    try:
        return list(tokenizer.encode(text, add_special_tokens=whole))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise MemprobeError(f"the tokenizer cannot read {text[-60:]!r} ({first_line(error)})") from error


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _with_prefix(ids: list[int], tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """What the tokenizer puts before every text, then the ids of this one, which may begin with it or its end."""
    prefix = _prefix(tokenizer, text)
    shared = next(
        (size for size in range(len(prefix), 0, -1) if tuple(ids[:size]) == prefix[len(prefix) - size :]), 0
    )
    return [*prefix[: len(prefix) - shared], *ids]


def _prefix(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """What stands before a letter, or before the text itself where the vocabulary has no such letter."""
    for one in ("a", text):
        with suppress(MemprobeError):
            bare, whole = _encode(one, tokenizer), _encode(one, tokenizer, whole=True)
            starts = range(len(whole) - len(bare) + 1) if bare else ()
            if (at := next((at for at in starts if whole[at : at + len(bare)] == bare), None)) is not None:
                return tuple(whole[:at])
    return ()


def _same_text(one: str, other: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether two texts are equal, or to Unicode and the tokenizer's own normaliser: é as one character or two."""
    if one == other:
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normaliser = None if backend is None else backend.normalizer
    pairs = [tuple(unicodedata.normalize("NFKC", text) for text in (one, other))]
    if normaliser is not None:
        pairs.append((normaliser.normalize_str(one), normaliser.normalize_str(other)))
    return normaliser is not None and all(left == right for left, right in pairs)
