"""Every way of reading logits against brute force, against the eager one, and where a logit is not finite."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memprobe.sweeps as sweeps
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.logits import read_logits
from memprobe.models import wrap
from memprobe.probing import probe
from memprobe.sources import load_factoids
from memprobe.sweeps import Swept, slow_note, sweep_name, sweep_named
from memprobe.sweeps.with_eager import sweep as eager
from tests.tiny import tiny_model, tiny_tokenizer

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_CUDA = torch.cuda.is_available()
cuda = pytest.mark.skipif(not (HAS_CUDA and HAS_TRITON), reason="no CUDA device with triton")
ON_CPU = [
    "eager",
    pytest.param("numba", marks=pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="no numba")),
]


def equal(swept: Swept, logits: torch.Tensor, targets: torch.Tensor) -> None:
    """A sweep's ranks, ties and maxima are the eager ones exactly, the rest within fp32 rounding of fp64's."""
    swept = Swept(*(column.cpu() for column in swept))
    logits, targets = logits.cpu(), targets.cpu()
    expected = eager(logits.clone(), targets)
    assert torch.equal(swept.rank, expected.rank)
    assert torch.equal(swept.ties, expected.ties)
    assert torch.equal(logits.gather(1, swept.top1.long()[:, None])[:, 0], logits.amax(1))
    exact = logits.double().log_softmax(1)
    scale = 4e-6 * max(1.0, float(logits.abs().max()) / 32)
    torch.testing.assert_close(
        swept.log_prob.double(), exact.gather(1, targets[:, :1])[:, 0], atol=scale, rtol=2e-7
    )
    torch.testing.assert_close(swept.entropy.double(), -(exact.exp() * exact).sum(1), atol=1e-5, rtol=1e-6)


def cases(rows: int = 3, blocks: int = 1024):
    """Logits and targets: with ties and without, far from 0, falling and rising, at and around a block's size."""
    random = torch.Generator().manual_seed(0)
    for vocab in (5, blocks - 1, blocks, blocks + 1, 4 * blocks + 7):
        for wanted in (1, 2, 6):
            targets = torch.randint(-1, vocab, (rows, wanted), generator=random)
            targets[:, 0].clamp_(min=0)
            shape = (rows, vocab)
            yield torch.randint(-3, 3, shape, generator=random).float(), targets
            yield torch.randn(shape, generator=random) * 4, targets
            yield torch.randn(shape, generator=random) * 30 - 200, targets
            slope = torch.linspace(-60, 60, vocab).expand(shape)
            yield slope.clone(), targets
            yield (-slope).contiguous(), targets


def unsound(rows: int = 12, vocab: int = 3000):
    """A value that is not finite late in a row, early, everywhere, and in a run; at the target in one row."""
    random = torch.Generator().manual_seed(1)
    targets = torch.randint(0, vocab, (rows, 3), generator=random)
    for value in (math.nan, math.inf, -math.inf):
        logits = torch.randn(rows, vocab, generator=random)
        logits[0, -1] = logits[1, 0] = logits[2, targets[2, 0]] = value
        logits[3:6] = value
        logits[6:9, 5:2000] = value
        logits[9:, 1030] = value
        yield logits, targets


@pytest.mark.parametrize("name", ON_CPU)
@settings(deadline=None)  # the first call compiles
@given(
    rows=st.lists(st.lists(st.integers(-3, 3), min_size=9, max_size=9), min_size=1, max_size=5),
    targets=st.lists(st.integers(-1, 8), min_size=2, max_size=4),
)
def test_a_sweep_by_brute_force_with_ties(name, rows, targets):
    targets[0] = max(targets[0], 0)
    logits = torch.tensor(rows, dtype=torch.float32)
    reading = sweep_named(name)(logits.clone(), torch.tensor([targets] * len(rows)))
    for index, row in enumerate(rows):
        answer = row[targets[0]]
        ranks = [-1 if t < 0 else sum(value >= row[t] for value in row) - 1 for t in targets]
        assert reading.rank[index].tolist() == ranks
        assert reading.ties[index] == row.count(answer) - 1
        assert row[reading.top1[index]] == max(row)
        total = sum(math.exp(value) for value in row)
        assert float(reading.log_prob[index]) == pytest.approx(answer - math.log(total), abs=1e-5)
        share = [math.exp(value) / total for value in row]
        entropy = -sum(p * math.log(p) for p in share)
        assert float(reading.entropy[index]) == pytest.approx(entropy, abs=1e-5)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("rows", [1, 37])
def test_a_sweep_is_the_eager_one(name, rows, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for logits, targets in cases(rows):
        equal(sweep_named(name)(logits.clone(), targets), logits, targets)


@pytest.mark.parametrize("name", ON_CPU)
def test_what_is_not_finite_shows_in_the_entropy(name):
    for logits, targets in unsound():
        swept = sweep_named(name)(logits.clone(), targets)
        assert not swept.entropy.isfinite().any()
        assert ((swept.top1 >= 0) & (swept.top1 < logits.shape[1])).all()


def test_the_way_of_counting_on_an_accelerator_is_the_same():
    random = torch.Generator().manual_seed(0)
    logits = torch.randint(-9, 9, (40, 200), generator=random).float()
    targets = torch.randint(-1, 200, (40, 4), generator=random)
    targets[:, 0].clamp_(min=0)
    larger = torch.stack(
        [(logits >= logits.gather(1, t[:, None].clamp(min=0))).sum(1) - 1 for t in targets.T], 1
    )
    swept = eager(logits.clone(), targets)
    assert torch.equal(swept.rank.long(), torch.where(targets >= 0, larger, -1))


def test_which_sweep_reads(monkeypatch):
    cpu, gpu, apple = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
    missing = {"numba": "numba is not installed", "triton": "triton is not installed"}
    monkeypatch.delenv(sweeps.VARIABLE, raising=False)
    monkeypatch.setattr(sweeps, "why_not", missing.get)
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    assert sweep_name(cpu) == sweep_name(gpu) == sweep_name(apple) == "eager"
    assert slow_note(gpu) == "logits are read by torch, in many passes over each: triton is not installed"
    assert slow_note(cpu) is None and slow_note(apple) is None
    monkeypatch.setattr(sweeps, "find_spec", lambda name: name)
    assert "numba is not installed" in slow_note(cpu), "it is there, and cannot be used"
    monkeypatch.setenv(sweeps.VARIABLE, "numba")
    with pytest.raises(MemprobeError, match=r"MEMPROBE_READING=numba: for cpu there is auto, eager$"):
        sweep_name(cpu)
    monkeypatch.setattr(sweeps, "why_not", lambda name: None)
    assert sweep_name(cpu) == "numba"
    with pytest.raises(MemprobeError, match="for cuda there is auto, eager, triton"):
        sweep_name(gpu)
    monkeypatch.delenv(sweeps.VARIABLE)
    assert (sweep_name(cpu), sweep_name(gpu), sweep_name(apple)) == ("numba", "triton", "eager")
    assert slow_note(gpu) is None


def test_a_library_that_cannot_be_imported_is_said(monkeypatch):
    def broken(name):
        raise ImportError("Numba needs NumPy 2.4 or less.\nGot 2.9.")

    sweeps.why_not.cache_clear()
    monkeypatch.setattr(sweeps, "find_spec", lambda name: name)
    monkeypatch.setattr(sweeps, "sweep_named", broken)
    try:
        assert sweeps.why_not("numba") == "numba cannot be imported: Numba needs NumPy 2.4 or less."
    finally:
        sweeps.why_not.cache_clear()


@pytest.mark.skipif(
    not HAS_TRITON or HAS_CUDA, reason="triton's interpreter, where no CUDA device does it better"
)
def test_the_kernel_in_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_sweeps"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="no numba")
def test_where_no_folder_can_be_written_the_numbers_are_the_same():
    """A read-only installation under an account without a home."""
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import torch\n"
        "from memprobe.sweeps import sweep_name, sweep_named\n"
        "from tests.test_sweeps import cases, equal\n"
        "assert sweep_name(torch.device('cpu')) == 'numba'\n"
        "for logits, targets in cases():\n"
        "    equal(sweep_named('numba')(logits, targets), logits, targets)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_the_kernel_on_the_device(rows):
    for logits, targets in cases(rows):
        logits, targets = logits.cuda(), targets.cuda()
        equal(sweep_named("triton")(logits, targets), logits, targets)


@cuda
@pytest.mark.cuda
def test_the_kernel_on_the_device_in_other_shapes_of_its_grid():
    from memprobe.sweeps.with_triton import sweep

    random = torch.Generator().manual_seed(2)
    for vocab in (49_152, 50_257, 128_256):
        wide = torch.randn(9, vocab + 3, generator=random).cuda() * 5
        logits = wide[:, :vocab]  # rows that begin anywhere
        targets = torch.randint(0, vocab, (9, 7), generator=random).cuda()
        for block, warps in ((512, 4), (1024, 8), (2048, 8)):
            for parts in (None, 1, 5):
                equal(sweep(logits, targets, block=block, warps=warps, parts=parts), logits, targets)


@cuda
@pytest.mark.cuda
def test_what_is_not_finite_shows_on_the_device():
    for logits, targets in unsound():
        swept = sweep_named("triton")(logits.cuda(), targets.cuda())
        assert not swept.entropy.isfinite().any()
        assert ((swept.top1 >= 0) & (swept.top1 < logits.shape[1])).all()


@cuda
@pytest.mark.cuda
def test_a_capture_on_the_device_is_the_eager_one(monkeypatch):
    tokenizer = tiny_tokenizer()
    model = wrap(tiny_model("llama", len(tokenizer)).cuda(), tokenizer)
    facts = load_factoids("known")[:24]
    intrusions = {"others": load_factoids("known")[24:40]}
    tables = capture(model, facts, intrusions=intrusions)
    monkeypatch.setenv(sweeps.VARIABLE, "eager")
    expected = capture(model, facts, intrusions=intrusions)
    keys = ["factoid", "token", "depth"]
    ours, theirs = tables.records.sort(keys), expected.records.sort(keys)
    exact = [*keys, "rank", "ties", "top1"]
    assert ours.select(exact).equals(theirs.select(exact))
    assert (ours["log_prob"] - theirs["log_prob"]).abs().max() < 1e-5
    assert tables.controls.sort([*keys, "control"]).equals(expected.controls.sort([*keys, "control"]))
    assert tables.outcomes.equals(expected.outcomes)


def test_reading_is_kept_in_run_json(tmp_path):
    tokenizer = tiny_tokenizer()
    probe(
        [wrap(tiny_model("llama", len(tokenizer)), tokenizer)], load_factoids("known")[:3], tmp_path / "probe"
    )
    run = json.loads((tmp_path / "probe" / "run.json").read_text())
    assert [entry["reading"] for entry in run["checkpoints"].values()] == [sweep_name(torch.device("cpu"))]


def test_read_logits_gives_numpy():
    reading = read_logits(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[1, 0]]))
    assert reading.rank.tolist() == [[1, 2]] and reading.ties.tolist() == [1]


def _interpreted() -> None:
    """The kernel's checks in triton's interpreter, small enough for it."""
    import warnings

    from triton.runtime import interpreter

    warnings.simplefilter("ignore")  # numpy's, on what is not finite
    patch = interpreter._patch_lang_tensor

    def with_index(tensor, scope):  # triton 3.6 makes a range's end of an array [1], which numpy 2.4 refuses
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = with_index
    from memprobe.sweeps.with_triton import sweep

    for logits, targets in cases(2, blocks=128):
        for parts in (None, 3):
            equal(sweep(logits, targets, block=128, parts=parts), logits, targets)
    for logits, targets in unsound():
        for parts in (None, 2):
            swept = sweep(logits, targets, block=256, parts=parts)
            assert not swept.entropy.isfinite().any()
            assert ((swept.top1 >= 0) & (swept.top1 < logits.shape[1])).all()


if __name__ == "__main__":
    _interpreted()
