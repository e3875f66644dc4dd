"""Measure what the training of a recipe will cost, by a few of its steps."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from transformers import PrinterCallback, set_seed

from prompt_tuning.models.loading import load_base_model
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.evaluate import trainer_for
from prompt_tuning.runs.prepare import prepare_run
from prompt_tuning.runs.trainable import add_trainable
from prompt_tuning.support.trust import FLAG
from prompt_tuning.training.costs import TrainingCosts
from prompt_tuning.training.memory import IN_TRAINING, explain_out_of_memory

STEPS = 3
ROWS = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Costs:
    """What was measured, on this machine.

    Args:
        training: `seconds_per_step`, and `added_memory_bytes` where the system tells it.
        seconds_per_prediction: seconds of a predicted row, with the untrained prompt, which often writes to its limit.
        num_virtual_tokens: the length of the prompt.
        rows: the number of rows of every split.
    """

    training: dict[str, float]
    seconds_per_prediction: float
    num_virtual_tokens: int
    rows: dict[str, int]


def measure(path: Path, *, trust_remote_code: bool = False) -> Costs:
    """Prepare a recipe, train it for a few steps, predict a few rows, and keep nothing.

    Args:
        path: the recipe.
        trust_remote_code: run Python code that is with the model.

    Raises:
        PromptTuningError: what `train` would raise.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {"max_steps": STEPS, "output_dir": f"{folder}/run", "save_strategy": "no", "eval_strategy": "no"}
        flags |= {"logging_strategy": "no", "report_to": "none", "train_sampling_strategy": "random"}
        flags |= {"load_best_model_at_end": False, "push_to_hub": False, "disable_tqdm": True}
        flags |= {FLAG: trust_remote_code}
        recipe = load_recipe(path, [f"--{name}={value}" for name, value in flags.items()])
        prepared = prepare_run(recipe)
        logger.info("measuring %d training steps", STEPS)
        set_seed(recipe.training.seed)
        model = add_trainable(load_base_model(recipe.model, prepared.config), prepared)
        costs = TrainingCosts()
        trainer = trainer_for(model, prepared, [costs])
        trainer.remove_callback(PrinterCallback)
        with explain_out_of_memory(IN_TRAINING):
            trainer.train()
        evaluated = prepared.encoded[prepared.last_split]
        rows = evaluated.select(range(min(ROWS, len(evaluated))))
        started = time.perf_counter()
        trainer.predict_texts_to_limit(rows)
        seconds = (time.perf_counter() - started) / len(rows)
    counts = {split: report.rows for split, report in prepared.reports.items()}
    return Costs(costs.facts(), seconds, prepared.num_virtual_tokens, counts)
