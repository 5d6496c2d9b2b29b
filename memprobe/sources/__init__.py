"""Names and paths -> factoids, task examples and texts.

::

    known                the built-in facts                       kvr:N[:SPLIT]    made-up keys and values
    NAME[:SPLIT]         a dataset of the catalogue, from --data-dir or the hub
    FILE[:new|:both]     your own rows (JSONL, JSON, CSV, Parquet)   hub:OWNER/NAME[@REVISION][:SPLIT]
    jsonl:FILE           JSONL in a file of any name
    random-words         texts of dictionary words                self             the model's own passages

:func:`load` gives the rows together with their origin and what cleaning took out; :func:`load_factoids`,
:func:`load_tasks` and :func:`load_texts` give the rows alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from memprobe.errors import MemprobeError, among
from memprobe.factoids import Factoid
from memprobe.files import exists
from memprobe.sources.builtin import read_known
from memprobe.sources.catalogue import DATASETS, Dataset, HubSet, Split, messages_of
from memprobe.sources.cleaning import Conflicts, clean, without_overlap
from memprobe.sources.files import factoid_of, read_factoid_file
from memprobe.sources.generated import GENERATED, SourceRequest, written
from memprobe.sources.kinds import AnyRow, Kind, Message, Task, Text, make_task, make_text, rows_hash
from memprobe.sources.named import NamedFile, named_file
from memprobe.sources.origins import Origin, data_folder, file_revision, open_rows, split_of
from memprobe.sources.passages import PromptForm, check_words, halve, start
from memprobe.sources.rows import ROW_FILES, BadRow, BadRows, Columns, OnBadRow, Row, read_rows, text_of

__all__ = [
    "Loaded",
    "TooLarge",
    "files_of",
    "kind_of",
    "load",
    "load_factoids",
    "load_tasks",
    "load_texts",
    "without_overlap",
]

R = TypeVar("R", Factoid, Task, Text)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows, where they came from, and what was taken out.

    Attributes:
        rows: factoids, tasks or texts.
        origin: which rows these are.
        counts: ``read`` rows, those left out by rule (``bad``, ``unanswered``, ``short``, ``duplicate``,
            ``merged``, ``conflict``, ``overlap``, ``not drawn``), and ``kept``; they add up.
        bad: the bad rows left out, each named by file and line.
    """

    rows: list[AnyRow]
    origin: Origin
    counts: dict[str, int]
    bad: list[str] = field(default_factory=list)

    @property
    def factoids(self) -> list[Factoid]:
        """The rows, where they are factoids."""
        return _of(self, Factoid)

    def left_out(self) -> list[str]:
        """What was read and is not among the rows, in lines: how many by which rule, then each bad row.

        Rows that were not drawn are not named: a smaller number was asked for.
        """
        by_rule = {rule: n for rule, n in self.counts.items() if n and rule not in _NOT_LEFT_OUT}
        gone = f"{sum(by_rule.values()):,} of {self.counts.get('read', 0):,} rows of {self.origin.name}"
        return [*([f"{gone}: {_say(by_rule)}"] if by_rule else []), *self.bad]


def load(
    name: str,
    kind: Kind | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    on_bad_row: OnBadRow = "fail",
    conflicts: Conflicts | None = None,
    without: Iterable[Factoid] = (),
    words: tuple[int, int] = (50, 50),
    prompt_form: PromptForm = "words",
    words_file: str | Path | None = None,
    base: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    whole: bool = False,
) -> Loaded:
    """Rows by name or path.

    Args:
        name: see the module's table.
        kind: what a file holds (default: factoids); for a name, what is expected of it.
        n: a seeded subset of this size, the same for any order of the rows; a larger one holds the smaller.
            A set too large to be fetched is streamed, shuffled within a buffer, up to this many rows.
        seed: of the subset, and of all that is generated.
        data_dir: folder with local files; default: the environment's ``MEMPROBE_DATA_DIR``, else the hub.
        on_bad_row: ``fail``, or ``skip`` and count.
        conflicts: for factoids that ask the same and answer differently; default: the dataset's own rule, and
            ``keep`` for files.
        without: factoids of an earlier set; rows that share a question or (subject, relation) are dropped.
        words: for texts, words of the prompt and of the answer.
        prompt_form: whether the prompt of a text carries those words, or is one sentence; see :mod:`passages`.
        words_file: word list for ``random-words``.
        base: checkpoint that speaks, for ``self``.
        progress: called with (passages so far, of how many) while ``self`` speaks.
        whole: texts of a file stay as they are written up to so many words, and those of fewer whole.

    Raises:
        MemprobeError: no such source, neither folder nor hub has it, fewer than ``n`` rows, or a bad row.
    """
    check_words(words)
    bad, counts = BadRows(on_bad_row), Counter[str]()
    asked = SourceRequest(name, n, seed, data_dir, words, prompt_form, words_file, base, progress, whole)
    opened = _open(asked, kind, bad, counts)
    origin = opened.origin
    if kind is not None and origin.kind != kind:
        raise MemprobeError(f"{name}: holds {origin.kind}, not {kind}")
    if origin.kind == "factoids":
        rows = (row for row in opened.rows if isinstance(row, Factoid))
        factoids = clean(rows, conflicts or opened.conflicts, counts)
        kept: list[AnyRow] = [*without_overlap(factoids, without, counts)]
    else:
        kept = _unique(opened.rows, counts, n if opened.streamed else None)
    counts["bad"] = len(bad.named)
    counts["read"] += len(bad.named)
    if not kept:
        raise MemprobeError(f"{name}: no rows are left ({_say(counts)})")
    made = origin.via == "generated"  # in an order of its own, of which the first are taken
    if n is not None and (not made or (origin.kind == "factoids" and len(kept) > n)):
        chosen = kept[:n] if made else subset(kept, n, seed, name)
        counts["not drawn"] = len(kept) - len(chosen)
        kept = chosen
    elif n is not None and origin.kind == "factoids" and len(kept) < n:
        raise MemprobeError(
            f"{name}: {len(kept)} of the {n} rows that are asked for are left ({_say(counts)}): ask for fewer, or "
            "make others, as those of another split are"
        )
    counts["kept"] = len(kept)
    origin = replace(origin, n=len(kept), hash=rows_hash(kept))
    return Loaded(kept, origin, dict(counts), bad.named)


def load_factoids(
    name_or_path: str,
    *,
    n: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    on_bad_row: OnBadRow = "fail",
    conflicts: Conflicts | None = None,
    without: Iterable[Factoid] = (),
) -> list[Factoid]:
    """The factoids of a source.

    Args:
        name_or_path: ``known`` (the built-in facts), ``kvr:N``, a dataset's name as ``memprobe sources`` lists them
            (``popqa``, ``lama:test``), or a JSONL, JSON, CSV or Parquet file.
        n: a random sample of this size, the same for any order of the rows; a larger one holds the smaller.
        seed: of the sample, and of what is generated.
        data_dir: folder with the datasets' files; by default ``MEMPROBE_DATA_DIR``, else the hub.
        on_bad_row: ``fail``, or ``skip`` rows that cannot be read.
        conflicts: what happens to factoids that ask the same and answer differently: ``drop``, ``merge`` or ``keep``;
            by default the dataset's own rule, and ``keep`` for files.
        without: factoids of another set; those that share a question, or subject and relation, with it are dropped.

    Raises:
        MemprobeError: no such source, neither folder nor hub has it, fewer than ``n`` rows, or a bad row.
    """
    loaded = load(
        name_or_path,
        "factoids",
        n=n,
        seed=seed,
        data_dir=data_dir,
        on_bad_row=on_bad_row,
        conflicts=conflicts,
        without=without,
    )
    return loaded.factoids


def load_tasks(
    name_or_path: str,
    *,
    n: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    on_bad_row: OnBadRow = "fail",
) -> list[Task]:
    """The task examples of a source; see :func:`load`."""
    return _of(load(name_or_path, "tasks", n=n, seed=seed, data_dir=data_dir, on_bad_row=on_bad_row), Task)


def load_texts(
    name_or_path: str,
    *,
    n: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    on_bad_row: OnBadRow = "fail",
    words: tuple[int, int] = (50, 50),
    prompt_form: PromptForm = "words",
    words_file: str | Path | None = None,
    base: str | None = None,
) -> list[Text]:
    """The texts of a source; see :func:`load`."""
    loaded = load(
        name_or_path,
        "texts",
        n=n,
        seed=seed,
        data_dir=data_dir,
        on_bad_row=on_bad_row,
        words=words,
        prompt_form=prompt_form,
        words_file=words_file,
        base=base,
    )
    return _of(loaded, Text)


def subset(rows: Sequence[AnyRow], n: int, seed: int, name: str) -> list[AnyRow]:
    """``n`` of them, chosen by a hash of seed and id.

    Raises:
        MemprobeError: there are fewer.
    """
    if not 1 <= n <= len(rows):
        raise MemprobeError(f"{name}: `n` {n} is not between 1 and its {len(rows)} rows")
    return sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row.id}".encode()).digest())[:n]


class TooLarge(MemprobeError):
    """A set of the hub that is streamed, asked for whole."""

    def __init__(self, what: str, instead: str = "`n` where a command takes one"):
        super().__init__(f"{what}; give a --data-dir that has it, or {instead}")
        self.what = what

    def where_all_is_read(self, instead: str) -> TooLarge:
        """The error of a command that takes no number of these rows.

        Args:
            instead: how it is given a file: ``--texts FILE``.
        """
        return TooLarge(self.what, f"a file of yours in its place: {instead}")


@dataclass(frozen=True, slots=True)
class _Opened:
    """Rows before cleaning; ``streamed`` ones are shuffled already, and read only as far as they are needed."""

    rows: Iterable[AnyRow]
    origin: Origin
    conflicts: Conflicts = "keep"
    streamed: bool = False


def files_of(name: str, data_dir: str | Path | None = None) -> list[Path]:
    """The files here that a source's rows are read from; none where they are built in, generated or the hub's.

    Raises:
        MemprobeError: there is no such folder, or the dataset has no such split.
    """
    if (named := named_file(name)) is not None:
        return [named.path]
    head, _, tail = name.partition(":")
    folder = data_folder(data_dir)
    if head not in DATASETS or folder is None:
        return []
    part = split_of(DATASETS[head], tail or None)[1]
    return [folder / file for file in (part.file, DATASETS[head].popularity_file) if file]


def kind_of(name: str, holds: Kind | None = None) -> Kind:
    """What the rows of a source are; ``holds`` says it of those that are no source of their own, as of files."""
    head = name.partition(":")[0]
    if head in GENERATED:
        return GENERATED[head].kind
    return DATASETS[head].kind if head in DATASETS and named_file(name) is None else holds or "factoids"


def _open(asked: SourceRequest, kind: Kind | None, bad: BadRows, counts: Counter[str]) -> _Opened:
    name = asked.name
    head, _, tail = name.partition(":")
    if name == "known":
        return _Opened(_counted(read_known(), counts), Origin("known", "factoids", "built-in"))
    if head in GENERATED and not (tail and GENERATED[head].endless):
        made, origin = GENERATED[head].make(asked)
        return _Opened(_counted(made, counts), origin)
    if (file := named_file(name)) is not None and (file.answers is None or kind in (None, "factoids")):
        return _open_file(file, kind or "factoids", bad, counts, asked)
    if head == "hub":
        return _open_hub(asked, kind or "factoids", bad, counts)
    if head in DATASETS:
        return _open_dataset(DATASETS[head], tail or None, asked, bad, counts)
    named = ("known", *written(endless=False), *DATASETS, *written(endless=True), "hub:OWNER/NAME")
    if exists(name) and Path(name).expanduser().is_dir():
        raise MemprobeError(f"{name}: is a folder; give a {', '.join(ROW_FILES)} file in it")
    files = f"a {', '.join(ROW_FILES)} file, jsonl:FILE for JSONL of another name"
    raise MemprobeError(f"no source {name!r}; {among(name, (*named, files), before='give')}")


def _open_hub(asked: SourceRequest, kind: Kind, bad: BadRows, counts: Counter[str]) -> _Opened:
    """Any hub dataset with the columns of a file: ``hub:OWNER/NAME[@REVISION][:SPLIT]``."""
    place, _, split = asked.name.removeprefix("hub:").partition(":")
    hub_id, _, revision = place.partition("@")
    readers: dict[Kind, Callable[[Columns], AnyRow | None]] = {
        "factoids": lambda columns: factoid_of(columns, hub_id),
        "tasks": _task_of,
        "texts": _text_of(asked),
    }
    split = split or "train"
    hub = HubSet(hub_id, revision=revision or "main", large=asked.n is not None and kind != "factoids")
    dataset = Dataset(asked.name, kind, "unknown", hub, {split: Split(None, (split,))}, readers[kind])
    rows, origin = open_rows(dataset, None, None, bad, asked.seed)
    return _Opened(_convert(rows, readers[kind], bad, counts), origin, streamed=hub.large)


def _open_file(
    file: NamedFile, kind: Kind, bad: BadRows, counts: Counter[str], asked: SourceRequest
) -> _Opened:
    path, targets, jsonl = file.path, file.targets(), file.jsonl
    readers: dict[Kind, Callable[[], Iterable[AnyRow]]] = {
        "factoids": lambda: _counted(read_factoid_file(path, bad, targets, jsonl=jsonl), counts),
        "tasks": lambda: _convert(read_rows(path, bad, jsonl=jsonl), _task_of, bad, counts),
        "texts": lambda: _convert(read_rows(path, bad, jsonl=jsonl), _text_of(asked), bad, counts),
    }
    rows = readers[kind]()
    split = None if file.answers == "true" else file.answers
    return _Opened(rows, Origin("file", kind, "file", path.name, split=split, revision=file_revision(path)))


def _open_dataset(
    dataset: Dataset,
    split: str | None,
    asked: SourceRequest,
    bad: BadRows,
    counts: Counter[str],
) -> _Opened:
    folder = data_folder(asked.data_dir)
    if folder is None and dataset.hub and dataset.hub.large and asked.n is None:
        raise TooLarge(f"{dataset.name}: {dataset.hub.id} is too large to fetch whole")
    rows, origin = open_rows(dataset, split, folder, bad, asked.seed)

    def read(columns: Columns) -> AnyRow | None:
        row = dataset.read(columns)
        return halve(row, dataset.name, asked.words, asked.prompt_form) if isinstance(row, str) else row

    converted = _convert(rows, read, bad, counts, "short" if dataset.kind == "texts" else "unanswered")
    if folder is not None and dataset.popularity_file and (folder / dataset.popularity_file).is_file():
        converted = _with_popularity(converted, folder / dataset.popularity_file)
    streamed = folder is None and dataset.hub is not None and dataset.hub.large
    return _Opened(converted, origin, dataset.conflicts, streamed)


def _convert(
    rows: Iterable[Row],
    read: Callable[[Columns], AnyRow | None],
    bad: BadRows,
    counts: Counter[str],
    nothing: str = "short",
) -> Iterator[AnyRow]:
    """Raw rows as factoids, tasks or texts; those that ``read`` gives None for are counted as ``nothing``."""
    for row in rows:
        try:
            converted = read(row.columns)
        except (BadRow, MemprobeError) as problem:
            bad.add(row.where, str(problem))
            continue
        counts["read"] += 1
        if converted is None:
            counts[nothing] += 1
        else:
            yield converted


def _with_popularity(rows: Iterable[AnyRow], path: Path) -> Iterator[AnyRow]:
    """PopQA's page views, which the local copy keeps in a file of their own, by question and answer."""
    popularity: dict[tuple[str, str], float] = {}
    for row in read_rows(path, BadRows("skip")):
        metadata = row.columns.get("metadata") or {}
        if "s_pop" in metadata:
            popularity[row.columns["question"].strip(), metadata["obj"].strip()] = float(metadata["s_pop"])
    for row in rows:
        if isinstance(row, Factoid) and (known := popularity.get((row.prompt, row.answer))) is not None:
            row = replace(row, popularity=known)
        yield row


def _task_of(columns: Columns) -> Task:
    if columns.get("messages") is not None:
        return make_task(messages_of(columns), "file")
    prompt = text_of(columns, "prompt", "question", "instruction")
    answer = text_of(columns, "answer", "output", "completion")
    return make_task([Message("user", prompt), Message("assistant", answer)], "file")


def _text_of(asked: SourceRequest) -> Callable[[Columns], Text | None]:
    def read(columns: Columns) -> Text | None:
        if columns.get("answer") is not None:
            return make_text(str(columns.get("prompt") or ""), text_of(columns, "answer"), "file")
        passage = text_of(columns, "text", "content")
        whole = start(passage, "file", sum(asked.words)) if asked.whole else None
        return whole or halve(passage, "file", asked.words, asked.prompt_form)

    return read


def _counted(rows: Sequence[AnyRow], counts: Counter[str]) -> Sequence[AnyRow]:
    counts["read"] += len(rows)
    return rows


def _unique(rows: Iterable[AnyRow], counts: Counter[str], stop: int | None) -> list[AnyRow]:
    """Rows without repeats, in order; at most ``stop`` of them."""
    kept: dict[str, AnyRow] = {}
    for row in rows:
        if row.id in kept:
            counts["duplicate"] += 1
        kept.setdefault(row.id, row)
        if len(kept) == stop:
            break
    return list(kept.values())


def _of(loaded: Loaded, kind: type[R]) -> list[R]:
    return [row for row in loaded.rows if isinstance(row, kind)]


def _say(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {rule}" for rule, count in counts.items() if count)


_NOT_LEFT_OUT = ("read", "kept", "not drawn", "bad")
"""Counts that are of no rule by which rows are left out; bad rows are named one by one."""
