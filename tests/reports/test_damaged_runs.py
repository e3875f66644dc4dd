"""Change and cut the files of a run in many ways: no command ends in a traceback, and no text passes for a score.

PROMPT_TUNING_MUTATIONS sets how many changes are tried, of which each study gets a twentieth; 0 is all of them.
"""

import json
import logging
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml
from helpers.damage import REMOVED, paths_in, replaced
from helpers.fuzz import COMPARE, ENSEMBLE, RANK, SWEEP, restore, snapshot
from helpers.fuzz import run as run_command
from helpers.paths import ROOT

from prompt_tuning.cli.main import main
from prompt_tuning.errors import DataError
from prompt_tuning.reports.run_files import read_log_history, read_predictions, read_results, read_settings
from prompt_tuning.support.run_folder import RunFolder

RUNS = ROOT / "tests" / "fixtures" / "v0.1.0" / "runs"
COUNT = int(os.environ.get("PROMPT_TUNING_MUTATIONS", "120"))
VALUES = (
    None, True, "", "text", "51.3", "nan", "../../etc", "\ud800", 0, -1, -7.5, 1, 3.7, 1e308, -1e308, 10**40,
    float("nan"), float("inf"), [], [None], ["a"], [[1]], {}, {"a": None}, {"hard_prompt": {}},
)  # fmt: skip
NESTED = "[" * 100_000 + "]" * 100_000

# What newer versions and other commands write besides.
NEWER = {
    "answers": {
        "expected": {"yes": 5, "no": 4},
        "taken": {"soft_prompt": {"yes": 9}, "hard_prompt": {"no": 9}},
        "always": {"answer": "yes", "exact_match": 55.6, "f1": 55.6},
    },
    "prediction_counts": {"soft_prompt": {"at_limit": 1, "within_character": 1, "empty": 2}},
    "changed_settings": {"4": {"learning_rate": [0.1, 0.2]}},
    "trained_with": ["ferries"],
    "resumed_from": "checkpoint-4",
    "processes": 2,
    "stream": {"rows": 24},
}  # fmt: skip
COUNTS = {
    "dropped_rows": 1, "dropped_targets": 1, "cut_answers": 1, "unreachable_targets": 1, "long_references": 1,
    "empty_rows": 1, "rows_without_reference": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run of 0.1.0 with what newer versions write besides."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(RUNS / "prompt_tuning", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    results = json.loads((folder / "results.json").read_text("utf-8")) | NEWER
    for size in results["splits"].values():
        size |= COUNTS
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def json_mutations(name, text):
    """Yield the texts of a JSON file with one value changed, or cut at some places."""
    value = json.loads(text)
    for path in paths_in(value):
        for new in (*VALUES, REMOVED):
            yield f"{name} {path} {new!r}", json.dumps(replaced(value, path, new)).encode()
    yield from cuts(name, text)


def yaml_mutations(name, text):
    value = yaml.safe_load(text)
    for path in paths_in(value):
        for new in (None, "text", -1, 3.5, True, [], ["a"], {}, {"a": 1}, REMOVED):
            yield f"{name} {path} {new!r}", yaml.safe_dump(replaced(value, path, new)).encode()
    yield from cuts(name, text)


def cuts(name, text):
    content = text.encode()
    for part in range(8):
        yield f"{name} cut at {part}/8", content[: len(content) * part // 8]
    yield f"{name} cut by one byte", content.rstrip()[:-1]
    yield f"{name} not UTF-8", content[:50] + b"\xff\xfe" + content[50:]
    yield f"{name} nested", NESTED.encode()
    yield f"{name} a list", b"[]"
    yield f"{name} a folder", None


def line_mutations(name, text):
    """Yield the texts of a file of predictions with one row changed, missing, repeated or cut."""
    lines = text.splitlines()
    for number in (0, len(lines) // 2, len(lines) - 1):
        row = json.loads(lines[number])
        others = (lines[:number], lines[number + 1 :])
        for path in paths_in(row):
            for new in (*VALUES, REMOVED):
                changed = json.dumps(replaced(row, path, new))
                yield f"{name}:{number} {path} {new!r}", "\n".join([*others[0], changed, *others[1]]).encode()
        for what, replacement in (("missing", []), ("twice", [lines[number]] * 2), ("empty", [""]), ("cut", ["{"])):
            yield f"{name}:{number} {what}", "\n".join([*others[0], *replacement, *others[1]]).encode()
    yield from cuts(name, text)


MAKERS = {".json": json_mutations, ".yaml": yaml_mutations, ".jsonl": line_mutations}


def mutations(folder, files):
    """Return the changes of all files of a folder, in a random order that is the same each time."""
    all_of_them = []
    for file in files:
        for name, content in MAKERS[Path(file).suffix](file, (folder / file).read_text("utf-8")):
            all_of_them.append((name, file, content))
    random.Random(1).shuffle(all_of_them)
    return all_of_them


def write(path, content):
    """Write the content of a file; None makes it a folder."""
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def test_no_command_ends_in_a_traceback(run, capfd, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    card = tmp_path / "card.md"
    commands = (
        ["show", str(folder)],
        ["report", str(folder)],
        ["card", str(folder), "--output", str(card)],
        ["push", str(folder), "--repo_id", "me/x", "--base_model", "me/base", "--dry-run"],
    )
    logging.disable()
    failures = []
    files = ("results.json", "log_history.json", "adapter_config.json", "recipe.yaml", "template.yaml")
    for name, file, content in mutations(run, (*files, "predictions/test.jsonl"))[: COUNT or None]:
        original = (folder / file).read_bytes()
        write(folder / file, content)
        for command in commands:
            try:
                code = main(command)
            except BaseException as error:
                failures.append(f"{name}: {command[0]}: {type(error).__name__}: {error}")
                continue
            error = capfd.readouterr().err
            if code and str(folder) not in error:
                failures.append(f"{name}: {command[0]} names no file: {error}")
            if code not in (0, 1, 2):
                failures.append(f"{name}: {command[0]}: exit code {code}")
        write(folder / file, original)
    logging.disable(logging.NOTSET)
    assert not failures, "\n".join(failures)


STUDIES = {
    COMPARE: ("finished/lora-seed42", ("results.json", "recipe.yaml", "predictions/test.jsonl")),
    SWEEP: ("finished/lora-seed42", ("results.json", "recipe.yaml")),
    RANK: ("ranked", ("likelihoods.jsonl", "predictions.jsonl", "settings.json")),
    ENSEMBLE: ("demonstrations", ("adapter_config.json", "all/results.json")),
}


@pytest.mark.parametrize("command", STUDIES)
def test_no_study_of_damaged_runs_ends_in_a_traceback(command, studied_files, tmp_path, monkeypatch):
    work = Path(shutil.copytree(studied_files, tmp_path / "work"))
    monkeypatch.chdir(work)
    facts = snapshot(work)
    folder, files = STUDIES[command]
    for name, file, content in mutations(work / "runs" / folder, files)[: COUNT // 20 or None]:
        print(name)
        write(work / "runs" / folder / file, content)
        run_command(command.split())
        restore(work, studied_files, facts)


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("soft_prompt", "f1"), "51.3", "soft_prompt.f1 is the text '51.3', expected a number"),
        (("soft_prompt", "f1"), float("nan"), "soft_prompt.f1 is nan, expected a text or a number"),
        (("soft_prompt", "f1"), True, "soft_prompt.f1 is true, expected a text or a number"),
        (("soft_prompt", "f1"), REMOVED, "soft_prompt is of the metrics exact_match, expected exact_match, f1"),
        (("soft_prompt",), {}, "soft_prompt is of the metrics none"),
        (("hard_prompt",), [51.3], "hard_prompt is a list, expected an object"),
        (("answers", "always", "f1"), "55", "answers.always.f1 is the text '55', expected a number"),
        (("rows",), "9", "rows is the text '9', expected a whole number from 1"),
        (("rows",), 9.0, "rows is 9, expected a whole number from 1"),
        (("train_seconds",), "0.6", "train_seconds is the text '0.6', expected a number from 0"),
        (("task",), "other", "task is the text 'other', expected question_answering or summarization or translation"),
        (("split",), "../../secret", "split is the text '../../secret', expected train or validation or test"),
        (("decoding", "num_beams"), REMOVED, "decoding.num_beams is missing, expected a whole number from 1"),
        (("best_checkpoint",), "last", "best_checkpoint is the text 'last', expected a text such as checkpoint-"),
    ],
)
def test_the_message_names_file_key_value_and_what_is_expected(path, value, found, run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    results = replaced(json.loads((folder / "results.json").read_text("utf-8")), path, value)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_results(folder)
    assert str(caught.value).startswith(f"{folder / 'results.json'}: {found}")


def test_a_name_of_a_task_does_not_lead_out_of_the_run(tmp_path):
    results = json.loads((RUNS / "multitask" / "results.json").read_text("utf-8"))
    for name in ("../outside", "..", "", "a/b"):
        tasks = {name: results["tasks"]["rivers"]}
        (tmp_path / "results.json").write_text(json.dumps(results | {"tasks": tasks}), encoding="utf-8")
        with pytest.raises(DataError, match="expected the name of a folder in the run"):
            read_results(tmp_path)


def test_a_row_without_a_prediction_is_named_with_its_line(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    file = folder / "predictions" / "test.jsonl"
    lines = file.read_text("utf-8").split("\n")
    row = json.loads(lines[3])
    del row["soft_prompt"]
    file.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.jsonl, line 4: soft_prompt is missing, expected a text"):
        read_predictions(RunFolder(folder), read_results(folder))


@pytest.mark.parametrize("name", ("prompt_tuning", "lora", "multitask/rivers", "t5_prefix", "cpt"))
def test_every_file_of_an_old_run_is_read_as_it_is(name):
    run = RunFolder(RUNS / name)
    results = read_results(run.path)
    assert results == json.loads(run.results.read_text("utf-8"))
    lines = run.predictions("test").read_text("utf-8").split("\n")
    assert read_predictions(run, results) == [json.loads(line) for line in lines if line]
    if run.log_history.is_file():
        assert read_log_history(run) == json.loads(run.log_history.read_text("utf-8"))
    assert read_settings(run)["task"] == "question_answering"


def test_an_empty_recipe_and_a_template_that_is_not_utf8_are_named(run, tmp_path, capsys):
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "recipe.yaml").write_text("{}\n", encoding="utf-8")
    assert main(["card", str(folder)]) == 1
    assert "recipe.yaml: demonstration_selection is missing, expected a text" in capsys.readouterr().err
    (folder / "template.yaml").write_bytes(b"name: \xff\n")
    assert main(["report", str(folder)]) == 1
    assert "template.yaml: not UTF-8" in capsys.readouterr().err
