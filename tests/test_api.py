"""Python's path: the same files as the command line, rows in memory, and a run that shows itself in a notebook."""

import json

import pandas as pd
import pytest
from datasets import Dataset, IterableDataset
from helpers.models import forbid_model_loading
from helpers.rows import question_rows

import prompt_tuning as pt
from prompt_tuning.cli.main import main
from prompt_tuning.data.files import load_file
from prompt_tuning.data.in_memory import save_rows
from prompt_tuning.errors import DataError, RecipeError, TemplateError
from prompt_tuning.recipe.drafts import read_pairs
from prompt_tuning.reports.notebook import run_html
from prompt_tuning.support.files import read_json_lines

TIMES = ("train_seconds", "evaluation_seconds", "prediction_seconds", "seconds_per_step", "added_memory_bytes")


@pytest.fixture
def settings(recipe_file):
    """Return the settings of a recipe over files, as a dict."""
    return {pair.key: pair.value for pair in read_pairs(recipe_file())}


def without_rows(settings):
    return {key: value for key, value in settings.items() if not key.endswith("_file")}


def facts(folder):
    """Return results.json without its times and without the names of the files."""
    results = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in results.items() if name not in TIMES}


def test_train_writes_what_the_command_writes(recipe_file, settings, tmp_path, capsys):
    path = recipe_file(output_dir=tmp_path / "command")
    assert main(["train", str(path), "--max_steps", "2"]) == 0
    run = pt.train(path, output_dir=tmp_path / "python", max_steps=2)
    of_dict = pt.train(settings, output_dir=tmp_path / "dict", max_steps=2)
    command = tmp_path / "command"
    assert {file.name for file in run.path.iterdir()} == {file.name for file in command.iterdir()}
    weights = (command / "adapter_model.safetensors").read_bytes()
    for other in (run, of_dict):
        assert (other.path / "adapter_model.safetensors").read_bytes() == weights
        assert facts(other.path) == facts(command)
        assert other.predictions == read_json_lines(command / "predictions/test.jsonl")
    assert run.log_history and run.report() == run.path / "report.html" and repr(run) == f"Run('{run.path}')"


def test_rows_in_memory_train_as_files_do(settings, tmp_path):
    rows = {"train": question_rows(24), "eval": question_rows(6, 3), "test": question_rows(9, 5)}
    expected = pt.train(settings, output_dir=tmp_path / "files", max_steps=2)
    run = pt.train(
        without_rows(settings),
        train_dataset=pd.DataFrame(rows["train"]),
        eval_dataset=rows["eval"],
        test_dataset=Dataset.from_list(rows["test"]),
        output_dir=tmp_path / "memory",
        max_steps=2,
    )
    assert run.predictions == expected.predictions
    assert facts(run.path)["splits"] == facts(expected.path)["splits"]
    # The saved recipe names the rows, so that the command line evaluates them again.
    again = pt.evaluate(run.folder.recipe, run, output_dir=tmp_path / "again")
    assert again.results["soft_prompt"] == run.results["soft_prompt"]
    other = pt.evaluate(run.folder.recipe, run, test_dataset=pd.DataFrame(question_rows(3, 1)))
    assert other.results["rows"] == 3 and other.path.parent == run.path


def test_a_predictor_takes_frames_and_names_a_bad_row(settings, tmp_path):
    predictor = pt.train(settings, max_steps=1).predictor()
    rows = question_rows(4)
    expected = predictor(rows)
    assert predictor(pd.DataFrame(rows)) == predictor(Dataset.from_list(rows)) == expected and len(expected) == 4
    with pytest.raises(TemplateError, match=r"row 1: .*question"):
        predictor([rows[0], {"context": "Ada lives in Turin."}])
    with pytest.raises(DataError, match="rows, row 1: expected a dict, found int"):
        predictor([rows[0], 1])


def test_rank_and_compare_take_rows_in_memory(settings, tmp_path):
    rows = {"train_dataset": question_rows(24), "eval_dataset": pd.DataFrame(question_rows(6, 3))}
    templates = ["question_answering/plain", "question_answering/instruction"]
    recipe = without_rows(settings)
    ranked = pt.rank(recipe, templates=templates, finalists=1, output_dir=tmp_path / "rank", **rows)
    saved = json.loads((tmp_path / "rank/rank.json").read_text())
    assert ranked["candidates"] == saved["candidates"] and ranked["rows"] == 6
    recipes = {"hard": recipe | {"method": "none"}, "soft": recipe | {"max_steps": 1}}
    tested = rows | {"test_dataset": Dataset.from_list(question_rows(9, 5))}
    compared = pt.compare(recipes, output_dir=tmp_path / "compare", **tested)
    assert compared == json.loads((tmp_path / "compare/compare.json").read_text())
    assert list(compared["parts"]) == ["hard", "soft"]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "train_dataset: no rows. Give at least one"),
        ([{"question": "a"}, {"question": {1}}], "train_dataset, row 1: Object of type set"),
        ([{"question": float("nan")}], "train_dataset, row 0: Out of range"),
        ([{"question": "\ud800"}], "train_dataset, row 0: half a character"),
        ([{1: "a"}], "train_dataset, row 0: the column 1 has no text as its name"),
        (["a"], "train_dataset, row 0: expected a dict, found str"),
        ("rows.jsonl", "train_dataset: expected a Dataset, a data frame or a list of dicts, found str"),
        ({"question": ["a"]}, "train_dataset: expected a Dataset, .* found dict"),
        (pd.DataFrame({1: ["a"]}), "train_dataset: the column 1 has no text as its name"),
        (pd.DataFrame([["a", "b"]], columns=["a", "a"]), "train_dataset: columns named twice: 'a'"),
        (IterableDataset.from_generator(lambda: iter(())), "train_dataset: expected a Dataset, .* found Iterable"),
    ],
)
def test_what_are_no_rows_is_refused_before_a_model_loads(rows, message, settings, tmp_path, monkeypatch):
    forbid_model_loading(monkeypatch)
    with pytest.raises(DataError, match=message):
        pt.train(settings, train_dataset=rows)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").rglob("*.*"))


def test_a_row_that_does_not_fit_has_its_number(settings, tmp_path, monkeypatch):
    forbid_model_loading(monkeypatch)
    rows = question_rows(9)
    rows[7]["answers"] = {"text": ["Oslo " * 30], "answer_start": [0]}
    with pytest.raises(pt.PromptTuningError, match=r"input_rows/train-\w{8}.parquet, row 7"):
        pt.train(settings, train_dataset=rows)


def test_values_and_missing_values_of_a_frame_reach_the_model_as_written(settings, tmp_path, monkeypatch):
    answers = [{"text": ["Oslo"]}, {"text": ["Rome"], "answer_start": [3]}, None]
    frame = pd.DataFrame({"text": ["null", None, "7"], "number": [1, 2, 3], "answers": answers})
    frame["kind"] = pd.Categorical(["a", "b", "a"])
    path = save_rows(frame.iloc[::-1], tmp_path, "train", "train_dataset")
    loaded = load_file(path)[:]
    assert loaded == {
        "text": ["7", None, "null"],
        "number": [3, 2, 1],
        "answers": answers[::-1],
        "kind": ["a", "b", "a"],
    }
    assert save_rows(frame.iloc[::-1], tmp_path, "train", "train_dataset") == path
    assert [file.name for file in tmp_path.glob("*.parquet")] == [path.name]


def test_wrong_settings_are_named_without_a_line(settings, monkeypatch):
    forbid_model_loading(monkeypatch)
    with pytest.raises(RecipeError, match=r"^recipe: unknown setting learning_rat\. Did you mean learning_rate"):
        pt.train(settings | {"learning_rat": 1})
    with pytest.raises(RecipeError, match=r"^unknown setting max_stepz"):
        pt.train(settings, max_stepz=1)
    with pytest.raises(RecipeError, match="no data: set dataset_name"):
        pt.train(settings, train_file=None, validation_file=None, test_file=None)
    with pytest.raises(RecipeError, match=r"recipe: seed is or holds an object .* \(object\)"):
        pt.train(settings | {"seed": object()})
    with pytest.raises(RecipeError, match="trust_remote_code: the recipe asks"):
        pt.train(settings | {"trust_remote_code": True})
    with pytest.raises(DataError, match=r"runs/none: no results\.json there"):
        pt.Run("runs/none")


def test_files_of_others_are_not_replaced(settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/README.md").write_text("mine")
    with pytest.raises(RecipeError, match=r"holds README\.md, which would be replaced"):
        pt.train(settings, train_dataset=question_rows(9))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["README.md"]


def test_a_notebook_shows_scores_and_rows_and_no_html_of_others(settings, tmp_path):
    evil = "<img src=x onerror=alert(1)> $x$ \x1b[2J"
    rows = question_rows(9, 5)
    rows[0]["context"] += evil
    run = pt.train(settings, test_dataset=rows, max_steps=1)
    shown = run._repr_html_()
    assert "<img" not in shown and "\x1b" not in shown
    assert "hard prompt alone" in shown and "95 % interval" in shown and "expected" in shown
    assert f"{run.results['soft_prompt']['f1']:.1f}" in shown
    all_rows = run_html(run.path, examples=9)
    assert "&lt;img src=x onerror=alert(1)&gt; $x$ \\x1b[2J" in all_rows and "<img" not in all_rows
