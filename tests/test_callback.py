"""Probes along a tiny Trainer run: which steps are probed, and that training does not notice."""

from pathlib import Path

import polars as pl
import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from memprobe import probing
from memprobe.callback import ProbeCallback
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.models import wrap
from memprobe.probes import open_probe
from memprobe.templates import Template, tokenise
from memprobe.weights import fingerprint_model
from tests.test_checkpoints import write_manifest
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

KEYS = ["factoid", "token", "depth"]
FACTS = [
    make_factoid(f"The river of {land} is the", river, "test", relation="river")
    for land, river in (("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister"))
]


class Rows(Dataset):
    """Twelve rows, each the ids of a factoid."""

    def __init__(self, tokenizer):
        self.ids = [tokenise(fact, Template("tulu"), tokenizer) for fact in FACTS]

    def __len__(self):
        return 12

    def __getitem__(self, index):
        item = self.ids[index % len(self.ids)]
        ids = torch.tensor([*item.inputs, item.targets[-1]])[:20]
        return {"input_ids": ids, "labels": ids}


def trainer(
    folder: Path,
    callbacks=(),
    steps: int = 5,
    save_every: int = 1000,
    bf16: bool = False,
    more: dict | None = None,
    **options,
) -> Trainer:
    """A Trainer on a GPT-2 with dropout, so that a disturbed random state shows in the weights."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt2", len(tokenizer), resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=save_every,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=bf16,
        seed=0,
        **(more or {}),
    )
    options = {"processing_class": tokenizer} | options
    return Trainer(
        model=model, args=arguments, train_dataset=Rows(tokenizer), callbacks=list(callbacks), **options
    )


def test_steps_0_every_n_and_the_last_are_probed(tmp_path):
    callback = ProbeCallback(FACTS, tmp_path / "probe", every=2, template="tulu", k=3)
    run = trainer(tmp_path / "run", [callback])
    run.train()
    probe = open_probe(tmp_path / "probe")
    labels = ["step@0", "step@2", "step@4", "step@5"]
    assert probe.checkpoints == labels
    entries = probe.run["checkpoints"]
    assert [entries[label]["step"] for label in labels] == [0, 2, 4, 5]
    assert all(entry["complete"] for entry in entries.values())
    assert len({entry["fingerprint"] for entry in entries.values()}) == 4
    assert probe.run["template"] == "tulu" and probe.run["k"] == 3
    assert list(probe.summary["checkpoints"]) == labels
    counts = probe.outcomes.group_by("checkpoint").len()
    assert dict(counts.iter_rows()) == dict.fromkeys(labels, len(FACTS))

    # The last probe is of the weights that training ended with.
    final = capture(wrap(run.model, tiny_tokenizer(), label="step@5"), FACTS, "tulu").records
    keys = ["factoid", "token", "depth"]
    recorded = probe.records.filter(pl.col("checkpoint") == "step@5").sort(keys)
    assert recorded.equals(final.sort(keys))
    first = probe.records.filter(pl.col("checkpoint") == "step@0").sort(keys)
    assert not first["log_prob"].equals(recorded["log_prob"])


def test_a_last_step_that_is_a_multiple_is_probed_once(tmp_path):
    callback = ProbeCallback(FACTS, tmp_path / "probe", every=2, name="run")
    trainer(tmp_path / "run", [callback], steps=4).train()
    assert open_probe(tmp_path / "probe").checkpoints == ["run@0", "run@2", "run@4"]


def test_training_is_undisturbed(tmp_path):
    class Modes(TrainerCallback):
        """Runs after the probe: the model must still be in training."""

        seen: list[bool] = []  # noqa: RUF012

        def on_step_end(self, args, state, control, **kwargs):
            self.seen.append(kwargs["model"].training)

    results = []
    for name, callbacks in (
        ("plain", []),
        ("probed", [ProbeCallback(FACTS, tmp_path / "p", every=1), Modes()]),
    ):
        run = trainer(tmp_path / name, callbacks)  # it seeds the global random state, so one after the other
        start = fingerprint_model(run.model)
        results.append((start, run.train().training_loss, fingerprint_model(run.model)))
    assert results[0] == results[1]
    assert start != results[1][2]
    assert Modes.seen == [True] * 5


def test_a_resumed_run_goes_on_in_the_same_probe(tmp_path):
    out = tmp_path / "probe"
    run, again = (tmp_path / name for name in ("run", "whole"))
    trainer(run, [ProbeCallback(FACTS, out, every=2)], steps=3, save_every=3).train()
    assert open_probe(out).checkpoints == ["step@0", "step@2", "step@3"]
    before = {label: entry["fingerprint"] for label, entry in open_probe(out).run["checkpoints"].items()}
    trainer(run, [ProbeCallback(FACTS, out, every=2)], steps=6, save_every=3).train(
        resume_from_checkpoint=True
    )
    probe = open_probe(out)
    assert probe.checkpoints == ["step@0", "step@2", "step@3", "step@4", "step@6"]
    assert [entry["step"] for entry in probe.run["checkpoints"].values()] == [0, 2, 3, 4, 6]
    assert {label: probe.run["checkpoints"][label]["fingerprint"] for label in before} == before
    whole = trainer(again, [ProbeCallback(FACTS, tmp_path / "other", every=2)], steps=6)
    whole.train()
    marks = open_probe(tmp_path / "other").run["checkpoints"]
    for label in ("step@0", "step@2", "step@4", "step@6"):
        assert marks[label]["fingerprint"] == probe.run["checkpoints"][label]["fingerprint"]


def test_the_tokenizer_comes_from_the_trainer_or_the_caller(tmp_path):
    with pytest.raises(MemprobeError, match="give it a tokenizer"):
        trainer(
            tmp_path / "a", [ProbeCallback(FACTS, tmp_path / "p", every=9)], steps=1, processing_class=None
        ).train()
    callback = ProbeCallback(FACTS, tmp_path / "q", every=9, tokenizer=tiny_tokenizer())
    trainer(tmp_path / "b", [callback], steps=1, processing_class=None).train()
    assert open_probe(tmp_path / "q").checkpoints == ["step@0", "step@1"]


def test_what_cannot_be_probed_is_refused_before_training(tmp_path):
    with pytest.raises(MemprobeError, match="every=0"):
        ProbeCallback(FACTS, tmp_path, every=0)
    with pytest.raises(MemprobeError, match="no factoids"):
        ProbeCallback([], tmp_path, every=1)
    with pytest.raises(MemprobeError, match="unknown field"):
        ProbeCallback(FACTS, tmp_path, every=1, template="{prompt}{answer}{nothing}")


def test_another_training_run_is_refused_before_its_first_step(tmp_path):
    callback = ProbeCallback(FACTS, tmp_path / "probe", every=2)
    trainer(tmp_path / "one", [callback], steps=2).train()
    before = open_probe(tmp_path / "probe").records
    with pytest.raises(MemprobeError, match="another training run"):
        trainer(tmp_path / "two", [ProbeCallback(FACTS, tmp_path / "probe", every=2)], steps=2).train()
    assert open_probe(tmp_path / "probe").records.equals(before)
    again = ProbeCallback(FACTS, tmp_path / "probe", every=2, name="second")
    trainer(tmp_path / "two", [again], steps=2).train()
    assert open_probe(tmp_path / "probe").checkpoints == ["step@0", "step@2", "second@0", "second@2"]


def test_a_run_that_is_resumed_into_another_ones_probe_is_refused(tmp_path):
    """The step that it goes on from was probed with other weights; with the same ones it goes on."""
    out = tmp_path / "probe"
    trainer(tmp_path / "one", [ProbeCallback(FACTS, out, every=2)], steps=6, save_every=2).train()
    before = open_probe(out).run["checkpoints"]
    other = trainer(tmp_path / "other", steps=4, save_every=4)
    with torch.no_grad():
        other.model.lm_head.weight[3, 3] += 1e-2
    other.train()
    with pytest.raises(MemprobeError, match="another training run"):
        trainer(tmp_path / "other", [ProbeCallback(FACTS, out, every=2)], steps=8).train(
            resume_from_checkpoint=True
        )
    assert open_probe(out).run["checkpoints"] == before
    # Killed after step 6 was probed, and gone on from what was saved before it.
    checkpoint = str(tmp_path / "one" / "checkpoint-4")
    trainer(tmp_path / "one", [ProbeCallback(FACTS, out, every=2)], steps=8).train(checkpoint)
    assert open_probe(out).finished == ["step@0", "step@2", "step@4", "step@6", "step@8"]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_mixed_precision_is_looked_through(tmp_path, weights):
    """accelerate wraps the forward pass in autocast; the probe is of the weights in their own precision."""
    run = trainer(tmp_path / "run", [ProbeCallback(FACTS, tmp_path / "probe", every=2)], steps=2, bf16=True)
    run.model.to(weights)
    run.train()
    assert hasattr(run.model, "_original_forward"), "nothing was wrapped, so nothing was tested"
    wrapped = run.model.forward
    alone = capture(wrap(run.model, tiny_tokenizer(), label="step@2"), FACTS).records.sort(KEYS)
    assert run.model.forward is wrapped or run.model.forward == wrapped
    bare = type(run.model)(run.model.config).to(weights).eval()
    bare.load_state_dict(run.model.state_dict())
    expected = capture(wrap(bare, tiny_tokenizer(), label="step@2"), FACTS).records.sort(KEYS)
    probed = open_probe(tmp_path / "probe").records.filter(pl.col("checkpoint") == "step@2").sort(KEYS)
    assert probed["rank"].equals(expected["rank"]) and alone["rank"].equals(expected["rank"])


def test_a_step_killed_half_way_is_probed_anew_by_other_weights(tmp_path, monkeypatch):
    """Another number of workers, another GPU: the resumed run's weights differ in a last bit."""
    out = tmp_path / "probe"

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(probing, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "a", [ProbeCallback(FACTS, out, every=2)], steps=2).train()
    monkeypatch.undo()
    assert not open_probe(out).run["checkpoints"]["step@0"]["complete"]
    run = trainer(tmp_path / "b", [ProbeCallback(FACTS, out, every=2)], steps=2)
    with torch.no_grad():
        run.model.lm_head.weight[3, 3] += 1e-4
    run.train()
    probe = open_probe(out)
    assert probe.finished == ["step@0", "step@2"] and not (out / "parts").exists()


def test_a_processor_a_source_by_name_and_the_manifests_template(tmp_path):
    class Processor:
        """What AutoProcessor gives for a multimodal model: the tokenizer is a part of it."""

        tokenizer = tiny_tokenizer()

        def save_pretrained(self, *_, **__):
            pass

    folder = save_tiny(tmp_path / "1-facts", "gpt2")
    write_manifest(folder, template="tulu")
    model = AutoModelForCausalLM.from_pretrained(folder)
    callback = ProbeCallback("kvr:3", tmp_path / "probe", every=9)
    run = trainer(tmp_path / "run", [callback], steps=1, processing_class=Processor())
    run.model = model
    run.train()
    assert open_probe(tmp_path / "probe").run["template"] == "tulu"
    assert len(open_probe(tmp_path / "probe").factoids) == 3


def test_the_trainers_own_log_has_what_the_probes_found(tmp_path):
    class Reporter(TrainerCallback):
        """What stands where W&B, trackio or TensorBoard would."""

        def __init__(self):
            self.got = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.got.append((state.global_step, dict(logs)))

    reporter = Reporter()
    run = trainer(tmp_path / "run", [reporter])
    run.add_callback(ProbeCallback(FACTS, tmp_path / "probes", every=2, k=5, log=run.log))
    run.train()
    summary = open_probe(tmp_path / "probes").summary["checkpoints"]
    got = {step: logs for step, logs in reporter.got if "memprobe/never" in logs}
    assert list(got) == [0, 2, 4, 5]
    history = {row["step"]: row for row in run.state.log_history if "memprobe/never" in row}
    for step, logs in got.items():
        entry = summary[f"step@{step}"]
        assert logs["memprobe/recall@5"] == entry["recall"]["5"][-1]
        assert logs["memprobe/never"] == entry["lof"]["never"] == history[step]["memprobe/never"]
        assert logs["memprobe/first_occurrence"] == entry["lof"]["restricted_mean"]
        assert all(isinstance(value, float) for name, value in logs.items() if name.startswith("memprobe/"))


@pytest.mark.parametrize("every", [2, 4])
def test_weights_are_called_after_the_step_that_made_them(every, tmp_path):
    """The Trainer loads its best checkpoint before it says that training has ended."""
    more = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    more |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}  # the worst, which is the first
    more |= {"per_device_eval_batch_size": 1}
    callback = ProbeCallback(FACTS, tmp_path / "probe", every=every, name="m")
    run = trainer(
        tmp_path / "out", [callback], steps=6, save_every=2, more=more, eval_dataset=Rows(tiny_tokenizer())
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    probe = open_probe(tmp_path / "probe")
    found = {label: entry["fingerprint"] for label, entry in probe.run["checkpoints"].items()}
    assert set(found) == {f"m@{step}" for step in (0, 2, 4, 6)}  # 2 at the end, if not before
    for step in (2, 4, 6):
        weights = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / f"checkpoint-{step}")
        assert found[f"m@{step}"] == fingerprint_model(weights)
