"""Each architecture against a row-by-row reference from the base model, on tiny random models.

    python benchmarks/architectures.py

The models and the reference are in tests/helpers/architectures.py, and tests/engine/test_architectures.py tests the
bounds.
"""

import sys

import torch
from common import ROOT, describe_machine, print_table

sys.path.insert(0, str(ROOT / "tests"))
from helpers.architectures import (
    PROMPT,
    ROWS,
    SETTINGS,
    build,
    left_padded,
    reference_greedy,
    reference_loss,
    right_padded,
)

from prompt_tuning import add_soft_prompt, prompt_config
from prompt_tuning.encoding.batching import pad_left

GREEDY = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)


def losses_and_gradients(base: torch.nn.Module, model: torch.nn.Module) -> tuple:
    """Return the losses of reference and model, and their gradients of the prompt, `[P, H]`, in the same order."""
    weight = model.prompt_encoder["default"].embedding.weight
    expected = reference_loss(base, weight)
    loss = model(**right_padded()).loss
    expected_gradient, gradient = (torch.autograd.grad(value, weight)[0] for value in (expected, loss))
    return expected.item(), loss.item(), expected_gradient, gradient


def main() -> None:
    print(f"{describe_machine()}; seed 0; loss absolute, gradient relative; bfloat16 under autocast, both sides\n")
    rows = [
        ("architecture", "training step", "loss", "loss, padded left", "gradient", "greedy text alone = in a batch",
         "loss, bfloat16 (relative)", "gradient, bfloat16 (cosine)")
    ]  # fmt: skip
    for name in SETTINGS:
        base = build(name)
        torch.manual_seed(1)
        size = base.get_input_embeddings().embedding_dim
        model = add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, size))
        weight = model.prompt_encoder["default"].embedding.weight

        expected, loss, expected_gradient, gradient = losses_and_gradients(base, model)
        loss_padded_left = model(**left_padded()).loss.item()
        batch = pad_left(ROWS, 0)
        texts = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :].tolist()
        same = sum(text == reference_greedy(base, weight, row, 8) for text, row in zip(texts, ROWS, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            expected_half, loss_half, *gradients_half = losses_and_gradients(base, model)
        cosine = torch.cosine_similarity(*(gradient.flatten() for gradient in gradients_half), 0).item()
        rows.append(
            (
                name,
                model.execution_path.name,
                f"{abs(loss - expected):.0e}",
                f"{abs(loss_padded_left - expected):.0e}",
                f"{((gradient - expected_gradient).norm() / expected_gradient.norm()).item():.0e}",
                f"{same} of {len(ROWS)}",
                f"{abs(loss_half - expected_half) / expected_half:.0e}",
                f"{cosine:.4f}",
            )
        )
    print_table(*rows)


if __name__ == "__main__":
    main()
