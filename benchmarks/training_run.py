"""The quickstart as a whole, from its rows to its scores: PEFT and Trainer, and this project.

    python benchmarks/training_run.py [STEPS]

It takes STEPS (12) steps of 8 rows and scores as large a share of the 140 test rows, with and without the prompt, as
STEPS are of the recipe's 60 steps. All ways start from the recipe's text, with its learning rate and seed 42. PEFT
pads its batches of 8, with Trainer's order of rows or in groups of like length. This project runs the recipe and
writes all its files. The last way takes as many steps as fit in the time of PEFT's training. The last column is the
loss over all target tokens of 25 validation rows, by PEFT's forward, one row at a time.
"""

import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import torch
from common import MODEL, ROOT, base_model, describe_machine, print_table, quickstart_rows, tokenizer, trained_by_peft
from datasets import Dataset
from generation import generate_in_batches
from peft import PeftModel, PeftModelForCausalLM, PromptTuningConfig

import prompt_tuning as pt
from prompt_tuning import Encoder, Template, encode
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.recipe.loading import load_recipe

RECIPE = load_recipe(ROOT / "recipes" / "quickstart" / "qa.yaml")


@dataclass
class Timed:
    """The seconds of a run and of its training, and the loss after it."""

    whole: float
    training: float
    loss: float


@torch.no_grad()
def held_out_loss(adapter: str, rows: Dataset) -> float:
    """Return the mean loss over all target tokens, one row at a time by PEFT's forward."""
    model = PeftModel.from_pretrained(base_model(), adapter).eval()
    total, targets = 0.0, 0
    for row in rows:
        count = sum(label != -100 for label in row["labels"])
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row["labels"]])
        loss = PeftModelForCausalLM.forward(
            model, input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels
        ).loss
        total += loss.item() * count
        targets += count
    return total / targets


def run_peft(folder: str, steps: int, test_rows: int, **order: str) -> tuple[float, float]:
    """Train and write texts by PEFT and Trainer; return the seconds in all, and those of the training."""
    began = time.perf_counter()
    words = tokenizer()
    prompt = RECIPE.prompt
    limits = {"max_source_tokens": prompt.max_source_tokens, "max_target_tokens": prompt.max_target_tokens}
    encoder = Encoder(Template.load(prompt.template), words, **limits)
    train, _ = encode(Dataset.from_list(quickstart_rows("train")), encoder, training=True)
    test, _ = encode(Dataset.from_list(quickstart_rows("test")[:test_rows]), encoder)
    sources = [ids[: source_length(labels)] for ids, labels in zip(test["input_ids"], test["labels"], strict=True)]
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=len(words(prompt.init_text).input_ids), prompt_tuning_init="TEXT",
        prompt_tuning_init_text=prompt.init_text, tokenizer_name_or_path=str(MODEL),
    )  # fmt: skip
    names = ("learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size", "seed")
    settings = {name: getattr(RECIPE.training, name) for name in names}
    training = time.perf_counter()
    model = trained_by_peft(train, config, folder, max_steps=steps, disable_tqdm=True, **settings, **order).eval()
    trained = time.perf_counter()
    stop = {"stop_strings": list(encoder.template.stop), "tokenizer": words}
    for writer in (model.get_base_model(), model):
        generate_in_batches(writer, sources, words, new_tokens=prompt.max_target_tokens, **stop)
    return time.perf_counter() - began, trained - training


def run_project(folder: str, steps: int, test_rows: int) -> tuple[float, float]:
    """Run the recipe; return the seconds in all, and those of the training."""
    began = time.perf_counter()
    run = pt.train(
        str(RECIPE.path), output_dir=folder, max_steps=steps, max_predict_samples=test_rows, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    return time.perf_counter() - began, run.results["train_seconds"]


def measure(run, steps: int, test_rows: int, held_out: Dataset, **order: str) -> Timed:
    """Time a run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        adapter = str(Path(folder) / "run")
        with redirect_stdout(StringIO()):
            whole, training = run(adapter, steps, test_rows, **order)
        return Timed(whole, training, held_out_loss(adapter, held_out))


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    test_rows = max(1, len(quickstart_rows("test")) * steps // RECIPE.training.max_steps)
    encoder = Encoder(Template.load(RECIPE.prompt.template), tokenizer())
    held_out, _ = encode(Dataset.from_list(quickstart_rows("validation")[::3]), encoder)
    print(f"{describe_machine()}; {test_rows} test rows, seed 42\n")
    plain = measure(run_peft, steps, test_rows, held_out)
    grouped = measure(run_peft, steps, test_rows, held_out, train_sampling_strategy="group_by_length")
    ours = measure(run_project, steps, test_rows, held_out)
    longer = round(steps * plain.training / ours.training)
    head = ("run", "steps", "seconds", "times the speed", "seconds of training", "times the speed", "validation loss")
    table = [head]
    for name, taken, timed in (
        ("PEFT and Trainer", steps, plain),
        ("PEFT and Trainer, groups of like length", steps, grouped),
        ("this project", steps, ours),
        ("this project, as long as PEFT trains", longer, measure(run_project, longer, test_rows, held_out)),
    ):
        speeds = plain.whole / timed.whole, plain.training / timed.training
        cells = (f"{timed.whole:.0f}", f"{speeds[0]:.2f}", f"{timed.training:.0f}", f"{speeds[1]:.2f}")
        table.append((name, taken, *cells, f"{timed.loss:.3f}"))
    print_table(*table)


if __name__ == "__main__":
    main()
