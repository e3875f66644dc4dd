"""Run the engine's batches on pretended GPUs: the values of the CPU, few waits, and the kernels that CUDA has fast."""

from itertools import chain

import pytest
import torch
from helpers.architectures import PROMPT, PROMPT_METHODS, ROWS, VOCABULARY, build, left_padded, right_padded
from helpers.models import tiny_llama
from helpers.real_cuda import GPU

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine.likelihood import log_likelihoods
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

ARCHITECTURES = (
    "bloom", "cohere", "gemma2, window 6", "gemma3_text", "gpt2", "granite", "mistral, window 6", "opt", "phi",
    "qwen3",
)  # fmt: skip
CELLS = [("llama", method) for method in PROMPT_METHODS] + [(name, "prompt_tuning") for name in ARCHITECTURES]
UNPADDED = [("llama", "prefix_tuning"), ("gpt2", "prompt_tuning"), ("gemma3_text, window 6", "prompt_tuning")]
SOURCES = [row[:4] for row in ROWS[:1]] + [row[:2] for row in ROWS[1:]]
CHOICES = [[[9], [8]], [[5, 6, 7], [5, 6, 9], [11]], [[30, 31]], [[40], [41, 42, 43, 44], [41]]]


def prompted(base, method="prompt_tuning", length=PROMPT):
    arguments = PromptArguments(**PROMPT_METHODS[method])
    torch.manual_seed(3)
    config = prompt_config(base, length, arguments, ids=range(20, 20 + length))
    size = base.get_input_embeddings().embedding_dim
    initial = torch.randn(length, size) if method in ("prompt_tuning", "residual") else None
    return add_soft_prompt(base, config, initial, arguments.encoder_hidden_size if arguments.residual else None)


def gradient(model):
    return torch.cat([weight.grad.cpu().flatten() for weight in model.parameters() if weight.grad is not None])


def results(model, device="cpu"):
    """Return the loss and gradient of a batch, the text of rows, and the likelihoods of choices, on a device."""
    batch = {name: tensor.to(device) for name, tensor in left_padded().items()}
    loss = model(**batch).loss
    loss.backward()
    sources = {name: tensor.to(device) for name, tensor in pad_left(ROWS, 0).items()}
    text = model.generate(**sources, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    chosen = log_likelihoods(model, SOURCES, CHOICES)
    return loss.detach().cpu(), gradient(model), text.cpu(), torch.tensor(list(chain.from_iterable(chosen)))


@pytest.mark.parametrize(("architecture", "method"), CELLS)
def test_a_gpu_has_the_loss_gradient_text_and_choices_of_the_cpu(architecture, method, on_gpu):
    expected = results(prompted(build(architecture), method))
    model = prompted(build(architecture), method)
    with on_gpu():
        loss, slope, text, chosen = results(model.to(GPU), GPU)
    assert torch.allclose(loss, expected[0], atol=1e-5)
    assert (slope - expected[1]).norm() / expected[1].norm() < 1e-4
    assert torch.equal(text, expected[2])
    assert torch.allclose(chosen, expected[3], atol=1e-4)


@pytest.mark.parametrize(("architecture", "method"), UNPADDED)
def test_a_kernel_for_segments_of_any_length_has_the_results_of_the_cpu(architecture, method, on_gpu, any_lengths):
    calls = any_lengths(torch.float32)
    expected = results(prompted(build(architecture), method))
    model = prompted(build(architecture), method)
    assert not calls
    with on_gpu():
        loss, slope, text, chosen = results(model.to(GPU), GPU)
    assert calls
    assert torch.allclose(loss, expected[0], atol=1e-5)
    assert (slope - expected[1]).norm() / expected[1].norm() < 1e-4
    assert torch.equal(text, expected[2])
    assert torch.allclose(chosen, expected[3], atol=1e-4)


@pytest.mark.parametrize("method", PROMPT_METHODS)
def test_the_waits_of_a_step_are_few_and_do_not_grow_with_the_layers(method, on_gpu):
    counts = []
    for layers in (2, 8):
        model = prompted(tiny_llama(VOCABULARY, num_hidden_layers=layers), method)
        with on_gpu() as log:
            model.to(GPU)
            batch = {name: tensor.to(GPU) for name, tensor in right_padded().items()}
            log.__init__()
            model(**batch).loss.backward()
            counts.append((log.num_waits, log.sorts))
    assert counts[0] == counts[1]
    waits, sorts = counts[0]
    assert waits <= 10
    assert sorts <= 1


def test_the_waits_for_choices_do_not_grow_with_rows_choices_or_layers(on_gpu):
    counts = []
    for layers, rows, choices in ((2, 2, 2), (8, 6, 5)):
        model = prompted(tiny_llama(VOCABULARY, num_hidden_layers=layers))
        sources = [[7, 20 + row, *range(30, 31 + row)] for row in range(rows)]
        texts = [[[40 + choice, 50, 60 + choice] for choice in range(choices)]] * rows
        with on_gpu() as log:
            model.to(GPU)
            log.__init__()
            log_likelihoods(model, sources, texts)
            counts.append((log.num_waits, log.kernels / layers / rows))
    (few_waits, few_kernels), (waits, kernels) = counts
    assert few_waits == waits
    assert kernels < few_kernels  # Each layer copies the keys of all rows at once.
