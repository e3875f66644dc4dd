"""Recipes: a file and flags are typed alike, and all mistakes are reported before anything runs."""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.paths import ROOT
from transformers import Seq2SeqTrainingArguments

from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.loading import load_recipe, read_switches
from prompt_tuning.recipe.old_settings import GONE
from prompt_tuning.recipe.validation import validation_errors
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.templates.template import Template

OTHER = ("templates", "accelerate")
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in OTHER)


def test_yaml_and_flags_are_typed_alike_and_flags_win(recipe_file):
    path = recipe_file(
        learning_rate="5e-5", bf16="no", lr_scheduler_kwargs='{"num_cycles": 0.4}', metrics="[squad, exact_match]"
    )
    recipe = load_recipe(path)
    assert recipe.training.learning_rate == 5e-5 and recipe.training.bf16 is False
    assert recipe.training.lr_scheduler_kwargs == {"num_cycles": 0.4}
    assert recipe.prompt.metrics == ["squad", "exact_match"]
    recipe = load_recipe(
        path, ["--learning_rate", "1e-3", "--metrics", "squad", "--seed=7", "--max-train-samples", "3"]
    )
    assert recipe.training.learning_rate == 1e-3 and recipe.training.seed == 7
    assert recipe.prompt.metrics == ["squad"] and recipe.data.max_train_samples == 3


def test_norwegian_is_a_language_and_not_a_truth_value(recipe_file):
    recipe = load_recipe(
        recipe_file(task="translation", template="translation/plain", source_lang="no", target_lang="en")
    )
    assert recipe.data.source_lang == "no"


def test_a_label_may_be_a_negative_number(recipe_file):
    assert load_recipe(recipe_file(init="class_labels", init_labels="[-1, 1]")).prompt.init_labels == ["-1", "1"]


def test_null_in_quotes_is_a_text(recipe_file):
    assert load_recipe(recipe_file(init="text", init_text="'null'")).prompt.init_text == "null"
    assert load_recipe(recipe_file(init_text="null")).prompt.init_text is None


def test_an_unknown_language_is_reported(recipe_file, caplog):
    prepare(load_recipe(recipe_file(lang="cn")), ("test",))
    assert "language cn: not a known code" in caplog.text
    caplog.clear()
    prepare(load_recipe(recipe_file(lang="zh-Hans")), ("test",))
    assert "no code" not in caplog.text


def test_defaults_suit_prompts_and_the_folder_has_the_name_of_the_recipe(recipe_file):
    recipe = load_recipe(recipe_file(output_dir=None))
    assert recipe.training.output_dir == "runs/recipe"
    assert recipe.training.learning_rate == 3e-2 and recipe.training.predict_with_generate


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
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


def test_the_best_checkpoint_is_chosen_by_the_main_metric_of_the_task(recipe_file):
    best = dict(load_best_model_at_end="true", eval_strategy="steps", eval_steps=2, save_steps=2)
    training = load_recipe(recipe_file(**best)).training
    assert (training.metric_for_best_model, training.greater_is_better) == ("f1", True)
    training = load_recipe(recipe_file(**best, metric_for_best_model="loss")).training
    assert (training.metric_for_best_model, training.greater_is_better) == ("loss", False)


@pytest.mark.parametrize(
    ("changes", "overrides", "messages"),
    [
        ({"num_train_epoch": 3}, [], ["line 15: unknown setting num_train_epoch. Did you mean num_train_epochs?"]),
        ({"learning_rate": "fast"}, [], ["learning_rate", "invalid float value: 'fast'"]),
        ({"method": "prefix"}, [], ["invalid choice: 'prefix'", "prompt_tuning"]),
        (
            {"sed": 1, "max_steps": "ten"},
            ["--tempalte", "x"],
            ["Did you mean seed?", "'ten'", "Did you mean template?"],
        ),
        ({}, ["--num_train_epoch", "3"], ["command line: unknown setting num_train_epoch"]),
        ({"model_name_or_path": None, "task": None}, [], ["model_name_or_path is missing", "task is missing"]),
        ({"train_file": "gone.jsonl"}, [], ["gone.jsonl: no such file (looked in "]),
        (
            {"train_file": "rows.txt"},
            [],
            ["rows.txt: cannot tell its format. Expected a name ending in .json, .jsonl"],
        ),
        ({"train_file": None, "validation_file": None, "test_file": None}, [], ["no data: set dataset_name"]),
        ({"init": "text"}, [], ["init is text but init_text is missing"]),
        ({"init_text": "Answer."}, [], ["init_text is set but init is vocab"]),
        ({"lang": "Chinese"}, [], ["lang Chinese: expected a code, such as zh"]),
        (
            {"init": "class_labels", "init_labels": "['yes', --bf16]"},
            [],
            ["line 16: init_labels: the item '--bf16' looks like a flag"],
        ),
        ({"task": "translation"}, [], ["translation needs source_lang and target_lang"]),
        ({"max_target_tokens": 0}, [], ["max_target_tokens is 0; it must be at least 1"]),
        ({"early_stopping_patience": 2}, [], ["early_stopping_patience needs load_best_model_at_end"]),
        ({"predict_with_generate": "false"}, [], ["predict_with_generate is false; evaluation here is by generation"]),
        ({"do_train": "true"}, [], ["do_train has no effect here"]),
        ({"prediction_loss_only": "true"}, [], ["prediction_loss_only: true leaves nothing to score"]),
        ({"neftune_noise_alpha": 5}, [], ["neftune_noise_alpha is for methods lora and full"]),
        (
            {"method": "prefix_tuning", "activation_checkpointing_kwargs": {"use_reentrant": True}},
            [],
            ["use_reentrant takes no gradient through the cache"],
        ),
        ({"generation_config": "folder"}, [], ["generation_config would not reach `predict`"]),
        ({"eval_do_concat_batches": "false"}, [], ["eval_do_concat_batches: false leaves nothing to score"]),
        (
            {"enable_jit_checkpoint": "true"},
            [],
            ["enable_jit_checkpoint: SIGTERM saves a checkpoint here in any case"],
        ),
        (
            {"dataloader_persistent_workers": "true"},
            [],
            ["dataloader_persistent_workers needs dataloader_num_workers"],
        ),
        ({"fsdp": "full_shard"}, [], ["fsdp splits a model over several processes"]),
        ({"accelerator_config": "none.json"}, [], ["No such file", "none.json"]),
        ({"save_strategy": "best"}, [], ["save_strategy best needs evaluations to choose by"]),
        (
            {"load_best_model_at_end": "true", "save_strategy": "best"},
            [],
            ["load_best_model_at_end needs evaluations"],
        ),
        ({"report_to": "wandb"}, [], ["report_to: WandbCallback requires wandb to be installed"]),
        ({"optim_args": "foo"}, [], ["optim: "]),
        ({"bf16_full_eval": "true"}, [], ["bf16_full_eval would evaluate in other numbers than `predict` computes"]),
        ({"optim": "adamw_bnb_8bit"}, [], ["optim: ", "bitsandbytes"]),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, [], ["optim: ", "galore"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, [], ["lr_scheduler_type: One of min_lr or min_lr_rate"]),
        ({"use_liger_kernel": "true"}, [], ["use_liger_kernel: liger-kernel is not installed"]),
        ({"data_seed": 3}, [], ["data_seed has no effect without train_sampling_strategy: random"]),
        ({"per_device_train_batch_size": 0}, [], ["per_device_train_batch_size is 0; it must be at least 1"]),
        ({"gradient_accumulation_steps": 0}, [], ["gradient_accumulation_steps is 0; it must be at least 1"]),
        ({"generation_num_beams": -1}, [], ["generation_num_beams is -1; it must be at least 1"]),
        ({"max_steps": 0}, [], ["max_steps 0 and num_train_epochs 3 train nothing"]),
        ({"max_steps": -1, "num_train_epochs": -2}, [], ["max_steps -1 and num_train_epochs -2 train nothing"]),
        ({"seed": -1}, [], ["seed is -1; it must be at least 0"]),
        ({"method": "lora", "num_virtual_tokens": None, "lora_dropout": 2}, [], ["lora_dropout is 2.0; it must be"]),
        ({"lora-r": 4}, [], ["lora_r has no effect with method prompt_tuning"]),
        ({}, ["--no_prefix_encoder"], ["prefix_encoder has no effect with method prompt_tuning"]),
        ({"train_file": "[a.jsonl, b.jsonl]"}, [], ["line 3: train_file: expected one value, found a list of 2"]),
        ({"init_text": "{{question}}"}, [], ["line 15: a key must be one text. Quote a value that begins with {"]),
        ({"train_split": "half"}, [], ["train_split has no effect without dataset_name"]),
        ({"encoder_hidden_size": 5}, [], ["encoder_hidden_size has no effect without residual"]),
        ({"early_stopping_threshold": 0.5}, [], ["early_stopping_threshold has no effect without early_stopping"]),
        ({"max_teacher_tokens": 50}, [], ["max_teacher_tokens has no effect without teacher_template"]),
        ({"greater_is_better": "false"}, [], ["greater_is_better has no effect without metric_for_best_model"]),
        (
            {"load_best_model_at_end": "true"},
            [],
            ["--load_best_model_at_end requires the save and eval strategy to match"],
        ),
    ],
)
def test_all_mistakes_are_reported_together_with_the_next_step(recipe_file, changes, overrides, messages):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file(**changes), overrides)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "replacement"),
    [
        ("load_in_4bit", "quantization_config: {quant_method: bitsandbytes, load_in_4bit: true}"),
        ("bnb-4bit-quant-type", "load_in_4bit: true, bnb_4bit_quant_type: nf4}"),
        ("quant_type", "quantization_config: {quant_method: torchao, quant_type: {default: {_type: Int8Weight"),
    ],
)
def test_a_setting_of_0_1_0_that_is_gone_names_its_replacement(recipe_file, key, replacement, capsys):
    assert main(["check", str(recipe_file(**{key: "true"}))]) == 2
    message = capsys.readouterr().err
    assert f"line 15: {key.replace('-', '_')} is not a setting any more. Set " in message and replacement in message
    assert main(["check", str(recipe_file()), f"--{key}", "true"]) == 2
    assert f"command line: {key} is not a setting any more. Set " in capsys.readouterr().err


@pytest.mark.parametrize("setting", GONE.values())
def test_the_replacement_of_a_setting_that_is_gone_is_one(recipe_file, setting):
    name, _, value = setting.partition(": ")
    assert load_recipe(recipe_file(**{name: value})).model.quantization_config["quant_method"]


@pytest.mark.parametrize(
    ("saved", "quantization"),
    [
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
        ),
        ({"quant_type": "Int8WeightOnlyConfig"}, {"_type": "Int8WeightOnlyConfig", "_data": {}}),
        (
            {"quant_type": "Int4WeightOnlyConfig(group_size=32, use_hqq=True)"},
            {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32, "use_hqq": True}},
        ),
        ({"quant_type": "Int4WeightOnlyConfig(n=f('x'))"}, None),
    ],
)
def test_a_quantized_run_of_0_1_0_predicts_with_what_replaces_its_settings(recipe_file, saved, quantization):
    path = recipe_file(**saved)
    if quantization is None:
        with pytest.raises(RecipeError, match=r"cannot be translated\. Set quantization_config: "):
            load_recipe(path, for_prediction=True)
        return
    settings = load_recipe(path, for_prediction=True).model.quantization_config
    if settings.pop("quant_method") == "torchao":
        settings = settings["quant_type"]["default"]
    assert settings == quantization


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
    with pytest.raises(RecipeError, match=r"is a folder\. Name a recipe in it"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_the_page_names_every_default_that_differs_from_trainers():
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").split("## Trackers")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"(?m)^\| (`.+?) \|", page))))
    ours, theirs = (
        {each.name: each.default for each in fields(kind)}
        for kind in (PromptTuningArguments, Seq2SeqTrainingArguments)
    )
    differ = {name for name, value in ours.items() if name not in theirs or theirs[name] != value}
    assert differ <= named
    assert named - differ == {"dataloader_pin_memory", "metric_for_best_model"}  # which are set by what else is


def test_a_key_may_be_written_with_dashes(recipe_file):
    recipe = load_recipe(recipe_file(**{"method": "lora", "num_virtual_tokens": None, "learning-rate": 0.5}))
    assert recipe.training.learning_rate == 0.5 == recipe.resolved()["learning_rate"]
    assert (
        load_recipe(recipe_file(), ["--no_average_tokens_across_devices"]).resolved()["average_tokens_across_devices"]
        is False
    )


def test_a_resolved_recipe_parses_to_the_same_settings(recipe_file, tmp_path):
    import yaml

    overrides = ["--weight_decay", "0.1", "--hub_model_id", "ann/first", "--report_to", "none"]
    overrides += ["--include_num_input_tokens_seen"]
    recipe = load_recipe(recipe_file(metrics="[squad, exact_match]"), overrides)
    resolved = recipe.resolved()
    assert "ann/first" not in str(resolved)  # a run that is made again is not pushed over the first one
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved))
    again = load_recipe(tmp_path / "again.yaml")
    assert (again.model, again.data, again.prompt) == (recipe.model, recipe.data, recipe.prompt)
    differing = {key for key, value in recipe.training.to_dict().items() if again.training.to_dict()[key] != value}
    assert differing <= {"hub_model_id", "logging_dir"}


def test_numbers_within_a_mapping_are_numbers_and_stay_so_in_a_saved_recipe(recipe_file, tmp_path):
    import yaml

    recipe = recipe_file(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs="{min_lr: 1e-5}")
    for path in (recipe, tmp_path / "again.yaml"):
        loaded = load_recipe(path)
        assert loaded.training.lr_scheduler_kwargs == {"min_lr": 1e-5}
        (tmp_path / "again.yaml").write_text(yaml.safe_dump(loaded.resolved()))  # as min_lr: 1.0e-05


@pytest.mark.parametrize(("written", "value"), [("true", True), ("no", False), ("'off'", None)])
def test_a_switch_of_a_saved_recipe_is_typed_as_its_flag_is(recipe_file, written, value):
    path = recipe_file(bf16=written)
    if value is None:
        with pytest.raises(RecipeError, match=r"recipe\.yaml: bf16: "):
            read_switches(path, ("bf16",))
    else:
        assert read_switches(path, ("bf16", "fp16")) == {"bf16": value, "fp16": False}


def test_deepspeed_zero_3_is_refused(recipe_file):
    recipe = load_recipe(recipe_file())
    recipe.training.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    assert [problem for problem in validation_errors(recipe) if problem.startswith("deepspeed ZeRO-3")]
    recipe.training.deepspeed_plugin.zero_stage = 2
    assert validation_errors(recipe) == []


def test_a_plateau_scheduler_maximises_a_metric_that_is_better_when_greater(recipe_file):
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 500}
    of_loss, of_f1 = ({"metric_for_best_model": name} for name in ("loss", "f1"))
    modes = [
        (load_recipe(recipe_file(**plateau, **changes)).training.lr_scheduler_kwargs or {}).get("mode")
        for changes in ({}, of_loss, of_f1, {"load_best_model_at_end": "true"})
    ]
    assert modes == [None, None, "max", "max"]  # torch's own is min


def test_the_number_of_recipes_is_the_one_in_the_readme():
    assert len(RECIPES) == 15


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
