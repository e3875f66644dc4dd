"""Let writes of a training fail, and start two trainings of one folder at once; count what is lost.

cd tests; python -m helpers.hard_ends FOLDER [FULL_DISKS PAIRS]

Each full disk is a limit of the size of a file, which fails the write that reaches it. `helpers.killed_runs` does the
same for kills.
"""

import json
import os
import random
import resource
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import prompt_tuning.runs.train  # noqa: F401  All forked processes share this import.
from helpers.killed_runs import RECIPE, ended, write_inputs
from prompt_tuning.cli.main import main
from prompt_tuning.training.resuming import checkpoint_problem

STEPS = ["--max_steps", "6", "--save_total_limit", "9"]


def start(folder, name, *flags, limit=None):
    """Train in a forked process, whose messages go to NAME.PROCESS.log, and return the process's id.

    Args:
        folder: The folder of the model, the rows and the recipe.
        name: The name of the run's folder in it.
        flags: More flags of the recipe.
        limit: The bytes that a file may have.
    """
    process = os.fork()
    if process:
        return process
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    reading, writing = os.pipe()  # The messages themselves must not reach the limit.
    os.set_blocking(writing, False)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    sys.stdout = os.fdopen(1, "w")  # The earlier one may have been a file, and a pipe has no position.
    code = 1
    try:
        code = main(["train", str(folder / "recipe.yaml"), "--output_dir", str(folder / name), *STEPS, *flags])
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    log = os.read(reading, 65536)[-900:]  # An error is in the last lines.
    (folder / f"{name}.{os.getpid()}.log").write_bytes(log[-min(limit or 900, 900) :])
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
    disks, twins = map(int, sys.argv[2:4] or (50, 20))
    print(json.dumps({"full disks": full_disks(folder, disks), "pairs": pairs(folder, twins)}))
