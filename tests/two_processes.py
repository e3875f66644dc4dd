"""What test_processes.py runs in two processes: `torchrun --nproc_per_node 2 tests/two_processes.py ddp|fsdp2 FOLDER`.

`train` runs in one process as well. Each process writes what it found to FOLDER/<kind>-<rank>.json.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from conftest import question_rows
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

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
from prompt_tuning.arguments import PromptArguments
from prompt_tuning.model import add_adapter

METHODS = {
    "prompt tuning": PromptArguments(),
    "P-tuning": PromptArguments(method="p_tuning", encoder_hidden_size=16),
    "prefix tuning": PromptArguments(method="prefix_tuning"),
    "projected prefix": PromptArguments(method="prefix_tuning", prefix_projection=True, encoder_hidden_size=16),
    "LoRA": PromptArguments(method="lora"),
}
TRAIN_ROWS, BATCH, STEPS = 20, 8, 7  # the last batch of an epoch has 4 rows: with two processes one has none
EVALUATED = 7


class Recorder(PromptTuningTrainer):
    """Remembers how often each row was trained on, by its tokens."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen += [
            ids[mask.bool()].tolist()
            for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True)
            if (labels != -100).any()
        ]
        return super().training_step(model, inputs, *args, **kwargs)


def trainer(folder, method, output, architecture="llama", rows=EVALUATED, **settings):
    """On 20 rows with a global batch of 8, whatever the number of processes."""
    auto = AutoModelForCausalLM if architecture == "llama" else AutoModelForSeq2SeqLM
    base = auto.from_pretrained(folder / f"tiny-{architecture}").requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder / f"tiny-{architecture}")
    encoder = Encoder(
        Template.load("question_answering/plain"), tokenizer, architecture != "llama", max_target_tokens=12
    )
    train, evaluated = (
        encode(Dataset.from_list(question_rows(count, shift)), encoder, training=True)[0]
        for count, shift in ((TRAIN_ROWS, 0), (rows, 3))
    )
    torch.manual_seed(2)
    config = prompt_config(base, 6, METHODS[method])
    model = add_adapter(base, config) if method == "LoRA" else add_soft_prompt(base, config)
    args = PromptTuningArguments(
        output_dir=str(folder / output),
        per_device_train_batch_size=BATCH // PartialState(cpu=True).num_processes,
        **dict(max_steps=STEPS, use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no") | settings,
    )
    return Recorder(
        model=model, args=args, processing_class=tokenizer, train_dataset=train, eval_dataset=evaluated,
        compute_metrics=load_metrics(["squad"]), generation_kwargs={"max_new_tokens": 6}, stop=("\n",),
    )  # fmt: skip


def fit(folder, method, output, resume=None, **settings):
    """Train, evaluate, predict and save; what can be compared between one process and several."""
    run = trainer(folder, method, output, **settings)
    run.train(resume_from_checkpoint=resume)
    found = {"metrics": run.evaluate(), "texts": run.predict_texts(run.eval_dataset), "losses": losses(run)}
    run.save_model(folder / output / "adapter", _internal_call=True)
    return found


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def bytes_of_a_step(folder):
    """The tensors that DDP sends: at its start, and in each step."""
    run = trainer(folder, "prompt tuning", "bytes", max_steps=3)
    profiled = []
    original = dist.Work.wait
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run.train()
    del original
    for event in profile.events():
        if event.name.startswith("gloo:") or event.name.startswith("c10d::"):
            profiled.append([event.name, str(event.input_shapes)])
    return profiled


def main():
    kind, folder = sys.argv[1], Path(sys.argv[2])
    state = PartialState(cpu=True)
    found = {}
    if kind == "ddp":
        for method in METHODS:
            found[method] = fit(folder, method, f"ddp-{method}")
        found["bytes"] = bytes_of_a_step(folder)
    (folder / f"{kind}-{state.process_index}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
