"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from memprobe.load_options import LoadOptions
from memprobe.splitting import device_text


class BadRowChoice(StrEnum):
    """What happens to rows that cannot be read."""

    fail = "fail"
    skip = "skip"


_CHECKPOINT = (
    "A checkpoint: a Hugging Face directory, a hub id (owner/name@revision), a PEFT adapter, a run directory of "
    "`training`, a GGUF file, smollm2-135m or gemma3-270m"
)
_MANY = "; or many at once: `'NAME@step{1..9..2}'`, `'runs/*/checkpoint-*'` (in quotes)"


def _checkpoints(many: str) -> Any:
    text = f"{_CHECKPOINT}{many}. Repeat it to compare."
    return typer.Option("--ckpt", metavar="[LABEL=]SPEC", help=text, show_default=False)


Checkpoints = Annotated[list[str], _checkpoints("")]
ManyCheckpoints = Annotated[list[str], _checkpoints(_MANY)]
OneCheckpoint = Annotated[
    str, typer.Option("--ckpt", metavar="SPEC", help="The checkpoint.", show_default=False)
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL",
        help="Differences are taken from this checkpoint. [default: the first]",
        show_default=False,
    ),
]
FACTS = (
    "known, kvr:N, a dataset's name (memprobe sources), or a JSONL/CSV/Parquet file with prompt|question and "
    "answer|answers. [default: what the checkpoint was trained on, else known]"
)
TEMPLATE = (
    "plain, tulu, chat, or a text with {prompt}, {answer} and perhaps {eos}. "
    "[default: the checkpoints' own, else plain]"
)
"""Help of options that several commands have."""
Lenses = Annotated[
    list[str] | None,
    typer.Option(
        "--lens",
        metavar="LENS",
        help="logit, logit@SPEC (with the norm and unembedding of another checkpoint; SPEC may be a label of --ckpt), "
        "or a fitted one: tuned=PATH, linear=PATH, jacobian=PATH, each perhaps with @SPEC. Repeat it: all are read in "
        "one forward pass. [default: logit]",
        show_default=False,
    ),
]
FixedReadout = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PROBE",
        help="The same checkpoints, probed with --readout BASE: a claim about depth must hold there too. Not needed "
        "for probes made with --lens logit@BASE. Repeatable.",
    ),
]
_TOP_K: Any = partial(typer.Option, "--k", "--top-k", "-k", metavar="K")
_PRESENT = "Count an answer as present if it is among the top K tokens."
_RULE = "Which tokens of an answer must be among the top K: first, last or all."
_AS_PROBED = "[default: as the probe was made]"
TopK = Annotated[int, _TOP_K(help=_PRESENT, min=1, max=2**31 - 1)]
ProbesTopK = Annotated[int | None, _TOP_K(help=f"{_PRESENT} {_AS_PROBED}", show_default=False)]
TokenRule = Annotated[str, typer.Option("--token", metavar="RULE", help=_RULE)]
ProbesTokenRule = Annotated[
    str | None,
    typer.Option("--token", metavar="RULE", help=f"{_RULE} {_AS_PROBED}", show_default=False),
]
ProbesLens = Annotated[
    str | None,
    typer.Option(
        "--lens",
        metavar="NAME",
        help="Use this lens of the probes, by its name. [default: the first]",
        show_default=False,
    ),
]
ProbesPosition = Annotated[
    str | None,
    typer.Option(
        "--position",
        metavar="WHERE",
        help="answer: where the answer is predicted; subject: at the subject's last token, in probes that were read "
        "there. [default: answer]",
        show_default=False,
    ),
]
Draws = Annotated[
    int,
    typer.Option(
        "--draws", help="Resamples of the bootstrap, and of permutation tests.", min=100, max=1_000_000
    ),
]
MAX_SEED = 2**32 - 1
"""What every generator of random numbers takes."""
Full = Annotated[bool, typer.Option("--full", help="Print everything, not the answer alone.")]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser once it is written.")]
BadRows = Annotated[
    BadRowChoice,
    typer.Option(
        "--on-bad-row",
        help="What to do with rows that cannot be read: stop (fail), or leave them out and count them (skip).",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder with the datasets' files.", envvar="MEMPROBE_DATA_DIR")
]
BatchSize = Annotated[str, typer.Option(help="auto, or factoids per batch.")]
EngineText = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ray[://HOST:PORT]",
        help="Work on Ray (extra `cluster`): ray uses the cluster that this machine belongs to, or this machine alone "
        "where it belongs to none; ray://HOST:PORT reaches a cluster from outside. Results are the same. "
        "[default: this process]",
        show_default=False,
    ),
]
ResourcesText = Annotated[
    str | None,
    typer.Option(
        "--resources",
        metavar="gpus=N,cpus=N,memory=SIZE,actors=N",
        help="With --engine: what one loaded model takes, and how many are loaded at once. [default: a GPU for each, "
        "or all cores of a node where the cluster has no GPU; as many models as fit]",
        show_default=False,
    ),
]
StorageText = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="FOLDER|URL",
        help="With --engine: where nodes that do not reach --out leave what they make, a folder or an fsspec URL "
        "(s3://bucket/name).",
        show_default=False,
    ),
]


def loading_of(
    *,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="auto",
            help="auto: spread a model that no device holds over all GPUs, main memory and the disk.",
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE=SIZE,…",
            help="With --device-map: how much of each device is used, as in cpu=8GiB,0=70GiB. "
            "[default: what is free]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16, float16: the model's precision; the lens itself is always fp32."
        ),
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="The base model of adapters, in place of the one that they name; a hub id is fetched.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Take the tokenizer of this checkpoint or folder, for checkpoints saved without one.",
            show_default=False,
        ),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that the checkpoint brings along.")
    ] = False,
) -> LoadOptions:
    """How models are loaded, as a command line says it.

    Raises:
        MemprobeError: see :func:`memprobe.splitting.device_text`.
    """
    where = device_text(device, device_map, max_memory)
    return LoadOptions(where, dtype, base, tokenizer, allow_pickle, trust_remote_code)


def loads_models(command: Callable[..., None]) -> Callable[..., None]:
    """A command in whose place of the parameter ``loading`` stand the options of :func:`loading_of`."""
    given = inspect.signature(loading_of, eval_str=True).parameters
    parameters: list[inspect.Parameter] = []
    for name, one in inspect.signature(command, eval_str=True).parameters.items():
        parameters += given.values() if name == "loading" else [one.replace(kind=one.KEYWORD_ONLY)]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        loading = loading_of(**{name: values.pop(name) for name in given if name in values})
        command(**values, loading=loading)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
