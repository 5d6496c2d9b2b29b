"""Rate of ``memprobe filter`` against ``model.generate`` on length-sorted batches of the same prompts.

Both generate with the same model, new tokens and stop tokens; the filter also reads and writes its journal
and judges the answers, and it reads solved examples (--shots) once for all prompts. Chunks of prompts are timed
in turn, each side first every other time, so that a busy machine slows both alike; processor time is given
beside wall time, for a machine so busy that it does not. The reference is printed with the result.

    python tests/benchmarks/filter_rate.py --data-dir data --sources popqa lama --n 500
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
import time
from pathlib import Path

import torch

from memprobe.answers import NEW_TOKENS, stop_ids
from memprobe.filter import ask, prepare
from memprobe.models import load
from memprobe.sources import load_factoids


def reference(model, prompts: list[list[int]], batch_size: int, pad: int, stops: list[int]) -> None:
    """Stock generation: prompts sorted by length, fixed batches, left padding."""
    prompts = sorted(prompts, key=len)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False,
                eos_token_id=stops, pad_token_id=pad,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="smollm2-135m")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--sources", nargs="+", default=["popqa", "lama"])
    parser.add_argument("--n", type=int, default=500, help="factoids of each source")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=125, help="factoids timed at a time")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32, 128], help="of the reference")
    args = parser.parse_args()

    lens_model = load(args.ckpt, device="cpu", dtype="float32")
    pad, stops = lens_model.pad_id(), sorted(stop_ids(lens_model, None))
    print(inspect.getsource(reference))
    print(f"{torch.get_num_threads()} threads, {args.ckpt}, {args.shots} shots, {NEW_TOKENS} new tokens")
    for source in args.sources:
        factoids = load_factoids(source, n=args.n, data_dir=args.data_dir)
        items = prepare(lens_model, factoids, template="plain", shots=args.shots, seed=0)
        # Longer answers get more new tokens from the filter; without them both sides do the same work.
        short = {item.factoid.id for item in items if len(item.answer) + 4 <= NEW_TOKENS}
        factoids = [factoid for factoid in factoids if factoid.id in short]
        sides = ["filter", *(f"generate {size}" for size in args.batch_size)]
        wall, cpu = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
        answered = []
        for turn, start in enumerate(range(0, len(factoids), args.chunk)):
            chunk = factoids[start : start + args.chunk]
            if len(chunk) <= args.shots:
                break
            ready = prepare(lens_model, chunk, template="plain", shots=args.shots, seed=0)
            prompts = [list(item.prompt) for item in ready]

            def by_filter(chunk=chunk, answered=answered):
                with tempfile.TemporaryDirectory() as folder:
                    answered.extend(ask(lens_model, chunk, Path(folder) / "journal", shots=args.shots))

            runs = [("filter", by_filter)]
            for size in args.batch_size:
                run = lambda prompts=prompts, size=size: reference(  # noqa: E731
                    lens_model.model, prompts, size, pad, stops
                )
                runs.append((f"generate {size}", run))
            for name, run in runs if turn % 2 else runs[::-1]:
                begin, used = time.perf_counter(), time.process_time()
                run()
                wall[name] += time.perf_counter() - begin
                cpu[name] += time.process_time() - used
        print(
            json.dumps(
                {
                    "source": source,
                    "n": len(answered),
                    "factoids per second": {name: round(len(answered) / wall[name], 2) for name in sides},
                    "factoids per processor second": {
                        name: round(len(answered) / cpu[name], 2) for name in sides
                    },
                    "filter over the best generate": {
                        "wall": round(min(wall[name] for name in sides[1:]) / wall["filter"], 3),
                        "processor": round(min(cpu[name] for name in sides[1:]) / cpu["filter"], 3),
                    },
                    "known, alias-aware": round(
                        sum(one.verdict.alias_match for one in answered) / len(answered), 4
                    ),
                    "known, strict": round(
                        sum(one.verdict.exact_match for one in answered) / len(answered), 4
                    ),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
