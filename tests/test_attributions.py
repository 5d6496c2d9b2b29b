"""What blocks write towards a logit: sums against the model's own logits, parts against TransformerLens and by hand."""

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from memprobe.attributions import Source, Split, attribute, attribute_all, find_split, hold
from memprobe.errors import MemprobeError
from memprobe.factoids import make_factoid
from memprobe.models import CHECK_TEXT, load, to_bridge, wrap
from memprobe.modes import evaluating
from memprobe.planning import plan_capture
from memprobe.records import ATTRIBUTIONS
from memprobe.templates import Template
from tests import oracle
from tests.tiny import FAMILIES, N_LAYERS, save_tiny, tiny_model, tiny_tokenizer

FACTS = [
    make_factoid(f"The river of {name} is the", answer, "tiny", relation="river", subject=name)
    for name, answer in (
        ("Oria", "Lunn"), ("Selva", "Brack"), ("Tolm", "Ister of the north"), ("the wide hills of Selva", "Nine")
    )
]  # fmt: skip


def model_of(family="llama", seed=0, **changes):
    tokenizer = tiny_tokenizer()
    return wrap(tiny_model(family, len(tokenizer), seed=seed, **changes), tokenizer, label=f"{family}-{seed}")


def attributions(read, facts=FACTS, split=None):
    plan = plan_capture(read, facts, Template.parse("plain"))
    return pl.concat(attribute(read, plan, split=split)), plan


def own_logits(read, plan):
    """The model's own logits [vocab] for each answer token, one forward pass each, before a softcap."""
    found = {}
    cap = getattr(read.model.config, "final_logit_softcapping", None)
    for item in plan.items:
        for j in range(len(item.answer)):
            ids = torch.tensor([[*item.prompt, *item.lead, *item.answer[:j]]])
            with evaluating(read.model):
                logits = read.model(input_ids=ids, use_cache=False).logits[0, -1].double()
            found[item.factoid.id, j] = logits if cap is None else cap * torch.atanh(logits / cap)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_sum_to_the_models_own_logit(family):
    read = model_of(family)
    table, plan = attributions(read, split=find_split(read))
    assert table.schema == ATTRIBUTIONS
    whole = table.filter(pl.col("part").is_in(["embedding", "constant", "block"]))
    sums = whole.group_by("factoid", "token", "token_id").agg(pl.col("logit").cast(pl.Float64).sum())
    logits = own_logits(read, plan)
    assert len(sums) == len(logits) == sum(len(item.answer) for item in plan.items)
    for factoid, token, token_id, logit in sums.iter_rows():
        own = logits[factoid, token]
        centred = float(own[token_id] - own.mean())
        # 1e-3 of the logit's size; near zero, of the vocabulary's spread
        assert abs(logit - centred) <= 1e-3 * max(abs(centred), float(own.std())), (factoid, token)
    assert set(table.filter(part="block")["depth"]) == set(range(1, N_LAYERS + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_add_up_to_the_block(family):
    read = model_of(family)
    split = find_split(read)
    if family == "opt-post-norm":  # its last norm stands between the sum and the stream
        assert split is None
        assert set(attributions(read, split=split)[0]["part"]) == {"embedding", "constant", "block"}
        return
    assert split is not None
    table, _ = attributions(read, split=split)
    wide = table.filter(pl.col("depth") > 0).pivot(
        "part", index=["factoid", "token", "depth"], values="logit"
    )
    np.testing.assert_allclose(wide["attn"] + wide["mlp"], wide["block"], atol=2e-4)
    assert wide["attn"].abs().min() > 0 and wide["mlp"].abs().min() > 0


PARTS = {
    "llama": (Source("self_attn"), Source("mlp")),
    "gemma2": (Source("post_attention_layernorm"), Source("post_feedforward_layernorm")),
    "gemma3": (Source("post_attention_layernorm"), Source("post_feedforward_layernorm")),
    "olmo2": (Source("post_attention_layernorm"), Source("post_feedforward_layernorm")),
    "granite": (Source("self_attn", 0.7), Source("mlp", 0.7)),
    "gpt-neox": (Source("attention"), Source("mlp")),
    "phi": (Source("self_attn"), Source("mlp")),
    "falcon": (Source("self_attention"), Source("mlp")),
    "cohere": (Source("self_attn"), Source("mlp")),
    "bloom": (Source("self_attention", less="block"), Source("mlp", less="attn")),
    "opt": (Source("self_attn"), Source("fc2")),
}


@pytest.mark.parametrize("family", PARTS)
def test_where_the_parts_are_read(family):
    assert find_split(model_of(family)) == Split(*PARTS[family])


@pytest.mark.parametrize(
    "family", [name for name in PARTS if name.startswith(("gemma", "granite", "olmo", "glm"))]
)
def test_parts_are_told_apart_in_a_coarse_format_beside_a_state_that_is_far_larger(family):
    """Rounding is of each position's own size: beside a far larger one anything seemed to add up."""
    read = model_of(family)
    with torch.no_grad():
        first = read.tokenizer.encode(CHECK_TEXT)[0]
        read.model.get_input_embeddings().weight[first] *= 300
    read.model.to(torch.bfloat16)
    assert find_split(read) == Split(*PARTS[family])


@pytest.mark.parametrize("family", [*PARTS, "gpt2", "qwen3"])
def test_an_ablated_part_takes_its_contribution_along(family):
    """In the last block, without a later one to answer: logits before the norm's scale changes, by hand in fp64."""
    read = model_of(family)
    # In a parallel block neither sees the other; else the MLP would see that the attention is gone.
    parallel = family in ("falcon", "gpt-neox", "phi", "cohere")
    parts = ("attn", "mlp") if parallel else ("mlp",)
    table, plan = attributions(read, split=find_split(read))
    item = plan.items[0]
    ids = [*item.prompt, *item.lead]
    streams = oracle.residuals(read.model, ids)[:, -1]
    last = read.blocks[-1]
    for part in parts:
        mean = _last_stream_without(read, last, part, ids)
        with torch.inference_mode():
            tokens = torch.tensor([[item.answer[0]]])
            held = hold(read.lens.readout, torch.tensor(streams[-1:]).float(), tokens)
        wanted = float(held.direction[0, 0].double() @ torch.tensor(streams[-1] - mean))
        row = table.filter(factoid=item.factoid.id, token=0, depth=N_LAYERS, part=part)
        assert row["logit"][0] == pytest.approx(wanted, abs=2e-3)


def _last_stream_without(read, block, part, ids):
    """The last stream where every linear layer that ends a part gives nothing."""
    split = find_split(read)
    source = split.attn if part == "attn" else split.mlp
    module = block.get_submodule(source.module)
    kept = {}

    def silence(_, args, output):
        value = output[0] if isinstance(output, tuple) else output
        nothing = torch.zeros_like(value)
        if source.less:  # BLOOM's modules add the stream themselves; it is their second argument
            nothing = args[1].clone()
        return (nothing, *output[1:]) if isinstance(output, tuple) else nothing

    def keep(_, __, output):
        kept["stream"] = output[0] if isinstance(output, tuple) else output

    handles = [module.register_forward_hook(silence), block.register_forward_hook(keep)]
    with evaluating(read.model):
        read.model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return kept["stream"][0, -1].double().numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "qwen2"])
def test_transformer_lens_agrees(family, tmp_path):
    from transformer_lens.tools.analysis import direct_logit_attribution

    save_tiny(tmp_path / "tiny", family)
    read = load(str(tmp_path / "tiny"))
    table, plan = attributions(read, split=find_split(read))
    bridge = to_bridge(load(str(tmp_path / "tiny")))
    bridge.enable_compatibility_mode(disable_warnings=True)
    bridge.eval()
    item = plan.items[0]
    weight = bridge.W_U
    found = direct_logit_attribution(
        bridge,
        torch.tensor([[*item.prompt, *item.lead]]),
        answer_tokens=torch.tensor([item.answer[0]]),
        unit="component",
    )
    theirs = dict(zip(found.labels, found.attribution[:, 0].tolist(), strict=True))
    ours = table.filter(factoid=item.factoid.id, token=0)
    # Its unembedding must be centred, as ours is; else the mean over the vocabulary would stand between.
    assert float(weight.mean(-1).abs().max()) < 1e-5
    for depth in range(1, N_LAYERS + 1):
        for part, name in (("attn", "attn_out"), ("mlp", "mlp_out")):
            own = ours.filter(depth=depth, part=part)["logit"][0]
            assert own == pytest.approx(theirs[f"{depth - 1}_{name}"], abs=2e-3), (depth, part)


def test_shuffled_answers_are_attributed_by_the_same_rule():
    read = model_of()
    facts = [
        make_factoid(f"The river of {name} is the", answer, "tiny", relation="river")
        for name, answer in (("Oria", "cold"), ("Selva", "hot"), ("Tolm", "Paris"))
    ]
    lone = make_factoid("The hill of Oria is", "Grey", "other", relation="hill")
    table, plan = attributions(read, [*facts, lone])
    item = plan.items[0]
    others = [draw[0] for draw in plan.shuffled[item.factoid.id] if draw is not None]
    assert len(others) == 5 and item.answer[0] not in others
    streams = torch.tensor(oracle.residuals(read.model, [*item.prompt, *item.lead])[:, -1]).float()
    with torch.inference_mode():
        held = hold(read.lens.readout, streams[-1:], torch.tensor([others]))
        wanted = float((held.direction[0] @ (streams[2] - streams[1])).mean())
    row = table.filter(factoid=item.factoid.id, token=0, depth=2, part="block")
    assert row["shuffled"][0] == pytest.approx(wanted, abs=1e-3)
    each = row["shuffled_draws"][0]
    assert len(each) == 5 and sum(each) / 5 == pytest.approx(wanted, abs=1e-3)
    assert table.filter(factoid=lone.id)["shuffled"].is_null().all()
    assert table.filter(factoid=facts[0].id, token=0)["shuffled"].is_not_null().all()


def test_batches_and_padding_do_not_matter(monkeypatch):
    from memprobe import attributions as module

    read = model_of("falcon")
    split = find_split(read)
    together, _ = attributions(read, split=split)
    monkeypatch.setattr(module, "BATCH_TOKENS", 1)
    alone, _ = attributions(read, split=split)
    keys = ["factoid", "token", "depth", "part"]
    both = together.join(alone, on=keys, suffix="_alone")
    assert len(both) == len(together) == len(alone)
    np.testing.assert_allclose(both["logit"], both["logit_alone"], atol=1e-4)


def test_what_is_done_is_left_out():
    read = model_of()
    plan = plan_capture(read, FACTS, Template.parse("plain"))
    left = pl.concat(attribute(read, plan, done=frozenset({FACTS[0].id})))
    assert set(left["factoid"]) == {fact.id for fact in FACTS[1:]}


def test_a_fact_whose_logits_are_not_finite_is_attributed_nothing():
    """Its parts are no numbers, and would be in every mean."""
    read = model_of()
    overflowing = make_factoid("The river of @ is the", "Lunn", "tiny", relation="river", subject="@")
    with torch.no_grad():
        read.model.model.embed_tokens.weight[read.tokenizer.encode("@")[-1]] = torch.inf
    plain = Template.parse("plain")
    table, _ = attribute_all(read, plan_capture(read, [*FACTS, overflowing], plain))
    assert set(table["factoid"]) == {fact.id for fact in FACTS}
    assert table["logit"].is_finite().all()
    assert attribute_all(read, plan_capture(read, [overflowing], plain))[0].is_empty()


class Cubed(nn.Module):
    """A norm of no known kind."""

    def forward(self, x):
        return x**3


@pytest.mark.parametrize("target,refused", [("q_proj", False), ("lm_head", True)])
def test_a_head_that_is_more_than_its_weight_is_refused(target, refused):
    """An adapter over the output head is no part of the head's own weight, by which parts would be told."""
    peft = pytest.importorskip("peft")
    tokenizer = tiny_tokenizer()
    config = peft.LoraConfig(r=4, target_modules=[target], init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_model("llama", vocab_size=len(tokenizer)), config)
    read = wrap(adapted, tokenizer, label="adapted")
    if refused:
        with pytest.raises(MemprobeError, match=r"attributions: the output head .* merge its adapter first"):
            attributions(read)
    else:
        assert len(attributions(read)[0])


def test_a_norm_that_cannot_be_held_is_refused():
    read = model_of()
    read.lens.readout.final[0] = Cubed()
    with pytest.raises(MemprobeError, match="Cubed is neither an RMS nor a layer norm") as caught:
        hold(read.lens.readout, torch.randn(2, read.d_model), torch.tensor([[1], [2]]))
    assert "\n" not in str(caught.value)


class Scaled(nn.Module):
    """A block whose parts are weighted in a way that no formula here knows."""

    def __init__(self, block):
        super().__init__()
        self.self_attn, self.mlp = block.self_attn, block.mlp
        self.input_layernorm, self.post_attention_layernorm = (
            block.input_layernorm,
            block.post_attention_layernorm,
        )

    def forward(self, hidden_states, **kwargs):
        hidden_states = hidden_states + 0.3 * self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + 1.7 * self.mlp(self.post_attention_layernorm(hidden_states))


def test_blocks_that_do_not_add_up_are_given_whole():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    model.model.layers[1] = Scaled(model.model.layers[1])
    read = wrap(model, tokenizer)
    assert find_split(read) is None
    table, plan = attributions(read)
    sums = table.group_by("factoid", "token", "token_id").agg(pl.col("logit").sum())
    logits = own_logits(read, plan)
    for factoid, token, token_id, logit in sums.iter_rows():
        own = logits[factoid, token]
        assert logit == pytest.approx(float(own[token_id] - own.mean()), abs=1e-2)
