"""Check the one call of attention that takes segments of any length without padding."""

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import VOCABULARY, build, right_padded
from helpers.models import tiny_llama
from helpers.real_cuda import GPU, IS_REAL

from prompt_tuning.engine.attention import row_by_row, side_by_side, without_padding
from prompt_tuning.engine.row_layout import KeyTree, RowLayout
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

LAYOUTS = {
    "one prompt": dict(prompts=(5,), rows=(6, 2, 11), parents=(0, 0, 0)),
    "several prompts": dict(prompts=(5, 3, 9), rows=(6, 2, 11, 1), parents=(2, 0, 1, 0)),
    "prefixes": dict(rows=(6, 2, 11), parents=(1, 0, 1), before=KeyTree((4, 7), ((), ()), [])),
    "shared texts": dict(prompts=(5, 3), rows=(7, 4, 6, 2, 11, 1), parents=(0, 2, 3, 3, 2, 1)),
    "shared texts behind prefixes": dict(rows=(7, 6, 2), parents=(1, 2, 0), before=KeyTree((5, 3), ((), (0,)), [])),
}
SETTINGS = dict(scale=0.3, dropout=0.0, softcap=None)


def attended(attention, layout, window, device, dtype=torch.float32):
    """Return the values `[1, N, heads, D]` of attention, and the gradients of query, key and value."""
    torch.manual_seed(0)
    num_keys = sum(layout.lengths)
    num_queries = sum(layout.rows) if layout.before else num_keys
    states = [torch.randn(1, num_queries, 4, 8), *(torch.randn(1, num_keys, 2, 8) for _ in range(2))]
    slope = torch.randn(1, num_queries, 4, 8).to(device, dtype)
    states = [tensor.to(device, dtype).requires_grad_() for tensor in states]
    values = attention(*(tensor.transpose(1, 2) for tensor in states), layout, window=window, settings=SETTINGS)
    gradients = torch.autograd.grad(values, states, slope)
    return [tensor.cpu() for tensor in (values.detach(), *gradients)]


@pytest.mark.parametrize("window", [None, 1, 4, 12])
@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_on_an_accelerator_has_the_values_and_gradients_of_single_rows(name, window, on_gpu, any_lengths):
    any_lengths()
    expected = attended(row_by_row, RowLayout(**LAYOUTS[name]), window, "cpu")
    with on_gpu():
        for attention in (side_by_side, without_padding):
            for found, tensor in zip(
                attended(attention, RowLayout(**LAYOUTS[name]), window, GPU), expected, strict=True
            ):
                assert torch.allclose(found, tensor, atol=2e-6)


@pytest.mark.parametrize(
    ("architecture", "dtype", "takes"),
    [
        ("llama", "bfloat16", True),
        ("llama", "float16", True),
        ("llama", "float32", False),
        ("gemma2", "bfloat16", False),
    ],
)
def test_half_precision_takes_one_call_without_a_mask(architecture, dtype, takes, on_gpu, any_lengths, monkeypatch):
    padded = []
    attention = F.scaled_dot_product_attention

    def noted(*args, **kwargs):
        padded.append(1)
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    calls = any_lengths(torch.bfloat16, torch.float16)
    base = build(architecture)
    model = add_soft_prompt(base, prompt_config(base, 5)).to(getattr(torch, dtype))
    with on_gpu():
        model.to(GPU)
        model(**{name: tensor.to(GPU) for name, tensor in right_padded().items()}).loss.backward()
    assert len(calls) == (base.config.num_hidden_layers if takes else 0)
    assert not (takes and padded)


def test_the_waits_of_a_step_without_padding_do_not_grow_with_the_layers(on_gpu, any_lengths):
    any_lengths(torch.float32)
    counts = []
    for layers in (2, 8):
        base = tiny_llama(VOCABULARY, num_hidden_layers=layers)
        model = add_soft_prompt(base, prompt_config(base, 5))
        with on_gpu() as log:
            model.to(GPU)
            batch = {name: tensor.to(GPU) for name, tensor in right_padded().items()}
            log.__init__()
            model(**batch).loss.backward()
            counts.append(log.num_waits)
    assert counts[0] == counts[1] <= 10


@pytest.mark.skipif(not IS_REAL, reason="needs CUDA, which alone has the kernel")
@pytest.mark.parametrize("window", [None, 1, 4, 12])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_kernel_of_cuda_is_near_single_rows(name, window):
    expected = attended(row_by_row, RowLayout(**LAYOUTS[name]), window, "cpu")
    found = attended(without_padding, RowLayout(**LAYOUTS[name]), window, GPU, torch.bfloat16)
    for tensor, exact in zip(found, expected, strict=True):
        assert (tensor.float() - exact).norm() / exact.norm() < 0.02
