"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class BadRowChoice(StrEnum):
    """What happens to rows that cannot be read."""

    fail = "fail"
    skip = "skip"


Checkpoints = Annotated[
    list[str],
    typer.Option(
        "--ckpt",
        metavar="[LABEL=]SPEC",
        help="A checkpoint: a Hugging Face directory, a hub id (owner/name@revision), a PEFT adapter, a run "
        "directory of `training`, a GGUF file, smollm2-135m or gemma3-270m. Repeat it to compare.",
        show_default=False,
    ),
]
ManyCheckpoints = Annotated[
    list[str],
    typer.Option(
        "--ckpt",
        metavar="[LABEL=]SPEC",
        help="A checkpoint: a Hugging Face directory, a hub id (owner/name@revision), a PEFT adapter, a run "
        "directory of `training`, a GGUF file, smollm2-135m or gemma3-270m; or many at once: "
        "'owner/name@step{1000..143000..1000}', 'runs/*/checkpoint-*' (in quotes). Repeat it to compare.",
        show_default=False,
    ),
]
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
TopK = Annotated[
    int,
    typer.Option(
        "--k",
        "--top-k",
        "-k",
        metavar="K",
        help="Count an answer as present if it is among the top K tokens.",
        min=1,
        max=2**31 - 1,
    ),
]
ProbesTopK = Annotated[
    int | None,
    typer.Option(
        "--k",
        "--top-k",
        "-k",
        metavar="K",
        help="Count an answer as present if it is among the top K tokens. [default: as the probe was made]",
        show_default=False,
    ),
]
ProbesTokenRule = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="RULE",
        help="Which tokens of an answer must be among the top K: first, last or all. [default: as the probe was made]",
        show_default=False,
    ),
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
TokenRule = Annotated[
    str,
    typer.Option(
        "--token",
        metavar="RULE",
        help="Which tokens of an answer must be among the top K: first, last or all.",
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
        help="With --engine: where nodes that do not reach --out leave their parts, a folder or an fsspec URL "
        "(s3://bucket/probe).",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="auto",
        help="auto: spread a model that no device holds over all GPUs, main memory and the disk.",
        show_default=False,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="DEVICE=SIZE,…",
        help="With --device-map: how much of each device is used, as in cpu=8GiB,0=70GiB. [default: what is free]",
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16, float16: the model's precision; the lens itself is always fp32."
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="SPEC",
        help="The base model of adapters, in place of the one that they name; a hub id is fetched.",
        show_default=False,
    ),
]
TokenizerFrom = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="SPEC",
        help="Take the tokenizer of this checkpoint or folder, for checkpoints saved without one.",
        show_default=False,
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code that the checkpoint brings along.")
]
