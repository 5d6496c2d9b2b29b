"""Probes along anyone's training: a callback for ``transformers.Trainer``.

trainer = Trainer(..., callbacks=[ProbeCallback(factoids, out="probes/run", every=100)])

Added to a Trainer that is there, it can log what it finds wherever the Trainer logs (W&B, trackio, TensorBoard …):

trainer.add_callback(ProbeCallback(factoids, out="probes/run", every=100, log=trainer.log))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, check_made
from memprobe.identity import identity_of
from memprobe.lens_set import LensSet
from memprobe.manifests import read_manifest
from memprobe.models import wrap
from memprobe.planning import check_positions
from memprobe.probe_writer import discard_other
from memprobe.probes import RUN, probe_of, read_run
from memprobe.probing import probe
from memprobe.records import POSITION
from memprobe.sources import load_factoids
from memprobe.statistics.holding import TokenRule
from memprobe.templates import PLAIN, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

    from memprobe.models import LensModel


class ProbeCallback(TrainerCallback):
    """Probes given factoids every N steps and appends to one probe directory.

    The checkpoint of step 200 is called ``NAME@200``; ``run.json`` has its step. Step 0, before training, and
    the last step are always probed. Only the first process of a distributed run probes, and only models that
    it holds whole.
    """

    def __init__(
        self,
        factoids: Sequence[Factoid] | str,
        out: str | Path,
        *,
        every: int,
        name: str = "step",
        template: str | None = None,
        lenses: Sequence[str] = (),
        positions: Sequence[str] = (POSITION,),
        k: int = 10,
        token: TokenRule = "first",
        tokenizer: PreTrainedTokenizerBase | None = None,
        log: Callable[[dict[str, float]], None] | None = None,
    ):
        """Makes a callback.

        Args:
            factoids: what is asked; a text is a source's name or a file.
            every: steps between two probes.
            name: first part of the checkpoint labels.
            template: see :class:`memprobe.templates.Template`; ``None``: that of the manifest of the checkpoint that
                training started from, else ``plain``.
            lenses, positions: see :func:`memprobe.probing.probe`; another checkpoint's readout is loaded once.
            tokenizer: the trainer's processing class (or the tokenizer in it) where it is not given.
            log: called after each probe with :func:`logged`; ``trainer.log`` takes it into the Trainer's own log and
                to all that reports from there.

        Raises:
            MemprobeError: ``every`` is below 1, an unknown template, lens or position, or no factoids.
        """
        if every < 1:
            raise MemprobeError(f"every={every}: give a whole number of at least 1")
        if isinstance(factoids, str):
            factoids = load_factoids(factoids)
        check_made(factoids)
        if not factoids:
            raise MemprobeError("there are no factoids to probe")
        if template is not None:
            Template.parse(template)
        self.lenses, self.positions = LensSet.of(lenses), check_positions(positions)
        self.factoids, self.out, self.every = factoids, Path(out), every
        self.name, self.template, self.k, self.token = name, template, k, token
        self.tokenizer, self.log = tokenizer, log
        self.last = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probes before the first step.

        Raises:
            MemprobeError: ``out`` already holds probes of another training run under this name: later steps than the
                first, where training begins; other weights of the step that it goes on from.
        """
        if state.is_world_process_zero and self._is_of_another_run(state.global_step, kwargs):
            raise MemprobeError(
                f"{self.out}: already holds {self.name!r} of another training run; give another out or name"
            )
        self._probe(state, kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probes every N steps, and after the last."""
        if state.global_step % self.every == 0 or control.should_training_stop:
            self._probe(state, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Probes what training ended with, if that was not known to be its last step.

        With ``load_best_model_at_end`` the model is by now an earlier checkpoint, and is probed as that step.
        """
        best = (
            re.search(r"-(\d+)$", state.best_model_checkpoint or "") if args.load_best_model_at_end else None
        )
        self._probe(state, kwargs, int(best[1]) if best else None)

    def _probe(self, state: TrainerState, kwargs: dict[str, Any], step: int | None = None) -> None:
        step = state.global_step if step is None else step
        if not state.is_world_process_zero or step == self.last:
            return
        self.last = step
        label = f"{self.name}@{step}"
        if label in self._finished():  # a resumed run comes past steps that it has probed before
            return
        lens_model = self._wrapped(label, kwargs)
        # Killed while it probed, a resumed run may come here with weights that differ in a last bit.
        discard_other(self.out, label, identity_of(lens_model))
        probed = probe(
            [lens_model],
            self.factoids,
            self.out,
            template=self.template or self._own_template(lens_model.model),
            lenses=self.lenses,
            positions=self.positions,
            k=self.k,
            token=self.token,
            steps={label: step},
        )
        if self.log is not None:
            self.log(logged(probed.summary["checkpoints"][label], self.k))

    def _wrapped(self, label: str, kwargs: dict[str, Any]) -> LensModel:
        tokenizer = self.tokenizer or kwargs.get("processing_class")
        if tokenizer is None:
            raise MemprobeError("ProbeCallback: give it a tokenizer, or give the Trainer a processing_class")
        return wrap(kwargs["model"], tokenizer, label=label)

    def _is_of_another_run(self, step: int, kwargs: dict[str, Any]) -> bool:
        """Whether what ``out`` holds under this name cannot be of the run that begins, or goes on, at a step.

        A resumed run stands with the very weights that were saved there. Where that step was not probed, nothing tells.
        """
        finished = self._finished()
        if step == 0:
            return any(self._is_later(label) for label in finished)
        label = f"{self.name}@{step}"
        if label not in finished:
            return False
        held = read_run(self.out)["checkpoints"][label]
        return held["fingerprint"] != identity_of(self._wrapped(label, kwargs))["fingerprint"]

    def _own_template(self, model: Any) -> str:
        """The template that a manifest beside the weights names from which training started."""
        origin = Path(str(getattr(model.config, "_name_or_path", "") or ""))
        manifest = read_manifest(origin) if origin.name and origin.is_dir() else None
        return PLAIN if manifest is None else manifest.template

    def _finished(self) -> list[str]:
        """Labels that the probe directory holds already."""
        if not (self.out / RUN).exists():
            return []
        return probe_of(self.out, read_run(self.out)).finished

    def _is_later(self, label: str) -> bool:
        name, _, step = label.rpartition("@")
        return name == self.name and step != "0"


def logged(entry: Mapping[str, Any], k: int) -> dict[str, float]:
    """What is logged of a probe: shares and depths, each under ``memprobe/…``; what does not exist is left out.

    ``exact_match``; ``recall@K`` at full depth; ``never``, the share of facts that never occur; ``first_occurrence``,
    the mean depth with never as n_layers + 1; ``chance_first_occurrence``, that of shuffled answers.

    Args:
        entry: of ``summary.json``.
        k: the top-k of the probe.
    """
    numbers = {
        "exact_match": entry["exact_match"],
        f"recall@{k}": entry["recall"][str(k)][-1],
        "never": entry["lof"]["never"],
        "first_occurrence": entry["lof"]["restricted_mean"],
        "chance_first_occurrence": entry["shuffled_lof"]["restricted_mean"],
    }
    return {f"memprobe/{name}": float(value) for name, value in numbers.items() if value is not None}
