"""Sources that are made instead of read, each a row of :data:`GENERATED`: all that names them asks there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.sources.kinds import AnyRow, Kind, Text
from memprobe.sources.kvr import check_kvr, generate_kvr
from memprobe.sources.origins import Origin, data_folder, file_revision
from memprobe.sources.passages import WORDS_FILE, WORDS_PACKAGE, PromptForm, random_words, vocabulary


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What a source is asked for, see :func:`memprobe.sources.load`.

    Attributes:
        name: as it was given.
        words, prompt_form: how passages become prompt and answer.
        whole: whether those of a file are kept as they are written, and with fewer words.
    """

    name: str
    n: int | None = None
    seed: int = 0
    data_dir: str | Path | None = None
    words: tuple[int, int] = (50, 50)
    prompt_form: PromptForm = "words"
    words_file: str | Path | None = None
    base: str | None = None
    progress: Callable[[int, int], None] | None = None
    whole: bool = False

    @property
    def tail(self) -> str:
        """What stands behind the colon."""
        return self.name.partition(":")[2]

    @property
    def size(self) -> int:
        """How many rows.

        Raises:
            MemprobeError: nobody said.
        """
        if self.n is None or self.n < 1:
            raise MemprobeError(f"{self.name}: give how many texts with --n")
        return self.n


@dataclass(frozen=True, slots=True)
class Generated:
    """A source that is made.

    Attributes:
        kind: of its rows.
        make: the rows that are asked for, and where they come from.
        licence, note: for the list of sources.
        endless: makes as many rows as are asked for; another one is told with its name, as in ``kvr:N``.
    """

    kind: Kind
    make: Callable[[SourceRequest], tuple[Sequence[AnyRow], Origin]]
    licence: str
    note: str
    endless: bool = True


def is_endless(name: str) -> bool:
    """Whether a source makes as many rows as are asked for."""
    return name in GENERATED and GENERATED[name].endless


def own_number(name: str) -> int | None:
    """How many rows a made source's name asks for: 500 of ``kvr:500:test``; None where it says no number."""
    head, _, tail = name.partition(":")
    size = tail.partition(":")[0]
    told = head in GENERATED and not GENERATED[head].endless and size.isdecimal()
    return int(size) if told else None


def written(*, endless: bool) -> dict[str, Generated]:
    """The sources as one writes them: ``self``, or ``kvr:N``."""
    return {
        name if endless else f"{name}:N": source
        for name, source in GENERATED.items()
        if source.endless == endless
    }


def check_made(name: str, n: int | None = None) -> None:
    """Checks the name of a made source, before anything is made.

    Args:
        n: how many rows will be asked for; ``None`` for as many as its name says.

    Raises:
        MemprobeError: there is no such part of it, or its number of rows is none.
    """
    head, _, tail = name.partition(":")
    if not GENERATED[head].endless:
        _size_and_split(name, n)
    elif tail:
        raise MemprobeError(
            f"{name}: {head} has no parts, and makes as many rows as are asked for; write {head}"
        )


def _size_and_split(name: str, n: int | None) -> tuple[int, str]:
    """Of keys and values: how many there are, of which ``n`` are taken, and of which split."""
    tail = name.partition(":")[2]
    size, split = own_number(name), tail.partition(":")[2]
    if size is None:  # kvr, kvr:test
        size, split = n, tail
    if size is None:
        raise MemprobeError(f"{name}: give the number of pairs, as in kvr:200")
    split = split or "train"
    check_kvr(size, split)
    if n is not None and not 1 <= n <= size:
        raise MemprobeError(f"{name}: `n` {n} is not between 1 and its {size} rows")
    return size, split


def _kvr(asked: SourceRequest) -> tuple[list[Factoid], Origin]:
    # All that its name says, so that where another set has the first of them, others are left to be taken.
    size, split = _size_and_split(asked.name, asked.n)
    factoids = generate_kvr(size, seed=asked.seed, split=split)
    return factoids, Origin("kvr", "factoids", "generated", split=split, revision=f"seed {asked.seed}")


def _random_words(asked: SourceRequest) -> tuple[list[Text], Origin]:
    folder = None if asked.words_file else data_folder(asked.data_dir)
    file = Path(asked.words_file) if asked.words_file else folder and folder / WORDS_FILE
    texts = random_words(
        asked.size, vocabulary(file), words=asked.words, prompt_form=asked.prompt_form, seed=asked.seed
    )
    revision = file_revision(file) if file else metadata.version(WORDS_PACKAGE)
    place = file.name if file else WORDS_PACKAGE
    return texts, Origin(asked.name, "texts", "generated", place, revision=f"{revision}, seed {asked.seed}")


def _self(asked: SourceRequest) -> tuple[list[Text], Origin]:
    from memprobe.sources.own_passages import own_passages

    if asked.base is None:
        raise MemprobeError("self: give the checkpoint that speaks with --ckpt")
    texts, fingerprint = own_passages(
        asked.base,
        asked.size,
        words=asked.words,
        prompt_form=asked.prompt_form,
        seed=asked.seed,
        progress=asked.progress,
    )
    revision = f"weights {fingerprint[:16]}, seed {asked.seed}"
    return texts, Origin(asked.name, "texts", "generated", revision=revision)


GENERATED: Mapping[str, Generated] = {
    "kvr": Generated("factoids", _kvr, "none", "made-up keys and values; also kvr:N:test", endless=False),
    "random-words": Generated("texts", _random_words, "public domain", "from a word list, or english-words"),
    "self": Generated("texts", _self, "the model's", "sampled from --ckpt at temperature 1"),
}
