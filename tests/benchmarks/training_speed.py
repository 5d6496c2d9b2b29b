"""Training on mixed rows: our stage against a stock Trainer with the same rows.

    python -m tests.benchmarks.training_speed --base smollm2-135m --source generic --data-dir DIR

``stock``     ``transformers.Trainer`` with a padding collator, an attention mask and logits at every position, in fp32
``padded``    our stage without packing, fp32
``masked``    packed where that is less work, rows kept apart by a mask over all pairs of tokens, fp32
``packed``    as it comes: the same, with attention row by row where that is less work still, fp32
``bfloat16``  as it comes, with matrix products in bfloat16; ``bfloat16 masked`` the same with the mask
``kept``, ``bfloat16 kept``  as it comes, and what a step frees stays with the process, as in a run
``bfloat16 whole``  the last, with all logits of a micro-batch at once

On a CUDA device all compute in bfloat16 by autocast, and two more run: ``kernels`` with fused norms and flash
attention, ``graphs`` with CUDA graphs, too.

Each runs in a process of its own, in turns; a step's rows are the same, so the losses are too. The first steps
(``--warm-up``) are left out of the rate, which is by processor second, so that whoever else computes on the machine
counts less; on a CUDA device it is by second. ``--out`` keeps every repeat's rates and losses.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

ARMS = (
    "stock",
    "padded",
    "masked",
    "packed",
    "kept",
    "bfloat16 masked",
    "bfloat16",
    "bfloat16 kept",
    "bfloat16 whole",
)
EXACT = ("stock", "padded", "masked", "packed", "kept")  # on a CPU: they compute in fp32
ON_CUDA = ("stock", "padded", "packed", "kernels", "graphs")


def main() -> None:
    """Runs both in turns and prints what they measured."""
    import torch

    from tests.benchmarks.timing import about, machine, ratio, run, table, write

    options = _options()
    cuda = torch.cuda.is_available()
    if options.one:
        print(json.dumps(_train(options, cuda)))
        return
    arms = [arm for arm in (ON_CUDA if cuda else ARMS) if arm not in options.without]
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for _ in range(1 if options.profile else options.repeats):
        for arm in arms:
            command = [sys.executable, "-m", "tests.benchmarks.training_speed", *sys.argv[1:], "--one", arm]
            try:
                printed = run(*command)
            except RuntimeError as error:
                raise SystemExit(f"{arm}: {error}") from error
            results[arm].append(json.loads(printed.splitlines()[-1]))
    if options.profile:
        _print_profiles(options, {arm: one[0] for arm, one in results.items()})
        return
    stock = results["stock"]
    rows: list[list[Any]] = []
    broken = []
    for arm in arms:
        rates = ", ".join(f"{one['rate']:.3f}" for one in results[arm])
        peak = max(one["peak_mib"] for one in results[arm])
        faster = median(one["rate"] for one in results[arm]) / median(one["rate"] for one in stock)
        of_turn = ratio([one["rate"] for one in results[arm]], [one["rate"] for one in stock])
        by_clock = ratio([one["clock_rate"] for one in results[arm]], [one["clock_rate"] for one in stock])
        pairs = zip(stock[0]["losses"], results[arm][0]["losses"], strict=True)
        apart = max(abs(one - other) / one for one, other in pairs)
        near = 1e-3 if arm in EXACT and not cuda else 0.02
        print(
            f"{arm:15} {rates} examples a {'' if cuda else 'processor '}second, {faster:.2f} x stock, "
            f"peak {peak:.0f} MiB{' on the device' if cuda else ''}, "
            f"losses differ by at most {apart:.1e} of their value"
            + ("" if apart <= near else ": NOT THE SAME, its rate does not count")
        )
        if apart > near and arm in EXACT:
            broken.append(arm)
        busy = median(1 / one["rate"] for one in results[arm])
        rows.append([arm, 1e3 * busy, of_turn, by_clock, peak, f"{apart:.1e}"])
    if options.out:
        told = machine(torch.device("cuda" if cuda else "cpu"))
        columns = ("arm", "ms a row", "x stock", "x stock by the clock", "peak MiB", "losses apart")
        text = f"## Training against a stock Trainer\n\n{about(told)}.\n\n{table(columns, rows)}"
        write({"machine": told, "options": _asked(options), "runs": results}, text, options.out, options.name)
    if broken:
        raise SystemExit(f"other losses than stock: {', '.join(broken)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--source", default="random-words", help="of the mixing rows")
    parser.add_argument("--words", type=int, default=50, help="of a mixing row's prompt and answer each")
    parser.add_argument("--data-dir")
    parser.add_argument("--own", type=int, default=32, help="KVR rows")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="steps")
    parser.add_argument("--ratio", type=int, default=2, help="mixing rows for each own one")
    parser.add_argument("--profile", action="store_true", help="say what the time goes to")
    parser.add_argument("--out", help="folder for NAME.json and .md")
    parser.add_argument("--name", help="of those files (default training_profile or training_speed)")
    parser.add_argument("--without", nargs="*", default=[], help="arms that do not run")
    parser.add_argument("--one", choices=sorted({*ARMS, *ON_CUDA}), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.name = options.name or ("training_profile" if options.profile else "training_speed")
    return options


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    return {
        name: value for name, value in vars(options).items() if name not in ("out", "name", "one", "data_dir")
    }


def _train(options: argparse.Namespace, cuda: bool) -> dict[str, Any]:
    import torch
    from transformers import TrainerCallback, set_seed

    from memprobe.checkpoints import resolve
    from memprobe.models import load_pretrained
    from memprobe.sources import load
    from training.allocation import freed_memory_kept
    from training.examples import ExampleMaker
    from training.kernels import fewer_kernels
    from training.mixing import Part, Schedule
    from training.recipe import parse_recipe
    from training.recipe_tables import Stop
    from training.stage import StageRun, StageTrainer

    checkpoint = resolve(options.base)
    model, tokenizer = load_pretrained(checkpoint, torch.float32)
    make = ExampleMaker("tulu", tokenizer, 1024)
    own = [make(row) for row in load(f"kvr:{options.own}").rows]
    mixing = []
    if options.ratio:
        mixed = load(
            options.source,
            n=options.ratio * options.own,
            data_dir=options.data_dir,
            words=(options.words, options.words),
        ).rows
        mixing = [make(row, own=False) for row in mixed]
    accumulation = options.batch // options.micro_batch
    schedule = Schedule(
        Part(own, len(own)),
        [Part(mixing, len(mixing))] if mixing else [],
        epochs=1 + options.steps * options.batch // ((1 + options.ratio) * options.own),
        batch=options.batch,
        micro_batches=accumulation,
        seed=0,
    )
    schedule.steps = options.steps
    recipe = parse_recipe(
        {
            "base": options.base,
            "save_minutes": 1e6,
            "optimiser": {"batch": options.batch, "micro_batch": options.micro_batch},
            "precision": {
                "packing": options.one not in ("stock", "padded"),
                "autocast": "bfloat16" if cuda or options.one.startswith("bfloat16") else "none",
                "fewer_kernels": options.one in ("kernels", "graphs"),
                "graphs": options.one == "graphs",
            },
            "stages": [{"name": "a", "data": "known"}],
        }
    )
    times, clock, losses = [], [], []

    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True)

    class Clock(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                clock.append(time.perf_counter())
                times.append(clock[-1] if cuda else time.process_time())
                losses.append(logs["loss"])
                if options.profile and len(times) == options.warm_up:
                    profiler.start()
                if options.profile and len(times) == options.steps:
                    profiler.stop()

    with tempfile.TemporaryDirectory() as folder:
        run = StageRun(recipe, "a", Path(folder), schedule, accumulation, 0, Stop(), own)
        set_seed(0)
        if options.one == "stock":
            trainer = _stock(model, tokenizer, run, options)
        else:
            masked = patch("training.batches.may_take_paths", return_value=False)
            whole = patch("training.stage.StageTrainer._blockwise_head", return_value=None)
            with (
                masked if options.one.endswith("masked") else nullcontext(),
                whole if options.one.endswith("whole") else nullcontext(),
            ):
                trainer = StageTrainer(model, tokenizer, run)
        trainer.add_callback(Clock())
        fewer = recipe.precision.fewer_kernels
        keep = options.one.endswith(("kept", "whole"))
        with (
            fewer_kernels(model) if fewer else nullcontext(),
            freed_memory_kept() if keep else nullcontext(),
        ):
            trainer.train()
    rows = sum(len(schedule.step(step)) for step in range(options.warm_up, options.steps))
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_mib()
    taken = times[-1] - times[options.warm_up - 1]
    by_clock = rows / (clock[-1] - clock[options.warm_up - 1])
    found = {"rate": rows / taken, "clock_rate": by_clock, "losses": losses, "peak_mib": peak}
    if options.profile:
        from tests.benchmarks.op_kinds import by_kind

        found |= {"rows": rows, "seconds": taken, "kinds": by_kind(profiler, model.config.vocab_size)}
    return found


def _print_profiles(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Seconds for a row by kind, as a table; and as JSON where a folder is given."""
    import torch

    from tests.benchmarks.op_kinds import KINDS, OTHER, PRODUCTS, UNEMBEDDING
    from tests.benchmarks.timing import about, machine, table, write

    kinds = [PRODUCTS, UNEMBEDDING, *(kind for kind in KINDS if kind != PRODUCTS), OTHER]
    milliseconds = {
        arm: {kind: 1e3 * one["kinds"].get(kind, 0.0) / one["rows"] for kind in kinds}
        for arm, one in found.items()
    }
    whole = {arm: sum(parts.values()) for arm, parts in milliseconds.items()}
    least = {arm: parts[PRODUCTS] + parts[UNEMBEDDING] for arm, parts in milliseconds.items()}
    rows: list[list[Any]] = [[kind, *(milliseconds[arm][kind] for arm in found)] for kind in kinds]
    rows.append(["all", *whole.values()])
    rows.append(["stock / all", *(whole["stock"] / value for value in whole.values())])
    rows.append(["stock / products alone", *(whole["stock"] / value for value in least.values())])
    told = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    write(
        {"machine": told, "options": _asked(options), "milliseconds_a_row": milliseconds, "runs": found},
        f"## What training's time goes to, in ms a row\n\n{about(told)}.\n\n" + table(("kind", *found), rows),
        options.out,
        options.name,
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _stock(model: Any, tokenizer: Any, run: Any, options: argparse.Namespace) -> Any:
    """A stock Trainer over the same rows in the same steps."""
    import dataclasses

    from transformers import DataCollatorForTokenClassification, Trainer
    from transformers.trainer_callback import PrinterCallback

    from training.mixing import IGNORED
    from training.stage import trainer_arguments

    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [row for step in range(options.steps) for row in run.schedule.step(step)]
    # Stock labels are not shifted: label t is token t.
    data = [
        {
            "input_ids": [*row.ids, row.labels[-1]],
            "attention_mask": [1] * (len(row.ids) + 1),
            "labels": [IGNORED, *row.labels],
        }
        for row in rows
    ]
    arguments = dataclasses.replace(trainer_arguments(run), per_device_train_batch_size=options.micro_batch)
    collator = DataCollatorForTokenClassification(tokenizer)
    trainer = Trainer(
        model, arguments, data_collator=collator, train_dataset=data, processing_class=tokenizer
    )  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    main()
