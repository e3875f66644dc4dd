"""Kill a training again and again at random moments, and resume it each time.

cd tests; python -m helpers.killed_runs FOLDER [KILLS]

Imports once and forks a process for each leg; all run `prompt-tuning train` with `--resume_from_checkpoint auto`.
Every other leg is killed after some steps, in a random part of a step. Most of a step is saving. The others kill
themselves at a random call that opens a file of the run to write it, or renames or removes one.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import prompt_tuning.runs.train  # noqa: F401  All forked processes share this import.
from helpers.models import tiny_llama, tiny_tokenizer
from helpers.rows import question_rows, write_jsonl
from prompt_tuning.cli.main import main
from prompt_tuning.training.trainer import PromptTuningTrainer

STEPS = 48
RECIPE = f"""\
model_name_or_path: {{folder}}/tiny-llama
task: question_answering
train_file: {{folder}}/train.jsonl
validation_file: {{folder}}/validation.jsonl
template: question_answering/plain
num_virtual_tokens: 6
max_source_tokens: 96
max_target_tokens: 12
per_device_train_batch_size: 4
max_steps: {STEPS}
save_steps: 2
eval_strategy: steps
eval_steps: 2
load_best_model_at_end: true
use_cpu: true
disable_tqdm: true
"""
CALLS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def leg(folder, name, before_a_step=None, calls=None):
    """Train in a forked process from the last checkpoint of the run, and return the process's id.

    Args:
        folder: The folder of the model, the rows and the recipe.
        name: The name of the run's folder in it.
        before_a_step: A pipe that gets a byte before each step.
        calls: The number of file calls after which the process kills itself.
    """
    process = os.fork()
    if process:
        return process
    remaining = calls

    def kill(event, args):
        nonlocal remaining
        reads = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
        if remaining and event in CALLS and not reads and str(folder / name) in str(args[0]):
            remaining -= 1
            if not remaining:
                os.kill(os.getpid(), signal.SIGKILL)

    step = PromptTuningTrainer.training_step

    def noted(self, *args, **kwargs):
        os.write(before_a_step, b".")
        return step(self, *args, **kwargs)

    with open(folder / f"{name}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if before_a_step:
        PromptTuningTrainer.training_step = noted
    if calls:
        sys.addaudithook(kill)
    flags = ["--output_dir", str(folder / name), "--resume_from_checkpoint", "auto"]
    code = 1
    try:
        code = main(["train", str(folder / "recipe.yaml"), *flags])
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process):
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def kill_in_a_step(folder, name, steps, part):
    """Run a leg and kill it after so many steps, in the chosen part of a step."""
    reading, writing = os.pipe()
    process = leg(folder, name, writing)
    os.close(writing)
    last = time.monotonic()
    for _ in range(steps + 1):
        if not os.read(reading, 1):
            return ended(process)
        last, took = time.monotonic(), time.monotonic() - last
    time.sleep(part * took)
    os.kill(process, signal.SIGKILL)
    os.close(reading)
    return ended(process)


def last_step(run):
    return max((int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")), default=0)


def killed_again_and_again(folder, kills, seed=0):
    """Return where each leg was killed, and the checkpoint from which the next leg resumed."""
    chance = random.Random(seed)
    run = folder / "killed"
    at = []
    for number in range(kills):
        if number % 2:
            code = ended(leg(folder, run.name, calls=chance.randrange(1, 30)))
        else:
            code = kill_in_a_step(folder, run.name, chance.randrange(1, 5), chance.random())
        at.append({"killed": "at a file" if number % 2 else "in a step", "after_step": last_step(run)})
        at[-1]["half_written"] = sorted(path.name for path in run.glob(".partial-*"))
        assert code == -signal.SIGKILL, f"{(folder / 'killed.log').read_text()[-3000:]}\n{at}"
    assert ended(leg(folder, run.name)) == 0, (folder / "killed.log").read_text()[-3000:]
    return at


def write_inputs(folder):
    """Write the model and the rows of the recipe."""
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(folder / "tiny-llama")
    tokenizer.save_pretrained(folder / "tiny-llama")
    write_jsonl(folder / "train.jsonl", question_rows(26))
    write_jsonl(folder / "validation.jsonl", question_rows(2, 3))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_inputs(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    assert ended(leg(folder, "whole")) == 0, (folder / "whole.log").read_text()[-3000:]
    print(json.dumps(killed_again_and_again(folder, int(sys.argv[2]) if sys.argv[2:] else 20)))
