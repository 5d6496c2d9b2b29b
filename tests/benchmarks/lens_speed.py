"""What further lenses cost in one pass: ``python tests/benchmarks/lens_speed.py [CHECKPOINT]``.

Times the capture of the built-in facts with one lens (``logit``) and with four (three fitted ones of random maps
beside it), in turn, and says how the time of four compares with a forward pass and four readouts, as the one-lens run
and a bare forward pass of the same batches give them. Median of several rounds, one thread.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from memprobe.capturing import capture
from memprobe.lens_files import AffineMap
from memprobe.lenses import Lens
from memprobe.models import LensModel, decoder_of, evaluating, load
from memprobe.sources import load_factoids
from memprobe.templates import Template, tokenise_all

FACTS, ROUNDS = 24, 3


def main() -> None:
    """Prints the times."""
    torch.set_num_threads(1)
    model = load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m", device="cpu")
    facts = load_factoids("known", n=FACTS)
    width = model.d_model
    maps = {
        depth: AffineMap(torch.eye(width) + 0.01 * torch.randn(width, width))
        for depth in range(model.n_layers)
    }
    fitted = [Lens(name, model.lens.readout, "linear", maps) for name in ("a", "b", "c")]
    one: list[float] = []
    four: list[float] = []
    bare: list[float] = []
    for _ in range(ROUNDS):
        bare.append(timed(lambda: forward(model, facts)))
        one.append(timed(lambda: capture(model, facts, lenses=[model.lens], predictions=False)))
        four.append(timed(lambda: capture(model, facts, lenses=[model.lens, *fitted], predictions=False)))
    forward_s, one_s, four_s = (statistics.median(times) for times in (bare, one, four))
    allowed = forward_s + 4 * (one_s - forward_s)
    print(f"forward pass {forward_s:.2f} s, one lens {one_s:.2f} s, four lenses {four_s:.2f} s")
    print(f"four lenses / (forward + 4 readouts): {four_s / allowed:.2f}")


def forward(model: LensModel, facts: list) -> None:
    """The facts' inputs through the blocks, as capture batches them."""
    items = sorted(tokenise_all(facts, Template.parse("plain"), model.tokenizer), key=lambda x: len(x.inputs))
    with evaluating(model.model):
        for start in range(0, len(items), 64):
            batch = items[start : start + 64]
            ids = torch.full((len(batch), max(len(item.inputs) for item in batch)), model.pad_id())
            for row, item in enumerate(batch):
                ids[row, : len(item.inputs)] = torch.tensor(item.inputs)
            decoder_of(model.model)(input_ids=ids, use_cache=False)


def timed(work) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
