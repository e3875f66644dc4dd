"""Compare choices of a short training besides the learning rate: a sink, rates apart, averages, schedules, betas.

    python benchmarks/training_choices.py DATA prefix [--task TASK] [--seeds 42 43] [--key=value ...]
    python benchmarks/training_choices.py DATA prompt_ending_layer_vectors --learning_rate=3e-3

DATA/TASK holds train.jsonl and validation.jsonl. The method is one of recipes/compare/methods.yaml. A run is scored on
the 100 validation rows and never reads a test row. "loss" is over their target tokens.
"""

import argparse
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from common import MODEL, describe_machine, drawn_rows, print_table
from comparison import RECIPES, TASKS
from peft import PeftModel
from transformers import TrainerCallback, set_seed

from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.evaluate import load_model, trainer_for
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.runs.trainable import add_trainable


@dataclass
class Choice:
    """What one training does differently.

    Args:
        flags: settings of the recipe.
        frozen: the number of first virtual tokens that no step moves.
        key_rate: the rate of a prefix's keys, times that of the recipe.
        value_rate: the rate of its values.
        averaged: the last steps whose weights are averaged.
    """

    flags: list[str] = field(default_factory=list)
    frozen: int = 0
    key_rate: float = 1
    value_rate: float = 1
    averaged: int = 1

    @property
    def of_prefix(self) -> bool:
        """Only a prefix can do so."""
        return self.frozen > 0 or self.key_rate != 1 or self.value_rate != 1


CONSTANT = "--lr_scheduler_type=constant_with_warmup"
BETA = "--adam_beta2=0.95"
CHOICES = {
    "as in methods.yaml": Choice(),
    "first token frozen, as an attention sink": Choice(frozen=1),
    "keys at a third of the rate": Choice(key_rate=1 / 3),
    "values at a third of the rate": Choice(value_rate=1 / 3),
    "four demonstrations": Choice(["--init_demonstrations=4"]),
    "weights of the last 10 steps averaged": Choice(averaged=10),
    "constant rate": Choice([CONSTANT]),
    "constant rate, weights of the last 10 steps averaged": Choice([CONSTANT], averaged=10),
    "beta2 0.95": Choice([BETA]),
    "constant rate, beta2 0.95": Choice([CONSTANT, BETA]),
}


class Chosen(TrainerCallback):
    """Shortens the steps of parts of a prefix, and averages the last weights."""

    def __init__(self, choice: Choice, model: PeftModel, steps: int):
        self.choice = choice
        self.trained = [value for value in model.parameters() if value.requires_grad]
        self.averaged = min(choice.averaged, steps)
        self.first_averaged = steps - self.averaged + 1
        self.sums = [torch.zeros_like(value) for value in self.trained]
        if choice.of_prefix:
            (self.prefix,) = self.trained
            self.shares = self.step_shares(model.active_peft_config.num_layers)

    def step_shares(self, layers: int) -> torch.Tensor:
        """Return the part of its step that each number of the prefix takes, `[P, 2 * layers * H]`."""
        rates = self.prefix.new_tensor([self.choice.key_rate, self.choice.value_rate]).repeat(layers)
        shares = rates.repeat_interleave(self.prefix.shape[1] // (2 * layers)).repeat(len(self.prefix), 1)
        shares[: self.choice.frozen] = 0
        return shares

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.choice.of_prefix:
            self.before = self.prefix.detach().clone()

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.choice.of_prefix:
            self.prefix.copy_(torch.lerp(self.before, self.prefix, self.shares))

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step < self.first_averaged:
            return
        for total, value in zip(self.sums, self.trained, strict=True):
            total += value
            if state.global_step == state.max_steps:
                value.copy_(total / self.averaged)


def trained_and_scored(recipe_file: Path, flags: list[str], choice: Choice) -> tuple[float, float]:
    """Train once, and return the loss and the main metric on the validation rows."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(recipe_file, [*flags, *choice.flags, f"--output_dir={folder}/run", "--save_strategy=no"])
        prepared = prepare(recipe, ("train", "validation"))
        set_seed(recipe.training.seed)
        model = add_trainable(load_model(prepared), prepared)
        trainer = trainer_for(model, prepared, [Chosen(choice, model, recipe.training.max_steps)])
        trainer.train()
        results = trainer.evaluate()
        return results["eval_loss"], results[f"eval_{MAIN_METRIC[recipe.data.task]}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with a folder for each task")
    parser.add_argument("method", help="a name in methods.yaml")
    parser.add_argument("--task", choices=TASKS, default=TASKS[-1], help=f"default: {TASKS[-1]}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43], help="default: 42 43")
    args, flags = parser.parse_known_args(argv)
    method = yaml.load((RECIPES / "methods.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)["runs"][args.method]
    rates = method.pop("learning_rates")
    settings = {"learning_rate": rates[len(rates) // 2], "model_name_or_path": MODEL, "disable_tqdm": "true"} | method
    print(f"{describe_machine()}; {args.task}, {args.method}, seeds {args.seeds}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        settings |= drawn_rows(args.data / args.task, Path(folder), {"train": None, "validation": 100})
        flags = [*(f"--{name}={value}" for name, value in settings.items()), *flags]
        table = [("choice", "loss of the seeds", "mean", "score of the seeds", "mean")]
        for name, choice in CHOICES.items():
            if choice.of_prefix and method.get("method") != "prefix_tuning":
                continue
            runs = [
                trained_and_scored(RECIPES / f"{args.task}.yaml", [*flags, f"--seed={seed}"], choice)
                for seed in args.seeds
            ]
            losses, scores = zip(*runs, strict=True)
            cells = (
                ", ".join(f"{loss:.3f}" for loss in losses), f"{statistics.mean(losses):.3f}",
                ", ".join(f"{score:.1f}" for score in scores), f"{statistics.mean(scores):.1f}",
            )  # fmt: skip
            table.append((name, *cells))
            print(name, *cells, flush=True)
    print()
    print_table(*table)


if __name__ == "__main__":
    main()
