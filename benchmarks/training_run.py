"""A whole training run, rows to adapter: plain Trainer + PEFT, with and without length groups, and this project.

    python benchmarks/training_run.py [STEPS]

It uses the quickstart's training rows, batches of 8 and seed 42. A run saves its adapter. The last
column is the loss over all target tokens of 25 validation rows. PEFT's forward computes it for all runs, one row at a
time.
"""

import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO

import torch
from common import base_model, describe_machine, print_table, quickstart_rows, seconds, tokenizer, trained_by_peft
from datasets import Dataset
from peft import PeftModelForCausalLM
from transformers import set_seed

from prompt_tuning import Encoder, PromptTuningArguments, PromptTuningTrainer, Template, add_soft_prompt, encode
from prompt_tuning.arguments.arguments import PromptArguments
from prompt_tuning.models.initialization import initial_prompt
from prompt_tuning.models.prompts import prompt_config

LENGTH = 20


@torch.no_grad()
def held_out_loss(model: PeftModelForCausalLM, rows: Dataset) -> float:
    """Return the mean loss over all target tokens, one row at a time by PEFT's forward."""
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


def run(name: str, rows: Dataset, words, folder: str, steps: int) -> PeftModelForCausalLM:
    """Train a named run from the loaded base model to a saved adapter."""
    set_seed(42)
    settings = dict(max_steps=steps, per_device_train_batch_size=8, seed=42, disable_tqdm=True)
    if name.startswith("PEFT"):
        grouped = {"train_sampling_strategy": "group_by_length"} if "groups" in name else {}
        return trained_by_peft(rows, LENGTH, folder, **settings, **grouped).eval()
    base = base_model()
    initial = initial_prompt(base, words, PromptArguments(init="vocab"), LENGTH, seed=42)
    model = add_soft_prompt(base, prompt_config(base, LENGTH), initial)
    arguments = PromptTuningArguments(
        output_dir=folder,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        torch_compile="compile" in name,
        **settings,
    )
    PromptTuningTrainer(model=model, args=arguments, train_dataset=rows, processing_class=words).train()
    model.save_pretrained(folder)
    return model.eval()


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    words = tokenizer()
    encoder = Encoder(Template.load("question_answering/instruction_last"), words)
    train, report = encode(Dataset.from_list(quickstart_rows("train")), encoder, training=True)
    held_out, _ = encode(Dataset.from_list(quickstart_rows("validation")[::3]), encoder)
    print(f"{describe_machine()}; {report}; {steps} steps of 8 rows, P={LENGTH}, seed 42\n")
    rows = [("run", "seconds", "times the speed", "validation loss")]
    first = None
    for name in (
        "PEFT and Trainer, defaults",
        "PEFT and Trainer, length groups",
        "this project",
        "this project, torch_compile",
    ):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
            model = []
            duration = seconds(lambda: model.append(run(name, train, words, folder, steps)))  # noqa: B023
            loss = held_out_loss(model[0], held_out)
        first = first or duration
        rows.append((name, f"{duration:.0f}", f"{first / duration:.2f}", f"{loss:.3f}"))
    print_table(*rows)


if __name__ == "__main__":
    main()
