"""The Logit Lens by nnsight or nnterp, in an environment of its own without memprobe: from a job to its times.

    PEERS_PYTHON tests/benchmarks/peers.py JOB.json RESULT.json

JOB: ``method`` (nnsight, nnterp), ``path`` of a checkpoint with Llama's module names, ``dtype``, ``device``,
``threads``, ``repeats``, ``warm_ups`` and ``batches`` of prompts of equal length: ``ids``, ``answers``, ``names``. As
:mod:`tests.benchmarks.capture_speed` asks the others, each answer's rank is read at every depth of the last position.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def nnsight(job: dict[str, Any]) -> Any:
    """A function that reads one batch: ranks [depth, row]."""
    import nnsight as library

    model = library.LanguageModel(
        job["path"], device_map=job["device"], dtype=getattr(torch, job["dtype"]), dispatch=True
    )

    def read(ids: torch.Tensor, answers: torch.Tensor) -> list[list[int]]:
        with torch.no_grad(), model.trace(ids):
            found = library.save([])
            for depth in range(len(model.model.layers) + 1):
                stream = model.model.layers[0].input if depth == 0 else model.model.layers[depth - 1].output
                stream = stream[0] if isinstance(stream, tuple) else stream
                logits = model.lm_head(model.model.norm(stream[:, -1]))
                found.append((logits > logits.gather(1, answers[:, None])).sum(1))
        return [ranks.tolist() for ranks in found]

    return read


def nnterp(job: dict[str, Any]) -> Any:
    """The same through its standardised names."""
    import nnsight as library
    from nnterp import StandardizedTransformer

    model = StandardizedTransformer(
        job["path"],
        device_map=job["device"],
        dtype=getattr(torch, job["dtype"]),
        check_attn_probs_with_trace=False,
    )

    def read(ids: torch.Tensor, answers: torch.Tensor) -> list[list[int]]:
        with torch.no_grad(), model.trace(ids):
            found = library.save([])
            for depth in range(model.num_layers + 1):
                stream = model.layers_input[0] if depth == 0 else model.layers_output[depth - 1]
                logits = model.project_on_vocab(stream[:, -1])
                found.append((logits > logits.gather(1, answers[:, None])).sum(1))
        return [ranks.tolist() for ranks in found]

    return read


def main() -> None:
    """Runs a job."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    read = {"nnsight": nnsight, "nnterp": nnterp}[job["method"]](job)
    batches = [
        (torch.tensor(one["ids"], device=device), torch.tensor(one["answers"], device=device), one["names"])
        for one in job["batches"]
    ]
    clock, processor, ranks = [], [], {}
    for turn in range(job["warm_ups"] + job["repeats"]):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start, busy = time.perf_counter(), time.process_time()
        for ids, answers, names in batches:
            for depth, row in enumerate(read(ids, answers)):
                ranks |= {f"{name} {depth}": rank for name, rank in zip(names, row, strict=True)}
        if turn >= job["warm_ups"]:
            clock.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
    on_gpu = device.type == "cuda"
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "seconds": clock,
        "processor_seconds": processor,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident,
        "versions": {name: version(name) for name in {"nnsight", job["method"], "torch", "transformers"}},
        "ranks": ranks,
    }
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
