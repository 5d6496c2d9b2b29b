"""Capture against the oracle: every number at every depth, whatever the batch, and nothing kept that is large."""

import dataclasses
import math
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memprobe import capturing
from memprobe import logits as logits_module
from memprobe.answers import budget, cut
from memprobe.capturing import capture, capture_batches
from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid
from memprobe.lens_files import AffineMap
from memprobe.lens_specs import make_lens
from memprobe.lenses import Lens
from memprobe.models import wrap
from memprobe.planning import plan_capture, shuffled_answers
from memprobe.records import CONTROLS, OUTCOMES, RECORDS
from memprobe.templates import Template, TokenisedFactoid
from tests import oracle
from tests.tiny import FAMILIES, N_LAYERS, tiny_model, tiny_tokenizer

DEPTHS = N_LAYERS + 1
KEYS = ["factoid", "token", "depth"]
FACTS = [
    make_factoid("The river of Oria is the", "Lunn", "test", relation="river", id="lunn"),
    make_factoid("The river of Selva is the", "Brack", "test", relation="river", id="brack"),
    make_factoid(
        "The river of Oria is the Lunn, the river of Tolm is the", "Ister", "test", relation="river", id="i"
    ),
    make_factoid("Oria: hill?", "Mount Grey", "test", relation="hill", id="grey"),
    make_factoid("The tallest hill of Selva is", "Peak Nine", "test", relation="hill", id="nine"),
    make_factoid("12 + 7 =", "19", "sums", id="sum"),
    make_factoid("1", "55", "sums", id="short"),
]


@cache
def tiny(family="llama", kind="byte-level", seed=0):
    tokenizer = tiny_tokenizer(kind)
    return wrap(tiny_model(family, vocab_size=len(tokenizer), seed=seed), tokenizer, label=family)


def items_of(read, factoids, template):
    return plan_capture(read, factoids, Template.parse(template)).items


@cache
def oracle_logits(family, kind, template, reader=None):
    """Per factoid and answer token index, logits [depth, vocab]."""
    read = tiny(family, kind)
    found = {}
    for item in items_of(read, FACTS, template):
        logits = oracle.answer_logits(
            read.model,
            item.prompt,
            item.targets,
            None if reader is None else tiny(family, kind, reader).model,
        )
        for j, index in enumerate(item.target_indices):
            found[item.factoid.id, index] = logits[:, j], item.targets[j]
    return found


def hold_against(tables, logits):
    """Every record and control against brute force over the oracle's logits."""
    assert set(tables.records.select("factoid", "token").iter_rows()) == set(logits)
    differ = 0
    for record in tables.records.iter_rows(named=True):
        stack, target = logits[record["factoid"], record["token"]]
        row = oracle.Row(stack[record["depth"]], target)
        assert record["token_id"] == target
        low, high = row.rank_bounds
        assert low <= record["rank"] <= high, record
        differ += record["rank"] != row.rank
        assert record["log_prob"] == pytest.approx(row.log_prob, abs=1e-4)
        assert record["entropy"] == pytest.approx(row.entropy, abs=1e-4)
        assert row.logits[record["top1"]] >= row.logits.max() - 1e-4
        assert 0 <= record["ties"] <= high - low
    assert differ <= 0.01 * tables.records.height, "near ties are few, so nearly all ranks agree exactly"
    assert not tables.controls.is_empty()
    for control in tables.controls.iter_rows(named=True):
        row = oracle.Row(
            logits[control["factoid"], control["token"]][0][control["depth"]], control["token_id"]
        )
        low, high = row.rank_bounds
        assert low <= control["rank"] <= high, control


CASES = [(family, "byte-level", "plain") for family in FAMILIES]
CASES += [(family, "sentencepiece", "tulu") for family in FAMILIES]
CASES += [("llama", "byte-level-digits", "chat"), ("gpt2", "sentencepiece", "chat")]


@pytest.mark.parametrize(("family", "kind", "template"), CASES)
def test_records_and_controls_are_the_oracles(family, kind, template):
    tables = capture(tiny(family, kind), FACTS, template, predictions=False)
    hold_against(tables, oracle_logits(family, kind, template))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_checkpoints_readout(family):
    """Residuals of one, norm and unembedding of the other; exact_tokens stays what the model itself says."""
    read, other = tiny(family), tiny(family, "byte-level", 1)
    tables = capture(read, FACTS, "tulu", lenses=[make_lens(read, None, other)], predictions=False)
    hold_against(tables, oracle_logits(family, "byte-level", "tulu", reader=1))
    own = capture(read, FACTS, "tulu", predictions=False)
    assert tables.outcomes.equals(own.outcomes)
    assert not tables.records.equals(own.records)


def test_lenses_of_one_kind_made_in_memory_each_keep_their_numbers():
    """Whatever other lenses are read beside one; two names for the same maps, or for none, are read alike."""
    read = tiny()
    generator = torch.Generator().manual_seed(0)
    drawn = [
        {
            depth: AffineMap(torch.randn(read.d_model, read.d_model, generator=generator))
            for depth in range(N_LAYERS)
        }
        for _ in range(2)
    ]
    one, two = (Lens(name, read.lens.readout, "linear", maps) for name, maps in zip("ab", drawn, strict=True))
    lenses = [one, two, dataclasses.replace(two, name="c"), Lens("none", read.lens.readout, "linear")]
    together = capture(read, FACTS, lenses=[*lenses, "logit"], predictions=False)
    for lens in [*lenses, read.lens]:
        alone = capture(read, FACTS, lenses=[lens], predictions=False)
        for table in ("records", "controls"):
            beside = getattr(together, table).filter(pl.col("lens") == lens.name)
            assert beside.equals(getattr(alone, table)), (lens.name, table)
    by_name = [rows.drop("lens") for _, rows in together.records.group_by("lens", maintain_order=True)]
    first, second, again, none, logit = by_name
    assert second.equals(again) and none.equals(logit)
    assert not first.equals(second) and not first.equals(logit)


def test_tables_are_complete_and_of_their_schemas():
    read = tiny()
    for template in ("plain", "tulu"):
        tables = capture(read, FACTS, template)
        assert tables.records.schema == RECORDS
        assert tables.controls.schema == CONTROLS
        assert tables.outcomes.schema == OUTCOMES
        expected = {
            (item.factoid.id, index, depth)
            for item in items_of(read, FACTS, template)
            for index in item.target_indices
            for depth in range(DEPTHS)
        }
        assert len(tables.records) == len(expected)
        assert set(tables.records.select(KEYS).iter_rows()) == expected
        assert tables.controls.select([*KEYS, "control"]).is_duplicated().sum() == 0
        assert set(tables.controls.select(KEYS).iter_rows()) <= expected
        assert sorted(tables.outcomes["factoid"]) == sorted(factoid.id for factoid in FACTS)
        assert tables.records["rank"].is_between(0, read.vocab_size - 1).all()
        assert (tables.records["log_prob"] <= 0).all()
        assert tables.records["entropy"].is_between(0, math.log(read.vocab_size) + 1e-5).all()
        argmax = tables.records.filter(pl.col("rank") == 0)
        assert (argmax["top1"] == argmax["token_id"]).all() and (argmax["ties"] == 0).all()
        assert tables.records.null_count().sum_horizontal().item() == 0


# Padding, order, batch size.


@cache
def alone(family):
    """Records and controls of each factoid captured by itself, and every logit behind them."""
    kind = "byte-level"
    tables = capture(tiny(family, kind), FACTS, "tulu", batch_size=1, predictions=False)
    return tables, oracle_logits(family, kind, "tulu")


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(len(FACTS))), batch_size=st.sampled_from(["auto", 2, 3, 7]))
def test_padding_order_and_batch_size_do_not_matter(family, order, batch_size):
    reference, logits = alone(family)
    factoids = [FACTS[index] for index in order]
    tables = capture(tiny(family), factoids, "tulu", batch_size=batch_size, predictions=False)
    for name, keys in (("records", KEYS), ("controls", [*KEYS, "control"])):
        ours, theirs = (getattr(found, name).sort(keys) for found in (tables, reference))
        assert ours.select([*keys, "token_id"]).equals(theirs.select([*keys, "token_id"]))
        for row, other in zip(ours.iter_rows(named=True), theirs.iter_rows(named=True), strict=True):
            if row["rank"] != other["rank"]:
                stack, _ = logits[row["factoid"], row["token"]]
                low, high = oracle.Row(stack[row["depth"]], row["token_id"]).rank_bounds
                assert low <= row["rank"] <= high
    ours, theirs = (found.records.sort(KEYS) for found in (tables, reference))
    for column in ("log_prob", "entropy"):
        np.testing.assert_allclose(ours[column], theirs[column], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_do_not_depend_on_the_batch(family):
    one = capture(tiny(family), FACTS, "plain", batch_size=1).outcomes.sort("factoid")
    for batch_size in (3, 7):
        assert (
            capture(tiny(family), FACTS, "plain", batch_size=batch_size).outcomes.sort("factoid").equals(one)
        )


def test_what_fills_a_batch_is_never_read():
    read = tiny("bloom")
    reference = capture(read, FACTS, "plain", batch_size=7, predictions=False)
    changed = wrap(read.model, read.tokenizer, label=read.label)
    object.__setattr__(changed, "pad_id", lambda: 77)
    assert capture(changed, FACTS, "plain", batch_size=7, predictions=False).records.equals(reference.records)


# Ranks, ties and what is not finite.


def test_a_head_that_says_nothing_ties_everywhere():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    read = wrap(model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    records = capture(read, FACTS, predictions=False).records
    assert (records["rank"] == len(tokenizer) - 1).all(), "a tie counts against the answer"
    assert (records["ties"] == len(tokenizer) - 1).all()
    np.testing.assert_allclose(records["entropy"], math.log(len(tokenizer)), atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_logit_that_is_not_finite_is_an_error(value):
    tokenizer = tiny_tokenizer()
    read = wrap(tiny_model("phi", vocab_size=len(tokenizer)), tokenizer)
    with torch.no_grad():
        read.lens.readout.unembedding.bias[200] = value
    assert not any(200 in item.targets for item in items_of(read, FACTS, "plain"))
    tables = capture(read, FACTS)
    assert tables.records.is_empty() and tables.controls.is_empty()
    assert tables.outcomes["error"].to_list() == ["a logit is not finite"] * len(FACTS)
    assert (
        tables.outcomes["exact_tokens"].null_count()
        == tables.outcomes["exact_match"].null_count()
        == len(FACTS)
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_factoid_that_breaks_the_model_is_an_error_of_its_own(value):
    tokenizer = tiny_tokenizer()
    read = wrap(tiny_model("gpt2", vocab_size=len(tokenizer)), tokenizer)
    (bad,) = tokenizer.encode("Q")
    broken = make_factoid("The river Q of Oria is the", "Lunn", "test", relation="river", id="broken")
    hook = read.model.transformer.wte.register_forward_hook(
        lambda _, args, output: torch.where((args[0] == bad)[..., None], value, output)
    )
    try:
        for batch_size in (1, 8):
            tables = capture(read, [*FACTS, broken], batch_size=batch_size)
            errors = dict(tables.outcomes.select("factoid", "error").iter_rows())
            assert errors.pop("broken") == "a logit is not finite" and set(errors.values()) == {None}
            assert "broken" not in tables.records["factoid"] and "broken" not in tables.controls["factoid"]
            assert set(tables.records["factoid"]) == {factoid.id for factoid in FACTS}
    finally:
        hook.remove()


# Controls.


GROUPED = st.lists(
    st.tuples(st.sampled_from(["river", "hill", None]), st.integers(0, 4), st.integers(0, 2)),
    min_size=1,
    max_size=24,
)


def tokenised(rows):
    return [
        TokenisedFactoid(
            Factoid(f"p{n}", f"a{n}", "s", f"id{n}", relation=relation),
            (9,),
            (first, 100 + n)[: 1 + more],
            None,
        )
        for n, (relation, first, more) in enumerate(rows)
    ]


@given(GROUPED, st.integers(0, 3), st.randoms())
def test_shuffled_answers_are_derangements(rows, seed, random):
    items = tokenised(rows)
    chosen = shuffled_answers(items, seed)
    assert set(chosen) == {item.factoid.id for item in items}
    mixed = list(items)
    random.shuffle(mixed)
    assert shuffled_answers(mixed, seed) == chosen, "the draw does not depend on the order of rows"
    for relation in {relation for relation, _, _ in rows}:
        group = [item for item in items if item.factoid.relation == relation]
        firsts = [item.answer[0] for item in group]
        possible = max(map(firsts.count, firsts)) * 2 <= len(group)
        for draw in range(5):
            drawn = [chosen[item.factoid.id][draw] for item in group]
            for item, other in zip(group, drawn, strict=True):
                assert other is None or other[0] != item.answer[0]
            given_out = [other for other in drawn if other is not None]
            answers = [item.answer for item in group]
            assert all(given_out.count(other) <= answers.count(other) for other in given_out)
            if possible:
                assert sorted(given_out) == sorted(answers), "everyone's answer is given to exactly one other"


def test_shuffles_differ_by_draw_and_seed():
    items = tokenised([("river", n, 0) for n in range(12)])
    draws = shuffled_answers(items, 0)
    whole = [tuple(draws[item.factoid.id][draw] for item in items) for draw in range(5)]
    assert len(set(whole)) >= 4
    assert shuffled_answers(items, 0) == draws != shuffled_answers(items, 1)


def test_controls_stand_at_the_same_positions():
    tables = capture(tiny(), FACTS, "tulu", predictions=False)
    answers = {item.factoid.id: item.answer for item in items_of(tiny(), FACTS, "tulu")}
    group = {factoid.id: (factoid.source, factoid.relation) for factoid in FACTS}
    assert set(tables.controls["control"]) == {f"shuffled:{draw}" for draw in range(5)}
    assert (tables.controls["token"] >= 0).all(), "the end token has no control"
    for (name, control), rows in tables.controls.group_by("factoid", "control"):
        drawn = dict(rows.select("token", "token_id").iter_rows())
        others = [
            answers[other]
            for other in answers
            if other != name and group[other] == group[name] and answers[other][0] != answers[name][0]
        ]
        length = min(len(answers[name]), *(len(other) for other in others)) if len(others) == 1 else None
        assert any(tuple(drawn[j] for j in sorted(drawn)) == other[: len(drawn)] for other in others), control
        assert length is None or len(drawn) == length
        assert rows.height == len(drawn) * DEPTHS


def test_intrusions_are_the_strongest_of_the_watched():
    read = tiny("gemma2")
    others = {"B": [make_factoid("x", word, "b") for word in ("Lunn", "Brack", "hot", "down")]}
    tables = capture(read, FACTS, intrusions=others, predictions=False)
    logits = oracle_logits("gemma2", "byte-level", "plain")
    watched = {item.answer[0] for item in items_of(read, others["B"], "plain")}
    found = tables.controls.filter(pl.col("control") == "intrusion:B")
    assert found.height == len(FACTS) * DEPTHS and (found["token"] == 0).all()
    for row in found.iter_rows(named=True):
        stack, target = logits[row["factoid"], 0]
        line = stack[row["depth"]]
        best = max(line[token] for token in watched - {target})
        assert row["token_id"] in watched - {target} and line[row["token_id"]] >= best - 1e-4
        low, high = oracle.Row(line, row["token_id"]).rank_bounds
        assert low <= row["rank"] <= high


# What the model says in full.


def spoken_factoids(read, template):
    """Factoids of which the model itself says every second one, so that both outcomes occur."""
    factoids = []
    for number, factoid in enumerate(FACTS):
        item = items_of(read, [factoid], template)[0]
        new = oracle.greedy(read.model, item.prompt, 3, frozenset())
        answer = read.tokenizer.decode(new[: 1 + number % 3], skip_special_tokens=False).strip()
        if number % 2 == 0 and answer.isprintable() and "�" not in answer and answer:
            factoids.append(make_factoid(factoid.prompt, answer, "said", id=factoid.id))
        else:
            factoids.append(factoid)
    return factoids


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_match_is_what_the_model_says_one_by_one(family):
    read = tiny(family)
    factoids = spoken_factoids(read, "plain")
    outcomes = {
        row["factoid"]: row for row in capture(read, factoids, "plain").outcomes.iter_rows(named=True)
    }
    newlines = frozenset(
        index for index in range(len(read.tokenizer)) if "\n" in read.tokenizer.decode([index])
    )
    for item in items_of(read, factoids, "plain"):
        row, answer = outcomes[item.factoid.id], item.factoid.answer
        new = oracle.greedy(read.model, item.prompt, budget(item, read.tokenizer), newlines | {1})
        said = tuple(new[: len(item.targets)]) == item.targets
        assert row["exact_tokens"] == said
        assert row["exact_match"] or not row["exact_tokens"], "exact_tokens implies exact_match"
        if not said:
            text = cut(read.tokenizer.decode(new, skip_special_tokens=True).split("\n")[0], answer)
            assert row["prediction"] == text and row["exact_match"] == (text.lower() == answer.lower())


def test_exact_tokens_occurs_and_includes_the_end_token():
    """A head that always says the same two tokens: the answer's, then the end."""
    tokenizer = tiny_tokenizer()
    (word,) = tokenizer.encode(" the")
    model = tiny_model("llama", vocab_size=len(tokenizer))
    with torch.no_grad():  # the last stream is then +1 after `word` and -1 after all else, in one direction
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:, 0] = -1
        model.model.embed_tokens.weight[word, 0] = 1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.lm_head.weight.zero_()
        model.lm_head.weight[word, 0], model.lm_head.weight[1, 0] = -1, 1
    read = wrap(model, tokenizer)
    right, wrong = make_factoid("a", "the", "s", id="right"), make_factoid("a", "Oria", "s", id="wrong")
    for template, ends in (("{prompt}: {answer}", False), ("{prompt}: {answer}{eos}", True)):
        tables = capture(read, [right, wrong], template)
        outcomes = {row["factoid"]: row for row in tables.outcomes.iter_rows(named=True)}
        assert outcomes["right"]["exact_tokens"] and outcomes["right"]["exact_match"]
        assert outcomes["right"]["prediction"] == "the"
        assert not outcomes["wrong"]["exact_tokens"] and not outcomes["wrong"]["exact_match"]
        assert outcomes["wrong"]["prediction"] == "the"
        assert (-1 in tables.records["token"]) == ends
    with torch.no_grad():  # it never ends now: the answer's token is right, and the end is not
        model.lm_head.weight[1, 0] = -2
        model.lm_head.weight[5, 0] = 2
    outcome = capture(read, [right], "{prompt}: {answer}{eos}").outcomes.row(0, named=True)
    assert outcome["exact_tokens"] is False and outcome["exact_match"] is False


# Cost.


class Widest(TorchDispatchMode):
    """Remembers the largest tensor with a vocabulary axis."""

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.largest = vocab, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if (
                isinstance(tensor, torch.Tensor)
                and self.vocab in tensor.shape
                and tensor.shape[-1] == self.vocab
            ):
                self.largest = max(self.largest, tensor.numel())
        return output


def many(n):
    return [make_factoid(f"{n} {i} of Oria is", f"{i % 97}", "many", id=f"m{i}") for i in range(n)]


@pytest.mark.parametrize("batch_size", ["auto", 400])
def test_nothing_with_a_vocabulary_axis_grows_with_depths_or_factoids(monkeypatch, batch_size):
    monkeypatch.setattr(logits_module, "_CHUNK_ROWS", 64)
    read = tiny("gemma2")
    sizes = []
    for n in (40, 400):
        with Widest(read.vocab_size) as widest:
            capture(read, many(n), "tulu", batch_size=batch_size, predictions=False)
        sizes.append(widest.largest)
    assert sizes == [64 * read.vocab_size] * 2


def test_one_forward_pass_and_the_vocabulary_at_answer_positions_only():
    read = tiny()
    rows, sequences = [], []
    hooks = [
        read.lens.readout.unembedding.register_forward_hook(
            lambda _, __, output: rows.append(output.shape[:-1].numel())
        ),
        read.model.model.register_forward_hook(
            lambda _, __, output: sequences.append(output.last_hidden_state.shape[0])
        ),
    ]
    try:
        tables = capture(read, FACTS, "tulu", batch_size=3, predictions=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(sequences) == len(FACTS)
    assert sum(rows) == tables.records.height, "one row of logits for each record, controls included"


def test_generation_runs_only_where_it_is_needed(monkeypatch):
    read = tiny()
    factoids = spoken_factoids(read, "plain")
    asked = []
    answer = capturing.answer
    monkeypatch.setattr(
        capturing,
        "answer",
        lambda model, items, **options: (asked.extend(items), answer(model, items, **options))[1],
    )
    outcomes = capture(read, factoids).outcomes
    assert len(asked) == outcomes.filter(~pl.col("exact_tokens")).height


def test_out_of_memory_halves_a_batch_and_tells_where_it_was_fixed(monkeypatch):
    read = tiny()
    whole = capture(read, FACTS, predictions=False)
    residuals = capturing.residuals_at

    def small(lens_model, batch, positions, prefix):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return residuals(lens_model, batch, positions, prefix)

    monkeypatch.setattr(capturing, "residuals_at", small)
    halved = capture(read, FACTS, predictions=False)
    assert halved.records.sort(KEYS).select(KEYS).equals(whole.records.sort(KEYS).select(KEYS))
    assert (halved.records.sort(KEYS)["rank"] == whole.records.sort(KEYS)["rank"]).all()
    with pytest.raises(MemprobeError, match="smaller --batch-size"):
        capture(read, FACTS, batch_size=7, predictions=False)


# Bad input, and going on.


def test_factoids_that_cannot_be_probed():
    read = tiny()
    with pytest.raises(MemprobeError, match="no factoids"):
        capture(read, [])
    with pytest.raises(MemprobeError, match="'lunn' stands twice"):
        capture(read, [FACTS[0], FACTS[1], FACTS[0]])
    with pytest.raises(MemprobeError, match="context of 256"):
        capture(read, [make_factoid("river " * 300, "Lunn", "s")])


def test_done_factoids_are_left_out():
    read = tiny()
    plan = plan_capture(read, FACTS, Template.parse("plain"))
    rest = list(capture_batches(read, plan, batch_size=2, done=frozenset({"lunn", "sum"}), predictions=False))
    asked = [name for tables in rest for name in tables.outcomes["factoid"]]
    assert sorted(asked) == sorted({factoid.id for factoid in FACTS} - {"lunn", "sum"})
    whole = capture(read, FACTS, batch_size=2, predictions=False).controls
    part = pl.concat([tables.controls for tables in rest])
    same = [*KEYS, "control", "token_id"]
    kept = whole.filter(pl.col("factoid").is_in(asked))
    assert part.sort(same).select(same).equals(kept.sort(same).select(same)), (
        "controls come from the whole plan"
    )
