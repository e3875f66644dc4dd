"""Let writes of a training and of other commands fail, and start two trainings of one folder at once; count losses.

cd tests; python -m helpers.hard_ends FOLDER [FULL_DISKS PAIRS COMMANDS]

Each full disk is a limit of the size of a file, which fails the write that reaches it. `helpers.killed_runs` does the
same for kills.
"""

import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import prompt_tuning.runs.train  # noqa: F401  All forked processes share this import.
from helpers.killed_runs import RECIPE, ended, write_inputs
from helpers.models import tiny_gguf
from prompt_tuning.cli.main import main
from prompt_tuning.training.whole_checkpoints import checkpoint_problem

STEPS = ["--max_steps", "6", "--save_total_limit", "9"]


# The commands that write files, with their words; each one writes a folder or a file of its own name.
COMMANDS = {
    "card": ["card", "whole"],
    "card.json": ["card", "whole", "--output", "card.json"],
    "facts": ["card", "facts.json"],
    "report": ["report", "whole"],
    "inspect": ["inspect", "whole"],
    "inspected": ["inspect", "whole", "--output", "inspected"],
    "predict": ["predict", "--adapter", "whole", "--input", "validation.jsonl", "--output", "predicted.jsonl"],
    "import-gguf": ["import-gguf", "tiny.gguf", "imported"],
    "evaluate": ["evaluate", "recipe.yaml", "--split", "validation", "--output_dir", "evaluated"],
    "rank": ["rank", "recipe.yaml", "--templates", "question_answering/plain", "--output_dir", "ranked"],
    "sweep": ["sweep", "sweep.yaml", "--output_dir", "swept"],
    "compare": ["compare", "recipe.yaml", "other.yaml", "--method", "none", "--output_dir", "compared"],
}


def start(folder, name, *flags, limit=None):
    """Train in a forked process, as `start_command` does, and return the process's id."""
    words = ["train", str(folder / "recipe.yaml"), "--output_dir", str(folder / name), *STEPS, *flags]
    return start_command(folder, name, words, limit)


def start_command(folder, name, words, limit=None):
    """Run a command in a forked process, whose messages go to NAME.PROCESS.log, and return the process's id.

    Args:
        folder: The folder of the model, the rows and the recipe.
        name: The name of the log.
        words: The command.
        limit: The bytes that a file may have.
    """
    process = os.fork()
    if process:
        return process
    os.chdir(folder)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    reading, writing = os.pipe()  # The messages themselves must not reach the limit.
    os.set_blocking(writing, False)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    sys.stdout = os.fdopen(1, "w")  # The earlier one may have been a file, and a pipe has no position.
    code = 1
    try:
        code = main(words)
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    (folder / f"{name}.{os.getpid()}.log").write_bytes(
        os.read(reading, 65536)[-900:]
    )  # An error is in the last lines.
    os._exit(code)


def log_of(folder, name, process):
    return (folder / f"{name}.{process}.log").read_text(errors="replace")


def adapter(run):
    return (run / "adapter_model.safetensors").read_bytes()


def full_disks(folder, number, seed=0):
    """Return how many trainings ended at a full disk with one line, and how many were not reached by the limit."""
    chance = random.Random(seed)
    counts = {"full, one line, resumed to the same adapter": 0, "not reached": 0}
    for place in range(number):
        name = f"full-{place}"
        limit = int(2 ** chance.uniform(8, 16))
        process = start(folder, name, "--save_steps", "2", limit=limit)
        code = ended(process)
        log = log_of(folder, name, process)
        run = folder / name
        assert code in (0, 1) and "Traceback" not in log, (limit, log)
        for checkpoint in run.glob("checkpoint-*"):
            assert checkpoint_problem(checkpoint) is None, (limit, checkpoint)
        for file in run.rglob("*.json"):
            json.loads(file.read_text())
        assert not [*run.glob(".partial-*")], (limit, [*run.glob(".*")])
        if code:
            assert "File too large; no partial file was left" in log.splitlines()[-1], (limit, log)
            assert ended(start(folder, name, "--save_steps", "2", "--resume_from_checkpoint", "auto")) == 0, limit
        assert adapter(run) == adapter(folder / "whole"), limit
        counts["full, one line, resumed to the same adapter" if code else "not reached"] += 1
    return counts


def contents(folder):
    """Return the content of every file in a folder, except the logs and the locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".log", ".lock")]
    return {path: path.read_bytes() for path in files}


def commands(folder, number, seed=0):
    """Return how many commands ended at a full disk with one line and kept all files, and how many had the room."""
    chance = random.Random(seed)
    counts = {"full, one line, every earlier file kept": 0, "not reached": 0}
    for place in range(number):
        name = list(COMMANDS)[place % len(COMMANDS)]
        limit = int(2 ** chance.uniform(3, 13))
        before = contents(folder)
        process = start_command(folder, name, COMMANDS[name], limit)
        code = ended(process)
        log = log_of(folder, name, process)
        after = contents(folder)
        assert code in (0, 1) and "Traceback" not in log, (name, limit, log)
        assert not [*folder.rglob(".partial-*")], (name, limit)
        if code:
            # A sweep names the error of each run, and ends with its table.
            error = log if name == "sweep" else log.splitlines()[-1].replace("; no partial file was left", "")
            assert "File too large" in error, (name, limit, log)
            assert after | before == after, (name, limit)
        for path in after.keys() - before.keys():
            if path.suffix == ".json":
                json.loads(after[path])
        for path in folder.glob("*"):
            if path.name in ("imported", "evaluated", "ranked", "swept", "compared"):
                shutil.rmtree(path)
        counts["full, one line, every earlier file kept" if code else "not reached"] += 1
    return counts


def pairs(folder, number, seed=0):
    """Return how the second of two trainings that start in one folder at nearly the same time was refused."""
    chance = random.Random(seed)
    counts = {"refused while the first writes": 0, "refused after its end": 0}
    for place in range(number):
        name = f"pair-{place}"
        first = start(folder, name, "--seed", "1")
        time.sleep(chance.uniform(0, 0.3))
        second = start(folder, name, "--seed", "2")
        codes = {process: ended(process) for process in (first, second)}
        assert sorted(codes.values()) == [0, 2], codes
        winner, loser = sorted(codes, key=codes.get)
        log = log_of(folder, name, loser)
        held = f"process {winner} on " in log
        assert held or "already; continue it with" in log, log
        seed_of_results = json.loads((folder / name / "results.json").read_text())["seed"]
        assert seed_of_results == (1 if winner == first else 2)
        counts["refused while the first writes" if held else "refused after its end"] += 1
    return counts


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_inputs(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder).replace("load_best_model_at_end: true\n", ""))
    assert ended(start(folder, "whole", "--save_steps", "2")) == 0
    tiny_gguf(folder / "tiny.gguf")
    (folder / "other.yaml").write_text((folder / "recipe.yaml").read_text())
    (folder / "sweep.yaml").write_text("recipe: recipe.yaml\nruns: {a: {method: none}, b: {method: none, seed: 1}}\n")
    assert ended(start_command(folder, "facts", ["card", "whole", "--output", "facts.json"])) == 0
    disks, twins, others = map(int, sys.argv[2:5] or (50, 20, 120))
    counts = {"full disks": full_disks(folder, disks), "pairs": pairs(folder, twins)}
    print(json.dumps(counts | {"commands": commands(folder, others)}))
