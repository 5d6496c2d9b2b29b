"""Patching between checkpoints: exact where it must be, right where the truth is planted."""

import copy

import numpy as np
import polars as pl
import pytest
import torch

from memprobe.blocks import blocks_of, residual_hooks
from memprobe.capturing import capture
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.interventions import Put, applied
from memprobe.models import wrap
from memprobe.modes import evaluating
from memprobe.patch_pairs import Pair, patch
from memprobe.patch_plan import CONTROLS, POSITIONS, Question, draw_others, plan_patches
from memprobe.patches import finite_only
from memprobe.patching import own_log_probs, patch_batches
from memprobe.records import PATCHES
from memprobe.subjects import subject_positions
from memprobe.templates import Template, tokenise_all
from tests.tiny import FAMILIES, N_LAYERS, tiny_model, tiny_tokenizer

FACTS = [
    make_factoid(f"The river of {name} is the", answer, "tiny", relation="river", subject=name)
    for name, answer in (
        ("Oria", "Lunn"),
        ("Selva", "Brack"),
        ("Tolm", "Ister of the north"),
        ("France", "Paris, and 12"),
        ("Peak Nine", "Grey"),
    )
]
PLAIN = Template.parse("plain")


def model_of(family="llama", seed=0, label=None, **changes):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, len(tokenizer), seed=seed, **changes)
    return wrap(model, tokenizer, label=label or f"{family}-{seed}")


def patched(source, target, facts=FACTS, batch=None, plan=None, **options):
    batch = batch or {}
    plan = plan or plan_patches(source, target, facts, **options)
    table = pl.concat(list(patch_batches(source, target, plan, **batch)))
    return table.sort("what", "positions", "control", "depth", "factoid", "token")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_patched_into_itself_changes_nothing(family):
    read, same = model_of(family), model_of(family, label="same")
    table = patched(
        same,
        read,
        positions=["prompt"],
        controls=[],
        batch={"at_once": 1, "reuse": False},
    )
    assert table.schema == PATCHES
    for side in ("source", "target"):  # the same batches, so the same bits
        assert (table["log_prob"] == table[f"{side}_log_prob"]).all()
        assert (table["rank"] == table[f"{side}_rank"]).all()
    for name in POSITIONS:
        table = patched(same, read, positions=[name], controls=[])
        np.testing.assert_allclose(table["log_prob"], table["target_log_prob"], atol=1e-4)
        assert table["depth"].unique().sort().to_list() == list(range(N_LAYERS + 1))
    # and what is read as the models' own is what capture reads
    records = capture(read, FACTS, predictions=False).records.filter(pl.col("depth") == N_LAYERS)
    own = table.filter(pl.col("depth") == 0).join(records, on=["factoid", "token"], suffix="_captured")
    assert len(own) == len(records)
    np.testing.assert_allclose(own["target_log_prob"], own["log_prob_captured"], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_patch_equals_hooks_one_factoid_at_a_time(family):
    source, target = model_of(family, 1), model_of(family)
    table = patched(source, target, FACTS[1:3], positions=POSITIONS, controls=[])
    items = tokenise_all(FACTS[1:3], PLAIN, target.tokenizer)
    for item in items:
        ids = torch.tensor([item.inputs])
        sets = {
            "prompt": list(range(len(item.inputs))),
            "last": list(range(len(item.prompt) - 1, len(item.inputs))),
            "subject": list(subject_positions(item, PLAIN, target.tokenizer)),
        }
        kept = {}
        with evaluating(source.model), residual_hooks(source.blocks, kept.__setitem__):
            source.model(input_ids=ids, use_cache=False)
        for name, columns in sets.items():
            for depth in range(N_LAYERS + 1):
                edit = Put(depth, kept[depth][:, columns], positions=columns)
                with applied(target, edit), evaluating(target.model):
                    logits = target.model(input_ids=ids, use_cache=False).logits[0]
                lines = logits[len(item.prompt) - 1 :].log_softmax(-1)
                wanted = [lines[j, token].item() for j, token in enumerate(item.targets)]
                found = table.filter(
                    (pl.col("factoid") == item.factoid.id)
                    & (pl.col("positions") == name)
                    & (pl.col("depth") == depth)
                )
                np.testing.assert_allclose(found["log_prob"], wanted, atol=1e-4)
                ranks = [(lines[j] > lines[j, token]).sum().item() for j, token in enumerate(item.targets)]
                assert np.abs(found["rank"].to_numpy() - ranks).max() <= 1  # 1 where two logits tie


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_parts_of_a_block(part):
    source, target = model_of(seed=1), model_of()
    table = patched(source, target, what=[part], positions=["last"], controls=[])
    assert table["depth"].unique().sort().to_list() == list(range(1, N_LAYERS + 1))
    for item in tokenise_all(FACTS, PLAIN, target.tokenizer):
        ids = torch.tensor([item.inputs])
        columns = list(range(len(item.prompt) - 1, len(item.inputs)))
        for block in range(1, N_LAYERS + 1):
            seen = []
            module = source.blocks[block - 1].self_attn if part == "attn" else source.blocks[block - 1].mlp
            handle = module.register_forward_hook(
                lambda _, __, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            with evaluating(source.model):
                source.model(input_ids=ids, use_cache=False)
            handle.remove()
            edit = Put(block, seen[0][:, columns], positions=columns, part=part)
            with applied(target, edit), evaluating(target.model):
                logits = target.model(input_ids=ids, use_cache=False).logits[0]
            lines = logits[len(item.prompt) - 1 :].log_softmax(-1)
            found = table.filter((pl.col("factoid") == item.factoid.id) & (pl.col("depth") == block))
            wanted = [lines[j, token].item() for j, token in enumerate(item.targets)]
            np.testing.assert_allclose(found["log_prob"], wanted, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_three_ways_one_number(family):
    """Patching everything at depth d, a graft of blocks 1 … d with the embeddings, and the source's first d blocks
    followed by the target's rest."""
    source, target = model_of(family, 1), model_of(family)
    table = patched(source, target, positions=["prompt"], controls=[])
    items = tokenise_all(FACTS, PLAIN, target.tokenizer)
    for depth in range(N_LAYERS + 1):
        mixed = copy.deepcopy(source.model)
        state = source.model.state_dict()
        rest = target.model.state_dict()
        own_blocks, other_blocks = blocks_of(mixed), blocks_of(target.model)
        for block in range(depth, N_LAYERS):
            own_blocks[block].load_state_dict(other_blocks[block].state_dict())
        head = [n for n in state if not any(n.startswith(p) for p in _outside_head(mixed))]
        mixed.load_state_dict({name: rest[name] for name in head}, strict=False)
        read = wrap(mixed, target.tokenizer, label="mixed")
        wanted = own_log_probs(read, items).sort("factoid", "token")
        found = table.filter(pl.col("depth") == depth).sort("factoid", "token")
        np.testing.assert_allclose(found["log_prob"], wanted["log_prob"], atol=1e-4)


def _outside_head(model):
    """Prefixes of the parameters that are in blocks or before them."""
    return {
        "llama": ["model.embed_tokens", "model.layers"],
        "gemma2": ["model.embed_tokens", "model.layers"],
        "gpt2": ["transformer.wte", "transformer.wpe", "transformer.h."],
        "bloom": ["transformer.word_embeddings", "transformer.h."],
    }[model.config.model_type]


def planted(block, family="llama"):
    """A model, and one that differs from it in one block alone."""
    base, other = model_of(family, label="base"), model_of(family, label="planted")
    with torch.no_grad():
        random = torch.Generator().manual_seed(4)
        for parameter in other.blocks[block - 1].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return other, base


@pytest.mark.parametrize("block", range(1, N_LAYERS + 1))
def test_planted_truth(block):
    source, target = planted(block)
    table = patched(source, target, positions=["prompt"], controls=[])
    gap = (table["source_log_prob"] - table["target_log_prob"]).to_numpy()
    gained = (table["log_prob"] - table["target_log_prob"]).to_numpy()
    below = (table["depth"] < block).to_numpy()
    assert np.abs(gap).max() > 0.05
    np.testing.assert_allclose(gained[below], 0, atol=1e-4)
    np.testing.assert_allclose(gained[~below], gap[~below], atol=1e-4)


def test_padding_batches_and_waves_do_not_matter():
    source, target = model_of(seed=1), model_of()
    options = {"positions": POSITIONS, "what": ["residual", "attn", "mlp"], "controls": CONTROLS}
    plan = plan_patches(source, target, FACTS, **options)
    whole = patched(source, target, plan=plan)
    for batch in ({"batch_size": 1}, {"batch_size": 2, "at_once": 4}, {"reuse": False}):
        other = patched(source, target, plan=plan, batch=batch)
        assert other.drop(pl.selectors.float(), pl.selectors.ends_with("rank")).equals(
            whole.drop(pl.selectors.float(), pl.selectors.ends_with("rank"))
        )
        for name in ("log_prob", "source_log_prob", "target_log_prob"):
            np.testing.assert_allclose(other[name], whole[name], atol=1e-4)
    done = frozenset(fact.id for fact in FACTS[:2])
    rest = pl.concat(list(patch_batches(source, target, plan, done=done)))
    assert set(rest["factoid"]) == {fact.id for fact in FACTS[2:]}


def test_the_control_of_another_fact_has_another_prompt_and_another_subject():
    """The states of the same prompt are the patch itself, whatever its answer is."""
    asked = [("The river of Oria is", "Lunn", "Oria"), ("The river of Oria is", "Tolm", "Oria")]
    asked += [("The hill of Oria is", "Osk", "Oria"), ("The old river of Pel is", "Vant", "Pel")]
    facts = [make_factoid(prompt, answer, "t", subject=subject) for prompt, answer, subject in asked]
    model = model_of()
    for positions, eligible in (
        (["last"], {0: {2, 3}, 1: {2, 3}, 2: {0, 1, 3}}),
        (["last", "subject"], {0: {3}, 1: {3}, 2: {3}}),
    ):
        for seed in range(8):
            plan = plan_patches(model, model, facts, positions=positions, controls=["other"], seed=seed)
            ids = [question.item.factoid.id for question in plan.questions]
            for place, others in eligible.items():
                other = plan.questions[place].other
                assert other is not None and ids.index(other.item.factoid.id) in others
    alone = plan_patches(model, model, facts[:2], controls=["other"])
    assert [question.other for question in alone.questions] == [None, None]


def test_blocks_have_no_depth_0():
    with pytest.raises(MemprobeError, match="--depths 0: attn, mlp is of blocks, which are 1 to 3"):
        plan_patches(model_of(), model_of(), FACTS, what=["attn", "mlp"], depths=[0])


def test_controls_are_another_factoids_states_and_random_ones_of_the_same_norm():
    source, target = model_of(seed=1), model_of()
    plan = plan_patches(source, target, FACTS, positions=["last", "subject"], controls=CONTROLS)
    table = patched(source, target, plan=plan)
    assert table["control"].unique().sort().to_list() == ["", "other", "random"]
    items = [question.item for question in plan.questions]
    others = draw_others(items, 0)
    assert all(items[o].answer[0] != item.answer[0] for item, o in zip(items, others, strict=True))
    # by hand: the last prompt token's state of the partner
    question = plan.questions[0]
    partner = question.other
    kept = {}
    with evaluating(source.model), residual_hooks(source.blocks, kept.__setitem__):
        source.model(input_ids=torch.tensor([partner.item.inputs]), use_cache=False)
    columns = list(question.sets["last"])
    theirs = [len(partner.item.prompt) - 1 + j for j in range(len(columns))]
    theirs = [min(column, len(partner.item.inputs) - 1) for column in theirs]
    ids = torch.tensor([question.item.inputs])
    edit = Put(2, kept[2][:, theirs], positions=columns)
    with applied(target, edit), evaluating(target.model):
        line = target.model(input_ids=ids, use_cache=False).logits[0, columns].log_softmax(-1)
    found = table.filter(
        (pl.col("factoid") == question.item.factoid.id)
        & (pl.col("control") == "other")
        & (pl.col("positions") == "last")
        & (pl.col("depth") == 2)
    )
    wanted = [line[j, token].item() for j, token in enumerate(question.item.targets)]
    np.testing.assert_allclose(found["log_prob"], wanted, atol=1e-4)
    again = patched(source, target, positions=["last", "subject"], controls=CONTROLS)
    np.testing.assert_allclose(table["log_prob"], again["log_prob"], atol=1e-5)
    reseeded = patched(source, target, positions=["last", "subject"], controls=["random"], seed=1)
    assert not reseeded["log_prob"].equals(table.filter(pl.col("control") == "random")["log_prob"])
    # factoids that all have one answer have no control of that kind
    alike = [make_factoid(f"Say {i}", "Lunn", "tiny") for i in range(3)]
    table = patched(source, target, alike, positions=["last"])
    assert table["control"].unique().sort().to_list() == ["", "random"]


def test_random_states_have_the_sources_norm(monkeypatch):
    import memprobe.patching as patching

    source, target = model_of(seed=1), model_of()
    seen = []
    own = patching._states

    def spy(given, others, part, depth, control, mask, *rest):
        states = own(given, others, part, depth, control, mask, *rest)
        if control == "random":
            seen.append((states[mask].norm(dim=-1), given.streams[depth][mask].norm(dim=-1)))
        return states

    monkeypatch.setattr(patching, "_states", spy)
    patched(source, target, positions=["last"], controls=["random"])
    assert len(seen) >= N_LAYERS + 1
    for ours, theirs in seen:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_longer_subject_takes_its_controls_states_from_within_that_ones_subject():
    """Not from the words before it, which stand in every prompt of the relation."""
    import memprobe.patching as patching

    one, other = tokenise_all(FACTS[:2], PLAIN, tiny_tokenizer())
    question = Question(one, {"subject": (2, 3, 4)}, Question(other, {"subject": (3,)}))
    places = patching._aligned([question], "subject", len(one.inputs))
    assert places[0, 2:5].tolist() == [3, 3, 3]


def test_random_states_are_other_ones_at_each_depth_and_in_each_part(monkeypatch):
    """One direction at every depth would be one draw, not many."""
    import memprobe.patching as patching

    source, target = model_of(seed=1), model_of()
    own, seen = patching._states, {}

    def spy(given, others, part, depth, control, mask, *rest):
        states = own(given, others, part, depth, control, mask, *rest)
        if control == "random":
            seen[part, depth] = states[mask] / states[mask].norm(dim=-1, keepdim=True)
        return states

    monkeypatch.setattr(patching, "_states", spy)
    patched(source, target, what=["residual", "mlp"], depths=[1, 2], controls=["random"])
    for other in (("residual", 2), ("mlp", 1)):
        alike = (seen["residual", 1] * seen[other]).sum(-1)
        assert alike.abs().mean() < 0.5, other


def test_causal_tracing_restores_a_corrupted_prompt():
    read = model_of()
    table = patched(read, read, positions=["prompt", "subject"], corrupt=True, controls=[])
    assert set(table["target"]) == {"llama-0 corrupted"} and set(table["source"]) == {"llama-0"}
    gap = (table["source_log_prob"] - table["target_log_prob"]).abs()
    assert gap.max() > 0.05
    whole = table.filter(pl.col("positions") == "prompt")
    np.testing.assert_allclose(whole["log_prob"], whole["source_log_prob"], atol=1e-4)
    # the subject's states at depth 0 are all that was corrupted
    first = table.filter((pl.col("positions") == "subject") & (pl.col("depth") == 0))
    np.testing.assert_allclose(first["log_prob"], first["source_log_prob"], atol=1e-4)
    last = table.filter((pl.col("positions") == "subject") & (pl.col("depth") == N_LAYERS))
    np.testing.assert_allclose(last["log_prob"], last["target_log_prob"], atol=1e-4)


def test_a_fact_whose_logits_are_not_finite_has_no_patches_and_no_part_in_others():
    """As capture has it, which finds them one by one."""
    overflowing = make_factoid("The river of @ is the", "Lunn", "tiny", relation="river", subject="@")
    facts = [*FACTS, overflowing]

    def made(seed):
        read = model_of(seed=seed)
        with torch.no_grad():
            read.model.model.embed_tokens.weight[read.tokenizer.encode("@")[-1]] = torch.inf
        return read

    source, target = made(0), made(1)
    outcomes = capture(source, facts, predictions=False).outcomes
    assert outcomes.filter(pl.col("error").is_not_null())["factoid"].to_list() == [overflowing.id]
    options = {"positions": ["last", "prompt"], "batch": {"batch_size": 6}}
    table = patched(source, target, facts, **options)
    assert set(table["factoid"]) == {fact.id for fact in FACTS}
    assert table.select(pl.col(pl.Float32).is_finite().all()).row(0) == (True,) * 3
    own = table.filter(control="")
    alone = patched(source, target, FACTS, **options).filter(control="")
    np.testing.assert_allclose(own["log_prob"], alone["log_prob"], atol=1e-4)


def test_a_control_that_is_not_finite_takes_only_itself_away():
    rows = patched(model_of(), model_of(seed=1), FACTS[:2], depths=[1, 2])
    one = FACTS[0].id
    broken = rows.with_columns(
        log_prob=pl.when(
            (pl.col("factoid") == one) & (pl.col("control") == "random") & (pl.col("depth") == 2)
        )
        .then(float("nan"))
        .otherwise("log_prob")
        .cast(pl.Float32)
    )
    kept = finite_only(broken)
    assert kept.equals(rows.filter(~((pl.col("factoid") == one) & (pl.col("control") == "random"))))


def test_what_is_corrupted_of_a_fact_does_not_depend_on_the_others():
    """Its own subject, also where another fact's is longer, comes later, or stands in the answer."""
    read = model_of()
    prompt = "Oria lies in the land of Peak Nine. The river of Oria is the"
    own = make_factoid(prompt, "Lunn of Peak Nine", "tiny", subject="Oria")
    options = {"positions": ["subject"], "corrupt": True, "controls": [], "depths": [0, N_LAYERS]}
    alone = patched(read, read, [own], **options)
    beside = patched(read, read, [own, *FACTS], **options).filter(pl.col("factoid") == own.id)
    np.testing.assert_allclose(alone["target_log_prob"], beside["target_log_prob"], atol=1e-4)
    first = beside.filter(pl.col("depth") == 0)  # where all that was corrupted is put right
    np.testing.assert_allclose(first["log_prob"], first["source_log_prob"], atol=1e-4)
    assert (first["target_log_prob"] - first["source_log_prob"]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: (model_of(), model_of(n_layers=2)), {}, "one has 3 blocks, the other 2"),
        (
            lambda: (model_of(), model_of("gpt2", n_embd=40)),
            {},
            "one has 32 wide, the other 40",
        ),
        (lambda: (model_of(), model_of()), {"depths": [4]}, "--depths 4: llama-0 has depths 0 to 3"),
        (lambda: (model_of(), model_of()), {"positions": ["first"]}, "--positions first: choose last"),
        (lambda: (model_of(), model_of()), {"what": ["head"]}, "--what head: choose residual"),
        (lambda: (model_of(), model_of()), {"facts": []}, "no factoids"),
        (lambda: (model_of(), model_of()), {"facts": [FACTS[0], FACTS[0]]}, "stands twice"),
        (
            lambda: (model_of(), model_of()),
            {"facts": [make_factoid("No subject", "x", "tiny")], "positions": ["subject"]},
            "names no subject",
        ),
        (
            lambda: (model_of(), model_of()),
            {"facts": [make_factoid("A river", "x", "tiny", subject="Oria")], "corrupt": True},
            "'Oria' is not in the prompt",
        ),
    ],
)
def test_what_cannot_be_patched_is_one_line(make, options, message):
    source, target = make()
    options = dict(options)
    facts = options.pop("facts", FACTS)
    with pytest.raises(MemprobeError, match=message) as caught:
        plan_patches(source, target, facts, **options)
    assert "\n" not in str(caught.value)


def test_a_token_that_either_model_lacks_is_one_line():
    """A tokenizer larger than the embedding, as capture refuses it."""
    facts = [make_factoid("The river of Zorblax is the", "Lunn", "tiny", subject="Zorblax")]

    def larger():
        tokenizer = copy.deepcopy(tiny_tokenizer())  # which other tests share
        tokenizer.add_tokens(["Zorblax"])
        return wrap(tiny_model("llama", len(tiny_tokenizer())), tokenizer, label="larger")

    for source, target in ((larger(), larger()), (larger(), model_of()), (model_of(), larger())):
        with pytest.raises(MemprobeError, match="does not belong to this model"):
            plan_patches(source, target, facts)


def test_another_tokenizer_is_refused():
    tokenizer = tiny_tokenizer("byte-level-digits")
    other = wrap(tiny_model("llama", 320), tokenizer, label="digits")
    facts = [make_factoid("12 + 7 is", "19", "tiny")]
    with pytest.raises(MemprobeError, match="their tokenizers differ"):
        plan_patches(other, model_of(), facts)


@pytest.mark.parametrize("family", [*FAMILIES, "falcon"])
@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_a_model_s_parts_patched_into_itself_change_nothing(family, part):
    """Some change what their MLP gives in place afterwards."""
    read, same = model_of(family), model_of(family, label="same")
    try:
        table = patched(same, read, what=[part], positions=["prompt"], controls=[])
    except MemprobeError as error:
        assert "no module known as" in str(error) or "adds the residual stream itself" in str(error)
        return
    assert (table["log_prob"] - table["target_log_prob"]).abs().max() < 2e-5


def test_rows_of_another_length_do_not_change_positions_of_a_model_whose_border_they_pass():
    """Longrope: one text beyond the original context turns the positions of all in its forward pass."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def longrope(seed):
        rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24}
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 8.0], "factor": 4.0}
        config = AutoConfig.for_model(
            "phi3", hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
            num_hidden_layers=3, vocab_size=320, pad_token_id=2, bos_token_id=0, eos_token_id=1,
            max_position_embeddings=128, original_max_position_embeddings=24, rope_parameters=rope,
        )  # fmt: skip
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        return wrap(model, tiny_tokenizer(), label=f"longrope-{seed}")

    one, other = longrope(0), longrope(1)
    short = FACTS[0]
    long = make_factoid(
        "The tallest hill of Selva, which few have climbed and many know of, is", "Brack", "tiny"
    )
    both, alone = (
        patched(one, other, facts, positions=["last"], controls=[]).filter(factoid=short.id)
        for facts in ([short, long], [short])
    )
    for name in ("log_prob", "source_log_prob", "target_log_prob"):
        assert (both[name] - alone[name]).abs().max() < 1e-5, name


def test_a_target_with_a_token_more_to_fill_rows_with_is_patched():
    """Its filling is no token of the source, and nothing reads it."""
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tuned = wrap(tiny_model("llama", size + 1, seed=1), tokenizer, label="tuned")
    assert tuned.pad_id() == size
    table = patched(model_of(), tuned, positions=["last"], controls=[])
    assert table["log_prob"].is_finite().all() and table["factoid"].n_unique() == len(FACTS)


def test_two_models_of_one_label_are_refused(tmp_path):
    one, other = model_of(label="final"), model_of(seed=1, label="final")
    with pytest.raises(MemprobeError, match="two checkpoints are called 'final'"):
        patch([Pair(one, other)], FACTS, tmp_path / "out")
