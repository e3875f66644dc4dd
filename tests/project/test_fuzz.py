"""Damaged files of a stranger end no command with a traceback, hold none up, and change nothing outside of a run.

`make fuzz` tries 20,000 cases. FUZZ_CASES sets their number; pytest's --hypothesis-seed sets which ones they are.
"""

import os
import shlex
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import fuzz
from helpers.damage import ESCAPE, Change, Splice, damage, damages
from helpers.fuzz import COMPARE, ENSEMBLE, RANK, RECIPE, SWEEP, content_of, restore, run, snapshot
from helpers.paths import ROOT
from hypothesis import HealthCheck, Phase, example, given, note, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

CASES = os.environ.get("FUZZ_CASES")
SUITE_CASES = 100
RUNS = (
    "runs/prompt_tuning", "runs/p_tuning", "runs/prefix_tuning", "runs/cpt", "runs/lora", "runs/demonstrations",
    "runs/multitask/rivers", "runs/t5_prefix",
)  # fmt: skip
RUN_FILES = (
    "results.json", "log_history.json", "recipe.yaml", "template.yaml", "predictions/test.jsonl", "README.md",
    "report.html",
)  # fmt: skip
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
CHECK_TEMPLATE = (
    "templates mine.yaml", "templates mine.yaml --row test.jsonl",
    f"render {RECIPE} --template mine.yaml -n 1",
)  # fmt: skip
READ_ROWS = (
    "templates question_answering/plain --row {file}", f"check {RECIPE} --test_file {{file}}",
    "predict --adapter runs/prompt_tuning --input {file}",
)  # fmt: skip
READ_RUN = (
    "show {folder}", "report {folder}", "card {folder}",
    "push {folder} --repo_id me/x --base_model me/base --dry_run",
)  # fmt: skip
LOAD_ADAPTER = ("predict --adapter {folder} --input one.jsonl --output {folder}/out.jsonl", "inspect {folder}")
RESUME = "train recipes/stopped_prompt_tuning.yaml --output_dir {folder} --resume_from_checkpoint true"


class Kind(NamedTuple):
    """Files to damage, and the commands that read them.

    Args:
        share: of all cases, in percent.
        folders: one of them holds the files of a case. The commands may change it if it is a run.
        files: names or patterns in the folder.
        commands: {folder} is the folder of a case, and {file} is its first damaged file.
    """

    share: int
    folders: tuple[str, ...]
    files: tuple[str, ...]
    commands: tuple[str, ...]


KINDS = {
    "template": Kind(30, (".",), ("mine.yaml",), CHECK_TEMPLATE),
    "rows": Kind(14, (".",), ("test.jsonl", "rows.json", "rows.csv", "rows.parquet"), READ_ROWS),
    "recipe": Kind(20, ("recipes",), ("*.yaml",), ("check {file}",)),
    "run folder": Kind(14, RUNS, RUN_FILES, READ_RUN),
    "adapter": Kind(8, RUNS, ADAPTER_FILES, LOAD_ADAPTER),
    "checkpoint": Kind(2, ("runs/stopped_prompt_tuning",), ("checkpoint-8/*",), (RESUME,)),
    "finished runs": Kind(
        4,
        ("runs/finished",),
        ("*.json", "*/*.json", "*/*.yaml", "*/*.jsonl"),
        (COMPARE, SWEEP),
    ),
    "ranking": Kind(4, ("runs/ranked",), ("*",), (RANK,)),
    "ensemble": Kind(4, ("runs/demonstrations",), (*ADAPTER_FILES, "recipe.yaml", "all/results.json"), (ENSEMBLE,)),
}
# The cases that once failed, as far as they are known.
PAST = {
    "rows": [[("rows.csv", Splice(28, 1285, b"\t"))]],
    "finished runs": [
        [("runs/finished/lora-seed42/recipe.yaml", Change((), None))],
        [("runs/finished/lora-seed42/recipe.yaml", Splice(0, 0, b"1: x\n"))],
    ],
    "adapter": [
        [("runs/cpt/adapter_config.json", Change(("cpt_tokens_type_mask", 10), {}))],
        [("runs/prefix_tuning/adapter_config.json", Change(("num_transformer_submodules",), 10**30))],
    ],
    "checkpoint": [
        [("runs/stopped_prompt_tuning/checkpoint-8/trainer_state.json", Change(("x",), float("nan")))],
        [("runs/stopped_prompt_tuning/checkpoint-8/trainer_state.json", Change(("global_stepx",), -1))],
        [("runs/stopped_prompt_tuning/checkpoint-8/trainer_state.json", Change(("stateful_callbacks",), True))],
        [("runs/stopped_prompt_tuning/checkpoint-8/trainer_state.json", Change(("stateful_callbacks",), None))],
        [("runs/stopped_prompt_tuning/checkpoint-8/order.pt", Change((), None))],
    ],
}


def cases(kind, intact):
    """Return a strategy of one to three damages to the files of one folder, with their names."""
    groups = []
    for folder in kind.folders:
        files = []
        for pattern in kind.files:
            # A file that is missing may become a link.
            for path in (
                filter(Path.is_file, intact.glob(f"{folder}/{pattern}"))
                if "*" in pattern
                else [intact / folder / pattern]
            ):
                files.append(st.tuples(st.just(str(path.relative_to(intact))), damages(path)))
        groups.append(st.lists(st.one_of(files), min_size=1, max_size=3))
    return st.one_of(groups)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_make_errors_and_nothing_else(name, studied_files, tmp_path, monkeypatch):
    kind = KINDS[name]
    counts = Counter()
    work = tmp_path / "a" / "b" / "work"
    shutil.copytree(studied_files, work)
    monkeypatch.chdir(work)
    facts = snapshot(work)

    def attack(case):
        restore(work, studied_files, facts)
        for file, how in case:
            damage(work / file, how)
            note(f"{how}\n{file}: {content_of(work / file)}")
        folder = next(folder for folder in kind.folders if (work / case[0][0]).is_relative_to(work / folder))
        writable = work / Path(*Path(folder).parts[:2]) if folder.startswith("runs") else None
        before = snapshot(tmp_path, writable)
        for command in kind.commands:
            words = command.format(folder=folder, file=case[0][0]).split()
            note(f"$ prompt-tuning {shlex.join(words)}")
            counts[run(words)] += 1
        assert snapshot(tmp_path, writable) == before, "files changed outside of the run"
        counts["cases"] += 1

    count = max(int(CASES or SUITE_CASES) * kind.share // 100, 4)
    attack = given(case=cases(kind, studied_files))(attack)
    for case in PAST.get(name, ()):
        attack = example(case=case)(attack)
    database = None if CASES is None else DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples")
    chosen = settings(
        max_examples=count,
        derandomize=CASES is None,
        database=database,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=set(Phase) - {Phase.explain},  # It is slow.
    )
    chosen(attack)()
    print(f"{name:15}", *(f"{end}: {number}" for end, number in counts.items()))


def test_a_hang_a_control_character_and_another_exit_code_are_failures(monkeypatch):
    monkeypatch.setattr(fuzz, "TIMERS", ((signal.SIGALRM, signal.ITIMER_REAL, 0.05),))
    commands = {"it hangs": lambda words: time.sleep(9), "31m": lambda words: print(ESCAPE) or 0, None: len}
    for problem, command in commands.items():
        monkeypatch.setattr(fuzz, "main", command)
        with pytest.raises(AssertionError, match=problem):
            run(["a", "command", "with", "words"])


def test_a_change_outside_of_a_run_is_seen_and_undone(tmp_path):
    intact = tmp_path / "intact"
    (intact / "run").mkdir(parents=True)
    (intact / "rows").write_text("rows")
    work = Path(shutil.copytree(intact, tmp_path / "work"))
    facts = snapshot(work)
    before = snapshot(work, work / "run")
    (work / "run" / "file").write_text("x")
    assert snapshot(work, work / "run") == before
    (work / "rows").unlink()
    (work / "rows").symlink_to("/etc/passwd")
    assert snapshot(work, work / "run") != before
    restore(work, intact, facts)
    assert snapshot(work) == facts
