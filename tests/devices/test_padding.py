"""Check what attention on an accelerator computes: little padding, few shapes, and what fast kernels of CUDA take."""

import random
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import SIZES, VOCABULARY, build, right_padded
from helpers.models import tiny_llama
from helpers.real_cuda import GPU
from torch.backends import cuda

from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine.padded_segments import groups_of_like_length, rounded
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config


class Call(NamedTuple):
    """A call of attention: the shapes of queries and keys, and whether it has a mask, groups of heads and cuDNN."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    mask: bool
    groups: bool
    cudnn: bool


@pytest.fixture
def calls(monkeypatch):
    """Return the calls of attention."""
    made = []
    attention = F.scaled_dot_product_attention

    def noted(query, key, value, attn_mask=None, *args, enable_gqa=False, **kwargs):
        masked = attn_mask is not None
        made.append(Call(tuple(query.shape), tuple(key.shape), masked, enable_gqa, cuda.cudnn_sdp_enabled()))
        return attention(query, key, value, attn_mask, *args, enable_gqa=enable_gqa, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return made


def areas(lengths, before):
    """Return how many scores the calls compute, and how many the segments need."""
    groups = groups_of_like_length(lengths, before)
    assert sorted(number for group in groups for number in group.segments) == list(range(len(lengths)))
    for segments, width, reach in groups:
        for number in segments:
            assert width >= lengths[number]
            assert reach >= before[number] + width  # Else a padded query would see nothing.
    computed = sum(len(segments) * width * reach for segments, width, reach in groups)
    return computed, sum(length * (length + first) for length, first in zip(lengths, before, strict=True))


@pytest.mark.parametrize(("prompt", "rows"), [(1000, [100] * 32), (100, [250] * 16), (1000, [60, 120, 500, 1000])])
def test_a_long_prompt_does_not_pad_rows(prompt, rows):
    computed, needed = areas([prompt, *rows], [0, *[prompt] * len(rows)])
    assert computed <= 1.5 * needed


@pytest.mark.parametrize(("prompt", "ratio"), [(20, 2.11), (100, 1.66), (1000, 1.28)])
def test_rows_of_100_have_the_padding_that_docs_engine_md_names(prompt, ratio):
    computed, needed = areas([prompt, *[100] * 32], [0, *[prompt] * 32])
    assert round(computed / needed, 2) == ratio


def test_any_lengths_are_padded_to_at_most_half_more_than_their_rounded_widths():
    random.seed(0)
    for _ in range(100):
        lengths = [random.choice([random.randint(1, 70), random.randint(1, 2000)]) for _ in range(30)]
        before = [0, *[lengths[0]] * 29]
        computed, _ = areas(lengths, before)
        widths = [rounded(length) for length in lengths]
        needed = sum(width * rounded(width + first) for width, first in zip(widths, before, strict=True))
        assert computed <= 1.5 * needed
        assert len(groups_of_like_length(lengths, before)) <= 8


def test_many_steps_have_few_shapes_and_no_call_has_both_a_mask_and_groups_of_heads(on_gpu, calls):
    base = tiny_llama(VOCABULARY, num_hidden_layers=1)
    assert SIZES["num_key_value_heads"] < SIZES["num_attention_heads"]
    model = add_soft_prompt(base, prompt_config(base, 5))
    random.seed(0)
    with on_gpu():
        model.to(GPU)
        for _ in range(8):
            ids = torch.randint(2, VOCABULARY, (4, random.randint(70, 120)), device=GPU)
            model(input_ids=ids, labels=ids)
    assert len(calls) >= 8
    assert len({(call.query[2], call.key[2]) for call in calls}) <= 3
    assert all(call.query[1] == call.key[1] for call in calls)
    assert not any(call.mask and call.groups for call in calls)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral, window 6", "starcoder2"])
def test_generation_has_no_call_with_both_a_mask_and_groups_of_heads(architecture, on_gpu, calls):
    base = build(architecture)
    model = add_soft_prompt(base, prompt_config(base, 4))
    with on_gpu():
        model.to(GPU)
        rows = {name: tensor.to(GPU) for name, tensor in pad_left([[5, 6, 7], [8, 9]], 0).items()}
        model.generate(**rows, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert calls
    assert not any(call.mask and call.groups for call in calls)


@pytest.mark.parametrize("efficient", [True, False])
def test_cudnn_which_plans_for_each_shape_is_taken_only_if_the_user_chose_kernels(efficient, on_gpu, calls):
    base = tiny_llama(VOCABULARY, num_hidden_layers=1)
    model = add_soft_prompt(base, prompt_config(base, 5))
    before = cuda.mem_efficient_sdp_enabled()
    cuda.enable_mem_efficient_sdp(efficient)
    try:
        with on_gpu():
            model.to(GPU)
            batch = {name: tensor.to(GPU) for name, tensor in right_padded().items()}
            model(**batch)
            num_packed = len(calls)
            del batch["labels"]
            model.generate(**batch, max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=None)
    finally:
        cuda.enable_mem_efficient_sdp(before)
    assert 0 < num_packed < len(calls)
    assert {call.cudnn for call in calls} == {not efficient}
    assert cuda.cudnn_sdp_enabled()
