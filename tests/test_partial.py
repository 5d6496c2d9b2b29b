"""Taking up a forward pass at a depth, against hooks on the whole model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from memprobe.errors import MemprobeError
from memprobe.interventions import Put, applied
from memprobe.models import wrap
from memprobe.modes import evaluating
from memprobe.partial import Copy, Inside, Swap, check_partial, finish, run_whole
from tests.tiny import FAMILIES, N_LAYERS, tiny_model, tiny_tokenizer

LENGTHS = (11, 8, 5)
PARTLESS = {"opt", "opt-projected", "opt-post-norm", "bloom"}


def model_of(family="llama", seed=0, **changes):
    tokenizer = tiny_tokenizer()
    return wrap(tiny_model(family, len(tokenizer), seed=seed, **changes), tokenizer, label=family)


def batch():
    random = torch.Generator().manual_seed(1)
    ids = torch.full((len(LENGTHS), max(LENGTHS)), 2)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(5, 300, (length,), generator=random)
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_on_from_every_depth(family):
    read, other = model_of(family), model_of(family, seed=1)
    ids = batch()
    with evaluating(read.model), evaluating(other.model):
        cached = check_partial(read)
        assert cached, "every family here keeps keys and values"
        run = run_whole(read, ids, keys_values=True)
        theirs = run_whole(other, ids).streams
        for start in (0, 4):
            columns = [4, 6]
            copies, wanted = [], []
            for depth in range(N_LAYERS + 1):
                edited = run.streams[depth].clone()
                edited[:, columns] = theirs[depth][:, columns]
                copies.append(Copy(depth, lambda stream=edited[:, start:]: stream))
                with applied(read, Put(depth, theirs[depth][:, columns], positions=columns)):
                    wanted.append(run_whole(read, ids).streams[-1][:, start:])
            for at_once in (1, 3, None):
                found = torch.cat(list(finish(read, run, copies, start=start, at_once=at_once)))
                torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)
            # in any order
            found = torch.cat(list(finish(read, run, copies[::-1], start=start)))
            torch.testing.assert_close(found, torch.stack(wanted[::-1]), atol=1e-5, rtol=1e-5)
    assert not any(module.__dict__.get("forward") for module in read.model.modules())


@pytest.mark.parametrize("heads", [2, 3, 4, 5, 6])
def test_what_all_rows_share_is_not_cut_as_rows(heads):
    """MPT gives its blocks a bias of [heads, 1, position]; heads may be as many as rows, or copies, or both times."""
    tokenizer = tiny_tokenizer()
    shape = {"d_model": heads * 8, "n_heads": heads, "n_layers": N_LAYERS, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    read = wrap(
        AutoModelForCausalLM.from_config(AutoConfig.for_model("mpt", **shape)), tokenizer, label="mpt"
    )
    ids = batch()
    with evaluating(read.model):
        check_partial(read)
        run = run_whole(read, ids)
        copies = [Copy(depth, lambda depth=depth: run.streams[depth]) for depth in range(N_LAYERS + 1)] * 2
        for at_once in (1, 2, 3, 4, 5):
            for found in finish(read, run, copies, at_once=at_once):
                torch.testing.assert_close(found, run.streams[-1].expand_as(found), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_itself_comes_back_bit_for_bit(family):
    read = model_of(family)
    with evaluating(read.model):
        run = run_whole(read, batch())
        copies = [Copy(depth, lambda depth=depth: run.streams[depth]) for depth in range(N_LAYERS + 1)]
        for found in finish(read, run, copies, at_once=1):
            assert torch.equal(found[0], run.streams[-1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_parts_are_put_inside_their_block(family, part):
    read, other = model_of(family), model_of(family, seed=1)
    ids = batch()
    if family in PARTLESS and not (family != "bloom" and part == "attn"):
        with pytest.raises(MemprobeError) as caught:
            run_whole(read, ids, parts=[part])
        assert "\n" not in str(caught.value)
        return
    with evaluating(read.model), evaluating(other.model):
        run = run_whole(read, ids, keys_values=True, parts=[part])
        values = run_whole(other, ids, parts=[part]).outputs[part]
        start, columns = 4, [4, 6]
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        mask[:, columns] = True
        copies, wanted = [], []
        for block in range(1, N_LAYERS + 1):
            inside = Inside(part, values[block - 1][:, start:], mask[:, start:])
            copies.append(Copy(block - 1, lambda block=block: run.streams[block - 1][:, start:], inside))
            with applied(read, Put(block, values[block - 1][:, columns], positions=columns, part=part)):
                wanted.append(run_whole(read, ids).streams[-1][:, start:])
        found = torch.cat(list(finish(read, run, copies, start=start)))
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_other_weights_in_some_blocks_only():
    read, other = model_of(), model_of(seed=1)
    ids = batch()
    weights = {
        block: list(
            zip(
                read.blocks[block - 1].parameters(),
                [p.data for p in other.blocks[block - 1].parameters()],
                strict=True,
            )
        )
        for block in range(1, N_LAYERS + 1)
    }
    before = {name: tensor.clone() for name, tensor in read.model.state_dict().items()}
    windows = [(first, last) for first in range(1, N_LAYERS + 1) for last in range(first, N_LAYERS + 1)]
    with evaluating(read.model):
        run = run_whole(read, ids)
        copies = []
        for first, last in windows:
            swap = Swap("all", range(first, last + 1), weights.__getitem__)
            copies.append(Copy(first - 1, lambda first=first: run.streams[first - 1], swap=swap))
        found = torch.cat(list(finish(read, run, copies)))
    assert all(torch.equal(before[name], tensor) for name, tensor in read.model.state_dict().items())
    for (first, last), stream in zip(windows, found, strict=True):
        grafted = model_of()
        for block in range(first, last + 1):
            grafted.blocks[block - 1].load_state_dict(other.blocks[block - 1].state_dict())
        with evaluating(grafted.model):
            torch.testing.assert_close(stream, run_whole(grafted, ids).streams[-1], atol=1e-5, rtol=1e-5)


def test_blocks_that_need_their_model_are_refused_in_one_line():
    read = model_of()
    counter = [0]
    own = read.blocks[1].forward

    def odd(*args, **kwargs):
        counter[0] += 1
        return own(*args, **kwargs) * (1 + counter[0])

    read.blocks[1].forward = odd
    with pytest.raises(MemprobeError, match="cannot be patched") as caught:
        check_partial(read)
    assert "\n" not in str(caught.value)
    assert read.blocks[1].forward is odd


def test_rounding_that_the_model_itself_shows_between_batches_is_no_fault(monkeypatch):
    """As on an accelerator: another number of rows takes other kernels, whose results differ in the last digits."""
    read = model_of()
    own = read.blocks[1].forward

    def rounded(states, *args, **kwargs):
        found = own(states, *args, **kwargs)
        return found * (1 + 1e-5 * len(states))

    monkeypatch.setattr(read.blocks[1], "forward", rounded)
    monkeypatch.setattr("memprobe.partial.tolerance", lambda *_: 1e-5)
    check_partial(read)
    monkeypatch.setattr("memprobe.partial._MOST_ROUNDING", 0.0)
    with pytest.raises(MemprobeError, match="cannot be patched"):
        check_partial(read)
