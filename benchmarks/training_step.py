"""One training step, as Trainer takes it: PEFT's forward against the engine, plain and with compiled layers.

    python benchmarks/training_step.py [PAIRS] [CASE]

It prints seconds, the median of paired ratios, and how far loss and gradient are apart. It also prints the time of the
step's matrix products with the model's shapes, which no implementation of the same mathematics can beat. The last case
takes other batches in each turn: those of an epoch in groups of like length, and those that keep rows of a passage
together (`group_shared: 4`). CASE is the start of a case's name.
"""

import statistics
import sys
import tempfile

import torch
import torch.nn.functional as F
from common import (
    base_model,
    describe_machine,
    paired_seconds,
    print_table,
    quickstart_rows,
    random_batch,
    ratio,
    seconds,
    soft_prompt,
    tokenizer,
    trainer_step,
)
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq

from prompt_tuning import Encoder, Template
from prompt_tuning.training.sampling import EpochSampler
from prompt_tuning.training.shared_text import SharedText, text_families

CASES = {
    "P=20, B=8, random rows of 64..128 tokens": (20, lambda: random_batch(8, 128)),
    "P=100, B=16, random rows of 32..64 tokens": (100, lambda: random_batch(16, 64)),
    "P=131, B=8, quickstart rows": (131, lambda: real_batch(8)),
}

GROUPED = "one epoch of the quickstart's rows, P=131, B=8, each way with its best order"


def real_batch(rows: int) -> dict[str, torch.Tensor]:
    """Return a batch of the quickstart's rows."""
    words = tokenizer()
    encoder = Encoder(Template.load("question_answering/instruction_last"), words)
    encoded = [encoder.row(row) for row in quickstart_rows("train")[:rows]]
    return dict(DataCollatorForSeq2Seq(words)([{k: row[k] for k in ("input_ids", "labels")} for row in encoded]))


def product_seconds(base: torch.nn.Module, tokens: int, targets: int) -> float:
    """Measure the step's matrix products with the frozen weights, forward and for the input's gradient, in seconds."""
    shapes = {}
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear):
            shape = (targets if name == "lm_head" else tokens, *module.weight.shape)
            shapes[shape] = shapes.get(shape, 0) + 1
    total = 0.0
    for (rows, width, size), count in shapes.items():
        inputs, weight, gradient = torch.randn(rows, size), torch.randn(width, size), torch.randn(rows, width)
        F.linear(inputs, weight)
        calls = [seconds(lambda: F.linear(inputs, weight)) + seconds(lambda: gradient @ weight) for _ in range(9)]  # noqa: B023
        total += count * statistics.median(calls)
    return total


def steps(length: int, batch: dict[str, torch.Tensor], folder: str):
    """Return a function that runs a training step, and the model, by name."""
    variants = {}
    for name in ("PEFT", "engine", "engine, torch_compile"):
        model = soft_prompt(base_model(), length, engine=name != "PEFT")
        settings = {"torch_compile": True} if "compile" in name else {}
        step = trainer_step(model, batch, folder, tokenizer(), use_cpu=True, **settings)
        variants[name] = (step, model)
    return variants


def measure(case: str, folder: str, turns: int) -> None:
    """Print the table of a case."""
    length, make = CASES[case]
    batch = make()
    variants = steps(length, batch, folder)
    tokens = []
    mlp = variants["engine"][1].get_base_model().model.layers[0].mlp
    hook = mlp.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[:2].numel()))
    losses, gradients, first = {}, {}, {}
    for name, (step, model) in variants.items():
        first[name] = seconds(lambda step=step, name=name: losses.update({name: step().item()}))
        gradients[name] = model.prompt_encoder["default"].embedding.weight.grad.clone()
    hook.remove()
    times = paired_seconds({name: step for name, (step, _) in variants.items()}, turns)
    expected = gradients["PEFT"]
    rows = [("way", "seconds", "times PEFT's speed", "loss", "gradient off by", "warm-up", "share of product rate")]
    products = product_seconds(variants["PEFT"][1].get_base_model(), tokens[0], int((batch["labels"] != -100).sum()))
    for name in variants:
        off = ((gradients[name] - expected).norm() / expected.norm()).item()
        median = statistics.median(times[name])
        rows.append(
            (
                name,
                f"{median:.2f}",
                f"{ratio(times['PEFT'], times[name]):.2f}",
                f"{losses[name]:.5f}",
                f"{off:.0e}",
                f"{first[name]:.0f} s" if "compile" in name else "",
                "" if name == "PEFT" else f"{products / median:.0%}",
            )
        )
    print(f"**{case}**, {turns} pairs\n")
    print_table(*rows)
    bound = statistics.median(times["PEFT"]) / products
    padded = batch["input_ids"].shape[0] * (length + batch["input_ids"].shape[1])
    print(
        f"The engine runs {tokens[0]} tokens through each layer, PEFT {padded}. The engine's matrix products alone "
        f"take {products:.2f} s, so at this rate no step could have more than {bound:.2f} times PEFT's speed.\n"
    )


def epoch_batches(turns: int, group_shared: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of 8 from the order of an epoch of the quickstart's rows, evenly spread over it."""
    words = tokenizer()
    encoder = Encoder(Template.load("question_answering/instruction_last"), words)
    columns = [encoder.row(row) for row in quickstart_rows("train")]
    rows = Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in columns])
    shared_text = SharedText(text_families(rows), group_shared, 8) if group_shared > 1 else None
    order = list(EpochSampler(8, [len(ids) for ids in rows["input_ids"]], 42, shared_text=shared_text))
    starts = range(0, len(order) - 7, 8)
    chosen = [starts[len(starts) * turn // turns] for turn in range(turns)]
    return [dict(DataCollatorForSeq2Seq(words)([rows[n] for n in order[start : start + 8]])) for start in chosen]


def measure_epoch(folder: str, turns: int) -> None:
    """Print the table of the last case."""
    words = tokenizer()
    tokens: dict[str, list[int]] = {}
    calls = {}
    batches = {"by length": epoch_batches(turns + 1, 1), "by passage": epoch_batches(turns + 1, 4)}
    for name, order in (("PEFT", "by length"), ("engine", "by length"), ("engine, group_shared 4", "by passage")):
        model = soft_prompt(base_model(), 131, engine=name != "PEFT")
        counts = tokens.setdefault(name, [])
        mlp = model.get_base_model().model.layers[0].mlp
        mlp.register_forward_hook(
            lambda module, inputs, output, counts=counts: counts.append(output.shape[:2].numel())
        )
        steps = iter([trainer_step(model, batch, folder, words, use_cpu=True) for batch in batches[order]])
        calls[name] = lambda steps=steps: next(steps)()
    times = paired_seconds(calls, turns)
    rows = [("way", "seconds", "times PEFT's speed", "tokens of a batch through each layer")]
    for name, counts in tokens.items():
        speed = f"{ratio(times['PEFT'], times[name]):.2f}"
        rows.append((name, f"{statistics.median(times[name]):.2f}", speed, f"{statistics.mean(counts[1:]):.0f}"))
    print(f"**{GROUPED}**, {turns} pairs\n")
    print_table(*rows)


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    chosen = sys.argv[2] if len(sys.argv) > 2 else ""
    print(f"{describe_machine()}; seed 0\n")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.startswith(chosen):
                measure(case, folder, turns)
        if GROUPED.startswith(chosen):
            measure_epoch(folder, turns)


if __name__ == "__main__":
    main()
