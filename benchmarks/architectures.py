"""Each architecture against a row-by-row reference from the base model, on tiny random models.

    python benchmarks/architectures.py           the architectures of the engine
    python benchmarks/architectures.py --every   every architecture of transformers that can be built tiny

The models and the references are in tests/helpers/, and tests/engine/ tests the bounds. The second table takes some
ten minutes, and docs/reference/architectures.md quotes it.
"""

import logging
import multiprocessing
import sys
from collections import defaultdict

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
from helpers.every_architecture import METHODS, outcome
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from prompt_tuning import add_soft_prompt, prompt_config
from prompt_tuning.encoding.batching import pad_left

TIME_LIMIT = 300  # seconds for an architecture
GREEDY = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)


def losses_and_gradients(base: torch.nn.Module, model: torch.nn.Module) -> tuple:
    """Return the losses of reference and model, and their gradients of the prompt, `[P, H]`, in the same order."""
    weight = model.prompt_encoder["default"].embedding.weight
    expected = reference_loss(base, weight)
    loss = model(**right_padded()).loss
    expected_gradient, gradient = (torch.autograd.grad(value, weight)[0] for value in (expected, loss))
    return expected.item(), loss.item(), expected_gradient, gradient


def outcomes(config_class: type, queue: multiprocessing.Queue) -> None:
    """Put what each method does with an architecture into a queue."""
    logging.disable(logging.WARNING)
    queue.put([outcome(config_class, method) for method in METHODS])


def guarded_outcomes(config_class: type) -> tuple[str, ...]:
    """Return what each method does with an architecture, tried in a process of its own with a time limit."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=outcomes, args=(config_class, queue))
    process.start()
    process.join(TIME_LIMIT)
    if process.is_alive():
        process.kill()
    return tuple(queue.get()) if process.exitcode == 0 else ("wrong: the trial failed",) * len(METHODS)


def print_every_architecture() -> None:
    """Print the architectures of transformers by what the methods do with them."""
    print(f"{describe_machine()}; tiny random models\n")
    config_classes = [*MODEL_FOR_CAUSAL_LM_MAPPING, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING]
    names: dict[tuple[str, ...], list[str]] = defaultdict(list)
    torch.set_num_threads(1)
    for config_class in dict.fromkeys(config_classes):
        group = guarded_outcomes(config_class)
        print(config_class.model_type, *group, sep=" | ", file=sys.stderr, flush=True)
        names[group].append(config_class.model_type)
    rows = []
    for (first, *others), architectures in sorted(names.items()):
        others = ["the same" if outcome == first else outcome for outcome in others]
        rows.append((first, *others, len(architectures), ", ".join(sorted(architectures))))
    print_table((*METHODS, "number", "architectures"), *rows)


def main() -> None:
    if "--every" in sys.argv:
        print_every_architecture()
        return
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
