"""Figures of a study as files: PDF, PNG or SVG, each figure beside a JSON of what made it.

    NAME.pdf  NAME.png    the figure
    NAME.json             the command, the inputs with their hashes, the settings and the very data drawn;
                          :func:`redraw` makes the figure of it again

The same inputs give the same bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from memprobe import __version__
from memprobe.errors import MemprobeError, among, first_line
from memprobe.figures.drawing import DRAWN
from memprobe.figures.drawings import Drawing, LeftOut, Say, drawings_of, lines_of
from memprobe.figures.look import WIDTHS, in_style
from memprobe.figures.stored import SCHEMA_VERSION, UNDRAWABLE, check_reach, draw_stored, read_figure
from memprobe.files import replacing, write_json, write_text
from memprobe.places import check_folder
from memprobe.statistics.occurrence import DRAWS
from memprobe.studies import open_study, with_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "png", "svg")
_METADATA: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
    "svg": {"Date": None},
}


def write_figures(
    paths: Sequence[str | Path],
    out: str | Path = "figures",
    *,
    only: Iterable[str] = (),
    reference: str | None = None,
    k: int | None = None,
    token: str | None = None,
    lens: str | None = None,
    position: str | None = None,
    width: int | None = None,
    formats: Sequence[str] = ("pdf", "png"),
    draws: int = DRAWS,
    cells: Collection[str] | None = None,
    command: str | None = None,
    say: Say = lambda text: None,
) -> list[Path]:
    """Draws everything that can be drawn of these directories.

    Args:
        paths: probe directories, training runs, folders with a ``comparison.json``, or anything above them; also the
            JSON files beside figures, which are then drawn again from the data in them.
        out: folder of the figures.
        only: names of figures; all of them where empty.
        reference: label that differences are taken from, where a probe has it.
        k, token: what counts as holding an answer, where records are read; ``None``: as the probe was made. A
            ``comparison.json`` has its own.
        lens, position: which of those that the probes were read with; by default the first.
        width: millimetres, one of :data:`~memprobe.figures.look.WIDTHS`; ``None`` is 89, or as a JSON file says.
        formats: some of :data:`FORMATS`.
        draws: of the bootstrap.
        cells: of grids, only these, ``SETUP/RUN``; by default all that there are.
        command: what the JSON beside each figure names as what made it; by default ``memprobe figures``.
        say: called with one line about each reason for which figures, probes or runs are left out.

    Returns:
        The files, in order.

    Raises:
        MemprobeError: nothing to draw, an unknown name, width or format, files that are broken, or two figures of one
            name.
    """
    wanted = list(only) or list(DRAWN)
    for name, given, allowed in (
        ("--only", wanted, tuple(DRAWN)),
        ("--width", [WIDTHS[0] if width is None else width], WIDTHS),
        ("--format", list(formats), FORMATS),
    ):
        if unknown := [one for one in given if one not in allowed]:
            raise MemprobeError(f"{name} {unknown[0]!r}: {among(unknown[0], allowed)}")
    check_folder(Path(out))
    stored = [Path(path) for path in paths if Path(path).suffix == ".json"]
    folders = [path for path in paths if Path(path) not in stored]
    made_from: dict[str, Path | str] = {}
    for path in stored:
        _check_apart(path.stem, path, made_from, out)
    files: list[Path] = []
    settled: set[str] = set()  # figures that were drawn, or of which it is said why not
    left_out: list[LeftOut] = []
    for path in stored:
        made_of = read_figure(path)
        if made_of["figure"] in wanted:
            settled.add(made_of["figure"])
            given = {} if width is None else {"width": width}
            again = made_of | {"options": made_of["options"] | given}
            files += _write(draw_stored(again, path), again, Path(out), path.stem, formats)
    if folders:
        asked: dict[str, Any] = {
            "reference": reference,
            "k": k,
            "token": token,
            "draws": draws,
            "width": WIDTHS[0] if width is None else width,
        }
        asked |= {"lens": lens, "position": position}
        study = open_study(folders)
        study = study if cells is None else with_cells(study, cells)
        for drawing in drawings_of(study, wanted, asked, say):
            settled.add(drawing.name)
            if isinstance(drawing, LeftOut):
                left_out.append(drawing)
                continue
            _check_apart(drawing.stem, f"a figure of {', '.join(map(str, folders))}", made_from, out)
            made_by = command or f"{_command(folders, out, asked, formats)} --only {drawing.name}"
            files += write_figure(drawing, Path(out), width=asked["width"], formats=formats, command=made_by)
    left_out += [
        LeftOut(name, "there is nothing that it draws") for name in dict.fromkeys(only) if name not in settled
    ]
    for line in lines_of(left_out):
        say(line)
    if not files:
        raise MemprobeError(
            f"{', '.join(map(str, paths))}: nothing there can be drawn as {', '.join(wanted)}"
        )
    return files


def _check_apart(stem: str, source: Path | str, made_from: dict[str, Path | str], out: str | Path) -> None:
    """Refuses two figures of one name, of which the second would be written over the first.

    Args:
        made_from: what each name is made from so far; gains this one.

    Raises:
        MemprobeError: so.
    """
    if stem in made_from:
        raise MemprobeError(
            f"{made_from[stem]} and {source}: both would be {Path(out) / stem}; draw them one at a time, each into an "
            "--out of its own"
        )
    made_from[stem] = source


def write_figure(
    drawing: Drawing, out: Path, *, width: int, formats: Sequence[str], command: str
) -> list[Path]:
    """Writes one figure, the JSON of what made it, and the texts beside it."""
    made_of = {
        "schema": SCHEMA_VERSION,
        "figure": drawing.name,
        "memprobe": __version__,
        "command": command,
        "inputs": drawing.inputs,
        "settings": drawing.settings,
        "options": drawing.options | {"width": width},
        "data": drawing.table.fill_nan(None).to_dict(as_series=False),
    }
    table = pl.DataFrame(made_of["data"])
    try:
        check_reach(table)
        figure = DRAWN[drawing.name](table, **made_of["options"])
    except UNDRAWABLE as error:
        stored = any(one["kind"] == "comparison" for one in drawing.inputs)
        if not stored and not isinstance(error, MemprobeError):  # of tables made here it is a fault of ours
            raise
        read = ", ".join(str(one["path"]) for one in drawing.inputs)
        raise MemprobeError(f"{read}: {drawing.name} cannot be drawn ({first_line(error)})") from error
    files = _write(figure, made_of, out, drawing.stem, formats)
    for suffix, text in drawing.beside.items():
        files.append(out / f"{drawing.stem}.{suffix}")
        write_text(text, files[-1])
    return files


def _write(
    figure: Figure, made_of: dict[str, Any], out: Path, stem: str, formats: Sequence[str]
) -> list[Path]:
    """A figure in each format, and the JSON of what made it."""
    files = [save(figure, out / f"{stem}.{kind}") for kind in formats]
    files.append(out / f"{stem}.json")
    write_json(made_of, files[-1])
    return files


@in_style
def save(figure: Figure, path: str | Path) -> Path:
    """Saves a figure as its suffix says, fonts embedded, without a date.

    Raises:
        MemprobeError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise MemprobeError(f"{path}: figures are saved as {', '.join(FORMATS)}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=_METADATA[kind])
    return path


def redraw(path: str | Path) -> Figure:
    """The figure that a JSON beside one describes, from the data in it.

    Raises:
        MemprobeError: it is no such file.
    """
    path = Path(path)
    return draw_stored(read_figure(path), path)


def _command(
    paths: Sequence[str | Path], out: str | Path, asked: dict[str, Any], formats: Sequence[str]
) -> str:
    parts = ["memprobe", "figures", *map(str, paths), "--out", str(out)]
    for name in ("reference", "lens", "position", "k", "token"):
        parts += [f"--{name}", str(asked[name])] if asked[name] else []
    parts += ["--draws", str(asked["draws"]), "--width", str(asked["width"]), "--format", ",".join(formats)]
    return shlex.join(parts)
