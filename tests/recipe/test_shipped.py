"""The recipes of this package are listed, and a copy in another folder is complete."""

import resource

import pytest

from prompt_tuning.cli.main import main
from prompt_tuning.errors import PromptTuningError, RecipeError
from prompt_tuning.recipe.drafts import checked_draft
from prompt_tuning.recipe.shipped import copy_recipe, description, shipped_recipes
from prompt_tuning.support.text import one_line


def test_every_recipe_is_listed_with_what_it_does(capsys):
    assert main(["recipes"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "what", "it", "does"]
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    for name, file in shipped_recipes().items():
        assert 20 < len(description(file)) < 160 and description(file) == one_line(description(file)), name


def test_a_copied_recipe_passes_check_in_another_folder(tmp_path, monkeypatch, model_folders, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "quickstart/qa", "my own"]) == 0
    recipe = capsys.readouterr().out.splitlines()[0]
    assert recipe == "my own/quickstart/qa.yaml"
    model = f"--use_cpu true --init_text Answer: --model_name_or_path {model_folders['llama']}".split()
    limits = ["--max_train_samples", "2", "--max_eval_samples", "2", "--max_predict_samples", "2"]
    code = main(["check", recipe, *model, *limits])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert shown.out.startswith(f"{recipe}: ok, train: 2 rows")
    assert (tmp_path / "my own" / "quickstart" / "README.md").is_file()  # It has the licence of the rows.


@pytest.mark.parametrize("folder", ["recipes", "/"])
def test_every_copy_has_the_files_that_it_names(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "absolute") if folder == "/" else folder
    for name in shipped_recipes():
        recipe = next(iter(copy_recipe(name, folder)))
        if name.split("/")[0] == "accelerate" or name == "compare/methods":
            continue
        try:
            checked_draft(recipe, [])
        except PromptTuningError as error:  # The reader's own rows and the quickstart's model are not there.
            missing = ("no data: set dataset_name", "models/SmolLM2-135M-Instruct")
            assert all(any(words in line for words in missing) for line in str(error).splitlines()), error


def test_a_full_disk_leaves_no_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert main(["recipes", "copy", "quickstart/qa"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error == "error: recipes/quickstart/qa.yaml: File too large; no partial file was left\n"
    assert not any(tmp_path.iterdir())


def test_no_file_is_overwritten_and_equal_files_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(copy_recipe("quickstart/qa").values())
    assert not any(copy_recipe("quickstart/qa").values())
    rows = tmp_path / "recipes" / "quickstart" / "test.jsonl"
    rows.write_text("{}\n")
    with pytest.raises(RecipeError, match=r"test\.jsonl: it is there already, with another text"):
        copy_recipe("quickstart/trained_text")
    assert rows.read_text() == "{}\n" and not rows.with_name("trained_text.yaml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["copy", "quickstart/qq"], "recipe quickstart/qq: not a shipped recipe. Did you mean quickstart/qa"),
        (["copy", "../recipe"], "recipe ../recipe: not a shipped recipe"),
        (["copy", "quickstart/qa", "a: b #c"], "folder 'a: b #c': recipes cannot name it"),
        (["copy"], "NAME: it is missing"),
        (["move"], "invalid choice: 'move'"),
    ],
)
def test_a_wrong_command_line_is_refused(words, message, capsys):
    try:
        code = main(["recipes", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and message in capsys.readouterr().err
