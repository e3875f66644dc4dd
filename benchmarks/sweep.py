"""Twenty prompts for twenty small tasks: one `sweep` against twenty `train`, each a process of its own.

    python benchmarks/sweep.py
    python benchmarks/sweep.py 20 40 256 8       # tasks, steps, width and layers of the random model

The model is a Llama with random weights on disk; the tasks are rows of the quickstart, each with its own 8 test rows.
Both start without a cache of encoded rows.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import MODEL, describe_machine, print_table, quickstart_rows
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def make_model(folder: Path, width: int, layers: int) -> int:
    """Save a random model with SmolLM2's tokenizer, and return its number of parameters."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def make_tasks(folder: Path, tasks: int, steps: int) -> None:
    """Write the rows of the tasks, their common recipe, and the sweep."""
    train, test = quickstart_rows("train"), quickstart_rows("test")
    runs = {}
    for task in range(tasks):
        files = {"train_file": train[task::tasks], "test_file": [test[(8 * task + n) % len(test)] for n in range(8)]}
        for name, rows in files.items():
            file = folder / f"{name}_{task}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        runs[f"task{task}"] = {name: str(folder / f"{name}_{task}.jsonl") for name in files}
    recipe = {
        "model_name_or_path": str(folder / "model"), "task": "question_answering",
        "template": "question_answering/plain", "max_steps": steps, "per_device_train_batch_size": 4,
        "num_virtual_tokens": 10, "max_source_tokens": 256, "max_target_tokens": 16, "save_strategy": "'no'",
    }  # fmt: skip
    (folder / "base.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()), encoding="utf-8")
    sweep = {"recipe": str(folder / "base.yaml"), "runs": runs}
    (folder / "sweep.yaml").write_text(json.dumps(sweep), encoding="utf-8")  # JSON is valid YAML.


def command_seconds(*words: str, cache: str) -> float:
    """Run a command of this package in a new process, and return its seconds."""
    environment = os.environ | {"HF_HOME": cache}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "prompt_tuning", *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - started


def main() -> None:
    tasks, steps, width, layers = map(int, sys.argv[1:] or (20, 10, 128, 4))
    imports = "import prompt_tuning.runs.train, prompt_tuning.studies.sweep"
    for _ in range(2):  # The first one fills the disk's cache.
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", imports], check=True)
        importing = time.perf_counter() - started
    with (
        tempfile.TemporaryDirectory() as name,
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
    ):
        folder = Path(name)
        parameters = make_model(folder / "model", width, layers)
        make_tasks(folder, tasks, steps)
        sweep_seconds = command_seconds(
            "sweep", str(folder / "sweep.yaml"), "--output_dir", str(folder / "swept"), cache=one
        )
        single_seconds = within = 0.0
        for task, files in json.loads((folder / "sweep.yaml").read_text(encoding="utf-8"))["runs"].items():
            flags = [f"--{key}={value}" for key, value in files.items()]
            run = folder / "single" / task
            single_seconds += command_seconds(
                "train", str(folder / "base.yaml"), *flags, f"--output_dir={run}", cache=two
            )
            results = json.loads((run / "results.json").read_text(encoding="utf-8"))
            within += results["train_seconds"] + results["evaluation_seconds"]
            pair = [load_file(folder / runs / task / "adapter_model.safetensors") for runs in ("swept", "single")]
            assert torch.equal(*(tensors["prompt_embeddings"] for tensors in pair)), task
    print(f"{describe_machine()}; {tasks} tasks of {steps} steps, a random Llama of {parameters:,} parameters\n")
    rest = single_seconds - within - tasks * importing
    rows = (
        (f"{tasks} processes of `train`", single_seconds, tasks * importing, within, rest, "1.00"),
        ("`sweep`", sweep_seconds, importing, "", "", f"{single_seconds / sweep_seconds:.2f}"),
    )
    head = ("way", "seconds", "of them importing", "of them training and evaluating", "the rest", "times the speed")
    print_table(head, *([f"{cell:.0f}" if isinstance(cell, float) else cell for cell in row] for row in rows))
    print("Every adapter of the sweep is bit for bit that of its single run.")


if __name__ == "__main__":
    main()
