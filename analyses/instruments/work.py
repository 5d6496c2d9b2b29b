"""The work on a plan: every cell planted, verified and asked, in some processes that share a folder.

::

    OUT/plan.json           what was asked for
    OUT/cells/NAME.json     how planting went, what instruments cost, and whether the cell is finished
    OUT/verdicts/NAME.parquet   rows of analyses.instruments.marking.VERDICTS, growing instrument by instrument
    OUT/lenses/KIND.json    what the fitted lenses say of themselves
    OUT/log.txt
    SCRATCH/                planted weights and fitted lenses; a cell's go when it is finished

A process holds a cell by a lock that the system gives up when it ends, however it ends. Killed, or stopped by
``minutes``, the same command goes on: planted weights are read where they are still there, verdicts are kept.

A plan may come to name more cells, seeds and instruments. A finished cell that lacks an instrument is planted again,
and asked those that it lacks where planting went as before; where it did not, as on another device, all of them.
"""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from analyses.instruments.lenses import Lenses, kinds_of
from analyses.instruments.plan import Cell, CellFile, Options, PlanFile, PlanStored, cells_of
from memprobe.errors import MemprobeError, first_line
from memprobe.files import read_valid, replacing, write_json, write_parquet
from memprobe.locks import held
from training.run_log import RunLog

SCHEMA = 1
LOG = "log.txt"
_OF_A_CALL = {"seconds", "costs", "finished"}
"""What a cell says of the call that planted it; all else is of the planted model."""
_POLL = 1.0
_GRACE = 20.0
"""Seconds after the time limit in which processes may finish the step that they are in."""


class _OutOfTime(Exception):
    """The limit of this call is reached."""


def run(plan: PlanFile, options: Options, *, workers: int = 1) -> list[str]:
    """Works on every cell that is not finished, until all are or the time is over.

    Returns:
        A line for each cell that could not be worked on.

    Raises:
        MemprobeError: the folder holds another plan or cannot be written, or what all cells need is missing.
    """
    from memprobe.checkpoints import resolve

    _begin(plan, options.out)
    report = RunLog(options.out / LOG, quiet=options.quiet)
    cells, names = cells_of(plan), instruments_of(plan, options)
    done = sum(is_finished(options.out, cell, names) for cell in cells)
    report.say(f"{options.out}: {len(cells)} cells, {done} finished before, {workers} process(es)")
    resolve(plan.base)  # a packaged model is converted once, before the processes begin
    broken = work(plan, options) if workers == 1 else _in_processes(plan, options, workers)
    finished = sum(is_finished(options.out, cell, names) for cell in cells)
    begun = sum((options.out / "cells" / f"{cell.name}.json").exists() for cell in cells) - finished
    left = f", {begun} begun" if begun else ""
    report.say(f"{options.out}: {finished} of {len(cells)} cells finished{left}")
    return broken


def _in_processes(plan: PlanFile, options: Options, workers: int) -> list[str]:
    context = multiprocessing.get_context("spawn")
    broken = context.Queue()
    processes = [
        context.Process(target=_process, args=(plan, options, number, broken)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            left = None if options.until is None else max(0.0, options.until + _GRACE - time.time())
            process.join(left)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
    lines: dict[str, None] = {}
    while not broken.empty():
        lines |= dict.fromkeys(broken.get())
    died = [process for process in processes if process.exitcode not in (0, None, -15)]
    return [*lines, *(f"a process ended with exit code {process.exitcode}" for process in died)]


def _process(plan: PlanFile, options: Options, number: int, broken: Any) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        broken.put(work(plan, options, first_fit=number))
    except MemprobeError as error:
        broken.put([str(error)])


def _begin(plan: PlanFile, out: Path) -> None:
    """Writes the plan, after a look at one that is there: cells, seeds and instruments may change, nothing else."""
    path = out / "plan.json"
    said = json.loads(plan.model_dump_json())
    if path.exists():
        before = read_valid(path, PlanStored)
        for key in said.keys() - {"cells", "seeds", "instruments"}:
            if before.get(key) != said[key]:
                raise MemprobeError(f"{out}: was begun with another {key}; give another --out")
    try:
        for name in ("cells", "verdicts", "lenses", ".claims"):
            (out / name).mkdir(parents=True, exist_ok=True)
        write_json(said, path)
    except OSError as error:
        raise MemprobeError(f"{out}: cannot be written ({error.strerror})") from error


def instruments_of(plan: PlanFile, options: Options) -> list[str]:
    """The names of the instruments that a plan asks.

    Raises:
        MemprobeError: the plan names one that there is not.
    """
    from analyses.instruments.instruments import all_instruments

    def unread() -> Any:
        raise AssertionError("names alone are asked for")

    lenses = dict.fromkeys(kinds_of(plan, options), unread)
    return [one.name for one in all_instruments(plan.template, lenses, plan.instruments)]


def is_finished(out: Path, cell: Cell, instruments: Sequence[str]) -> bool:
    """Whether all of some instruments have said their verdict on a cell."""
    path, verdicts = out / "cells" / f"{cell.name}.json", out / "verdicts" / f"{cell.name}.parquet"
    if not (path.exists() and read_valid(path, CellFile)["finished"] and verdicts.exists()):
        return False
    return set(instruments) <= set(pl.read_parquet(verdicts, columns=["instrument"])["instrument"])


def work(plan: PlanFile, options: Options, *, first_fit: int = 0) -> list[str]:
    """Works on cells in this process, beside others that do the same; see :func:`run`."""
    from memprobe.models import load

    report = RunLog(options.out / LOG, quiet=options.quiet)

    def check() -> None:
        if options.until is not None and time.time() >= options.until:
            raise _OutOfTime

    broken: dict[str, str] = {}
    try:
        base = load(plan.base, device=options.device, dtype="float32")
        lenses = Lenses(plan, options, base, report, check)
        lenses.fit_one(first_fit)
        cells, names = cells_of(plan), instruments_of(plan, options)
        waiting = False
        while left := [
            cell for cell in cells if not is_finished(options.out, cell, names) and cell.name not in broken
        ]:
            check()
            for cell in left:
                with held(options.out / ".claims" / f"{cell.name}.lock") as mine:
                    if not mine:
                        continue
                    try:
                        if not is_finished(options.out, cell, names):
                            _Work(plan, cell, options, base, lenses, report, check).finish()
                    except MemprobeError as error:
                        broken[cell.name] = f"{cell.name}: {error}"
                        report.say(broken[cell.name])
                waiting = False
                break
            else:
                if not waiting:
                    report.say(f"{len(left)} cells are with other processes; waiting for them")
                waiting = True
                time.sleep(_POLL)
    except _OutOfTime:
        report.say("the time is over; what is done is kept, the same command goes on")
    return list(broken.values())


class _Work:
    """One cell."""

    def __init__(
        self,
        plan: PlanFile,
        cell: Cell,
        options: Options,
        base: Any,
        lenses: Lenses,
        report: RunLog,
        check: Callable[[], None],
    ):
        self.plan, self.cell, self.options, self.base, self.lenses = plan, cell, options, base, lenses
        self.report, self.check = report, check
        self.path = options.out / "cells" / f"{cell.name}.json"
        self.verdicts = options.out / "verdicts" / f"{cell.name}.parquet"
        self.weights = options.scratch / "planted" / f"{cell.name}.safetensors"

    def say(self, line: str) -> None:
        """A line with the cell's name."""
        self.report.say(f"{self.cell.name}: {line}")

    def finish(self) -> None:
        """Plants, verifies, asks every instrument.

        Raises:
            MemprobeError: the facts are too few, a block does not exist, an instrument fails, or the device's memory
                does not suffice.
        """
        import torch

        try:
            self._finish()
        except torch.OutOfMemoryError as error:
            raise MemprobeError("out of memory on the device; use fewer --workers") from error
        except RuntimeError as error:
            self.say("".join(traceback.format_exception(error)))
            raise MemprobeError(first_line(error)) from error
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _finish(self) -> None:
        from analyses.instruments.facts import sets_of
        from analyses.instruments.planting import Plant
        from memprobe.models import wrap

        begun = time.monotonic()
        sets, others = sets_of(self.cell, self.base, self.plan.template, self.options.data_dir)
        model = wrap(
            copy.deepcopy(self.base.model),
            self.base.tokenizer,
            label=self.cell.name,
            weights_fingerprint=self.cell.name,
        )
        plant = Plant(model, sets, self.cell.places, self.plan.template)
        before = read_valid(self.path, CellFile) if self.path.exists() else None
        if before is None or not self._read_weights(plant):
            self._plant(plant, begun, before)
        asked = others or [fact for one in sets for fact in one]
        places = [-1] * len(asked) if others or not self.cell.places else [
            place for place, one in enumerate(sets) for _ in one
        ]  # fmt: skip
        if failed := self._ask(model, asked, places):
            raise MemprobeError(f"{len(failed)} instruments failed, first {failed[0]}; the log says more")
        self.weights.unlink(missing_ok=True)
        self.say(f"finished in {time.monotonic() - begun:.0f} s")

    def _plant(self, plant: Any, begun: float, before: dict[str, Any] | None) -> None:
        """Plants; what the cell said ``before`` stays where it comes out as it did then."""
        import torch
        from safetensors.torch import save_file

        from analyses.instruments.marking import VERDICTS

        def said(step: int, loss: float, shares: list[float]) -> None:
            now = time.monotonic()
            if now - last[0] >= 15:
                last[0] = now
                told = ", ".join(f"{share:.0%}" for share in shares)
                self.say(f"step {step}, loss {loss:.3f}, says {told}, {(now - start) / step:.2f} s a step")

        start = time.monotonic()
        last = [start]
        steps = plant.train(self.plan.planting, self.cell.seed, say=said, check=self.check)
        planted = plant.verify(steps)
        valid = planted.valid if self.cell.kind != "full" else None
        device = plant.model.device
        result = {
            "schema": SCHEMA,
            "name": self.cell.name,
            "kind": self.cell.kind,
            "source": self.cell.source_name,
            "part": self.cell.part,
            "facts": self.cell.facts,
            "sets": self.cell.sets,
            "seed": self.cell.seed,
            "blocks": [list(place.blocks or ()) for place in self.cell.places],
            "n_layers": plant.model.n_layers,
            "base": self.base.label,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            **{name: _plain(value) for name, value in asdict(planted).items()},
            "learned": planted.learned,
            "valid": valid,
            "seconds": {
                "facts": round(start - begun, 1),
                "planting": round(time.monotonic() - start, 1),
            },
            "costs": {},
            "finished": False,
        }
        # Verdicts go before the new record is written, and the weights come last: killed in between, the cell is
        # planted again, and verdicts never stand beside another planting's record.
        if before is not None and all(before.get(key) == result[key] for key in result.keys() - _OF_A_CALL):
            result["costs"] = before["costs"]
        else:
            write_parquet(pl.DataFrame(schema=VERDICTS), self.verdicts)
        write_json(result, self.path)
        self.weights.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.weights) as path:
            save_file({name: tensor.cpu().contiguous() for name, tensor in plant.state().items()}, path)
        told = ", ".join(f"{share:.0%}" for share in planted.said)
        proof = (
            ""
            if valid is None
            else (", holds" if valid else ", INVALID: a reset does not lose its set alone")
        )
        self.say(f"planted in {steps} steps, {time.monotonic() - start:.0f} s: says {told}{proof}")

    def _read_weights(self, plant: Any) -> bool:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            plant.restore(load_file(self.weights))
        except (OSError, SafetensorError, KeyError):  # gone, or cut off: the cell is planted anew
            return False
        return True

    def _ask(self, model: Any, asked: Sequence[Any], places: list[int]) -> list[str]:
        """Asks the instruments that have said nothing yet; those that failed, which are asked again another time."""
        from analyses.instruments.instruments import all_instruments, cost_of
        from analyses.instruments.marking import VERDICTS, marked, with_all_columns

        table = pl.DataFrame(schema=VERDICTS)
        if self.verdicts.exists():
            table = with_all_columns(pl.read_parquet(self.verdicts))
        about = read_valid(self.path, CellFile)
        instruments = all_instruments(self.plan.template, self.lenses.by_kind(), self.plan.instruments)
        done = set(table["instrument"])
        failed: list[str] = []
        for number, instrument in enumerate(instruments):
            if instrument.name not in done:
                self.check()
                try:
                    verdict = instrument.verdict(model, self.base, asked)
                except (MemprobeError, RuntimeError) as error:
                    failed.append(instrument.name)
                    self.say(f"{instrument.name}: {''.join(traceback.format_exception(error))}")
                    continue
                table = pl.concat([table, marked(instrument.name, verdict, places, self.cell.truth)])
                about["costs"][instrument.name] = {
                    name: round(value, 3) for name, value in asdict(cost_of(instrument)).items()
                }
            following = instruments[number + 1].evidence if number + 1 < len(instruments) else ()
            if instrument.evidence != following and instrument.name not in done:
                self._keep(table, about)
            later = {id(one) for rest in instruments[number + 1 :] for one in rest.evidence}
            for evidence in instrument.evidence:
                if id(evidence) not in later:
                    evidence.forget()
        about["finished"] = not failed
        self._keep(table, about)
        return failed

    def _keep(self, table: pl.DataFrame, about: dict[str, Any]) -> None:
        write_parquet(table, self.verdicts)
        write_json(about, self.path)


def _plain(value: Any) -> Any:
    """For JSON: NaN is null, shares and norms with four digits."""
    if isinstance(value, list):
        return [None if one != one else round(one, 4) for one in value]
    return value
