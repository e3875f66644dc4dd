"""One training step, as Trainer takes it: PEFT's forward and LoRA against the engine, plain and with compiled layers.

    python benchmarks/training_step.py [PAIRS] [CASE]
    python benchmarks/training_step.py [PAIRS] epoch [FILE]

It prints seconds, the median of paired ratios, and how far loss and gradient are apart. It also prints the time of the
step's matrix products with the model's shapes, which no implementation of the same mathematics can beat, and where the
engine's step goes. LoRA trains on the same rows without a prompt. Only LoRA is timed with transformers' padding-free
collator, which joins all rows to one, so that only the first would follow a soft prompt. The last case takes other
batches in each turn: those of an epoch in groups of like length, and those that keep rows of a passage together
(`group_shared: 4`). CASE is the start of a case's name. With a JSON Lines file in SQuAD's columns the epoch has the
rows of the file, with P=20 and B=16.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import (
    base_model,
    counted_tokens,
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
from peft import LoraConfig, PeftModel, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

from prompt_tuning import Encoder, Template, encode
from prompt_tuning.support.files import read_json_lines
from prompt_tuning.training.sampling import EpochSampler
from prompt_tuning.training.shared_text import SharedText, text_families

CASES = {
    "P=20, B=8, random rows of 64..128 tokens": (20, lambda: random_batch(8, 128)),
    "P=100, B=16, random rows of 32..64 tokens": (100, lambda: random_batch(16, 64)),
    "P=131, B=8, quickstart rows": (131, lambda: real_batch(8)),
}

EPOCH = "epoch"
LORA = ("LoRA, r=8", "LoRA, r=8, padding-free")  # Neither has a prompt.
# The kinds of work in a step, and what the names of torch's operations on a CPU begin with.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm"),
    "attention": ("_scaled_dot_product", "_flash"),
    "joining, splitting, copying": ("cat", "copy_", "fill_", "zero", "index", "slice", "empty", "narrow", "select"),
    "activation, norms, rotation, sums": ("silu", "mul", "add", "pow", "rsqrt", "mean", "neg", "sum", "div", "expand"),
}


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


def make_model(way: str, length: int) -> PeftModel:
    """Return the model of a way to train: PEFT's or the engine's prompt, or LoRA without a prompt."""
    if way.startswith("LoRA"):
        return get_peft_model(base_model(), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    return soft_prompt(base_model(), length, engine=way != "PEFT")


def without_padding(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the rows one after the other in a single row, as transformers' padding-free collator has them."""
    rows = zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True)
    features = [{"input_ids": ids[kept].tolist(), "labels": labels[kept].tolist()} for ids, labels, kept in rows]
    return dict(DataCollatorWithFlattening()(features))


def steps(length: int, batch: dict[str, torch.Tensor], folder: str):
    """Return a function that runs a training step, and the model, by name."""
    variants = {}
    for name in ("PEFT", "engine", "engine, torch_compile", *LORA):
        model = make_model(name, length)
        settings = {"torch_compile": True} if "compile" in name else {}
        rows = without_padding(batch) if "padding" in name else batch
        variants[name] = (trainer_step(model, rows, folder, tokenizer(), use_cpu=True, **settings), model)
    return variants


def print_parts(step) -> None:
    """Print where the CPU time of a step goes, as torch's profiler counts it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    parts = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), "the rest")
        parts[kind] += event.self_cpu_time_total
    total = sum(parts.values())
    print("Where the engine's step goes:\n")
    print_table(("kind", "share of the step"), *((kind, f"{part / total:.0%}") for kind, part in parts.items()))


def measure(case: str, folder: str, turns: int) -> None:
    """Print the table of a case."""
    length, make = CASES[case]
    batch = make()
    variants = steps(length, batch, folder)
    tokens = counted_tokens(variants["engine"][1].get_base_model())
    losses, gradients, first = {}, {}, {}
    for name, (step, model) in variants.items():
        first[name] = seconds(lambda step=step, name=name: losses.update({name: step().item()}))
        if name not in LORA:
            gradients[name] = model.prompt_encoder["default"].embedding.weight.grad.clone()
    times = paired_seconds({name: step for name, (step, _) in variants.items()}, turns)
    expected = gradients["PEFT"]
    rows = [("way", "seconds", "times PEFT's speed", "loss", "gradient off by", "warm-up", "share of product rate")]
    products = product_seconds(variants["PEFT"][1].get_base_model(), tokens[0], int((batch["labels"] != -100).sum()))
    for name in variants:
        off_by = ((gradients.get(name, expected) - expected).norm() / expected.norm()).item()
        median = statistics.median(times[name])
        rows.append((
            name,
            f"{median:.2f}",
            f"{ratio(times['PEFT'], times[name]):.2f}",
            f"{losses[name]:.5f}",
            "" if name in LORA else f"{off_by:.0e}",
            f"{first[name]:.0f} s" if "compile" in name else "",
            f"{products / median:.0%}" if "engine" in name else "",
        ))  # fmt: skip
    print(f"**{case}**, {turns} pairs\n")
    print_table(*rows)
    bound = statistics.median(times["PEFT"]) / products
    padded = batch["input_ids"].shape[0] * (length + batch["input_ids"].shape[1])
    print(
        f"The engine runs {tokens[0]} tokens through each layer, PEFT {padded}. The engine's matrix products alone "
        f"take {products:.2f} s, so at this rate no step could have more than {bound:.2f} times PEFT's speed.\n"
    )
    print_parts(variants["engine"][0])


def epoch_batches(rows: Dataset, size: int, turns: int, group_shared: int) -> list[dict[str, torch.Tensor]]:
    """Return batches from the order of an epoch, evenly spread over it."""
    shared_text = SharedText(text_families(rows), group_shared, size) if group_shared > 1 else None
    order = list(EpochSampler(size, [len(ids) for ids in rows["input_ids"]], 42, shared_text=shared_text))
    starts = range(0, len(order) - size + 1, size)
    chosen = [starts[len(starts) * turn // turns] for turn in range(turns)]
    collate = DataCollatorForSeq2Seq(tokenizer())
    return [dict(collate([rows[n] for n in order[start : start + size]])) for start in chosen]


def measure_epoch(folder: str, turns: int, file: Path | None) -> None:
    """Print the table of the last case, with the quickstart's rows or a file's."""
    words = tokenizer()
    name, length, size = (file.parent.name, 20, 16) if file else ("the quickstart", 131, 8)
    encoder = Encoder(Template.load("question_answering/instruction_last"), words, max_source_tokens=384)
    encoded, report = encode(Dataset.from_list(read_json_lines(file) if file else quickstart_rows("train")), encoder)
    rows = encoded.select_columns(["input_ids", "labels"])
    tokens: dict[str, list[int]] = {}
    calls = {}
    batches = {group: epoch_batches(rows, size, turns + 1, group) for group in (1, 4)}
    for way, group in (("PEFT", 1), (LORA[0], 1), ("engine", 1), ("engine, group_shared 4", 4)):
        model = make_model(way, length)
        tokens[way] = counted_tokens(model.get_base_model())
        steps = iter([trainer_step(model, batch, folder, words, use_cpu=True) for batch in batches[group]])
        calls[way] = lambda steps=steps: next(steps)()
    times = paired_seconds(calls, turns)
    table = [("way", "seconds", "times PEFT's speed", "tokens of a batch through each layer")]
    for way, counts in tokens.items():
        speed = f"{ratio(times['PEFT'], times[way]):.2f}"
        table.append((way, f"{statistics.median(times[way]):.2f}", speed, f"{statistics.mean(counts[1:]):.0f}"))
    print(f"**One epoch of {name}, P={length}, B={size}, each way with its best order**: {report}; {turns} pairs\n")
    print_table(*table)


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    chosen = sys.argv[2] if len(sys.argv) > 2 else ""
    print(f"{describe_machine()}; seed 0\n")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.startswith(chosen):
                measure(case, folder, turns)
        if EPOCH.startswith(chosen):
            measure_epoch(folder, turns, Path(sys.argv[3]) if len(sys.argv) > 3 else None)


if __name__ == "__main__":
    main()
