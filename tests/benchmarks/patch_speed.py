"""What patching every depth costs, beside TransformerLens' hooks doing the same and beside the blocks alone.

    python -m tests.benchmarks.patch_speed hooks --n 64
    python -m tests.benchmarks.patch_speed bound --n 16 --positions last,subject,prompt

``hooks``: TransformerLens runs the whole model once for each depth (``run_with_hooks``) on batches of equal length;
memprobe runs the blocks above the patch alone. Both read the log-probability of every answer token, and the two must
agree within 1e-3 nats.

``bound``: a patch at depth d may cost what the blocks above d cost, and 20 % more. The floor is measured: the model
with its first d blocks taken out, called on the same batches with the stream of depth d as its embeddings, and its
logits at the answer's positions. What is run once for all depths (source and target whole) stands apart.

Seconds are of the processor, of this process, so that a machine with other work gives nearly the same ratios; run with
one thread. It patches the model's own states unless --source and --target name two, which costs the same.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import polars as pl
import torch

from memprobe.blocks import decoder_of, residual_hooks
from memprobe.models import load, to_bridge
from memprobe.partial import run_whole
from memprobe.patch_plan import PatchPlan, plan_patches
from memprobe.patching import padded, patch_batches
from memprobe.sources import load_factoids

ALLOWED = 1.2


def with_hooks(source, bridge, items, n_layers: int) -> dict[tuple[str, int, int], float]:
    """(factoid, token, depth) -> log_prob, one forward pass of the whole model for each depth."""
    by_length = defaultdict(list)
    for item in items:
        by_length[len(item.prompt), len(item.inputs)].append(item)
    found = {}
    for (prompt, length), batch in by_length.items():
        ids = torch.tensor([item.inputs for item in batch])
        columns = list(range(prompt - 1, length))
        targets = torch.tensor([item.targets for item in batch])
        streams: dict[int, torch.Tensor] = {}
        with torch.inference_mode(), residual_hooks(source.blocks, streams.__setitem__):
            source.model(input_ids=ids, use_cache=False)
        for depth in range(n_layers + 1):

            def put(value, hook, states=streams[depth][:, columns], columns=columns):
                value = value.clone()
                value[:, columns] = states
                return value

            name = "blocks.0.hook_in" if depth == 0 else f"blocks.{depth - 1}.hook_out"
            with torch.inference_mode():
                logits = bridge.run_with_hooks(ids, fwd_hooks=[(name, put)], return_type="logits")
            lines = logits[:, columns].float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
            for row, item in enumerate(batch):
                for j, value in enumerate(lines[row].tolist()):
                    found[item.factoid.id, item.target_indices[j], depth] = value
    return found


def seconds(do: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and what it gives."""
    start = time.process_time()
    found = do()
    return time.process_time() - start, found


def floor_by_depth(target, plan: PatchPlan, batch_size: int) -> list[float]:
    """By depth, seconds of the model without its first blocks on every batch, with logits of the answers' positions."""
    decoder: Any = decoder_of(target.model)
    head = target.model.get_output_embeddings()
    items = sorted((question.item for question in plan.questions), key=lambda item: len(item.inputs))
    own = decoder.layers
    found = [0.0] * (target.n_layers + 1)

    def above(stream: torch.Tensor, asked: list[tuple[int, int, int]]) -> torch.Tensor:
        rows, columns, wanted = (list(part) for part in zip(*asked, strict=True))
        hidden = decoder(inputs_embeds=stream, use_cache=False).last_hidden_state
        return head(hidden[rows, columns]).float().log_softmax(-1)[range(len(wanted)), wanted]

    for first in range(0, len(items), batch_size):
        batch = items[first : first + batch_size]
        asked = [
            (row, len(item.prompt) - 1 + j, token)
            for row, item in enumerate(batch)
            for j, token in enumerate(item.targets)
        ]
        with torch.inference_mode():
            streams = run_whole(target, padded(batch, target.pad_id())).streams
        for depth in range(target.n_layers + 1):
            decoder.layers = own[depth:]
            decoder.config.num_hidden_layers = target.n_layers - depth
            try:
                with torch.inference_mode():
                    spent, _ = seconds(lambda stream=streams[depth], asked=asked: above(stream, asked))
            finally:
                decoder.layers = own
                decoder.config.num_hidden_layers = target.n_layers
            found[depth] += spent
    return found


def bound(
    source, target, facts, template: str, names: list[str], batch_size: int, repeats: int
) -> pl.DataFrame:
    """By set of positions: seconds of patching (the least of ``repeats``), the floor, and their ratio."""
    rows = []
    for name in names:
        given: dict[str, Any] = {"positions": [name], "controls": []}
        every = plan_patches(source, target, facts, template, **given)
        # One depth costs what is run once, and hardly more: at full depth no block is above the patch.
        once = plan_patches(source, target, facts, template, depths=[target.n_layers], **given)
        spent: dict[str, list[float]] = defaultdict(list)
        for _ in range(repeats):
            floors = floor_by_depth(target, every, batch_size)
            spent["floor"].append(sum(floors))
            spent["last"].append(floors[-1])
            for kind, plan in (("every", every), ("once", once)):
                spent[kind].append(
                    seconds(
                        lambda plan=plan: list(patch_batches(source, target, plan, batch_size=batch_size))
                    )[0]
                )
        least = {kind: min(values) for kind, values in spent.items()}
        patching = least["every"] - least["once"]
        floor = least["floor"] - least["last"]
        rows.append(
            {
                "positions": name,
                "once": least["once"],
                "patching": patching,
                "floor": floor,
                "ratio": patching / floor,
            }
        )
    return pl.DataFrame(rows)


def main() -> None:
    """Measures one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["hooks", "bound"])
    parser.add_argument("--source", default="smollm2-135m")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--factoids", default="known")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--template", default="plain")
    parser.add_argument("--positions", default="last,subject,prompt", help="of bound")
    parser.add_argument("--batch-size", type=int, default=16, help="of bound")
    parser.add_argument("--repeats", type=int, default=2, help="of bound: the least of so many counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source, target = (load(spec, device="cpu", dtype="float32") for spec in (options.source, options.target))
    facts = load_factoids(options.factoids)[: options.n]
    said = f"{len(facts)} factoids, {target.n_layers + 1} depths, one thread, processor seconds"
    if options.kind == "bound":
        names = options.positions.split(",")
        found = bound(source, target, facts, options.template, names, options.batch_size, options.repeats)
        print(said)
        for row in found.iter_rows(named=True):
            held = "holds" if row["ratio"] <= ALLOWED else "is exceeded"
            print(
                f"{row['positions']}: once {row['once']:.2f}, patching {row['patching']:.2f}, blocks above alone "
                f"{row['floor']:.2f}: {row['ratio']:.2f} of it, the bound of {ALLOWED:.2f} {held}"
            )
        return
    plan = plan_patches(source, target, facts, options.template, positions=["last"], controls=[])
    ours, tables = seconds(lambda: list(patch_batches(source, target, plan)))
    table = pl.concat(tables)
    bridge = to_bridge(load(options.target, device="cpu", dtype="float32"))
    bridge.eval()
    items = [question.item for question in plan.questions]
    theirs, found = seconds(lambda: with_hooks(source, bridge, items, target.n_layers))
    rows = table.select("factoid", "token", "depth", "log_prob").iter_rows()
    off = max(abs(value - found[factoid, token, depth]) for factoid, token, depth, value in rows)
    print(f"{said}, last position")
    print(
        f"memprobe {ours:.1f}, TransformerLens {theirs:.1f}: {theirs / ours:.2f} times as fast, off by {off:.1e}"
    )


if __name__ == "__main__":
    main()
