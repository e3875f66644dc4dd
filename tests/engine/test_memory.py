"""Check what a training step does not keep for its backward pass, and that its gradient stays that of torch."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import PROMPT, build, right_padded
from helpers.benchmarks import load_benchmark

from prompt_tuning.engine import shared_prefix
from prompt_tuning.engine.target_batch import target_loss
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

counted_tokens = load_benchmark("common").counted_tokens
peak_of = load_benchmark("memory").peak_bytes


def step_of(model, batch):
    """Return the peak of a training step, the gradient of the prompt, and the tokens that run through a layer."""
    tokens = counted_tokens(model.get_base_model())
    model.zero_grad()
    peak = peak_of(lambda: model(**batch).loss.backward())
    return peak, model.prompt_encoder["default"].embedding.weight.grad.clone(), tokens[0]


@pytest.mark.parametrize("architecture", ["llama", "gemma"])  # SiLU, and an approximated GELU.
def test_a_step_keeps_no_activation_and_has_the_same_gradient(architecture, monkeypatch):
    base = build(architecture)
    torch.manual_seed(1)
    model = add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, 32)).train()
    peak, gradient, tokens = step_of(model, right_padded())
    monkeypatch.setattr(shared_prefix, "recomputed_activations", nullcontext)
    peak_of_all, expected, _ = step_of(model, right_padded())
    assert torch.equal(gradient, expected)
    sizes = base.config
    kept = sizes.num_hidden_layers - 1  # The layer whose gradient is computed has its activation again.
    assert peak_of_all - peak == 4 * tokens * sizes.intermediate_size * kept


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_torch_and_needs_one_more_tensor_of_the_logits_size(label_smoothing):
    torch.manual_seed(0)
    logits = (torch.randn(12, 1000) * 5).requires_grad_()
    targets = torch.randint(0, 1000, (12,))
    targets[3] = -100
    with torch.no_grad():
        logits += 30
        logits[0, targets[0]] += 50  # The model is all but sure of this target.
        logits[1, targets[1]] += 20
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="sum", label_smoothing=label_smoothing) / 4
    loss = target_loss(logits, targets, 4, label_smoothing)
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=1e-6)
    by_logits, by_exact = torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, exact)[0]
    torch.testing.assert_close(by_logits.double(), by_exact, atol=1e-7, rtol=0)
    peak = peak_of(lambda: torch.autograd.grad(target_loss(logits, targets, 4, label_smoothing), logits))
    assert peak < 1.1 * 4 * logits.numel()
