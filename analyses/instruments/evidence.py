"""What instruments read: each measurement is made once for a model, its cost beside it.

A measurement is a function of (model, base, facts) and of nothing else: nothing here knows where facts were planted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memprobe.attributions import attribute_all
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid
from memprobe.grafting import donor_of, sweep_batches
from memprobe.lens_files import LensFile
from memprobe.lens_specs import make_lens
from memprobe.models import LensModel
from memprobe.modes import evaluating
from memprobe.partial import exchanged
from memprobe.parts import part_of
from memprobe.patch_plan import Positions, fitting_items, plan_patches
from memprobe.patching import padded, patch_batches
from memprobe.planning import plan_capture
from memprobe.statistics.holding import trajectories
from memprobe.statistics.patches import answers, moved_shares
from memprobe.templates import Template, tokenise_for

Direction = Literal["restoration", "erasure"]
"""``restoration``: the model's states or weights put into the base; ``erasure``: the base's put into the model."""
Values = dict[str, np.ndarray]


@dataclass
class Cost:
    """Attributes:
    forwards: passes of one fact through all blocks, parts of passes counted as such.
    backwards: the same, backwards.
    seconds: of this process, with what the device was given.
    """

    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards, self.backwards + other.backwards, self.seconds + other.seconds
        )


class Evidence:
    """A measurement, remembered until it is made of something else.

    Attributes:
        cost: of the measurement that is remembered.
    """

    def __init__(
        self,
        measure: Callable[[LensModel, LensModel, Sequence[Factoid]], Values],
        prepare: Callable[[], object] = lambda: None,
    ):
        """``prepare`` is called before a measurement and costs nothing: it may wait for a lens to be fitted."""
        self.measure, self.prepare = measure, prepare
        self.cost = Cost()
        self._of: tuple[LensModel, LensModel, tuple[str, ...]] | None = None
        self._found: Values = {}

    def __call__(self, model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Values:
        """Arrays by name; all are [factoid, …] in the order of the facts."""
        asked = (model, base, tuple(factoid.id for factoid in factoids))
        if self._of is None or self._of[0] is not model or self._of[1] is not base or self._of[2] != asked[2]:
            self.prepare()
            with metered(model, base) as cost:
                self._found = self.measure(model, base, factoids)
            if factoids:
                cost.forwards /= len(factoids)
            cost.backwards = float(self._found.pop("backwards", np.zeros(())))
            self.cost, self._of = cost, asked
        return self._found

    def forget(self) -> None:
        """Lets go of models and results."""
        self._of, self._found = None, {}


@contextmanager
def metered(*models: LensModel) -> Iterator[Cost]:
    """Counts passes through the MLPs of some models' blocks, and seconds.

    ``forwards`` is of all facts together: rows that went through a block, divided by the number of blocks.
    """
    cost = Cost()
    with ExitStack() as stack:
        for model in {id(model.model): model for model in models}.values():
            for block in model.blocks:

                def count(_: nn.Module, args: tuple[Any, ...], share: float = 1 / model.n_layers) -> None:
                    cost.forwards += share * args[0].shape[0]

                handle = part_of(block, "mlp", model.label).register_forward_pre_hook(count)
                stack.callback(handle.remove)
        _wait(models)
        start = time.perf_counter()
        yield cost
        _wait(models)
        cost.seconds = time.perf_counter() - start


def _wait(models: Sequence[LensModel]) -> None:
    if any(model.device.type == "cuda" for model in models):
        torch.cuda.synchronize()


def captured(
    of: Literal["model", "base"],
    template: str,
    file: Callable[[], LensFile] | None = None,
    *,
    base_readout: bool = False,
) -> Evidence:
    """Rank and log-probability of whole answers by depth, through a lens: arrays [factoid, depth 0 … n_layers].

    Args:
        of: which of the two is read.
        file: gives a fitted lens; ``None`` for the Logit Lens.
        base_readout: read with the base's norm and unembedding.
    """

    def measure(model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Values:
        read = model if of == "model" else base
        lens = make_lens(read, file() if file else None, base if base_readout else None)
        tables = capture(read, factoids, template, lenses=[lens], predictions=False)
        (found,) = trajectories(tables.records, token="all")
        ordered = found.select(np.array([factoid.id for factoid in factoids]))
        return {"rank": ordered.rank, "log_prob": ordered.log_prob}

    return Evidence(measure, file or (lambda: None))


def attributed(of: Literal["model", "base"], template: str) -> Evidence:
    """What every block writes towards the answer's logits: by part, sums over answer tokens [factoid, block]."""

    def measure(model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Values:
        read = model if of == "model" else base
        table, about = attribute_all(read, plan_capture(read, factoids, Template.parse(template)))
        summed = (
            table.filter(pl.col("depth") >= 1)
            .group_by("part", "factoid", "depth")
            .agg(pl.col("logit").cast(pl.Float64).sum())
        )
        return {
            part: _dense(summed.filter(part=part), "logit", factoids, read.n_layers)
            for part in about["parts"]
        }

    return Evidence(measure)


def patched(direction: Direction, positions: Positions, template: str) -> Evidence:
    """The share of what separates base and model on an answer that a patch of the residual stream moves.

    ``moved`` [factoid, depth 1 … n_layers], NaN where the two hardly differ on the answer; ``taken`` the same in nats a
    token; ``start`` [factoid], the share moved at depth 0.
    """

    def measure(model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Values:
        source, target = _sides(direction, model, base)
        plan = plan_patches(source, target, factoids, template, positions=(positions,), controls=())
        table = pl.concat(list(patch_batches(source, target, plan)))
        shares = moved_shares(answers(table))
        found = _dense(shares, "moved", factoids, model.n_layers, first=0)
        tokens = (
            table.filter(pl.col("token") >= 0)
            .group_by("factoid", "depth")
            .agg(((pl.col("target_log_prob") - pl.col("log_prob")).cast(pl.Float64).mean()).alias("taken"))
        )
        return {
            "moved": found[:, 1:],
            "start": found[:, 0],
            "taken": _dense(tokens, "taken", factoids, model.n_layers),
        }

    return Evidence(measure)


def grafted(direction: Direction, template: str, parts: Sequence[str] = ("all",)) -> Evidence:
    """The share that the weights of one block move: by part, [factoid, block]."""

    def measure(model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Values:
        source, target = _sides(direction, model, base)
        items = fitting_items(source, target, factoids, Template.parse(template))
        donor = donor_of(source, items)
        table = pl.concat(list(sweep_batches(donor, target, items, parts=parts, control=False)))
        shares = moved_shares(answers(table))
        return {part: _dense(shares.filter(parts=part), "moved", factoids, model.n_layers) for part in parts}

    return Evidence(measure)


def gradients(points: Sequence[float], template: str) -> Evidence:
    """The gradient of the answer's log-probability times the change of the weights, block by block.

    At every point of the straight way from the base (0) to the model (1): by point, [factoid, block]. For a module m
    with weights θ of its own that gives y = m(x), what a fact's gradient has in the direction of their change is

        ∇_θ log p · Δθ  =  Σ over positions of  ∂ log p / ∂ y  ·  (∂ m(x) / ∂ θ) Δθ

    so that one pass forwards and one backwards do for a whole batch: positions of one fact see no other fact.
    """

    def measure(model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Values:
        items = tokenise_for(model, factoids, Template.parse(template))
        ids = padded(items, model.pad_id()).to(model.device)
        theirs = dict(base.model.named_parameters())
        named = dict(model.model.named_parameters())
        change = {name: p.data - theirs[name].data.to(p.device) for name, p in named.items()}
        found: Values = {}
        for point in points:
            between = [
                (p, theirs[name].data.to(p.device) + point * change[name])
                for name, p in named.items()
                if point < 1 and bool(change[name].any())
            ]
            with exchanged(between):
                rows = [
                    directional(model, ids[start : start + _ROWS], items[start : start + _ROWS], change)
                    for start in range(0, len(items), _ROWS)
                ]
            found[f"{point:g}"] = np.concatenate(rows)
        return found | {"backwards": np.array(float(len(points)))}

    return Evidence(measure)


_ROWS = 32


def directional(
    model: LensModel, ids: Int[Tensor, "row position"], items: Sequence[Any], change: dict[str, Tensor]
) -> Float[np.ndarray, "row block"]:
    """What the gradient of each row's log-probability has in the direction of each block's change."""
    leaves = _leaves(model, change)
    total = torch.zeros(len(items), model.n_layers, dtype=torch.float64)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model.model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for name, (module, _) in leaves.items():

            def keep(_: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> Tensor:
                inputs[name] = args[0].detach()
                if not output.requires_grad:  # below the first change nothing else asks for a gradient
                    output = output.detach().requires_grad_()
                outputs[name] = output
                return output

            stack.callback(module.register_forward_hook(keep).remove)
        logits = model.model(input_ids=ids, use_cache=False).logits
        asked = [
            (row, len(item.prompt) - 1 + j, item.targets[j])
            for row, item in enumerate(items)
            for j, token in enumerate(item.target_indices)
            if token >= 0
        ]
        rows, columns, targets = torch.tensor(asked, device=logits.device).unbind(1)
        log_probs = logits[rows, columns].float().log_softmax(-1)
        said = log_probs.gather(1, targets[:, None]).sum()
        pulls = torch.autograd.grad(said, list(outputs.values()), allow_unused=True)
    for name, pull in zip(outputs, pulls, strict=True):
        if pull is None:
            continue
        module, block = leaves[name]
        own = {key: p.data for key, p in module.named_parameters(recurse=False)}
        tangent = {key: change[f"{name}.{key}"].to(own[key].dtype) for key in own}
        given = inputs[name]
        _, moved = torch.func.jvp(
            lambda weights, module=module, given=given: torch.func.functional_call(module, weights, (given,)),
            (own,),
            (tangent,),
        )
        product = (pull * moved).flatten(1).sum(1) if pull.shape[0] == len(items) else None
        if product is None:
            raise MemprobeError(f"{model.label}: {name} lays the facts of a batch in one row")
        total[:, block - 1] += product.detach().double().cpu()
    return total.numpy()


def _leaves(model: LensModel, change: dict[str, Tensor]) -> dict[str, tuple[nn.Module, int]]:
    """By name, the modules within blocks whose own weights changed, with the number of their block."""
    names = {id(module): name for name, module in model.model.named_modules()}
    found = {}
    for number, block in enumerate(model.blocks, 1):
        for module in block.modules():
            name = names[id(module)]
            own = [key for key, _ in module.named_parameters(recurse=False)]
            if any(bool(change[f"{name}.{key}"].any()) for key in own):
                found[name] = module, number
    return found


def weight_changes() -> Evidence:
    """The norm of the change of every block's weights, relative to their own: [factoid, block], all rows alike."""

    def measure(model: LensModel, base: LensModel, factoids: Sequence[Factoid]) -> Values:
        row = []
        for block, other in zip(model.blocks, base.blocks, strict=True):
            pairs = list(zip(block.parameters(), other.parameters(), strict=True))
            change = sum(float((a.data - b.data.to(a.device)).double().square().sum()) for a, b in pairs)
            row.append((change / sum(float(b.data.double().square().sum()) for _, b in pairs)) ** 0.5)
        return {"norm": np.repeat(np.array([row]), len(factoids), 0)}

    return Evidence(measure)


def _sides(direction: Direction, model: LensModel, base: LensModel) -> tuple[LensModel, LensModel]:
    """Source and target."""
    return (model, base) if direction == "restoration" else (base, model)


def _dense(
    rows: pl.DataFrame, value: str, factoids: Sequence[Factoid], n_layers: int, first: int = 1
) -> Float[np.ndarray, "factoid depth"]:
    """Rows (factoid, depth, value) as an array over depths ``first`` … n_layers; NaN where there is none."""
    place = {factoid.id: number for number, factoid in enumerate(factoids)}
    found = np.full((len(factoids), n_layers + 1 - first), np.nan)
    for factoid, depth, one in rows.select("factoid", "depth", value).iter_rows():
        if depth >= first and one is not None:
            found[place[factoid], depth - first] = one
    return found
