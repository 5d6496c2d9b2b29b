"""A study's figures: what :mod:`memprobe.figures` draws of a grid, and what is drawn of its tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from memprobe.arms import NAIVE, arm_names, by_kind
from memprobe.figures import write_figures
from memprobe.figures.drawings import Drawing, LeftOut, lines_of, of_retention
from memprobe.figures.runs import NAMES
from memprobe.figures.stored import read_figure
from memprobe.figures.tables import log2_ratio
from memprobe.figures.writing import write_figure
from training.study.results import READOUTS, SETTINGS, Results

OF_PROBES = ("lof", "differences")
"""Of what :func:`memprobe.figures.write_figures` draws of a grid's probes, the figures that tell of arms."""
OF_DEPTH = (*OF_PROBES, "spread", "kept")
"""Figures that need a grid's probes, and are drawn again from the JSON beside them."""
WIDTH, FORMATS = 183, ("pdf", "png")


def draw(
    results: Results,
    tables: Mapping[str, pl.DataFrame],
    grid: Path | None,
    results_of: Path,
    out: Path,
    *,
    draws: int,
    cells: Collection[str] | None = None,
    options: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Draws a study.

    Args:
        results, tables: of :mod:`training.study`.
        grid: the grid's directory; ``None`` where only stored results are there: figures of retention are drawn from
            them, and those of depth that ``out`` holds are drawn again, from the JSON beside each.
        results_of: the folder of the stored results.
        out: folder of the figures.
        draws: of the bootstrap.
        cells: only these of the grid, see :func:`memprobe.figures.write_figures`.
        options: of the command, which the JSON beside each figure names.
        say: called with one line about each figure that is left out.

    Returns:
        The images.
    """
    source = (grid or results_of).as_posix()
    inputs = [{"kind": "results" if grid is None else "grid", "path": source}]
    command = (
        f"python -m training report {shlex.quote(str(source))}{options} --figures {shlex.quote(str(out))}"
    )
    made = list(of_retention(results.retention, NAMES, WIDTH, {}))
    drawings = [replace(one, inputs=inputs) for one in made if isinstance(one, Drawing)]
    for line in lines_of([one for one in made if isinstance(one, LeftOut)]):
        say(line)
    if grid is None:
        again = {f"{drawing.stem}.json" for drawing in drawings}
        stored = sorted(path for path in out.glob("*.json") if path.name not in again)
        setups = set(results.cells["setup"])
        own = [path for path in stored if _is_of(path, setups)]
        for path in stored:
            if path not in own:
                say(f"{path}: is no figure of these results, and is left as it is")
        files = write_figures(own, out, formats=FORMATS) if own else []
    else:
        naive = results.cells.filter("learned", arm_text=NAIVE)["labels"].to_list()
        reference = naive[0][-1] if naive else None
        probes = grid / "probes"
        files = []
        if probes.is_dir():
            files += write_figures(
                [grid],
                out,
                only=OF_PROBES,
                reference=reference,
                k=10,
                token="first",
                width=WIDTH,
                formats=FORMATS,
                draws=draws,
                cells=cells,
                command=command,
                say=say,
            )
        texts = dict(results.cells.select("arm", "arm_text").iter_rows())
        names = arm_names(by_kind(set(texts.values())))
        called = {arm: names[text] for arm, text in texts.items()}
        drawings += [*_spread(tables, called, grid), *_kept(tables, called, grid)]
    for drawing in drawings:
        files += write_figure(drawing, out, width=WIDTH, formats=FORMATS, command=command)
    return [path for path in files if path.suffix.removeprefix(".") in FORMATS]


def _is_of(path: Path, setups: Collection[str]) -> bool:
    """Whether a stored figure is one of depth, of one of these set-ups: its inputs say so, or its name."""
    made_of = read_figure(path)
    name = made_of["figure"]
    if name not in OF_DEPTH:
        return False
    inputs = made_of.get("inputs", [])
    probes = [Path(str(one.get("path"))) for one in inputs if one.get("kind") == "probe"]
    if probes:
        return any(probe.parent.name in setups for probe in probes)
    stem = re.fullmatch(rf"{name}-(.+?)(-k\d+-[a-z]+|-stage\d+)?", path.stem)
    return stem is not None and (stem[1] in setups or path.stem.removeprefix(f"{name}-") in setups)


def _spread(tables: Mapping[str, pl.DataFrame], names: Mapping[str, str], grid: Path) -> list[Drawing]:
    """Spread by arm and seed, a figure for each pair of datasets and reading."""
    if "spread" not in tables:
        return []
    drawings = []
    named = tables["spread"].with_columns(
        pl.format("after stage {}", "stage").alias("panel"),
        pl.col("arm").replace(names).alias("row"),
        pl.col("readout")
        .replace(dict(zip(READOUTS, ("own readout", "base readout"), strict=True)))
        .alias("series"),
        pl.lit("naive of the same seed").alias("reference"),
    )
    for setup in named["setup"].unique(maintain_order=True):
        for k, token in SETTINGS:
            table = named.filter(pl.col("ratio").is_not_null(), setup=setup, k=k, token=token)
            table = table.select("panel", "row", "series", "reference", *log2_ratio())
            if len(table):
                options = {"k": k, "token": token}
                inputs = [{"kind": "grid", "path": grid.as_posix()}]
                drawings.append(Drawing("spread", f"{setup}-k{k}-{token}", table, options, options, inputs))
    return drawings


def _kept(tables: Mapping[str, pl.DataFrame], names: Mapping[str, str], grid: Path) -> list[Drawing]:
    """Kept facts against lost ones by arm, a figure for each pair of datasets and later stage."""
    if "kept_facts" not in tables:
        return []
    named = tables["kept_facts"].with_columns(
        pl.col("arm").replace(names).alias("row"),
        pl.format(
            "top {}{}", "k", pl.when(token="first").then(pl.lit("")).otherwise(pl.lit(", whole answer"))
        ).alias("panel"),
    )
    drawings = []
    for (setup, stage), table in named.group_by("setup", "stage", maintain_order=True):
        own = table.filter(readout=READOUTS[0])
        numbers = {"lof_net": "lof", "net_low": "low", "net_high": "high", "net_by_seed": "by_seed"}
        net = own.drop(numbers.values()).rename(numbers)
        parts = [
            (own, "own readout"),
            (table.filter(readout=READOUTS[1]), "base readout"),
            (net, "own, net of shuffled answers"),
        ]
        whole = pl.concat(
            [part.with_columns(series=pl.lit(name)) for part, name in parts], how="diagonal_relaxed"
        )
        rows = pl.Enum(own["row"].unique(maintain_order=True))
        shown = whole.rename({"lof": "difference"}).sort(pl.col("row").cast(rows), maintain_order=True)
        shown = shown.filter(pl.col("difference").is_not_null())
        columns = ["panel", "row", "series", "difference", "low", "high", "by_seed"]
        inputs = [{"kind": "grid", "path": grid.as_posix()}]
        stem = str(setup) if stage == "2" else f"{setup}-stage{stage}"
        drawings.append(Drawing("kept", stem, shown.select(columns), {"k": None}, {}, inputs))
    return drawings
