"""Recipes: their defaults, files that are not recipes, saved recipes, and the recipes of this project."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT
from transformers import Seq2SeqTrainingArguments

from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.drafts import read_switches
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import changed_settings
from prompt_tuning.templates.template import Template

OTHER = ("templates", "accelerate")
STUDY = ROOT / "recipes" / "compare" / "methods.yaml"
RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in OTHER and path != STUDY
)


def test_defaults_suit_prompts_and_the_folder_has_the_name_of_the_recipe(recipe_file):
    recipe = load_recipe(recipe_file(output_dir=None))
    assert recipe.training.output_dir == "runs/recipe"
    assert recipe.training.learning_rate == 3e-2 and recipe.training.predict_with_generate


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"method": "prompt_tuning"}, 3e-2),
        ({"method": "prompt_tuning", "layer_vectors": "true"}, 1e-2),
        ({"method": "prompt_tuning", "trained_text": "ending"}, 1e-2),
        ({"method": "auto", "num_virtual_tokens": None, "template": "question_answering/instruction_last"}, 1e-2),
        ({"method": "prefix_tuning"}, 1e-2),
        ({"method": "prefix_tuning", "prefix_projection": "true"}, 3e-4),
        ({"method": "prefix_tuning", "prefix_projection": "true", "learning_rate": "2e-3"}, 2e-3),
        ({"method": "full", "num_virtual_tokens": None}, 2e-5),
        ({"method": "lora", "num_virtual_tokens": None}, 1e-3),
        ({"method": "p_tuning"}, 3e-3),
        ({"method": "cpt", "init_text": "Answer.", "num_virtual_tokens": None}, 3e-3),
    ],
)
def test_each_method_has_a_learning_rate_that_a_recipe_overrides(settings, rate, recipe_file):
    assert load_recipe(recipe_file(**settings)).training.learning_rate == rate


@pytest.mark.parametrize(
    "flags",
    [
        ["--method=lora", "--init=null", "--init-text", "null", "--init_text", "null"],
        ["--init_text", "another", "--method", "lora", "--init", "null", "--init_text=null"],
    ],
)
def test_null_takes_back_a_setting_of_the_recipe(flags, recipe_file):
    recipe = recipe_file(num_virtual_tokens=None, init="text", init_text="a text")
    with pytest.raises(RecipeError, match="init has no effect with method lora"):
        load_recipe(recipe, ["--method=lora"])
    loaded = load_recipe(recipe, flags)
    assert loaded.prompt.method == "lora" and not {"init", "init_text"} & loaded.explicitly_set
    assert load_recipe(recipe, ["--init_text", "null", "--init_text", "b"]).prompt.init_text == "b"
    with pytest.raises(RecipeError, match="unknown setting max_stepz"):
        load_recipe(recipe, ["--max_stepz=null"])


def test_a_setting_that_an_older_version_did_not_save_has_its_default(recipe_file):
    settings = load_recipe(recipe_file(method="lora", num_virtual_tokens=None)).resolved()
    saved = {name: value for name, value in settings.items() if name != "lora_use_dora"}
    assert settings["lora_use_dora"] is False and changed_settings(saved, settings) == []
    assert changed_settings(saved, settings | {"lora_use_dora": True}) == ["lora_use_dora"]


def test_the_best_checkpoint_is_chosen_by_the_main_metric_of_the_task(recipe_file):
    best = dict(load_best_model_at_end="true", eval_strategy="steps", eval_steps=2, save_steps=2)
    training = load_recipe(recipe_file(**best)).training
    assert (training.metric_for_best_model, training.greater_is_better) == ("f1", True)
    training = load_recipe(recipe_file(**best, metric_for_best_model="loss")).training
    assert (training.metric_for_best_model, training.greater_is_better) == ("loss", False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"task: [", "not YAML"),
        (b"- task", "expected `key: value` pairs, found a list"),
        (b"", "found an empty file"),
        (b"task: \xff", "not UTF-8 text (byte 6)"),
        (b"seed: 1\nseed: 2", "line 2: seed was set on line 1 already"),
        (b"max_steps: 1\nmax-steps: 2", "line 2: max_steps was set on line 1 already"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused_with_its_line(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"bad.yaml") as caught:
        load_recipe(tmp_path / "bad.yaml")
    assert message in str(caught.value)
    with pytest.raises(RecipeError, match=r": this is a folder\. Name a recipe in it"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_the_page_names_every_default_that_differs_from_trainers():
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8").split("## Defaults")[1]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"(?m)^\| (`.+?) \|", page))))
    ours, theirs = (
        {field.name: field.default for field in fields(arguments)}
        for arguments in (PromptTuningArguments, Seq2SeqTrainingArguments)
    )
    differ = {name for name, value in ours.items() if name not in theirs or theirs[name] != value}
    assert differ <= named
    # Other settings decide these two.
    assert named - differ == {"dataloader_pin_memory", "metric_for_best_model"}


def test_a_resolved_recipe_parses_to_the_same_settings(recipe_file, tmp_path):
    overrides = ["--weight_decay", "0.1", "--hub_model_id", "ann/first", "--report_to", "none"]
    overrides += ["--include_num_input_tokens_seen"]
    recipe = load_recipe(recipe_file(metrics="[squad, exact_match]"), overrides)
    resolved = recipe.resolved()
    assert "ann/first" not in str(resolved)  # A second run must not replace the first one on the hub.
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved))
    again = load_recipe(tmp_path / "again.yaml")
    assert (again.model, again.data, again.prompt) == (recipe.model, recipe.data, recipe.prompt)
    differing = {key for key, value in recipe.training.to_dict().items() if again.training.to_dict()[key] != value}
    assert differing <= {"hub_model_id", "logging_dir"}


@pytest.mark.parametrize(("written", "value"), [("true", True), ("no", False), ("'off'", None)])
def test_a_switch_of_a_saved_recipe_is_typed_as_its_flag_is(recipe_file, written, value):
    path = recipe_file(bf16=written)
    if value is None:
        with pytest.raises(RecipeError, match=r"recipe\.yaml: bf16: "):
            read_switches(path, ("bf16",))
    else:
        assert read_switches(path, ("bf16", "fp16")) == {"bf16": value, "fp16": False}


def test_a_plateau_scheduler_maximises_a_metric_that_is_better_when_greater(recipe_file):
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 500}
    of_loss, of_f1 = {"metric_for_best_model": "loss"}, {"metric_for_best_model": "f1"}
    modes = [
        (load_recipe(recipe_file(**plateau, **changes)).training.lr_scheduler_kwargs or {}).get("mode")
        for changes in ({}, of_loss, of_f1, {"load_best_model_at_end": "true"})
    ]
    assert modes == [None, None, "max", "max"]  # The default of torch is min.


def test_the_number_of_recipes_is_the_one_in_the_readme():
    assert len(RECIPES) == 20


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_loads_and_its_header_has_launch_line_and_score(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = [f"--{split}_file=recipes/quickstart/{split}.jsonl" for split in ("train", "validation", "test")]
    recipe = load_recipe(path, files if "Needs: local files" in path.read_text(encoding="utf-8") else [])
    Template.load(recipe.prompt.template)
    header = path.read_text(encoding="utf-8").split("\nmodel_name_or_path")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"prompt-tuning train {path.relative_to(ROOT)}" in header
    assert "Score:" in header and Path(recipe.training.output_dir).parts[0] == "runs"
