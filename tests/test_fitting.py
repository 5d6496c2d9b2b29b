"""Fits of lenses on tiny models: against closed forms, autograd, TransformerLens, and killed halfway."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from memprobe import fitting
from memprobe.blocks import residual_hooks
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.fitting import fit, load_texts, make_corpus
from memprobe.fitting.streams import streams_of
from memprobe.interventions import Put, applied
from memprobe.lens_files import read_lens
from memprobe.lens_kinds import FITTED_KINDS
from memprobe.lens_kinds.jacobian import JacobianFit
from memprobe.lens_kinds.linear import SKIP, STRENGTHS, LinearFit
from memprobe.lens_kinds.tuned import TunedFit, held_out_divergence
from memprobe.lens_specs import make_lens
from memprobe.models import load, to_bridge, wrap
from memprobe.modes import evaluating
from memprobe.templates import Template, tokenise_all
from tests.tiny import FAMILIES, N_LAYERS, SENTENCES, save_tiny, tiny_model, tiny_tokenizer

WORDS = " ".join(SENTENCES).split()


def texts(n, words=40, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(n)]


def model_of(family="llama", seed=0, **changes):
    tokenizer = tiny_tokenizer()
    return wrap(tiny_model(family, len(tokenizer), seed=seed, **changes), tokenizer, label=f"{family}-{seed}")


def corpus_of(read, tokens=600, length=24):
    return make_corpus(read, texts(tokens // length + 40), tokens=tokens, length=length)


def run(fitter):
    for unit in range(fitter.units):
        fitter.run(unit)
    return fitter


def rows_of(read, ids, skip=SKIP):
    """Streams of sequences one by one: [depth, row, d_model] in fp64."""
    parts = [streams_of(read, sequence[None])[:, 0, skip:] for sequence in ids]
    return torch.cat(parts, 1).double().numpy()


def test_a_corpus_is_dealt_out_without_overlap():
    read = model_of()
    corpus = make_corpus(read, texts(80), tokens=400, length=20)
    sets = [*corpus.halves, corpus.validation, corpus.test]
    assert [tuple(ids.shape) for ids in sets] == [(10, 20), (10, 20), (16, 20), (16, 20)]
    rows = [tuple(row.tolist()) for ids in sets for row in ids]
    assert len(set(rows)) == len(rows) == 52
    assert set(rows) <= {tuple(read.tokenizer.encode(text)[:20]) for text in texts(80)}
    assert corpus.about["tokens"] == 400 and corpus.about["held out"] == 320
    assert corpus.about["hash"] == make_corpus(read, texts(80), tokens=400, length=20).about["hash"]
    assert corpus.about["hash"] != make_corpus(read, texts(80, seed=1), tokens=400, length=20).about["hash"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"tokens": 4000, "length": 20},
            "too small: .* needed and 46 of 46 are that long; give --tokens 280 at most",
        ),
        ({"tokens": 100, "length": 250}, "needed and 0 of 46 are that long; give a smaller --length"),
        ({"tokens": 100, "length": 300}, "llama-0 reads 256 tokens"),
        ({"tokens": 0, "length": 20}, "`tokens` 0: give a whole number of at least 1"),
        ({"tokens": 100, "length": 2}, "`length` 2: give a whole number of at least 3"),
        ({"tokens": 100, "length": 20, "held_out": 1}, "`held_out` 1: give a whole number of at least 2"),
    ],
)
def test_a_corpus_too_small_is_one_line(asked, message):
    with pytest.raises(MemprobeError, match=message) as caught:
        make_corpus(model_of(), texts(46), **asked)
    assert "\n" not in str(caught.value)


def test_texts_that_begin_alike_are_one_sequence():
    """Cut to a length they are the same: some would be fitted on, and others held out."""
    read = model_of()
    alike = [texts(1)[0] + f" and then {i}" for i in range(30)]
    corpus = make_corpus(read, [*alike, *texts(60)], tokens=400, length=20)
    ids = torch.cat([*corpus.halves, corpus.validation, corpus.test])
    assert len(torch.unique(ids, dim=0)) == len(ids)
    with pytest.raises(MemprobeError, match="35 of 35 are that long, 30 of which begin like another; give"):
        make_corpus(read, [*alike, *texts(5)], tokens=400, length=20)


def test_texts_of_a_file_are_measured_in_tokens_and_stay_as_they_are_written(tmp_path):
    """A language without spaces has one word a text, and code is another with its lines run together."""
    written = [
        "".join(text.split()) if number % 2 else text.replace(" ", "\n  ")
        for number, text in enumerate(texts(60))
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in written))
    loaded, _ = load_texts(str(file), 20)
    read = model_of()
    found = {tuple(read.tokenizer.encode(text)[:20]) for text in loaded}
    assert found == {tuple(read.tokenizer.encode(text)[:20]) for text in written}
    assert max(len(text.split()) for text in loaded) == 20
    make_corpus(read, loaded, tokens=400, length=20)


def test_a_fit_of_the_shortest_sequences_is_judged(tmp_path):
    read = model_of()
    about = fit(
        "linear", read, make_corpus(read, texts(200), tokens=60, length=3, held_out=4), tmp_path / "fit"
    )
    assert all(np.isfinite(row["kl"]) for row in about["depths"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_linear_is_ridge_towards_the_logit_lens(family):
    read = model_of(family)
    corpus = corpus_of(read, 1200)
    fitter = run(LinearFit(read, corpus))
    held_out = rows_of(read, corpus.validation)
    for half, ids in (*enumerate(corpus.halves), (None, torch.cat(corpus.halves))):
        streams = rows_of(read, ids)
        maps = fitter.maps(half)
        for depth in range(N_LAYERS):
            x, y = streams[depth], streams[-1]
            mean_x, mean_y = x.mean(0), y.mean(0)
            x, rest = x - mean_x, (y - mean_y) - (x - mean_x)
            best = None
            for strength in STRENGTHS:  # least squares with extra rows, not normal equations
                root = np.sqrt(strength * (x**2).sum() / x.shape[1])
                rows = np.vstack([x, root * np.eye(x.shape[1])])
                wanted = np.vstack([rest, np.zeros((x.shape[1], x.shape[1]))])
                weight = np.eye(x.shape[1]) + np.linalg.lstsq(rows, wanted, rcond=None)[0].T
                bias = mean_y - weight @ mean_x
                error = ((held_out[depth] @ weight.T + bias - held_out[-1]) ** 2).mean()
                best = min(best or (error, weight, bias), (error, weight, bias), key=lambda found: found[0])
            np.testing.assert_allclose(maps[depth].weight, best[1], atol=1e-3)
            np.testing.assert_allclose(maps[depth].bias, best[2], atol=1e-2)


def test_least_squares_where_a_coordinate_hardly_leaves_a_value_far_from_zero():
    """As streams of trained models have: products of whole streams would lose in fp32 what tells rows apart."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 5] += 1000
        model.model.embed_tokens.weight[:, 9] -= 500
    read = wrap(model, tokenizer, label="far")
    corpus = corpus_of(read, 2400)
    streams, held_out = rows_of(read, torch.cat(corpus.halves)), rows_of(read, corpus.validation)
    maps = run(LinearFit(read, corpus)).maps()
    eye = np.eye(read.d_model)
    for depth in range(N_LAYERS):
        x, y = (rows - rows.mean(0) for rows in (streams[depth], streams[-1]))
        s_xx, s_yx = x.T @ x, y.T @ x
        errors = []
        for strength in STRENGTHS:
            weight = eye + (s_yx - s_xx) @ np.linalg.inv(
                s_xx + strength * np.trace(s_xx) / read.d_model * eye
            )
            bias = streams[-1].mean(0) - weight @ streams[depth].mean(0)
            errors.append(((held_out[depth] @ weight.T + bias - held_out[-1]) ** 2).mean())
        weight, bias = (part.double().numpy() for part in (maps[depth].weight, maps[depth].bias))
        found = ((held_out[depth] @ weight.T + bias - held_out[-1]) ** 2).mean()
        assert found == pytest.approx(min(errors), rel=0.02)


class Sum(nn.Module):
    """A block that adds a linear map of each position and of the sum of all positions before it."""

    def __init__(self, width):
        super().__init__()
        self.here, self.before = (nn.Linear(width, width) for _ in range(2))

    def forward(self, hidden_states, *args, **kwargs):
        summed = hidden_states.cumsum(1) - hidden_states
        return hidden_states + self.here(hidden_states) + self.before(summed)


def linear_model():
    """A Llama whose blocks are linear, and their matrices."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    torch.manual_seed(1)
    for index in range(N_LAYERS):
        model.model.layers[index] = Sum(model.config.hidden_size).eval()
    return wrap(model, tokenizer, label="linear")


def test_the_jacobian_of_a_linear_model_is_exact():
    read = linear_model()
    length, skip = 10, 2
    corpus = corpus_of(read, 60, length)
    maps = run(JacobianFit(read, corpus, skip=skip, rows=5)).maps()
    valid = list(range(skip, length - 1))
    width = read.d_model
    eye = np.eye(width)
    # As matrices over all positions: block (t', t) of each layer, then their products.
    layers = []
    for block in read.blocks:
        here, before = (part.weight.detach().double().numpy() for part in (block.here, block.before))
        whole = np.zeros((length, width, length, width))
        for t in range(length):
            whole[t, :, t] = eye + here
            for earlier in range(t):
                whole[t, :, earlier] = before
        layers.append(whole.reshape(length * width, length * width))
    for depth in range(N_LAYERS):
        product = np.eye(length * width)
        for layer in layers[depth:]:
            product = layer @ product
        product = product.reshape(length, width, length, width)
        wanted = np.mean([sum(product[later, :, t] for later in valid if later >= t) for t in valid], axis=0)
        np.testing.assert_allclose(maps[depth].weight, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
        assert maps[depth].bias is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt-neox"])
def test_the_jacobian_is_that_of_transformer_lens(family, tmp_path):
    from transformer_lens.tools.analysis import JacobianLens

    save_tiny(tmp_path / "tiny", family)
    read = load(str(tmp_path / "tiny"))
    corpus = corpus_of(read, 96, 24)
    maps = run(JacobianFit(read, corpus, rows=7)).maps()
    bridge = to_bridge(load(str(tmp_path / "tiny")))
    bridge.eval()
    sequences = [ids for pair in zip(*corpus.halves, strict=True) for ids in pair]
    prompts = [read.tokenizer.decode(ids) for ids in sequences]
    assert [read.tokenizer.encode(prompt) for prompt in prompts] == [ids.tolist() for ids in sequences]
    bridge.cfg.default_prepend_bos = False
    theirs = JacobianLens.fit(bridge, prompts, corpus="tiny", show_progress=False)
    assert theirs.n_prompts == len(sequences)
    for layer, matrix in theirs.jacobians.items():
        torch.testing.assert_close(maps[layer + 1].weight, matrix, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_jacobians_by_finite_differences(family):
    """At depth n - 1 of any family, one position after the skipped ones: the last block's own derivative."""
    read = model_of(family)
    corpus = corpus_of(read, 36, 18)
    fitter = run(JacobianFit(read, corpus, rows=32))
    length = corpus.validation.shape[1]
    assert length == 18  # one valid position: 16, so that the sum over t' has one term
    wanted = torch.zeros(read.d_model, read.d_model, dtype=torch.float64)
    sequences = torch.cat(corpus.halves)
    step = 1e-3  # families compute their norms in fp32, whatever the model's own precision
    for ids in sequences:
        given = _streams(read, ids)[N_LAYERS - 1][0, 16]
        for column in range(read.d_model):
            ends = []
            for sign in (1, -1):
                moved = given.clone()
                moved[column] += sign * step
                with applied(read, Put(N_LAYERS - 1, moved, positions=[16])):
                    ends.append(_streams(read, ids)[-1][0, 16].double())
            wanted[:, column] += (ends[0] - ends[1]) / (2 * step)
    wanted /= len(sequences)
    torch.testing.assert_close(
        fitter.maps()[N_LAYERS - 1].weight.double(), wanted, atol=2e-2 * float(wanted.abs().max()), rtol=0
    )


def _streams(read, ids):
    kept = {}
    with evaluating(read.model), residual_hooks(read.blocks, kept.__setitem__):
        read.model(input_ids=ids[None], use_cache=False)
    return [kept[depth].clone() for depth in range(read.n_layers + 1)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_a_tuned_lens_beats_the_logit_lens_at_every_middle_depth(family, tmp_path):
    read = model_of(family)
    corpus = corpus_of(read, 4000)
    about = fit("tuned", read, corpus, tmp_path / "fit")
    for row in about["depths"][:-1]:
        assert row["kl"] < row["logit_kl"] and row["low"] > 0, row
    last = about["depths"][-1]
    assert last["kl"] == pytest.approx(0, abs=1e-5) and last["logit_kl"] == pytest.approx(0, abs=1e-5)


def test_tuned_steps_lower_the_divergence_below_least_squares():
    read = model_of()
    corpus = corpus_of(read, 8000)
    fitter = run(TunedFit(read, corpus))
    linear, tuned = held_out_divergence(read, corpus.test, [fitter.linear.maps(), fitter.maps()])
    assert (tuned < linear).all()


def test_gradients_of_the_tuned_lens_are_those_of_its_loss():
    """Against autograd through the whole map, B and c as leaves."""
    read = model_of("gemma2")
    corpus = corpus_of(read, 800)
    fitter = TunedFit(read, corpus)
    for unit in range(fitter.linear.units):
        fitter.run(unit)
    torch.manual_seed(0)
    fitter.moves[:, 0] = 0.01 * torch.randn_like(fitter.moves[:, 0])
    streams = streams_of(read, corpus.test)[:, :, SKIP:].flatten(1, 2)
    found = fitter._gradients(1, streams)
    x = streams[1].double()
    start = fitter.linear.maps(1)[1]
    half = rows_of(read, corpus.halves[1])
    mean, scale = torch.tensor(half[1].mean(0)), torch.tensor(half[1].std(0))
    last = half[-1] - half[-1].mean(0)
    scale_y = float(np.sqrt((last**2).mean()))
    leaf = fitter.moves[1, 0, 1].double().clone().requires_grad_()
    moved = x @ start.weight.double().T + start.bias.double()
    moved = moved + scale_y * (((x - mean) / scale) @ leaf[:, :-1].T + leaf[:, -1])
    target = read.lens(streams[-1]).log_softmax(-1).double()
    said = read.lens.readout(moved.float()).log_softmax(-1).double()
    (target.exp() * (target - said)).sum(-1).mean().backward()
    torch.testing.assert_close(found[1].double(), leaf.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", FITTED_KINDS)
def test_a_killed_fit_goes_on_to_the_same_bytes(kind, tmp_path, monkeypatch):
    read = model_of()
    corpus = corpus_of(read, 2400)
    whole = fit(kind, read, corpus, tmp_path / "whole")
    monkeypatch.setattr(fitting, "SAVE_SECONDS", -1)
    steps = []

    def stop(done, total, what):
        steps.append(done)
        if len(steps) == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(kind, read, corpus, tmp_path / "torn", progress=stop)
    assert (tmp_path / "torn" / "state.safetensors").exists()
    seen = []
    again = fit(kind, read, corpus, tmp_path / "torn", progress=lambda done, total, what: seen.append(done))
    assert seen[0] == steps[-1] > 0
    names = ["lens.safetensors", "half-1.safetensors", "half-2.safetensors"]
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "torn" / name).read_bytes()
    assert again | {"seconds": 0} == whole | {"seconds": 0}
    assert sorted(file.name for file in (tmp_path / "torn").iterdir()) == sorted([*names, "lens.json"])


def test_what_a_fit_writes_reads_the_model(tmp_path):
    read = model_of()
    corpus = corpus_of(read)
    about = fit("linear", read, corpus, tmp_path / "fit")
    assert about == json.loads((tmp_path / "fit" / "lens.json").read_text())
    assert about["fingerprint"] == read.fingerprint and about["corpus"] == corpus.about
    lens = make_lens(read, read_lens(tmp_path / "fit", "linear"))
    assert lens.notes == ()
    # The held-out table by hand: one sequence, one position at a time.
    for depth in (0, 2, N_LAYERS):
        losses, divergences = [], []
        for ids in corpus.test:
            streams = streams_of(read, ids[None])[:, 0]
            for position in range(SKIP, len(ids) - 1):
                with torch.inference_mode():
                    said = lens(streams[depth, position], depth).double().log_softmax(-1)
                    own = read.lens(streams[-1, position]).double().log_softmax(-1)
                losses.append(-float(said[ids[position + 1]]))
                divergences.append(float((own.exp() * (own - said)).sum()))
        row = about["depths"][depth]
        assert row["depth"] == depth
        assert row["cross_entropy"] == pytest.approx(np.mean(losses), abs=1e-4)
        assert row["kl"] == pytest.approx(np.mean(divergences), abs=1e-4)


def test_the_floor_is_how_far_the_halves_place_facts_apart(tmp_path):
    """By hand: one fact, one depth, one half at a time; and a fit without a floor gets one when it is asked again."""
    read = model_of()
    corpus = corpus_of(read)
    facts = [
        make_factoid(f"The {a} of Oria is the", c, "tiny") for a, c in (("river", "cold"), ("hill", "hot"))
    ]
    assert fit("linear", read, corpus, tmp_path / "fit")["floor"] is None
    floor = fit("linear", read, corpus, tmp_path / "fit", factoids=facts)["floor"]
    assert floor["facts"] == 2
    items = tokenise_all(facts, Template.parse("plain"), read.tokenizer)
    ranks = {}
    for name in ("lens", "half-1", "half-2"):
        maps = read_lens(tmp_path / "fit" / f"{name}.safetensors", "linear")
        lens = make_lens(read, maps)
        for item in items:
            streams = streams_of(read, torch.tensor([[*item.prompt, *item.lead]]))[:, 0, -1]
            for depth in range(N_LAYERS + 1):
                with torch.inference_mode():
                    logits = lens(streams[depth], depth)
                ranks[name, item.factoid.id, depth] = int((logits > logits[item.answer[0]]).sum())
    for k in (1, 10):
        at = floor["k"][str(k)]

        def lof(name, fact, k=k):
            held = (d for d in range(1, N_LAYERS + 1) if ranks[name, fact.id, d] < k)
            return next(held, N_LAYERS + 1)

        def recall(name, depth, k=k):
            return np.mean([ranks[name, fact.id, depth] < k for fact in facts])

        gaps = [lof("half-1", fact) - lof("half-2", fact) for fact in facts]
        assert at["lof"] == pytest.approx(np.mean(np.abs(gaps)))
        assert at["lof_mean"] == pytest.approx(abs(np.mean(gaps)))
        assert at["lens_lof"] == pytest.approx(np.mean([lof("lens", fact) for fact in facts]))
        depths = range(N_LAYERS + 1)
        assert at["recall"] == pytest.approx([abs(recall("half-1", d) - recall("half-2", d)) for d in depths])
        assert at["lens_recall"] == pytest.approx([recall("lens", d) for d in depths])


def test_the_floor_is_of_the_facts_and_template_that_are_asked(tmp_path):
    read = model_of()
    corpus = corpus_of(read)
    some, others = (
        [make_factoid(f"The {word} of Oria is the", "Lunn", "tiny")] for word in ("river", "value")
    )
    options = ("linear", read, corpus, tmp_path / "fit")
    first = fit(*options, factoids=some)["floor"]
    weights = (tmp_path / "fit" / "lens.safetensors").stat().st_mtime_ns
    for asked in ({"factoids": others}, {"factoids": others, "template": "{prompt}:{answer}"}):
        again = fit(*options, **asked)["floor"]
        fresh = fit("linear", read, corpus, tmp_path / f"fresh-{len(asked)}", **asked)["floor"]
        assert again == fresh != first
        assert fit(*options)["floor"] == again  # of no facts nothing is measured
    assert (tmp_path / "fit" / "lens.safetensors").stat().st_mtime_ns == weights
    about = json.loads((tmp_path / "fit" / "lens.json").read_text())
    for key in ("factoids", "template"):
        del about["floor"][key]  # as older ones are: of what, nobody knows
    (tmp_path / "fit" / "lens.json").write_text(json.dumps(about))
    assert fit(*options, factoids=some)["floor"] == first


def test_a_template_that_is_none_is_said_before_the_work(tmp_path):
    read = model_of()
    with pytest.raises(MemprobeError, match="nonsense"):
        fit("linear", read, corpus_of(read), tmp_path / "fit", template="nonsense {x}")
    assert not (tmp_path / "fit").exists()


def test_a_model_of_the_same_weights_with_other_settings_is_another_one(tmp_path):
    base = save_tiny(tmp_path / "model")
    read = load(str(base), device="cpu", dtype="float32")
    about = fit("linear", read, corpus_of(read), tmp_path / "fit")
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    other = load(str(base), device="cpu", dtype="float32")
    assert other.fingerprint == read.fingerprint
    with pytest.raises(MemprobeError, match=r"holds a lens with another config\.json of its model"):
        fit("linear", other, corpus_of(other), tmp_path / "fit")
    # A lens of before there was this says nothing of it, and is gone on with.
    whole = {key: value for key, value in about.items() if key not in ("settings", "tokenizer")}
    (tmp_path / "fit" / "lens.json").write_text(json.dumps(whole))
    assert fit("linear", read, corpus_of(read), tmp_path / "fit")["fingerprint"] == read.fingerprint


def test_another_fit_in_the_way_is_one_line(tmp_path):
    read, other = model_of(), model_of(seed=1)
    corpus = corpus_of(read)
    fit("linear", read, corpus, tmp_path / "fit")
    with pytest.raises(MemprobeError, match="holds a lens with another model"):
        fit("linear", other, corpus, tmp_path / "fit")
    with pytest.raises(MemprobeError, match="holds a lens with another corpus"):
        fit("linear", read, corpus_of(read, 1200), tmp_path / "fit")
    with pytest.raises(MemprobeError, match="holds a lens with another kind"):
        fit("tuned", read, corpus, tmp_path / "fit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(MemprobeError, match="not a lens of memprobe fit"):
        fit("linear", read, corpus, tmp_path / "mine")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(MemprobeError, match=r"truncated or corrupt .*--fresh"):
        fit("linear", read, corpus, tmp_path / "torn")
    with pytest.raises(MemprobeError, match="only a tuned lens takes steps"):
        fit("linear", read, corpus, tmp_path / "new", steps=3)
    with pytest.raises(MemprobeError, match="choose jacobian, linear, tuned"):
        fit("cubic", read, corpus, tmp_path / "new")


def test_a_tuned_lens_of_fewer_steps_is_not_the_one_of_all(tmp_path):
    read = model_of()
    corpus = corpus_of(read, 1200)
    fit("tuned", read, corpus, tmp_path / "few", steps=1)
    with pytest.raises(MemprobeError, match="holds a lens with another number of steps"):
        fit("tuned", read, corpus, tmp_path / "few")
    fit("tuned", read, corpus, tmp_path / "all")
    with pytest.raises(MemprobeError, match="holds a lens with another number of steps"):
        fit("tuned", read, corpus, tmp_path / "all", steps=1)


@pytest.mark.parametrize("when", ["done", "under way"])
def test_a_fit_goes_on_under_another_name_of_its_model_and_texts(tmp_path, monkeypatch, when):
    read = model_of()
    some = texts(100)
    corpus, same = (
        make_corpus(read, some, tokens=600, length=24, origin={"location": name}) for name in ("a", "b")
    )
    if when == "done":
        fit("linear", read, corpus, tmp_path / "fit")
    else:
        monkeypatch.setattr(fitting, "SAVE_SECONDS", -1)

        def stop(done, total, what):
            if done == total - 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit("linear", read, corpus, tmp_path / "fit", progress=stop)
    seen = []
    fit(
        "linear",
        dataclasses.replace(read, label="mine"),
        same,
        tmp_path / "fit",
        progress=lambda done, total, what: seen.append((what, done)),
    )
    assert ("fitting", 0) not in seen


def test_a_jacobian_needs_positions_after_those_that_it_skips():
    read = model_of()
    with pytest.raises(MemprobeError, match="give at least 18"):
        JacobianFit(read, corpus_of(read, 100, 17))


def test_a_fit_leaves_the_model_as_it_was(tmp_path):
    read = model_of()
    before = {name: tensor.clone() for name, tensor in read.model.state_dict().items()}
    read.model.train()
    for kind in FITTED_KINDS:
        fit(kind, read, corpus_of(read, 100), tmp_path / kind)
    assert read.model.training and all(p.requires_grad and p.grad is None for p in read.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in read.model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in read.model.state_dict().items())
