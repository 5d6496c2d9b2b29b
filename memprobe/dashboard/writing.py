"""A study -> one HTML file that opens from disk, needs no network, and runs no script but its own.

    probes ──── grouped by what was asked ─── statistics for every k and token rule ──┐
    training runs ─── evaluations, steps ─────────────────────────────────────────────┼─ figures, tables ── page
    comparisons ─── comparison.json ──────────────────────────────────────────────────┤
    results of other tools ─── results.json, outcomes.json ───────────────────────────┤
    published studies ─── tables/*.csv ───────────────────────────────────────────────┤
    patches ─── patches/*.parquet ────────────────────────────────────────────────────┘

Statistics become figures and tables here; the scripts in ``page/`` choose among them and compute none.
The report of one probe is the same page, with fewer rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from memprobe import palette
from memprobe.dashboard import explorer, page
from memprobe.dashboard.checkpoints import set_of
from memprobe.dashboard.comparisons import comparisons_room, outcomes_room
from memprobe.dashboard.embedding import rounded
from memprobe.dashboard.patches import patches_room
from memprobe.dashboard.results import results_room
from memprobe.dashboard.sets import sets_of
from memprobe.dashboard.setup import headings
from memprobe.dashboard.training import training_room
from memprobe.errors import MemprobeError
from memprobe.files import write_text
from memprobe.probes import Probe, in_another_readout, nothing_yet
from memprobe.statistics import K_VALUES, TOKEN_RULES
from memprobe.statistics.occurrence import DRAWS
from memprobe.studies import Study, cells_by_setup, without_failed_cells


def write_report(probe: Probe, path: str | Path) -> None:
    """Writes the interactive report on a probe directory, with all its checkpoints, as one HTML file.

    Statistics are over all factoids. The explorer leaves out what is beyond
    :data:`memprobe.dashboard.explorer.MAX_CELLS` (later answer tokens first, then factoids), and the page says so.

    Raises:
        MemprobeError: the probe has no records, or ``path`` cannot be written.
    """
    write_dashboard(Study([probe], [], []), path)


def write_dashboard(
    study: Study,
    path: str | Path,
    *,
    reference: str | None = None,
    fixed_readout: Sequence[Probe | str | Path] = (),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Writes the page on a study as one HTML file.

    Args:
        reference: label of the checkpoint that differences are taken from, where a probe has it (default: the
            first checkpoint).
        fixed_readout: probes of the same checkpoints read with the base model's unembedding
            (``memprobe layers --readout``): their differences stand beside the others. Those that the study
            holds are taken as well, and can be looked at on their own.
        say: called with one line about each thing that is left out.

    Raises:
        MemprobeError: there is nothing to show, an unknown reference, broken files, or ``path`` cannot be written.
    """
    write_text(dashboard_text(study, reference=reference, fixed_readout=fixed_readout, say=say), Path(path))


def dashboard_text(
    study: Study,
    *,
    reference: str | None = None,
    fixed_readout: Sequence[Probe | str | Path] = (),
    say: Callable[[str], None] = lambda text: None,
    version: str | None = None,
    draws: int = DRAWS,
) -> str:
    """The page of :func:`write_dashboard`.

    Args:
        draws: of the bootstrap.
        version: of a page that a server shows: it asks for a newer one, see :mod:`memprobe.dashboard.watch`.
    """
    fixed = [in_another_readout(one) for one in fixed_readout]
    second = {(probe.path.resolve(), probe.lens) for probe in fixed}
    trained = cells_by_setup(study)
    views = [
        view.under(position=position)
        for probe in study.probes
        for position in probe.positions
        for view in probe.views()
    ]
    shown = [
        without_failed_cells(view, trained, say)
        for view in views
        if (view.path.resolve(), view.lens) not in second
    ]
    shown.sort(key=lambda probe: probe.run["readout"] != "own")  # first what a model itself reads
    fixed += [probe for probe in shown if probe.run["readout"] != "own"]
    sets = sets_of(shown, fixed, reference=reference, draws=draws, say=say)
    if fixed_readout and not any(one.readings.second for one in sets):
        named = ", ".join(str(probe.path) for probe in fixed)
        raise MemprobeError(
            f"`fixed_readout` {named}: holds no two of the checkpoints shown, with their weights"
        )
    if not (sets or study.runs or study.comparisons or study.results or study.patches or study.outcomes):
        if study.probes and not any(probe.checkpoints for probe in study.probes):
            raise MemprobeError(nothing_yet(study.probes[0].path))
        where = ", ".join(str(probe.path) for probe in study.probes)
        raise MemprobeError(f"{where}: no records to report on; see the errors in its outcomes")
    ks = sorted({*K_VALUES, *(one.readings.k for one in sets)})
    entries, blocks = [], {}
    cells = explorer.MAX_CELLS // max(1, len(sets))
    for position, one in enumerate(sets):
        entry, own = set_of(one, f"s{position}-", ks, cells)
        entries.append(entry)
        blocks |= own
    training, own = training_room(study)
    blocks |= own
    comparisons, own = comparisons_room(study.comparisons)
    blocks |= own
    evaluated, own = outcomes_room(study.outcomes, draws)
    comparisons += evaluated
    blocks |= own
    results, own = results_room(study.results)
    blocks |= own
    patched, own = patches_room(study.patches)
    blocks |= own
    title, subtitle = headings(study, sets)
    data = {
        "title": title,
        "subtitle": subtitle,
        "k": ks,
        "rules": list(TOKEN_RULES),
        "templates": {theme: palette.template(theme) for theme in ("light", "dark")},
        "sets": entries,
        "training": training,
        "comparisons": comparisons,
        "results": results,
        "patches": patched,
        "version": version,
    }
    watching = ["watch.js"] if version is not None else []
    return page.assemble(
        title=f"{title} · memprobe",
        body="report.html",
        scripts=("core.js", "patches.js", "report.js", "explorer.js", "start.js", *watching, page.PLOTLY),
        data={"report-data": rounded(data)},
        blocks=blocks,
        connects=version is not None,
    )
