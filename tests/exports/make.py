"""Makes the exports beside this file with the tools themselves: ``python -m tests.exports.make FOLDER``.

What is committed came from lm-evaluation-harness 0.4.13 and Inspect 0.3.285, which need not be installed to read it:

    pip install --target TOOLS lm-eval==0.4.13 inspect-ai==0.3.285     # --no-deps and what they lack, to keep torch
    PYTHONPATH=TOOLS python -m tests.exports.make tests/exports
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

FACTS = [
    ("a", "The river of Oria is the", "Lunn"),
    ("b", "The river of Selva is the", "Brack"),
    ("c", "The river of Tolm is the", "Ister"),
    ("d", "The river of Quend is the", "Oss"),
]
SAID = {"base": "abd", "tuned": "ad"}
"""The facts that each model gives."""
CHOICES = ["Lunn", "Brack", "Ister", "Oss"]


def lm_eval(folder: Path) -> None:
    """Samples of a generating task and of one with choices, for both models."""
    import lm_eval as harness
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    class Knows(LM):
        def __init__(self, known: str):
            super().__init__()
            self.right = {prompt: answer for id, prompt, answer in FACTS if id in known}

        def generate_until(self, requests):
            return [self.right.get(request.args[0], "Nowhere") for request in requests]

        def loglikelihood(self, requests):
            return [(self._log_prob(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests):
            return [0.0 for _ in requests]

        def _log_prob(self, prompt: str, choice: str) -> float:
            return -1.0 if self.right.get(prompt, "Nowhere") == choice.strip() else -2.0 - len(choice)

    with tempfile.TemporaryDirectory() as name:
        tasks = Path(name)
        rows = [{"id": id, "prompt": p, "answer": a, "right": CHOICES.index(a)} for id, p, a in FACTS]
        (tasks / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tasks / "facts.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "metadata": {"version": 1},
        }
        free = common | {
            "task": "made_up_rivers",
            "output_type": "generate_until",
            "doc_to_target": " {{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": ["^ "]}],
        }
        chosen = common | {
            "task": "made_up_choices",
            "output_type": "multiple_choice",
            "doc_to_target": "right",
            "doc_to_choice": CHOICES,
            "metric_list": [{"metric": "acc"}],
        }
        for config in (free, chosen):
            (tasks / f"{config['task']}.yaml").write_text(json.dumps(config))  # JSON is YAML
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        for label, known in SAID.items():
            tracker = EvaluationTracker(output_path=str(folder / "lm_eval" / label))
            found = harness.simple_evaluate(
                model=Knows(known),
                tasks=[free["task"], chosen["task"]],
                task_manager=manager,
                log_samples=True,
                evaluation_tracker=tracker,
                bootstrap_iters=0,
            )
            samples = found.pop("samples")
            for task, rows in samples.items():
                tracker.date_id = "2026-01-01T00-00-00.000000"
                tracker.save_results_samples(task_name=task, samples=rows)
            made = list((folder / "lm_eval" / label).glob("*/samples_*"))
            for file in made:
                file.replace(folder / "lm_eval" / label / file.name)
            shutil.rmtree(made[0].parent)  # named after the model, which has no name


def inspect(folder: Path) -> None:
    """Logs of both kinds: two epochs, two scorers, one fact whose sample fails."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.log import write_eval_log
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import includes, match
    from inspect_ai.solver import solver

    @solver
    def knows(known: str):
        async def solve(state, generate):
            right = {id: answer for id, _, answer in FACTS}[str(state.sample_id)]
            if state.sample_id == "d" and known == "ad":
                raise RuntimeError("the model went away")
            said = right if state.sample_id in known and (state.epoch == 1 or right != "Brack") else "Nowhere"
            state.output = ModelOutput.from_content("mockllm/model", said)
            return state

        return solve

    for label, known in SAID.items():
        for kind in ("eval", "json"):
            with tempfile.TemporaryDirectory() as name:
                samples = [Sample(id=id, input=prompt, target=answer) for id, prompt, answer in FACTS]
                task = Task(
                    dataset=MemoryDataset(samples),
                    solver=knows(known),
                    scorer=[match(location="any"), includes()],
                    epochs=2,
                    name="made_up_rivers",
                )
                (log,) = eval(
                    task,
                    model="mockllm/model",
                    log_dir=name,
                    display="none",
                    fail_on_error=False,
                    sandbox=None,
                )
                for sample in log.samples or []:  # a traceback names folders of this machine
                    sample.events, sample.attachments = [], {}
                    if sample.error is not None:
                        sample.error.traceback = sample.error.traceback_ansi = ""
                log.eval.revision = None
                (folder / "inspect").mkdir(parents=True, exist_ok=True)
                write_eval_log(log, str(folder / "inspect" / f"{label}.{kind}"), format=kind)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    {"lm_eval": lm_eval, "inspect": inspect}[sys.argv[2]](target) if sys.argv[2:] else (
        lm_eval(target),
        inspect(target),
    )
