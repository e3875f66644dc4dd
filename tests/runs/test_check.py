"""`check` passes and fails as the beginning of `train` does, for every method and task."""

from itertools import product

import pytest
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.cli.main import main
from prompt_tuning.errors import PromptTuningError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs import evaluate, multitask
from prompt_tuning.runs import train as train_module

METHOD_SETTINGS = {
    "cpt": {"init_text": "Ada lives in Turin."},
    "none": {"num_virtual_tokens": None},
    "lora": {"num_virtual_tokens": None},
    "full": {"num_virtual_tokens": None},
}
FAULTS = {
    "nothing": {},
    "a bad training row": {"train_file": "bad.jsonl"},
    "a bad test row": {"test_file": "bad.jsonl"},
    "no training rows": {"train_file": None},
    "no evaluated rows": {"validation_file": None, "test_file": None},
    "no validation rows": {"validation_file": None, "eval_strategy": "steps"},
    "no such template": {"template": "question_answering/nothing"},
    "no such model": {"model_name_or_path": "/nowhere"},
    "a budget that is too small": {"max_source_tokens": 3},
    "a checkpoint that is not there": {"resume_from_checkpoint": "true"},
    "a batch that is larger than the split": {"dataloader_drop_last": "true", "per_device_train_batch_size": 99},
}
TASKS = {
    "question_answering": ("question_answering/plain", {}),
    "summarization": ("summarization/tldr", {"text_column": "context", "summary_column": "question"}),
    "translation": ("translation/t5", {"source_lang": "en", "target_lang": "fr"}),
}


class Started(Exception):
    """Stands for the loading of a base model."""


@pytest.fixture
def beginning(monkeypatch):
    """Return a function that gives the message with which `train` fails before a model loads; None if it does not."""

    def started(*args):
        raise Started

    for module in (train_module, evaluate, multitask):
        monkeypatch.setattr(module, "load_base_model", started)

    def begin(path):
        try:
            train_module.train(load_recipe(path))
        except Started:
            return None
        except PromptTuningError as error:
            return error.exit_code, set(str(error).splitlines())
        raise AssertionError("no model was loaded")

    return begin


def checked(path, capsys):
    """Return the exit code and the messages of `check`; None if it passes."""
    capsys.readouterr()
    code = main(["check", str(path)])
    errors = capsys.readouterr().err.splitlines()
    lines = {line.removeprefix("error: ").removeprefix(f"{path}: ") for line in errors if line.startswith("error: ")}
    return (code, lines) if code else None


def assert_same(path, beginning, capsys):
    begun, said = beginning(path), checked(path, capsys)
    if begun is not None:
        begun = begun[0], {line.removeprefix(f"{path}: ") for line in begun[1]}
    assert said == begun


ONE_TASK = [name for name, method in METHODS.items() if not method.trains_several_tasks]
CASES = [*product(("prompt_tuning", "none"), FAULTS)]
CASES += [(method, "a bad training row") for method in ONE_TASK if method not in ("prompt_tuning", "none")]


@pytest.mark.parametrize(("method", "fault"), CASES)
def test_check_says_what_train_says_with_every_method(method, fault, recipe_file, tmp_path, beginning, capsys):
    write_jsonl(tmp_path / "bad.jsonl", [*question_rows(5), {"context": None, "question": "?", "answers": None}])
    changes = {name: tmp_path / value if value == "bad.jsonl" else value for name, value in FAULTS[fault].items()}
    path = recipe_file(**({"method": method} | METHOD_SETTINGS.get(method, {}) | changes))
    assert_same(path, beginning, capsys)


@pytest.mark.parametrize("method", ["prompt_tuning", "none"])
@pytest.mark.parametrize("task", TASKS)
def test_check_says_what_train_says_with_every_task(task, method, recipe_file, tmp_path, beginning, capsys):
    template, settings = TASKS[task]
    settings |= {"method": method, "task": task, "template": template} | METHOD_SETTINGS.get(method, {})
    if task == "translation":
        for split in ("train", "validation", "test"):
            pairs = [{"translation": {"en": f"Day {number}", "fr": f"Jour {number}"}} for number in range(12)]
            settings[f"{split}_file"] = write_jsonl(tmp_path / f"{split}_pairs.jsonl", pairs)
    path = recipe_file(**settings)
    assert beginning(path) is None
    assert_same(path, beginning, capsys)
    assert_same(recipe_file(**settings, truncate="[nothing]"), beginning, capsys)


@pytest.mark.parametrize("fault", ["nothing", "a bad training row", "no evaluated rows", "no such template"])
def test_check_says_what_train_says_with_several_tasks(fault, recipe_file, tmp_path, beginning, capsys):
    write_jsonl(tmp_path / "bad.jsonl", [*question_rows(5), {"context": None, "question": "?", "answers": None}])
    changes = {name: tmp_path / value if value == "bad.jsonl" else value for name, value in FAULTS[fault].items()}
    recipe_file().rename(tmp_path / "one.yaml")
    recipe_file(**changes).rename(tmp_path / "two.yaml")
    shared = (
        "task",
        "train_file",
        "validation_file",
        "test_file",
        "template",
        "max_source_tokens",
        "max_target_tokens",
    )
    path = recipe_file(method="multitask_prompt_tuning", tasks="[one.yaml, two.yaml]", **dict.fromkeys(shared))
    assert_same(path, beginning, capsys)


def test_a_folder_that_holds_a_run_is_a_warning_of_check(recipe_file, tmp_path, caplog):
    path = recipe_file()
    assert main(["train", str(path)]) == 0
    assert main(["check", str(path)]) == 0
    assert "train would not overwrite a run: " in caplog.text


def test_a_cartridge_of_frozen_tokens_alone_is_refused(recipe_file, capsys):
    path = recipe_file(method="cartridge", num_frozen_tokens=6)
    code, lines = checked(path, capsys)
    assert code == 2 and lines == {
        "num_frozen_tokens 6 leaves nothing to train, since the prompt has 6 virtual tokens. Lower it, or raise "
        "num_virtual_tokens."
    }
