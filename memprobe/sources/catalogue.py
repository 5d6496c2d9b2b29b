"""Every dataset that has a name: where it comes from, and one mapping from its columns to rows.

A mapping reads the columns of the hub's copy and of the local file alike: :func:`text_of` takes the first
column that a row has. It returns None for a row that the set itself leaves without an answer or a subject.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from memprobe.factoids import Factoid, make_factoid
from memprobe.sources.files import one_line, optional
from memprobe.sources.kinds import AnyRow, Kind, Message, Task, make_task
from memprobe.sources.rows import BadRow, Columns, text_of, texts_of
from memprobe.sources.wordings import lama_prompt, subject_and_relation


@dataclass(frozen=True, slots=True)
class Split:
    """A part of a dataset.

    Attributes:
        file: the local file that holds it; None where the local folder has no such part.
        hub: the hub's splits that make it up.
        values: values of the local ``split`` column that belong to it; empty for all rows.
    """

    file: str | None
    hub: tuple[str, ...]
    values: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class HubSet:
    """A dataset on the Hugging Face hub.

    Attributes:
        id: ``owner/name``.
        configs: configurations, read one after the other; None is the default one.
        revision: the branch or commit to read.
        large: too large to be fetched whole: it is streamed, and needs ``n``.
    """

    id: str
    configs: tuple[str | None, ...] = (None,)
    revision: str = "main"
    large: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named source.

    Attributes:
        kind: factoids, tasks or texts.
        licence: of the data.
        hub: its home on the hub, if it has one.
        splits: parts by name; the first is the default.
        read: columns -> row (for texts, the raw passage), or None for a row without an answer.
        conflicts: what happens to rows that ask the same and answer differently; see :mod:`cleaning`.
        note: what a reader must know.
        popularity_file: a local file that holds page views by question and answer.
    """

    name: str
    kind: Kind
    licence: str
    hub: HubSet | None
    splits: Mapping[str, Split]
    read: Callable[[Columns], AnyRow | str | None]
    conflicts: Literal["drop", "merge", "keep"] = "keep"
    note: str = ""
    popularity_file: str | None = None

    @property
    def default_split(self) -> str:
        """The part that the bare name stands for."""
        return next(iter(self.splits))


def _popqa(columns: Columns) -> Factoid | None:
    question = one_line(text_of(columns, "question"), "the question")
    match = subject_and_relation("popqa", question)
    if match is None:  # three questions lack their subject, as in "What is the capital of ?"
        return None
    answers = texts_of(columns, "aliases", "possible_answers", "golden_answers")
    answer = one_line(text_of(columns, "answer", "obj"), "the answer")
    popularity = optional(columns, "s_pop")
    return make_factoid(
        question,
        answer,
        "popqa",
        aliases=answers,
        subject=match[0],
        relation=match[1],
        popularity=None if popularity is None else float(popularity),
    )


def _triviaqa(columns: Columns) -> Factoid:
    answer = columns.get("answer")
    if isinstance(answer, Mapping):  # the hub keeps value and aliases in one struct
        columns = {**columns, "answer": answer.get("value"), "aliases": answer.get("aliases")}
    return make_factoid(
        one_line(text_of(columns, "question"), "the question"),
        one_line(text_of(columns, "answer"), "the answer"),
        "triviaqa",
        aliases=texts_of(columns, "aliases") if columns.get("aliases") else [],
    )


def _lama(columns: Columns) -> Factoid:
    subject = one_line(text_of(columns, "sub_label"), "the subject")
    relation = text_of(columns, "relation", "predicate_id")
    return make_factoid(
        lama_prompt(relation, text_of(columns, "template"), subject),
        one_line(text_of(columns, "obj_label"), "the object"),
        "lama",
        relation=relation,
        subject=subject,
    )


def _entityqa(columns: Columns) -> Factoid:
    question = one_line(text_of(columns, "question"), "the question")
    answers = texts_of(columns, "answers")
    match = subject_and_relation("entityqa", question)
    return make_factoid(
        question,
        one_line(answers[0], "the answer"),
        "entityqa",
        aliases=answers[1:],
        relation=optional(columns, "relation") or (match and match[1]),
        subject=match and match[0],
    )


def _webqa(columns: Columns) -> Factoid:
    answers = texts_of(columns, "answers")
    question = one_line(text_of(columns, "qText", "question"), "the question")
    return make_factoid(question, one_line(answers[0], "the answer"), "webqa", aliases=answers[1:])


def _pair(source: str, prompt: str, answer: str) -> Callable[[Columns], Task]:
    def read(columns: Columns) -> Task:
        return _ask(source, text_of(columns, prompt), text_of(columns, answer))

    return read


def _ask(source: str, prompt: str, answer: str) -> Task:
    return make_task([Message("user", prompt), Message("assistant", answer)], source)


def _apps(columns: Columns) -> Task | None:
    if not columns.get("solutions") or columns["solutions"] == "[]":  # some problems have none
        return None
    question = text_of(columns, "question")
    if starter := optional(columns, "starter_code"):
        question = f"{question}\n\nStart from this code:\n{starter}"
    return _ask("apps", question, texts_of(columns, "solutions")[0])


_DOCSTRING = re.compile(r"(?s)(?P<head>.*?)\n[ \t]*'''\s*(?P<text>.*?)\s*'''\s*")


def _mbpp(columns: Columns) -> Task:
    prompt = text_of(columns, "prompt")
    if columns.get("code") is not None:
        return _ask("mbpp", prompt, text_of(columns, "code"))
    # The local copy has the task inside a function head: taken apart, both copies ask and answer the same.
    match = _DOCSTRING.fullmatch(prompt)
    if match is None:
        raise BadRow("'prompt' is no function head with a docstring")
    body = str(columns.get("canonical_solution", "")).strip("\n")
    if not body.strip():
        raise BadRow("no 'canonical_solution'")
    return _ask("mbpp", match["text"], f"{match['head'].strip()}\n{body}".rstrip())


def _ultrachat(columns: Columns) -> Task:
    if (turns := columns.get("data")) is not None:  # the hub has the bare texts, the user's first
        if not isinstance(turns, list | tuple) or not all(isinstance(turn, str) for turn in turns):
            raise BadRow("'data' is not a list of texts")
        roles = ("user", "assistant")
        messages = [Message(roles[index % 2], turn) for index, turn in enumerate(turns)]
    else:
        messages = messages_of(columns)
    if messages and messages[-1].role == "user":  # an unanswered last question teaches nothing
        messages = messages[:-1]
    return make_task(messages, "ultrachat")


def messages_of(columns: Columns) -> list[Message]:
    """The ``messages`` column.

    Raises:
        BadRow: it is missing, or not a list of {role, content}.
    """
    turns = columns.get("messages")
    if not isinstance(turns, list | tuple):
        raise BadRow("no 'messages' list")
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise BadRow("a message is not {role, content}")
        if turn.get("role") not in ("system", "user", "assistant"):
            raise BadRow(f"a message has the role {turn.get('role')!r}, not system, user or assistant")
        messages.append(Message(turn["role"], turn["content"]))
    return messages


def _passage(columns: Columns) -> str:
    return text_of(columns, "text", "content")


_PARQUET = "refs/convert/parquet"  # the hub's own conversion of sets that come as a script
_MATH = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "popqa",
            "factoids",
            "MIT",
            HubSet("akariasai/PopQA"),
            {"all": Split("popqa.jsonl", ("test",))},
            _popqa,
            conflicts="drop",
            popularity_file="popqa_meta_1k.jsonl",
        ),
        Dataset(
            "triviaqa",
            "factoids",
            "Apache-2.0",
            HubSet("mandarjoshi/trivia_qa", ("rc.nocontext",), large=False),
            {"all": Split("triviaqa.jsonl", ("train", "validation"))},
            _triviaqa,
            conflicts="drop",
            note="the local file is a subset of 3,730 questions",
        ),
        Dataset(
            "lama",
            "factoids",
            "CC-BY-NC-4.0",
            HubSet("facebook/lama", ("trex",), _PARQUET),
            {"all": Split("lama_trex.jsonl", ("train",))},
            _lama,
            conflicts="merge",
            note="T-REx; cloze, and a question for the six relations whose template goes on after the object",
        ),
        Dataset(
            "entityqa",
            "factoids",
            "MIT",
            HubSet("costadev00/EntityQuestions"),
            {
                "all": Split("entityquestions.jsonl", ("train", "validation", "test")),
                "train": Split("entityquestions.jsonl", ("train",), frozenset({"train"})),
                "dev": Split("entityquestions.jsonl", ("validation",), frozenset({"dev"})),
                "test": Split("entityquestions.jsonl", ("test",), frozenset({"test"})),
            },
            _entityqa,
            conflicts="drop",
            note="on the hub there is only an unofficial copy, behind a login; the local file is a sample",
        ),
        Dataset(
            "webqa",
            "factoids",
            "CC-BY-4.0",
            HubSet("stanfordnlp/web_questions"),
            {
                "all": Split("webquestions.jsonl", ("train", "test")),
                "train": Split("webquestions.jsonl", ("train",), frozenset({"trainmodel", "val", "devtest"})),
                "test": Split("webquestions.jsonl", ("test",), frozenset({"test"})),
            },
            _webqa,
            conflicts="drop",
        ),
        Dataset(
            "gsm8k",
            "tasks",
            "MIT",
            HubSet("openai/gsm8k", ("main",)),
            {
                "train": Split("gsm8k_train.jsonl", ("train",)),
                "test": Split("gsm8k_test.jsonl", ("test",)),
            },
            _pair("gsm8k", "question", "answer"),
        ),
        Dataset(
            "math",
            "tasks",
            "MIT",
            HubSet("EleutherAI/hendrycks_math", _MATH),
            {
                "all": Split("math_test5000.jsonl", ("train", "test")),
                "train": Split(None, ("train",)),
                "test": Split("math_test5000.jsonl", ("test",)),
            },
            _pair("math", "problem", "solution"),
            note="the local file is the test split",
        ),
        Dataset(
            "evolcode",
            "tasks",
            "Apache-2.0",
            HubSet("nickrosh/Evol-Instruct-Code-80k-v1"),
            {"all": Split("evolcode.jsonl", ("train",))},
            _pair("evolcode", "instruction", "output"),
            note="the local file is the pilot set of 3,567",
        ),
        Dataset(
            "apps",
            "tasks",
            "MIT",
            HubSet("codeparrot/apps", ("all",), _PARQUET, large=True),
            {"all": Split("apps_5.jsonl", ("train",)), "test": Split(None, ("test",))},
            _apps,
            note="the first solution is the answer; the local file is a sample of 5",
        ),
        Dataset(
            "mbpp",
            "tasks",
            "CC-BY-4.0",
            HubSet("google-research-datasets/mbpp", ("sanitized",)),
            {"all": Split("mbpp_sanitized.jsonl", ("train", "test", "validation", "prompt"))},
            _mbpp,
            note="stands in for APPS in local runs",
        ),
        Dataset(
            "ultrachat",
            "tasks",
            "MIT",
            HubSet("stingning/ultrachat", large=True),
            {"all": Split("ultrachat_small.jsonl", ("train",))},
            _ultrachat,
            note="multi-turn; the local file is a sample of 1,000",
        ),
        Dataset(
            "generic",
            "texts",
            "mixed web text",
            HubSet("Query-of-CC/Knowledge_Pile", large=True),
            {"all": Split("generic_text.jsonl", ("train",))},
            _passage,
            note="the local file stands in for Knowledge-Pile",
        ),
        Dataset(
            "fineweb",
            "texts",
            "ODC-By-1.0",
            HubSet("HuggingFaceFW/fineweb", ("sample-10BT",), large=True),
            {"all": Split("generic_text.jsonl", ("train",))},
            _passage,
            note="the local file stands in for FineWeb, and is that of generic",
        ),
        Dataset(
            "abstracts",
            "texts",
            "Apache-2.0, PubMed",
            HubSet("haritzpuerto/the_pile_arxiv_50k_sample", large=True),
            {"all": Split("scientific_abstracts.jsonl", ("train",))},
            _passage,
            note="the local file stands in for ArXiv-Pile",
        ),
    )
}
