"""Train and evaluate in two processes, for tests/training/test_distributed.py.

    cd tests; torchrun --nproc_per_node 2 -m helpers.two_processes ddp|fsdp2|zero2|zero3 FOLDER

The same functions run in one process for comparison. Each process writes its outcome to FOLDER/<kind>-<rank>.json.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from helpers.rows import PLACES, question_rows
from prompt_tuning import (
    Encoder,
    PromptTuningArguments,
    PromptTuningTrainer,
    Template,
    add_soft_prompt,
    encode,
    load_metrics,
    prompt_config,
)
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main as prompt_tuning
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.errors import Stopped, TrainingError
from prompt_tuning.models.prompts import add_adapter, load_adapter
from prompt_tuning.training.callbacks import stopping_on_signals

RECIPE = """\
model_name_or_path: {folder}/tiny-llama
task: question_answering
train_file: {folder}/train.jsonl
validation_file: {folder}/validation.jsonl
test_file: {folder}/test.jsonl
template: question_answering/plain
num_virtual_tokens: 6
max_source_tokens: 96
max_target_tokens: 12
max_steps: 6
save_steps: 3
eval_strategy: steps
eval_steps: 3
metrics: [squad, sacrebleu, chrf, ter, rouge]
use_cpu: true
"""
METHODS = {
    "prompt tuning": PromptArguments(),
    "P-tuning": PromptArguments(method="p_tuning", encoder_hidden_size=15),  # Two processes split odd numbers.
    "prefix tuning": PromptArguments(method="prefix_tuning"),
    "projected prefix": PromptArguments(method="prefix_tuning", prefix_projection=True, encoder_hidden_size=16),
    "LoRA": PromptArguments(method="lora"),
    "trained tokens": PromptArguments(layer_vectors=True),
    "trained ending": PromptArguments(layer_vectors=True),  # It has no virtual tokens.
}
RATES = {
    "prompt tuning": 3e-2,
    "trained tokens": 1e-2,
    "trained ending": 1e-2,
    "P-tuning": 3e-3,
    "prefix tuning": 1e-2,
    "projected prefix": 3e-3,
    "LoRA": 1e-3,
}
GROUPED = "prompt tuning"  # This method's rows that share text are kept together.
OPENING = "is full of old trees and young birds. It is a long story. The garden is old."
ENDING = 2  # So many tokens end every source.
TRAIN_ROWS, BATCH, STEPS = 20, 8, 7  # The last batch has 4 rows, all for one of two processes.
REMAINDERS = (1, 2, 7)
BF16 = [(method, "bf16") for method in METHODS if method not in ("projected prefix", "trained ending")]
# On a CPU there is no autocast in float16, but FSDP2 has a policy of its own.
HALF = {"ddp": BF16, "zero2": BF16, "zero3": BF16, "fsdp2": [*BF16, ("prefix tuning", "fp16"), ("P-tuning", "fp16")]}
RESUMED = {
    "ddp": ["prompt tuning", "P-tuning", "trained tokens"],
    "fsdp2": ["prompt tuning", "P-tuning", "LoRA", "trained tokens"],
    "zero2": ["prompt tuning", "P-tuning", "LoRA", "trained tokens"],
    "zero3": ["prompt tuning", "P-tuning", "LoRA", "trained tokens"],
    "one": ["P-tuning", "LoRA", "trained tokens"],
}
CONTINUED = {
    "ddp": ["P-tuning", "trained tokens"],
    "zero2": ["P-tuning", "LoRA", "trained tokens"],
    "zero3": ["P-tuning", "LoRA", "trained tokens"],
}
BEST = ["P-tuning", "LoRA"]
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
DEEPSPEED = {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
SPLIT = {
    "fsdp2": FSDP2,
    "zero2": DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


class Watched(PromptTuningTrainer):
    """Keep the tokens of the rows that a trainer trains on, the numbers of rows that it scores, and the last texts."""

    def __init__(self, *args, compute_metrics, **kwargs):
        self.trained_on = []
        self.scored = []
        self.texts = []

        def score(predictions, references):
            self.scored.append(len(predictions))
            self.texts = list(predictions)
            return compute_metrics(predictions, references)

        super().__init__(*args, compute_metrics=score, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        rows = zip(inputs["input_ids"], inputs["labels"], strict=True)
        self.trained_on += [str(ids[ids != 0].tolist()) for ids, labels in rows if (labels != -100).any()]
        return super().training_step(model, inputs, *args, **kwargs)


def base_model(folder, architecture):
    auto = AutoModelForCausalLM if architecture == "llama" else AutoModelForSeq2SeqLM
    return auto.from_pretrained(folder / f"tiny-{architecture}").requires_grad_(False)


def with_trained_ending(row, size):
    """Return a row whose source ends with trained ids instead of the ids that end every source."""
    end = source_length(row["labels"])
    ids = row["input_ids"]
    return row | {"input_ids": [*ids[: end - ENDING], *range(size, size + ENDING), *ids[end:]]}


def trainer(folder, method, output, architecture="llama", rows=7, model=None, **settings):
    """Return a trainer on 20 rows with a global batch of 8, for any number of processes."""
    tokenizer = AutoTokenizer.from_pretrained(folder / f"tiny-{architecture}")
    encoder = Encoder(
        Template.load("question_answering/plain"), tokenizer, architecture != "llama", max_target_tokens=12
    )
    train_rows = question_rows(TRAIN_ROWS)
    if model is None and method == GROUPED and "train_sampling_strategy" not in settings:
        settings = {"group_shared": 3} | settings
        for number, row in enumerate(train_rows):  # Four rows each open alike.
            row["context"] = f"{PLACES[number % 5]} {OPENING} {row['context']}"
    train, _ = encode(Dataset.from_list(train_rows), encoder, training=True)
    evaluated, _ = encode(Dataset.from_list(question_rows(rows, 3)), encoder, training=True)
    text_ids = []
    if method.startswith("trained"):
        text_ids = train[0]["input_ids"][: source_length(train[0]["labels"])][-ENDING:]
        train, evaluated = (
            part.map(with_trained_ending, fn_kwargs={"size": len(tokenizer)}) for part in (train, evaluated)
        )
    if model is None:
        base = base_model(folder, architecture)
        torch.manual_seed(2)
        config = prompt_config(base, 0 if method == "trained ending" else 6, METHODS[method], text_ids=text_ids)
        model = add_adapter(base, config) if method == "LoRA" else add_soft_prompt(base, config)
    settings = dict(max_steps=STEPS, use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no") | settings
    at_once = PartialState(cpu=True).num_processes * settings.get("gradient_accumulation_steps", 1)
    settings = {"learning_rate": RATES[method], "per_device_train_batch_size": BATCH // at_once} | settings
    args = PromptTuningArguments(output_dir=str(folder / output), **settings)
    return Watched(
        model=model, args=args, processing_class=tokenizer, train_dataset=train, eval_dataset=evaluated,
        compute_metrics=load_metrics(["squad", "chrf", "ter"]), generation_kwargs={"max_new_tokens": 6}, stop=("\n",),
    )  # fmt: skip


def fit(folder, method, output, resume=None, **settings):
    """Train, evaluate, predict and save. Return what one process and several have in common."""
    run = trainer(folder, method, output, **settings)
    run.train(resume_from_checkpoint=resume)
    loss = run.evaluate()["eval_loss"]
    run.save_model(folder / output / "adapter", _internal_call=True)
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    layers = [module for module in run.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    in_layers = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    return {"loss": loss, "losses": losses, "texts": run.texts, "numbers in layers": in_layers}


def fit_all(folder, kind):
    """Train all methods, and save those that are resumed within their second epoch, which ends after step 6."""
    saved = dict(save_strategy="steps", save_steps=4, save_total_limit=None)
    return {
        method: fit(folder, method, f"{kind} {method}", **(saved if method in RESUMED.get(kind, ()) else {}))
        for method in METHODS
    }


def fit_accumulated(folder, kind, accumulated=2):
    """Train by plain gradient descent, in which a gradient of another size makes another step."""
    descent = dict(optim="sgd", learning_rate=1.0, max_grad_norm=0.0, train_sampling_strategy="sequential")
    return fit(folder, "prompt tuning", f"{kind} accumulated", gradient_accumulation_steps=accumulated, **descent)


def fit_in_half_precision(folder, kind):
    """Train methods with a policy of FSDP for bfloat16 or float16, or under DDP's autocast in bfloat16."""
    outcomes = {}
    for method, precision in HALF[kind]:
        AcceleratorState._reset_state()
        os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = str(method in ("prefix tuning", "trained tokens"))
        outcomes[f"{method} {precision}"] = fit(folder, method, f"{kind} {method} {precision}", **{precision: True})
    AcceleratorState._reset_state()
    del os.environ["FSDP_ACTIVATION_CHECKPOINTING"]
    return outcomes


def resume(folder, kind):
    for method in RESUMED.get(kind, ()):
        checkpoint = str(folder / f"{kind} {method}" / "checkpoint-4")
        fit(folder, method, f"{kind} resumed {method}", resume=checkpoint)


def continue_as(kind, folder, started_by):
    """Resume the runs that another number of processes has saved."""
    for method in CONTINUED.get(kind if started_by == "one" else started_by, ()):
        checkpoint = str(folder / f"{started_by} {method}" / "checkpoint-4")
        fit(folder, method, f"{kind} after {started_by} {method}", resume=checkpoint)


def fit_best(folder, kind):
    """Train methods whose best evaluation, by the highest loss, is the first of two."""
    best = dict(eval_strategy="steps", eval_steps=2, save_steps=2, save_strategy="steps", load_best_model_at_end=True)
    best |= dict(metric_for_best_model="loss", greater_is_better=True, max_steps=4)
    return {method: fit(folder, method, f"{kind} best {method}", **best) for method in BEST}


def remainders(folder):
    """Return the predictions and the number of scored rows, by the number of rows."""
    outcomes = {}
    for rows in REMAINDERS:
        run = trainer(folder, "prompt tuning", "remainders", rows=rows, per_device_eval_batch_size=2)
        metrics = run.evaluate()
        scores = {name: metrics[f"eval_{name}"] for name in ("f1", "chrf", "ter")}  # Two are of the whole corpus.
        outcomes[str(rows)] = {"texts": run.predict_texts(run.eval_dataset), "scored": run.scored, "scores": scores}
    return outcomes


def sent(folder):
    """Return `[operation, size]` of every tensor that goes to other processes in an epoch of three steps."""
    run = trainer(folder, "prompt tuning", "sent", max_steps=3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run.train()
    events = [event for event in profile.events() if event.name.startswith("gloo:")]
    return [[event.name.removeprefix("gloo:"), sum(map(sum, event.input_shapes))] for event in events]


def rows_with_dropout(folder):
    """Return the rows that this process trained on in two epochs of a model with dropout."""
    base = base_model(folder, "t5")
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    torch.manual_seed(2)
    model = add_soft_prompt(base, prompt_config(base, 6))
    run = trainer(folder, "prompt tuning", "dropout", "t5", model=model, max_steps=6)
    run.train()
    return run.trained_on


def stopped(folder):
    """Return how each process ends if only the second gets a signal, or an infinite loss, in its second step."""
    errors = []
    for cause in ("signal", "loss"):
        run = trainer(folder, "prompt tuning", f"stopped by {cause}", logging_steps=3)
        compute_loss = run.compute_loss

        def compute(*args, run=run, cause=cause, compute_loss=compute_loss, **kwargs):
            second = run.args.process_index == 1 and run.state.global_step == 1
            if second and cause == "signal":
                signal.raise_signal(signal.SIGTERM)
            return compute_loss(*args, **kwargs) * (torch.nan if second and cause == "loss" else 1)

        run.compute_loss = compute
        try:
            with stopping_on_signals(run.accelerator) as callback:
                run.add_callback(callback)
                run.train()
        except (Stopped, TrainingError) as error:
            errors.append(str(error))
    return errors


def predict_without_training(folder, adapter):
    """Return the predictions of a saved adapter and of the base model, without training."""
    soft = trainer(
        folder, "prompt tuning", "untrained", model=load_adapter(base_model(folder, "llama"), folder / adapter)
    )
    hard = trainer(folder, "prompt tuning", "untrained", model=base_model(folder, "llama"))
    return [run.predict_texts(run.eval_dataset) for run in (soft, hard)]


def as_on_gpus():
    """Let accelerate take CPUs for GPUs, because it does not split a model on CPUs."""
    start = PartialState.__init__

    def started(self, *args, **kwargs):
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = started


def main(kind, folder):
    if kind == "ddp":
        outcome = {"methods": fit_all(folder, kind), "remainders": remainders(folder), "sent": sent(folder)}
        outcome |= {"rows with dropout": rows_with_dropout(folder), "stopped": stopped(folder)}
        outcome["half precision"] = fit_in_half_precision(folder, kind)
        outcome["accumulated"] = fit_accumulated(folder, kind)
        resume(folder, kind)
        continue_as(kind, folder, "one")
        outcome["best"] = fit_best(folder, kind)
    else:
        if kind == "fsdp2":
            as_on_gpus()
            PartialState(cpu=True)
        os.environ |= SPLIT[kind]
        outcome = {"methods": fit_all(folder, kind), "half precision": fit_in_half_precision(folder, kind)}
        outcome["accumulated"] = fit_accumulated(folder, kind)
        resume(folder, kind)
        if kind in CONTINUED:
            continue_as(kind, folder, "one")
            outcome["best"] = fit_best(folder, kind)
        outcome["without training"] = predict_without_training(folder, "one prompt tuning/adapter")
        recipe = [str(folder / "recipe.yaml"), "--output_dir", str(folder / f"{kind} run")]
        assert prompt_tuning(["train", *recipe, "--per_device_train_batch_size", "4"]) == 0
    (folder / f"{kind}-{PartialState().process_index}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
        sys.stdout.flush()
        os._exit(0)  # A thread of torch that still runs at Python's exit now and then aborts the process.
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # Otherwise torchrun waits for the other process.
