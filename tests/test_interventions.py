"""Edits of a forward pass, against TransformerLens hooks and against each other."""

import copy
import json

import numpy as np
import pytest
import torch

from memprobe.answers import generate
from memprobe.blocks import residual_hooks
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.interventions import Ablate, Corrupt, Put, Spans, Subjects, applied, everywhere, mean_output
from memprobe.models import load, to_bridge, wrap
from memprobe.modes import evaluating
from memprobe.subjects import subject_positions
from memprobe.templates import Template, tokenise_all
from tests.tiny import CHAT, FAMILIES, N_LAYERS, TOKENIZERS, save_tiny, tiny_model, tiny_tokenizer

PROMPT = "The river of Oria is the Lunn, and 12 + 7"
FACTS = [
    make_factoid(f"The river of {name} is the", answer, "tiny", relation="river", subject=name)
    for name, answer in (("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister of the north"))
]


def model_of(family="llama", seed=0):
    tokenizer = tiny_tokenizer()
    return wrap(tiny_model(family, len(tokenizer), seed=seed), tokenizer, label=f"{family}-{seed}")


def logits_of(read, ids):
    with evaluating(read.model):
        return read.model(input_ids=torch.tensor(ids), use_cache=False).logits


def streams_of(read, ids):
    kept = {}
    with evaluating(read.model), residual_hooks(read.blocks, kept.__setitem__):
        read.model(input_ids=torch.tensor(ids), use_cache=False)
    return kept


def rows_of(read):
    ids = read.tokenizer.encode(PROMPT)
    return [ids, ids[::-1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_own_states_change_nothing_and_others_do(family):
    read, other = model_of(family), model_of(family, seed=1)
    ids = rows_of(read)
    plain, own, theirs = logits_of(read, ids), streams_of(read, ids), streams_of(other, ids)
    for depth in range(N_LAYERS + 1):
        with applied(read, Put(depth, own[depth][:, [2, 5]], positions=[2, 5])):
            assert torch.equal(logits_of(read, ids), plain)
        with applied(read, Put(depth, theirs[depth][:, [2]], positions=[2])):
            changed = logits_of(read, ids) != plain
        assert not changed[:, :2].any() and changed[:, 2].any()  # nothing before it can see a position
    assert torch.equal(logits_of(read, ids), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in read.model.modules())


# The bridge reads out these families; the others differ in what it calls a hook point.
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "gpt-neox"])
@pytest.mark.parametrize("part", ["residual", "attn", "mlp"])
def test_equals_transformer_lens_hooks(family, part, tmp_path):
    save_tiny(tmp_path / "tiny", family)
    read = load(str(tmp_path / "tiny"))
    bridge = to_bridge(load(str(tmp_path / "tiny")))
    bridge.eval()
    ids = rows_of(read)
    random = torch.Generator().manual_seed(3)
    point = {"residual": "hook_out", "attn": "attn.hook_out", "mlp": "mlp.hook_out"}[part]
    for block in range(1, N_LAYERS + 1):
        states = torch.randn(2, 2, read.d_model, generator=random)

        def put(value, hook, states=states):
            value = value.clone()
            value[:, [1, 4]] = states
            return value

        hooks = [(f"blocks.{block - 1}.{point}", put)]
        with torch.inference_mode():
            theirs = bridge.run_with_hooks(torch.tensor(ids), fwd_hooks=hooks, return_type="logits")
        with applied(read, Put(block, states, positions=[1, 4], part=part)):
            ours = logits_of(read, ids)
        assert (ours - logits_of(read, ids)).abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

        hooks = [(f"blocks.{block - 1}.{point}", lambda value, hook: torch.zeros_like(value))]
        if part != "residual":
            with torch.inference_mode():
                theirs = bridge.run_with_hooks(torch.tensor(ids), fwd_hooks=hooks, return_type="logits")
            with applied(read, Ablate(block, part)):
                torch.testing.assert_close(logits_of(read, ids), theirs, atol=1e-4, rtol=0)


def test_a_skipped_block_leaves_the_stream_as_it_was():
    read = model_of()
    ids = rows_of(read)
    for block in range(1, N_LAYERS + 1):
        with applied(read, Ablate(block)):
            kept = streams_of(read, ids)
        assert torch.equal(kept[block], kept[block - 1])


def test_mean_ablation_puts_the_mean_over_texts():
    read = model_of("gpt2")
    texts = [PROMPT, "The capital of France is Paris"]
    for part in ("residual", "attn", "mlp"):
        mean = mean_output(read, texts, 2, part)
        outputs = []
        for text in texts:
            ids = [read.tokenizer.encode(text)]
            if part == "residual":
                kept = streams_of(read, ids)
                outputs.append((kept[2] - kept[1])[0])
            else:
                seen = []
                module = getattr(read.blocks[1], part)
                handle = module.register_forward_hook(
                    lambda _, __, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
                )
                logits_of(read, ids)
                handle.remove()
                outputs.append(seen[0][0])
        np.testing.assert_allclose(mean, torch.cat(outputs).mean(0), atol=1e-5)
        if part == "residual":
            with applied(read, Ablate(2, part, mean, name="texts")):
                kept = streams_of(read, rows_of(read))
            torch.testing.assert_close(kept[2] - kept[1], mean.expand_as(kept[2]), atol=1e-5, rtol=0)
    with pytest.raises(MemprobeError, match="at least one text"):
        mean_output(read, [], 2)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", ["plain", "tulu", "chat"])
def test_subjects_are_found_among_the_tokens(kind, template):
    tokenizer = tiny_tokenizer(kind)
    parsed = Template.parse(template)
    for fact, item in zip(FACTS, tokenise_all(FACTS, parsed, tokenizer), strict=True):
        where = subject_positions(item, parsed, tokenizer)
        text = tokenizer.decode(list(item.inputs[where.start : where.stop]))
        assert fact.subject in text and len(text.strip()) <= len(fact.subject) + 2
        inner = item.inputs[where.start + 1 : where.stop]
        assert fact.subject not in tokenizer.decode(list(inner))  # and no token too many


def test_a_subject_that_is_not_there_is_one_line():
    tokenizer, plain = tiny_tokenizer(), Template.parse("plain")
    for subject, message in ((None, "names no subject"), ("Atlantis", "'Atlantis' is not in the prompt")):
        fact = make_factoid("The river of Oria is the", "Lunn", "tiny", subject=subject)
        [item] = tokenise_all([fact], plain, tokenizer)
        with pytest.raises(MemprobeError, match=message) as caught:
            subject_positions(item, plain, tokenizer)
        assert "\n" not in str(caught.value) and fact.id in str(caught.value)


@pytest.mark.parametrize("subject,found", [("Selva", True), ('the "Emma"', False)])
def test_a_subject_is_found_where_a_template_writes_its_prompt_in_another_form(subject, found):
    """As JSON a prompt has other quotation marks, so that it does not stand in the text as it is."""
    tokenizer = copy.deepcopy(tiny_tokenizer())  # other tests use the same one
    content = "{{ message['content'] }}"
    assert content in CHAT
    tokenizer.chat_template = CHAT.replace(content, "{{ message['content'] | tojson }}")
    chat = Template.parse("chat")
    fact = make_factoid('Who wrote the "Emma" of Selva?', "Lunn", "tiny", subject=subject)
    [item] = tokenise_all([fact], chat, tokenizer)
    if not found:
        with pytest.raises(MemprobeError, match=r"the template writes the subject .* in another form"):
            subject_positions(item, chat, tokenizer)
        return
    where = subject_positions(item, chat, tokenizer)
    assert tokenizer.decode(list(item.inputs)[where.start : where.stop]).strip() == subject


def test_corruption_does_not_depend_on_batches():
    read = model_of()
    template = Template.parse("plain")
    items = tokenise_all(FACTS, template, read.tokenizer)
    corrupt = Corrupt(Subjects.of(items, template, read), noise=3.0, seed=5)
    plain = capture(read, FACTS).records
    with applied(read, corrupt):
        together = capture(read, FACTS).records
        alone = [capture(read, [fact], batch_size=1).records for fact in FACTS]
    keys = ["factoid", "token", "depth"]
    import polars as pl

    both = together.join(pl.concat(alone), on=keys, suffix="_alone")
    np.testing.assert_allclose(both["log_prob"], both["log_prob_alone"], atol=1e-4)
    assert (together.join(plain, on=keys)["log_prob"] - plain["log_prob"]).abs().max() > 0.01
    with applied(read, Corrupt(corrupt.positions, noise=3.0, seed=6)):
        assert not capture(read, FACTS).records.equals(together)
    nowhere = Spans(((300, 301, 302),))
    with applied(read, Corrupt(nowhere)), pytest.raises(MemprobeError, match="none of the rows"):
        capture(read, FACTS)


VERDI = "Verdi was born in the Duchy of Parma. The first name of Verdi's father was"
NAMING_OTHERS = [  # in the prompt, longer and later; in the forced answer; a prompt that begins as another does
    make_factoid(VERDI, "Carlo of the Duchy of Parma", "tiny", subject="Verdi"),
    make_factoid("The capital of the Duchy of Parma is", "Parma", "tiny", subject="the Duchy of Parma"),
    make_factoid("Verdi was", "born in the Duchy", "tiny", subject="Verdi"),
    make_factoid("Verdi was born in", "the Duchy of Parma", "tiny", subject="born"),
]


@pytest.mark.parametrize("filled_up", ["right", "left", "prompts alone"])
def test_each_row_s_own_subject_is_meant_whatever_others_it_names(filled_up):
    tokenizer, plain = tiny_tokenizer("byte-level"), Template.parse("plain")
    read = wrap(tiny_model("llama", len(tokenizer)), tokenizer, label="bytes")
    items = tokenise_all(NAMING_OTHERS, plain, tokenizer)
    subjects = Subjects.of(items, plain, read)
    rows = [list(item.prompt if filled_up == "prompts alone" else item.inputs) for item in items]
    width = max(map(len, rows)) + 2
    for item, row in zip(items, rows, strict=True):
        fill = [read.pad_id()] * (width - len(row))
        start = 0 if filled_up == "right" else len(fill)
        ids = torch.tensor([[*row, *fill] if filled_up == "right" else [*fill, *row]])
        where = subject_positions(item, plain, tokenizer)
        wanted = [start + column for column in where]
        assert subjects(ids)[0].nonzero()[:, 0].tolist() == wanted, item.factoid.prompt


def test_two_factoids_that_ask_the_same_of_other_subjects_are_refused():
    read, plain = model_of(), Template.parse("plain")
    facts = [
        make_factoid("The river of Oria is", "Lunn", "tiny", subject=subject, id=subject)
        for subject in ("Oria", "river")
    ]
    with pytest.raises(MemprobeError, match="of another subject"):
        Subjects.of(tokenise_all(facts, plain, read.tokenizer), plain, read)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_is_in_units_of_the_embeddings(family):
    """As the module gives them, which in some models scales the rows of its matrix."""
    read = model_of(family)
    ids = rows_of(read)
    given = []
    module = read.model.get_input_embeddings()
    handle = module.register_forward_hook(lambda *about: given.append(about[2]))
    try:
        logits_of(read, ids)
        with applied(read, Corrupt(everywhere, noise=2.0)):
            handle.remove()
            handle = module.register_forward_hook(
                lambda *about: given.append(about[2])
            )  # after the edit's own
            logits_of(read, ids)
    finally:
        handle.remove()
    plain, noisy = given
    every = module(torch.arange(len(module.weight))).detach()
    assert float((noisy - plain).detach().std() / every.std()) == pytest.approx(2.0, rel=0.08)


def test_edits_combine_with_generation_and_each_other():
    read = model_of()
    prompts = [read.tokenizer.encode(fact.prompt) for fact in FACTS]
    plain = generate(read, prompts, max_new_tokens=6)
    with applied(read, Ablate(2)):
        skipped = generate(read, prompts, max_new_tokens=6)
        alone = [generate(read, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert skipped == alone != plain
    states = streams_of(read, [prompts[0]])[1][0, 2]
    with applied(read, Put(1, states, positions=[2])):  # its own state, met once and then in the cache
        assert generate(read, prompts[:1], max_new_tokens=6) == plain[:1]
    with applied(read, Ablate(1), Ablate(2), Ablate(3)):
        kept = streams_of(read, rows_of(read))
    assert torch.equal(kept[0], kept[3])
    assert generate(read, prompts, max_new_tokens=6) == plain


def test_what_an_edit_was_is_json():
    read = model_of()
    edits = [
        Put(1, torch.ones(read.d_model), positions=[2]),
        Put(0, torch.ones(read.d_model)),
        Corrupt(Spans(((3, 4),), "subject"), seed=2),
        Ablate(1, "mlp"),
        Ablate(1, value=torch.ones(read.d_model), name="mean of 10 texts"),
    ]
    said = [json.loads(json.dumps(edit.to_dict())) for edit in edits]
    assert said[0]["positions"] == [2] and said[0]["shape"] == [read.d_model]
    assert said[0]["sha256"] == said[1]["sha256"] and said[1]["positions"] == "everywhere"
    assert (said[2]["positions"], said[2]["seed"]) == ("subject", 2)
    assert [entry.get("value") for entry in said[3:]] == ["zero", "mean of 10 texts"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: Put(4, torch.ones(d)), "depths 0 to 3, not 4"),
        (lambda d: Put(0, torch.ones(d), part="attn"), "blocks 1 to 3, not 0"),
        (lambda d: Put(1, torch.ones(d + 1)), "states of width 33"),
        (lambda d: Put(1, torch.ones(d), part="head"), "'head' is not a part"),
        (lambda d: Put(1, torch.ones(d), positions=[99]), "positions .99. are asked for"),
        (lambda d: Ablate(0), "not "),
        (lambda d: Ablate(7, "mlp"), "blocks 1 to 3, not 7"),
    ],
)
def test_edits_that_do_not_fit_are_one_line(edit, message):
    read = model_of()
    with pytest.raises(MemprobeError, match=message) as caught, applied(read, edit(read.d_model)):
        logits_of(read, rows_of(read))
    assert "\n" not in str(caught.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in read.model.modules())


def test_a_block_without_an_mlp_module_is_refused():
    read = model_of("llama")
    for block in read.blocks:
        block.perceptron = block.mlp
        del block.mlp
    with pytest.raises(MemprobeError, match="no module known as its mlp"), applied(read, Ablate(1, "mlp")):
        pass


def test_a_skipped_block_adds_nothing_to_what_other_edits_made_of_its_input():
    """Whatever the order: they are different places."""
    read = model_of()
    ids, state = rows_of(read), torch.randn(read.d_model, generator=torch.Generator().manual_seed(0))
    both = []
    for edits in ((Ablate(1), Put(0, state)), (Put(0, state), Ablate(1))):
        with applied(read, *edits):
            both.append(logits_of(read, ids))
    with applied(read, Put(0, state)):
        alone = logits_of(read, ids)
    assert torch.equal(*both) and not torch.allclose(both[0], alone)


def test_states_by_position_are_put_where_they_are_and_nowhere_in_later_passes():
    read = model_of()
    ids = read.tokenizer.encode(PROMPT)
    states = torch.randn(2, read.d_model, generator=torch.Generator().manual_seed(0))
    where = Spans((tuple(ids[2:4]),))
    with applied(read, Put(1, states, where)):
        (said,) = generate(read, [ids], max_new_tokens=4)
        one = logits_of(read, [ids])
    with applied(read, Put(1, states, [2, 3])):
        assert torch.equal(logits_of(read, [ids]), one)
    assert isinstance(said, str)
    with (
        pytest.raises(MemprobeError, match="3 states for 2 positions"),
        applied(read, Put(1, torch.zeros(3, read.d_model), where)),
    ):
        logits_of(read, [ids])


def test_of_several_sequences_that_a_row_holds_the_longest_is_meant():
    assert Spans(((5,), (5, 6)))(torch.tensor([[1, 5, 6, 7]])).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("subject", ["東京都", "Gintarė", "🇫🇷", "∞", "Beyoncé"])
def test_a_subject_has_all_tokens_of_its_last_character(subject):
    tokenizer = tiny_tokenizer()
    plain = Template.parse("plain")
    fact = make_factoid(f"The river of {subject} is", "Lunn", "tiny", subject=subject)
    (item,) = tokenise_all([fact], plain, tokenizer)
    places = subject_positions(item, plain, tokenizer)
    held = tokenizer.decode([item.inputs[i] for i in places])
    after = tokenizer.decode([item.inputs[i] for i in range(places.stop, len(item.prompt))])
    assert held.strip() == subject and after.strip() == "is"
