"""Share between the benchmarks the model, batches, and a comparison of times that noise does not decide."""

import json
import math
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch
from datasets import Dataset
from peft import PeftModel, PeftModelForCausalLM, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from prompt_tuning import PromptTuningArguments, PromptTuningTrainer, SharedPrefixModel, add_soft_prompt
from prompt_tuning.support.files import read_json_lines
from prompt_tuning.support.tables import markdown_table

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
logging.set_verbosity_error()
logging.disable_progress_bar()


def base_model() -> torch.nn.Module:
    """Load the benchmarks' model, frozen and in fp32."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False).eval()


def random_llama(**sizes: int) -> LlamaForCausalLM:
    """Make a frozen Llama with random weights in fp32; LlamaConfig has the names of the sizes."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **sizes)).requires_grad_(False)


def counted_tokens(base: torch.nn.Module) -> list[int]:
    """Return a list that gets, at each forward from now on, the number of tokens that run through a layer."""
    counts: list[int] = []
    mlp = base.model.layers[0].mlp
    mlp.register_forward_hook(lambda module, inputs, output: counts.append(output.shape[:2].numel()))
    return counts


def tokenizer():
    """Load the tokenizer of the benchmarks' model."""
    return AutoTokenizer.from_pretrained(MODEL)


def soft_prompt(base: torch.nn.Module, length: int, engine: bool) -> PeftModelForCausalLM:
    """Return a prompt of tokens drawn from the vocabulary, with the engine or as plain PEFT."""
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length, prompt_tuning_init="SAMPLE_VOCAB")
    return add_soft_prompt(base, config) if engine else PeftModelForCausalLM(base, config)


def drawn_rows(data: Path, into: Path, counts: dict[str, int | None], longest: int | None = None) -> dict[str, str]:
    """Write rows of a folder's files and return the new files as a recipe names them.

    Args:
        data: the folder with a JSON Lines file for each split.
        into: the folder to write to.
        counts: the number of rows of each split, drawn at random (seed 0); None takes all.
        longest: the most tokens that a row's passage and question may have; None takes every row.
    """
    into.mkdir(parents=True, exist_ok=True)
    words = tokenizer() if longest else None
    for split, count in counts.items():
        lines = (data / f"{split}.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
        if longest:
            texts = [row["context"] + row["question"] for row in map(json.loads, lines)]
            lengths = [len(ids) for ids in words(texts).input_ids]
            lines = [line for line, length in zip(lines, lengths, strict=True) if length <= longest]
        if count and count < len(lines):
            lines = random.Random(0).sample(lines, count)
        (into / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {f"{split}_file": str(into / f"{split}.jsonl") for split in counts}


def trained_by_peft(
    rows: Dataset, config: PromptTuningConfig, folder: str | Path, **settings: object
) -> PeftModelForCausalLM:
    """Train as PEFT's tutorial does, by default with Trainer's learning rate, and save it in the folder."""
    model = get_peft_model(base_model(), config)
    words = tokenizer()
    trainer = Trainer(
        model,
        TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", **settings),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        data_collator=DataCollatorForSeq2Seq(words, padding="longest"),
        processing_class=words,
    )
    trainer.train()
    model.save_pretrained(folder)
    return model


def random_batch(
    rows: int, longest: int, targets: int = 16, vocabulary: int = 40000, shortest: int | None = None
) -> dict[str, torch.Tensor]:
    """Return random tokens, `[rows, longest]`: rows of half to full length, padded right, with loss at the end.

    The shortest row may have another length than half.
    """
    shortest = longest // 2 if shortest is None else shortest
    lengths = torch.randint(shortest, longest + 1, (rows,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    ids = torch.randint(5, vocabulary, (rows, longest), generator=torch.Generator().manual_seed(1)) * mask
    place = torch.arange(longest)[None]
    has_loss = (place < lengths[:, None]) & (place >= lengths[:, None] - targets)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~has_loss, -100)}


def quickstart_rows(split: str) -> list[dict]:
    """Read a split of the quickstart's data."""
    return read_json_lines(ROOT / "recipes" / "quickstart" / f"{split}.jsonl")


def mixed_rows(count: int) -> list[dict]:
    """Return quickstart questions with the answer in one of up to three passages, so that rows differ in length."""
    rows = quickstart_rows("test") + quickstart_rows("validation")
    draw = random.Random(0)
    for row in rows:
        others = draw.sample([other["context"] for other in rows if other["context"] != row["context"]], 2)
        passages = [row["context"], *others[: draw.randint(0, 2)]]
        draw.shuffle(passages)
        row["context"] = "\n".join(passages)
    return rows[:count]


def trainer_step(model: PeftModel, batch: dict[str, torch.Tensor], folder: str, words=None, **settings: object):
    """Return a function that takes a training step as Trainer does, but no optimiser's step, and returns the loss."""
    settings = dict(output_dir=folder, report_to="none", per_device_train_batch_size=8) | settings
    if isinstance(model, SharedPrefixModel):
        trainer = PromptTuningTrainer(model=model, args=PromptTuningArguments(**settings), processing_class=words)
    else:
        trainer = Trainer(model, TrainingArguments(**settings), processing_class=words)
    prepared = trainer.accelerator.prepare(model)
    items = (batch["labels"] != -100).sum().to(trainer.args.device)

    def step() -> torch.Tensor:
        model.zero_grad()
        return trainer.training_step(prepared, dict(batch), items)

    return step


def seconds(call: Callable[[], object]) -> float:
    """Measure the seconds of a call, until a GPU has done what the call started."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def process_seconds(call: Callable[[], object]) -> float:
    """Measure the CPU seconds of a call, of all threads of this process."""
    start = time.process_time()
    call()
    return time.process_time() - start


def paired_seconds(
    calls: dict[str, Callable[[], object]],
    turns: int,
    until: float = math.inf,
    measure: Callable[[Callable[[], object]], float] = seconds,
) -> dict[str, list[float]]:
    """Measure the seconds of calls, one after the other in every turn; the first turn warms up and is not counted.

    No turn begins after the time `until` of `time.monotonic()`, except the first that is counted. `measure` returns
    the seconds of a call.
    """
    times = {name: [] for name in calls}
    for turn in range(turns + 1):
        if turn > 1 and time.monotonic() > until:
            break
        for name, call in calls.items():
            duration = measure(call)
            if turn > 0:
                times[name].append(duration)
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """Return the median of the paired ratios."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def print_table(*rows: Iterable[object]) -> None:
    """Print a Markdown table, whose first row is its head."""
    head, *others = [tuple(row) for row in rows]
    print(markdown_table(head, others), end="\n\n", flush=True)


def describe_machine(numbers: str = "float32") -> str:
    """Return the processor, the number of threads, the versions that a figure depends on, and the type of numbers."""
    names = ("torch", "transformers", "peft", "accelerate", "prompt_tuning")
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{processor}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {packages}, {numbers}"
