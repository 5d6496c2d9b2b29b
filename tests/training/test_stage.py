"""One stage: the loss is the model's own over the right tokens, however the rows are split."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from memprobe.manifests import read_manifest
from memprobe.modes import evaluating
from memprobe.sources import load_factoids
from tests.once import once
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.runs import environment, losses, metrics, small
from training.batches import micro_batches, packed, padded, rows_exact
from training.examples import ExampleMaker
from training.mixing import IGNORED, Part, Schedule
from training.penalties import Boundary, InForce, Penalty
from training.penalties.kl import Kl
from training.progress import add_metrics, cut_metrics
from training.recipe import to_toml
from training.recipe_tables import Optimiser, Stop
from training.run import run
from training.stage import StageRun, train, trainer_arguments

REMIX = "remix(data=kvr:20:test, stages=1,2)"
ARMS = {
    "none": "none",
    "joint": "joint",
    "remix": REMIX,
    "replay": "replay(ratio=0.5)",
    "redrawn": "replay(ratio=0.5, redraw=true)",
    "ewc": "ewc(strength=100)",
    "kl": "kl(strength=0.5)",
    "lora": "lora(rank=4)",
    "steps": "matched(to=steps, data=kvr:20:test, stages=1)",
    "together": REMIX + " + replay(ratio=0.5) + kl(strength=0.5)",
}


@pytest.fixture(scope="module")
def examples():
    make = ExampleMaker("tulu", tiny_tokenizer(), 256)
    return [make(factoid) for factoid in load_factoids("kvr:9")]


def plain_loss(model, example):
    """Summed cross-entropy of one row, alone, by hand."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].float()
    labels = torch.tensor(example.labels)
    return float(F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))


@pytest.mark.parametrize("make", [padded, packed])
def test_a_micro_batch_gives_each_rows_own_loss(make, examples):
    model = tiny_model()
    batch = make(examples[:5])
    own, _ = batch.pop("own"), batch.pop("kept_row")
    output = model(**batch, num_items_in_batch=1)
    expected = sum(plain_loss(model, example) for example in examples[:5])
    assert output.logits.shape[0] == len(batch["labels"]) == int(batch["logits_to_keep"].sum())
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert own.tolist() == [True] * 5


def test_loss_stands_on_the_answer_and_the_end_alone(examples):
    tokenizer = tiny_tokenizer()
    factoid = load_factoids("kvr:9")[0]
    learned = [label for label in examples[0].labels if label != IGNORED]
    assert tokenizer.decode(learned) == factoid.answer + "</s>"
    assert tokenizer.decode(examples[0].ids).endswith(f"<|assistant|>\n{factoid.answer}")


@pytest.mark.parametrize("make", [padded, packed])
def test_an_empty_micro_batch_carries_no_loss(make):
    batch = make([])
    for key in ("own", "kept_row"):
        batch.pop(key)
    model = tiny_model()
    loss = model(**batch, num_items_in_batch=3).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_rows_exact(examples):
    batch = padded(examples[:3])
    logits = F.one_hot(batch["labels"], 320).float()
    assert rows_exact(logits, batch["labels"], batch["kept_row"], 3).tolist() == [True] * 3
    second = int(batch["logits_to_keep"][0].sum())  # the first token of the second row
    logits[second] = logits[second].roll(1)
    assert rows_exact(logits, batch["labels"], batch["kept_row"], 3).tolist() == [True, False, True]


def test_micro_batches_hold_all_rows(examples):
    batches = micro_batches(examples, 4)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 1]


@pytest.fixture(scope="module")
def golden(tiny_checkpoint, tmp_path_factory):
    """Losses of each arm with whole batches, trained once for all workers."""

    def find(name: str) -> list[float]:
        def make(folder: Path) -> None:
            out = run(small(tiny_checkpoint, ARMS[name]), folder / "run", quiet=True)
            (folder / "losses.json").write_text(json.dumps(losses(out)))

        return json.loads((once(tmp_path_factory, f"golden-{name}", make) / "losses.json").read_text())

    return find


@pytest.mark.parametrize("name", ARMS)
def test_losses_do_not_depend_on_the_split(name, golden, tiny_checkpoint, tmp_path):
    optimiser = {"lr": 1e-3, "batch": 4, "micro_batch": 1}
    out = run(small(tiny_checkpoint, ARMS[name], optimiser=optimiser), tmp_path, quiet=True)
    assert losses(out) == pytest.approx(golden(name), rel=2e-4)


@pytest.mark.parametrize("micro_batch", [6, 1])
def test_kl_is_the_mean_over_the_own_rows_of_a_step(micro_batch, examples, tiny_checkpoint, tmp_path):
    own, other = examples[:3], [replace(example, own=False) for example in examples[3:6]]
    model, frozen = (tiny_model(vocab_size=len(tiny_tokenizer()), seed=seed) for seed in (0, 1))
    by_hand = []
    for row in own:
        with torch.no_grad():
            p, q = (
                one(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
                for one in (frozen, model)
            )
        kept = torch.tensor(row.labels) != IGNORED
        by_hand.append((p.exp() * (p - q)).sum(-1)[kept])
    boundary = Boundary(model, lambda: frozen, lambda most: [], 0, lambda line: None)
    stage = StageRun(
        recipe=small(tiny_checkpoint, optimiser={"batch": 6, "micro_batch": micro_batch}),
        name="b",
        folder=tmp_path,
        schedule=Schedule(
            Part(own, 3), [Part(other, 3)], epochs=1, batch=6, micro_batches=6 // micro_batch, seed=0
        ),
        accumulation=6 // micro_batch,
        seed=0,
        stop=Stop(),
        own=own,
        penalty=InForce(Kl(strength=0.5), Kl(strength=0.5).term(boundary)),
    )
    train(model, tiny_tokenizer(), stage)
    (step,) = metrics(tmp_path)
    assert step["penalty"] == pytest.approx(0.5 * float(torch.cat(by_hand).mean()), rel=1e-4)


def test_stop_rules_see_own_rows_alone(tiny_checkpoint, tmp_path):
    """Mixing rows are other ones in every epoch, so that their loss never falls."""
    mixing = [{"source": "kvr:200:test", "ratio": 2, "redraw": True}]

    def stopped(name, stop):
        stage = {"name": "a", "data": "kvr:2", "epochs": 60, "stop": stop, "mixing": mixing}
        optimiser = {"lr": 5e-3, "batch": 2, "micro_batch": 2, "schedule": "constant"}
        out = run(small(tiny_checkpoint, stages=[stage], optimiser=optimiser), tmp_path / name, quiet=True)
        manifest = read_manifest(out)
        assert manifest is not None
        return manifest.data["stopped"], metrics(out)

    why, steps = stopped("loss", {"loss": 0.8, "steps": 3})
    assert why == "loss below 0.8 for 3 steps"
    assert all(step["own_loss"] < 0.8 for step in [one for one in steps if "own_loss" in one][-3:])
    assert any("own_loss" not in step for step in steps)  # of mixing rows alone
    assert max(step["loss"] for step in steps[-9:]) > 0.8
    why, steps = stopped("exact", {"exact_match": True})
    assert why == "every own row is exact" and steps[-1]["loss"] > 0.8


def test_arms_differ(golden):
    found = {name: golden(name) for name in ("none", "replay", "ewc", "kl", "lora")}
    assert found["none"][0] == pytest.approx(found["kl"][0], rel=1e-4)  # no divergence before the first step
    assert found["none"][0] == pytest.approx(found["ewc"][0], rel=1e-4)
    for name in ("ewc", "kl", "lora"):
        assert found[name][-1] != pytest.approx(found["none"][-1], rel=1e-3)


@pytest.mark.parametrize(("name", "fsdp"), [("together", False), ("ewc", False), ("remix", True)])
def test_two_processes_give_the_same_losses(name, fsdp, golden, tiny_checkpoint, tmp_path, quick_python):
    settings = {"optimiser": {"lr": 1e-3, "batch": 4, "micro_batch": 1}, "precision": {"fsdp": fsdp}}
    recipe = tmp_path / "r.toml"
    recipe.write_text(to_toml(small(tiny_checkpoint, ARMS[name], **settings)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*quick_python, *launch, *quick_python, "-m", "training", "run", recipe, "--out", tmp_path / "run"],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "run" / "2-b") == pytest.approx(golden(name), rel=2e-4)


def test_the_stop_rule_sees_weights_in_their_own_precision(examples, tiny_checkpoint, tmp_path, monkeypatch):
    """A row that is exact under autocast alone would end the stage, and then count as not learned."""
    model = tiny_model(vocab_size=len(tiny_tokenizer()))
    own = examples[:4]
    recipe = small(tiny_checkpoint, precision={"autocast": "bfloat16"})
    schedule = Schedule(Part(own, 4), epochs=1, batch=4, seed=0)
    trainer = train(model, tiny_tokenizer(), StageRun(recipe, "a", tmp_path, schedule, 1, 0, Stop(), own))
    types = []
    trainer.accelerator.unwrap_model(trainer.model).lm_head.register_forward_hook(
        lambda module, inputs, output: types.append(output.dtype)
    )
    trainer.model.train()
    plain = trainer.accelerator.unwrap_model(trainer.model)

    def as_said(row):
        with torch.no_grad(), evaluating(plain):
            said = plain(input_ids=torch.tensor([row.ids])).logits[0].float().argmax(-1).tolist()
        kept = zip(row.labels, said, strict=True)
        return replace(row, labels=tuple(label if label == IGNORED else token for label, token in kept))

    trainer.run = replace(trainer.run, own=[*map(as_said, own[:3]), own[3]])
    types.clear()
    assert trainer.own_exact() == 0.75
    assert types and set(types) == {torch.float32}
    assert trainer.model.training
    types.clear()
    with trainer.compute_loss_context_manager():
        trainer.model(input_ids=torch.tensor([own[0].ids]))
    assert types == [torch.bfloat16]  # training itself would have shown


_AFTER_WARMUP = {
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


@pytest.mark.parametrize("form", get_args(Optimiser.model_fields["schedule"].annotation))
def test_the_optimiser_is_the_recipes(examples, tiny_checkpoint, tmp_path, form):
    """Every setting of it, and the rates that the steps then had."""
    own = examples[:4]
    optimiser = {"lr": 3e-3, "betas": [0.8, 0.97], "eps": 1e-6, "weight_decay": 0.05, "clip": 0.7}
    optimiser |= {"schedule": form, "warmup": 0.2, "batch": 4}
    schedule = Schedule(Part(own, 4), epochs=8, batch=4, seed=0)
    recipe = small(tiny_checkpoint, optimiser=optimiser)
    stage = StageRun(recipe, "a", tmp_path, schedule, 1, 0, Stop(), own)
    told = trainer_arguments(stage)
    assert (told.learning_rate, told.adam_beta1, told.adam_beta2) == (3e-3, 0.8, 0.97)
    assert (told.adam_epsilon, told.weight_decay, told.max_grad_norm) == (1e-6, 0.05, 0.7)
    assert told.warmup_steps == 2  # of 8 steps 1.6, which is 2
    trainer = train(tiny_model(vocab_size=len(tiny_tokenizer())), tiny_tokenizer(), stage)
    (group, *_) = trainer.optimizer.param_groups
    assert (group["betas"], group["eps"]) == ((0.8, 0.97), 1e-6)
    rates = [3e-3 * (step / 2 if step < 2 else _AFTER_WARMUP[form]((step - 2) / 6)) for step in range(8)]
    assert [step["learning_rate"] for step in metrics(tmp_path)] == pytest.approx(rates)


def test_fisher_information_is_of_as_many_earlier_rows_as_the_penalty_asks(tiny_checkpoint, tmp_path, capsys):
    """Of six that there are: all of them of a large stage would take as long as to train it."""
    run(small(tiny_checkpoint, "ewc(strength=1, fisher_rows=2)"), tmp_path)
    assert "Fisher information of 2 earlier rows" in capsys.readouterr().err


def test_what_pulls_the_weights_back_is_not_clipped(examples, tiny_checkpoint, tmp_path):
    """EWC's gradient grows with the distance; shortened with the rest of it, it lets the weights go."""
    own = examples[:4]

    class Hold(Penalty):
        method: str = "hold"

    class HoldWeights(Hold):
        holds_weights = True

    def distance(clip, kind):
        model = tiny_model(vocab_size=len(tiny_tokenizer()))
        start = {name: p.detach().clone() for name, p in model.named_parameters()}

        def term(step):
            return 0.5 * sum((p - start[name]).square().sum() for name, p in step.model.named_parameters())

        folder = tmp_path / f"{clip}-{kind.__name__}"
        folder.mkdir()
        recipe = small(
            tiny_checkpoint,
            optimiser={"lr": 1e-3, "batch": 4, "clip": clip, "schedule": "constant", "warmup": 0.0},
        )
        schedule = Schedule(Part(own, 4), epochs=12, batch=4, seed=0)
        penalty = InForce(kind(strength=1e4), term)
        stage = StageRun(recipe, "b", folder, schedule, 1, 0, Stop(), own, penalty=penalty)
        train(model, tiny_tokenizer(), stage)
        steps = metrics(folder)
        assert (
            max(step["grad_norm"] for step in steps) > 10 * steps[0]["grad_norm"]
        )  # measured, clipped or not
        return (
            sum(float((p.detach() - start[name]).square().sum()) for name, p in model.named_parameters())
            ** 0.5
        )

    free = distance(1e30, Hold)
    assert distance(0.1, HoldWeights) == pytest.approx(free, rel=1e-6)
    assert distance(0.1, Hold) > 1.3 * free


def test_metrics_are_whole_whenever_a_run_that_goes_on_is_killed(tmp_path, monkeypatch):
    """Killed as their file is put in place, the lines of all earlier steps are still there."""
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        add_metrics(path, step, 0.0, None, {"loss": 1.0})
    before = path.read_text()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cut_metrics(path, 2)
    assert path.read_text() == before
    cut_metrics(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
