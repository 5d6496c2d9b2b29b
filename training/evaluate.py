"""What a checkpoint can do: its factoids, its tasks, and ordinary text, row by row and in sum.

    EvaluationSet ──teacher forcing──> loss, exact_tokens ──generation where needed──> predictions ──> scores

One dict for each set goes into ``evaluation.json``; :func:`accuracy_matrix` lays those of several stages side
by side, and :func:`retention` takes replayed and unseen rows apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from memprobe.answers import answer, generate_batches, shown
from memprobe.batching import batches_by_tokens, rope_border, tokens_at_once
from memprobe.errors import MemprobeError, among
from memprobe.evaluations import SHARES, WITHIN_ONE
from memprobe.factoids import Factoid, make_factoid
from memprobe.metrics import FINAL_ANSWERS, rouge_l, same_final_answer
from memprobe.sources.kinds import AnyRow, Task, Text
from memprobe.statistics.ends import SHARE, within
from memprobe.statistics.intervals import Resamples, bootstrap, bootstrap_mean, wilson
from memprobe.templates import PLAIN, TULU, Template, tokenise, tokenise_for
from training.batches import collator, rows_exact
from training.examples import ExampleMaker
from training.gradients import in_eval_mode, kept_logits
from training.mixing import Example

if TYPE_CHECKING:
    from memprobe.models import LensModel

    Row = dict[str, Any]
    Progress = Callable[[str, int, int], None]

Kind = Literal["factoids", "task", "text"]
Metric = Literal[
    "exact_match", "exact_tokens", "alias_match", "rouge_l", "final_answer", "nats", "loss", "perplexity"
]
METRICS: dict[Kind, tuple[Metric, ...]] = {
    "factoids": ("exact_match", "exact_tokens", "alias_match", "rouge_l", "nats", "loss"),
    "task": ("final_answer", "rouge_l", "loss"),
    "text": ("perplexity", "loss"),
}
DRAWS = 2000
# Every token of a text has logits, and of a factoid only the answer's.
_CPU_TOKENS, _GPU_TOKENS = 2048, {"factoids": 8192, "task": 4096, "text": 4096}
_ROW_OF: dict[Kind, type] = {"factoids": Factoid, "task": Task, "text": Text}


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Rows of one kind, and the metric that stands for them.

    Attributes:
        kind: ``factoids``, ``task`` (a skill) or ``text`` (generic passages).
        rows: of that kind; ids are unique.
        template: how factoids and tasks are put before the model; texts are read as they are.
        metric: the one in the accuracy matrix; default: ``exact_match`` for factoids, ``final_answer`` for
            GSM8K and MATH, ``loss`` for other tasks, ``perplexity`` for texts.
        max_length: tokens after which a task or text is cut, as in training.
        new_tokens: generated for a final answer at most.
    """

    kind: Kind
    rows: Sequence[AnyRow]
    template: str = TULU
    metric: Metric | None = None
    max_length: int = 1024
    new_tokens: int = 512

    def __post_init__(self) -> None:
        """Raises a MemprobeError for rows or a metric that do not belong to the kind."""
        if self.kind not in METRICS:
            raise MemprobeError(f"evaluation set of kind {self.kind!r}; {among(self.kind, METRICS)}")
        if not self.rows:
            raise MemprobeError(f"evaluation set of {self.kind}: it has no rows")
        for row in self.rows:
            if not isinstance(row, _ROW_OF[self.kind]):
                raise MemprobeError(
                    f"evaluation set of {self.kind}: row {row.id} is a {type(row).__name__.lower()}"
                )
        ids = [row.id for row in self.rows]
        if len(set(ids)) < len(ids):
            repeated = next(key for key in ids if ids.count(key) > 1)
            raise MemprobeError(f"evaluation set of {self.kind}: the id {repeated!r} stands twice")
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise MemprobeError(
                f"evaluation set of {self.kind}: no metric {self.metric!r}; "
                f"{among(self.metric, METRICS[self.kind])}"
            )
        if self.metric == "final_answer" and not self._has_final_answers:
            raise MemprobeError(
                f"final_answer: there is a rule for {' and '.join(FINAL_ANSWERS)} alone; use loss"
            )

    @property
    def headline(self) -> Metric:
        """The metric that stands for the set."""
        if self.metric is not None:
            return self.metric
        if self.kind == "task":
            return "final_answer" if self._has_final_answers else "loss"
        return METRICS[self.kind][0]

    @property
    def _has_final_answers(self) -> bool:
        return all(row.source in FINAL_ANSWERS for row in self.rows)


def evaluate(
    lens_model: LensModel,
    sets: Mapping[str, EvaluationSet],
    *,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores of a model on each set.

    ==================  ==============================================================================
    ``exact_tokens``    every answer token is the argmax, and so is the end token where there is one
    ``exact_match``     the generated answer equals the answer, stripped and in lower case; or
                        ``exact_tokens``, which implies it (see below)
    ``alias_match``     it equals the answer or an alias after the usual normalisation
    ``rouge_l``         F1 of the longest common subsequence of words
    ``final_answer``    GSM8K and MATH: the generated solution ends in the same result
    ``nats``            mean negative log-likelihood of a whole answer with its end token, nats: what is kept of an
                        answer that is no longer exact
    ``loss``            mean negative log-likelihood of an answer token, nats (texts: of every token after
                        the first, or after the prompt where there is one)
    ``perplexity``      exp(loss)
    ==================  ==============================================================================

    Only factoids without ``exact_tokens`` are generated: greedy decoding of the others can only repeat the
    tokens that teacher forcing has shown to be the argmax, up to the end token. A plain template has no end
    token, and a model may well go on after the answer; there ``exact_match`` takes the answer alone, as
    :mod:`memprobe.capturing` does.

    Args:
        batch_tokens: padded tokens of one batch; by default as many as suit the device.
        progress: called with (name of the set, rows done, rows in all).

    Returns:
        By name: ``kind``, ``metric`` (that of the accuracy matrix), ``template`` (None for texts), ``n``,
        ``scores`` (each ``{"value", "low", "high"}`` with a 95 % interval over rows: Wilson for shares, else
        the bootstrap; bounds are None where rows are too few for that), ``rows`` (results by row, with their ids) and
        ``left_out`` (why, by id: tasks and texts whose prompt fills ``max_length``). JSON holds all of it.
        The mode and random state of the model stay as they are.

    Raises:
        MemprobeError: a factoid that cannot be tokenised, a set with no row left, or a loss that is not finite;
            the message names the set.
    """
    results = {}
    for name, one in sets.items():
        tell = None if progress is None else partial(progress, name)
        try:
            with in_eval_mode(lens_model.model), torch.inference_mode():
                tokens = batch_tokens or tokens_at_once(lens_model.device, _CPU_TOKENS, _GPU_TOKENS[one.kind])
                rows, left_out = _ROWS[one.kind](lens_model, one, tokens, tell)
            if not rows:
                raise MemprobeError(f"no row is left ({next(iter(left_out.values()))})")
        except MemprobeError as error:
            raise MemprobeError(f"evaluation of {name}: {error}") from error
        results[name] = {
            "kind": one.kind,
            "metric": one.headline,
            "template": None if one.kind == "text" else one.template,
            "n": len(rows),
            "scores": scores(rows, one.kind),
            "rows": rows,
            "left_out": left_out,
        }
    return results


def scores(rows: Sequence[Row], kind: Kind) -> dict[str, dict[str, float | None]]:
    """The metrics of a kind that its rows hold, in sum: shares, means, and the loss by token."""
    resamples = Resamples.of(len(rows), draws=DRAWS)
    by_metric: dict[str, dict[str, float | None]] = {}
    for metric in METRICS[kind]:
        if metric in ("loss", "perplexity"):
            sums = np.array([[row["loss"] * row["tokens"], row["tokens"]] for row in rows])
            triple = bootstrap(sums, resamples, lambda total, _: total[:, :1] / total[:, 1:])
            if metric == "perplexity":
                triple = tuple(np.exp(part) for part in triple)
        elif metric not in rows[0]:
            continue
        elif metric in SHARES:
            share = float(np.mean([row[metric] for row in rows]))
            triple = (share, *wilson(np.array(share), np.array(len(rows))))
        else:
            mean, low, high = bootstrap_mean(np.array([[row[metric]] for row in rows], float), resamples)
            triple = (mean, *within(low, high, [SHARE if metric in WITHIN_ONE else (0.0, np.inf)]))
        by_metric[metric] = _interval(*triple)
    return by_metric


def accuracy_matrix(evaluations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """Stage × dataset: a row for each stage, and in a column for each set the value of its own metric.

    Args:
        evaluations: results of :func:`evaluate` by stage, in order.

    Returns:
        ``stage``, then one Float64 column for each set in order of appearance; null where a stage has not been
        evaluated on it.

    Raises:
        MemprobeError: a set changes its metric from one stage to another.
    """
    metrics: dict[str, str] = {}
    for stage, results in evaluations.items():
        for name, result in results.items():
            if metrics.setdefault(name, result["metric"]) != result["metric"]:
                raise MemprobeError(
                    f"{name}: measured by {metrics[name]} before stage {stage}, and there by {result['metric']}"
                )
    rows = [
        {"stage": stage}
        | {
            name: results[name]["scores"][metric]["value"] if name in results else None
            for name, metric in metrics.items()
        }
        for stage, results in evaluations.items()
    ]
    return pl.DataFrame(rows, schema={"stage": pl.String} | dict.fromkeys(metrics, pl.Float64))


def retention(result: Mapping[str, Any], replayed: Collection[str] = ()) -> dict[str, Any]:
    """Scores of one set of factoids: of all rows, and of those that were replayed and those that were not, apart.

    Replayed rows are trained on again; what a method keeps shows in the unseen ones.

    Args:
        result: of :func:`evaluate`, for that set.
        replayed: ids of the rows that a later stage trained on again.

    Returns:
        ``all``, ``replayed`` and ``unseen``, each with ``n`` and ``scores`` (empty where n is 0).

    Raises:
        MemprobeError: a replayed id is not among the rows.
    """
    again = set(replayed)
    if unknown := sorted(again - {row["id"] for row in result["rows"]}):
        raise MemprobeError(f"retention: the replayed row {unknown[0]} is not in this set")
    parts = {
        "all": list(result["rows"]),
        "replayed": [row for row in result["rows"] if row["id"] in again],
        "unseen": [row for row in result["rows"] if row["id"] not in again],
    }
    return {
        name: {"n": len(rows), "scores": scores(rows, "factoids") if rows else {}}
        for name, rows in parts.items()
    }


# ------------------------------------------------------------------------------------------- row by row


def _factoids(
    lens_model: LensModel, one: EvaluationSet, batch_tokens: int, tell: Callable[[int, int], None] | None
) -> tuple[list[Row], dict[str, str]]:
    factoids = [row for row in one.rows if isinstance(row, Factoid)]
    template = Template.parse(one.template)
    items = tokenise_for(lens_model, factoids, template)
    make = ExampleMaker(one.template, lens_model.tokenizer, _context(lens_model))
    forced = list(_forced(lens_model, [make(factoid) for factoid in factoids], batch_tokens))
    verdicts = {item.factoid.id: shown(item) for item, read in zip(items, forced, strict=True) if read.exact}
    open_items = [item for item in items if item.factoid.id not in verdicts]
    if tell:
        tell(len(verdicts), len(items))
    for batch in answer(lens_model, open_items, batch_tokens=batch_tokens):
        # Teacher forcing has the word on exact tokens: two logits may be equal up to rounding.
        verdicts |= {key: replace(verdict, exact_tokens=False) for key, verdict in batch.items()}
        if tell:
            tell(len(verdicts), len(items))
    rows = [
        {
            "id": item.factoid.id,
            **asdict(verdicts[item.factoid.id]),
            "rouge_l": rouge_l(verdicts[item.factoid.id].prediction, item.factoid.answer),
            "nats": read.nats,
            **read.columns,
        }
        for item, read in zip(items, forced, strict=True)
    ]
    return rows, {}


def _tasks(
    lens_model: LensModel, one: EvaluationSet, batch_tokens: int, tell: Callable[[int, int], None] | None
) -> tuple[list[Row], dict[str, str]]:
    rows, left_out = _losses(lens_model, one, one.template, batch_tokens)
    if one.headline != "final_answer":
        if tell:
            tell(len(one.rows), len(one.rows))
        return rows, left_out
    by_id = {row.id: row for row in one.rows if isinstance(row, Task) and row.id not in left_out}
    solutions: dict[str, str] = {}
    for batch in _solutions(lens_model, one, list(by_id.values()), batch_tokens):
        solutions |= batch
        if tell:
            tell(len(solutions), len(by_id))
    for row in rows:
        task, solution = by_id[row["id"]], solutions[row["id"]]
        row["prediction"] = solution
        row["final_answer"] = same_final_answer(task.source, solution, task.answer)
        row["rouge_l"] = rouge_l(solution, task.answer)
    return rows, left_out


def _texts(
    lens_model: LensModel, one: EvaluationSet, batch_tokens: int, tell: Callable[[int, int], None] | None
) -> tuple[list[Row], dict[str, str]]:
    rows, left_out = _losses(lens_model, one, PLAIN, batch_tokens)
    if tell:
        tell(len(one.rows), len(one.rows))
    return rows, left_out


_ROWS: dict[Kind, Callable[..., tuple[list[Row], dict[str, str]]]] = {
    "factoids": _factoids,
    "task": _tasks,
    "text": _texts,
}


def _losses(
    lens_model: LensModel, one: EvaluationSet, template: str, batch_tokens: int
) -> tuple[list[Row], dict[str, str]]:
    make = ExampleMaker(template, lens_model.tokenizer, min(one.max_length, _context(lens_model)))
    examples: list[Example] = []
    left_out: dict[str, str] = {}
    for row in one.rows:
        try:
            examples.append(make(row))
        except MemprobeError as error:
            left_out[row.id] = str(error)
    forced = _forced(lens_model, examples, batch_tokens)
    rows = [{"id": example.id, **read.columns} for example, read in zip(examples, forced, strict=True)]
    return rows, left_out


@dataclass(frozen=True, slots=True)
class _Forced:
    """What teacher forcing shows of one row: nats of all its learned tokens, their number, and whether every one
    is the argmax."""

    nats: float
    tokens: int
    exact: bool

    @property
    def columns(self) -> Row:
        return {"loss": self.nats / self.tokens, "tokens": self.tokens}


def _forced(lens_model: LensModel, examples: Sequence[Example], batch_tokens: int) -> Iterator[_Forced]:
    """One forward pass for each batch of rows of like length; results in the order of the rows."""
    collate = collator(lens_model.model, examples)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    scored: dict[int, _Forced] = {}
    border = rope_border(lens_model.model)
    for batch in batches_by_tokens(
        order, lambda index: len(examples[index].ids), batch_tokens, border=border
    ):
        one = collate([examples[index] for index in batch])
        logits = kept_logits(lens_model.model, one)
        right = one["labels"].to(logits.device)
        counts = torch.bincount(one["kept_row"], minlength=len(batch)).tolist()
        nats = F.cross_entropy(logits, right, reduction="none").cpu().double().split(counts)
        exact = rows_exact(logits, right, one["kept_row"].to(logits.device), len(batch)).tolist()
        for index, some, count, all_right in zip(batch, nats, counts, exact, strict=True):
            scored[index] = _Forced(float(some.sum()), count, all_right)
            if not math.isfinite(scored[index].nats):
                raise MemprobeError(f"the loss of row {examples[index].id} is not finite")
    for index in range(len(examples)):
        yield scored[index]


def _solutions(
    lens_model: LensModel, one: EvaluationSet, tasks: Sequence[Task], batch_tokens: int
) -> Iterator[dict[str, str]]:
    """Generated solutions by id; those with less room left in the model's context get fewer tokens."""
    template = Template.parse(one.template)
    groups: dict[tuple[int, int], list[tuple[str, tuple[int, ...]]]] = {}
    for task in tasks:
        if len(task.messages) != 2:
            raise MemprobeError(f"task {task.id}: a final answer needs one question and one solution")
        item = tokenise(
            make_factoid(task.prompt, task.answer, task.source, id=task.id), template, lens_model.tokenizer
        )
        end = item.end if item.end is not None else lens_model.tokenizer.eos_token_id
        if end is None:
            raise MemprobeError("a solution has several lines, so it needs an end token; use tulu or chat")
        room = max(1, min(one.new_tokens, _context(lens_model) - len(item.prompt)))
        groups.setdefault((room, end), []).append((task.id, item.prompt))
    for (room, end), items in sorted(groups.items()):
        prompts = [prompt for _, prompt in items]
        for indices, continuations in generate_batches(
            lens_model, prompts, max_new_tokens=room, end=end, batch_tokens=batch_tokens
        ):
            yield {
                items[index][0]: continuation.text.strip()
                for index, continuation in zip(indices, continuations, strict=True)
            }


def _context(lens_model: LensModel) -> int:
    return lens_model.max_length or 1_000_000  # ALiBi names none


# --------------------------------------------------------------------------------------------- in sum


def _interval(value: Any, low: Any, high: Any) -> dict[str, float | None]:
    numbers = {"value": value, "low": low, "high": high}
    floats = {key: float(np.asarray(number).reshape(-1)[0]) for key, number in numbers.items()}
    return {key: number if math.isfinite(number) else None for key, number in floats.items()}
