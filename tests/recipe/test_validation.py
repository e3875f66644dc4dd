"""Validation of recipes: every mistake is reported before anything runs, with the next step."""

from types import SimpleNamespace

import pytest

from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.machine_validation import validation_errors
from prompt_tuning.runs.prepare import prepare


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
        ({"model_name_or_path": None, "task": None}, [], ["_or_path is missing. Set", "task is missing. Set"]),
        ({"train_file": "gone.jsonl"}, [], ["gone.jsonl: no such file (looked in "]),
        (
            {"train_file": "rows.txt"},
            [],
            ["rows.txt: cannot tell its format. Expected a name ending in .json, .jsonl"],
        ),
        (
            {"train_file": "my/rows.XLSX"},
            [],
            [
                "my/rows.XLSX: .XLSX is not read. Convert it in Python: `pandas.",
                'read_excel("my/rows.XLSX", dtype=str, keep_default_na=False).to_csv("my/rows.csv", index=False)`.',
            ],
        ),
        ({"train_file": "rows.jsonl.gz"}, [], ["rows.jsonl.gz: .gz is not read. Unpack it first."]),
        ({"train_file": "~/gone/*.csv"}, [], ["~/gone/*.csv: no such file (looked in "]),
        ({"train_file": None, "validation_file": None, "test_file": None}, [], ["no data: set dataset_name"]),
        ({"init": "text"}, [], ["init is text but init_text is missing"]),
        ({"init_text": "Answer."}, [], ["init_text is set but init is vocab"]),
        ({"test_size": 0.2}, [], ["test_size and test_file or test_split both give the test rows. Leave out one."]),
        (
            {"validation_file": None, "validation_size": 1.5},
            [],
            ["validation_size is 1.5; it must be a share between 0 and 1, or a whole number of rows"],
        ),
        ({"test_file": None, "test_size": "nan"}, [], ["test_size is nan; it must be a share"]),
        (
            {"test_file": None, "test_size": 0.5, "validation_file": None, "validation_size": 0.5},
            [],
            ["validation_size and test_size take all rows, and leave none for training"],
        ),
        ({"split_seed": 3}, [], ["split_seed has no effect without validation_size or test_size"]),
        (
            {"train_file": None, "test_file": None, "test_size": 5},
            [],
            ["test_size: there are no training rows to cut. Set train_file."],
        ),
        (
            {"test_file": None, "test_size": 5, "streaming": "true", "max_steps": 4},
            [],
            ["streaming: test_size needs all training rows before training"],
        ),
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
        ({"include_for_metrics": "[loss]"}, [], ["include_for_metrics: metrics get predicted texts and references"]),
        ({"label_names": "[targets]"}, [], ["label_names: targets are encoded into the column labels"]),
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
        (
            {"report_to": "wandb"},
            [],
            ["report_to: WandbCallback requires wandb to be installed", "`pip install wandb`. Change it"],
        ),
        ({"optim_args": "foo"}, [], ["optim: "]),
        ({"bf16_full_eval": "true"}, [], ["bf16_full_eval would evaluate in other numbers than `predict` computes"]),
        ({"optim": "adamw_bnb_8bit"}, [], ["optim: ", "bitsandbytes"]),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, [], ["optim: ", "galore"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, [], ["lr_scheduler_type: One of min_lr or min_lr_rate"]),
        ({"use_liger_kernel": "true"}, [], ["use_liger_kernel: liger-kernel is not installed"]),
        ({"data_seed": 3}, [], ["data_seed has no effect without train_sampling_strategy: random"]),
        (
            {"group_shared": 4, "train_sampling_strategy": "random"},
            [],
            ["group_shared has no effect without a prompt and train_sampling_strategy: group_by_length"],
        ),
        ({"group_shared": 0}, [], ["group_shared is 0; it must be at least 1"]),
        ({"per_device_train_batch_size": 0}, [], ["per_device_train_batch_size is 0; it must be at least 1"]),
        ({"gradient_accumulation_steps": 0}, [], ["gradient_accumulation_steps is 0; it must be at least 1"]),
        ({"generation_num_beams": -1}, [], ["generation_num_beams is -1; it must be at least 1"]),
        ({"max_steps": 0}, [], ["line 12: max_steps is 0; it must be at least 1, or -1"]),
        ({"max_steps": -1, "num_train_epochs": -2}, [], ["num_train_epochs is -2.0; it must be above 0"]),
        ({"seed": -1}, [], ["seed is -1; it must be at least 0"]),
        ({"method": "lora", "num_virtual_tokens": None, "lora_dropout": 2}, [], ["lora_dropout is 2.0; it must be"]),
        ({"lora-r": 4}, [], ["lora_r has no effect with method prompt_tuning"]),
        ({}, ["--no_prefix_encoder"], ["prefix_encoder has no effect with method prompt_tuning"]),
        ({"train_file": "[a.jsonl, b.jsonl]"}, [], ["line 3: train_file: expected one value, found a list of 2"]),
        ({"init_text": "{{question}}"}, [], ["line 15: a key must be one text. Quote a value that begins with {"]),
        ({"source_column": "src"}, [], ["source_column has no effect without task: translation"]),
        ({"train_split": "half"}, [], ["train_split has no effect without dataset_name"]),
        ({"encoder_hidden_size": 5}, [], ["encoder_hidden_size has no effect without residual"]),
        ({"early_stopping_threshold": 0.5}, [], ["early_stopping_threshold has no effect without early_stopping"]),
        ({"max_teacher_tokens": 50}, [], ["max_teacher_tokens has no effect without teacher_template"]),
        ({"greater_is_better": "false"}, [], ["greater_is_better has no effect without metric_for_best_model"]),
        (
            {"load_best_model_at_end": "true"},
            [],
            ["load_best_model_at_end needs evaluations to choose by. Set eval_strategy"],
        ),
        (
            {"load_best_model_at_end": "true", "eval_strategy": "epoch"},
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


def test_float16_and_quantized_weights_under_deepspeed_are_refused(recipe_file):
    recipe = load_recipe(recipe_file())
    recipe.training.deepspeed_plugin = SimpleNamespace(zero_stage=2, deepspeed_config={})
    assert validation_errors(recipe) == []
    recipe.training.fp16 = True
    assert [problem for problem in validation_errors(recipe) if problem.startswith("fp16: DeepSpeed would round")]
    recipe.training.fp16 = False
    recipe.training.deepspeed_plugin.zero_stage = 3
    assert validation_errors(recipe) == []
    recipe.model.quantization_config = {"load_in_4bit": True}
    assert [problem for problem in validation_errors(recipe) if "and ZeRO-3 none. Launch it with" in problem]


def test_an_unknown_language_is_reported(recipe_file, caplog):
    prepare(load_recipe(recipe_file(lang="cn")), ("test",))
    assert "language cn: not a known code" in caplog.text
    caplog.clear()
    prepare(load_recipe(recipe_file(lang="zh-Hans")), ("test",))
    assert "not a known code" not in caplog.text


def test_unknown_settings_of_torch_compile_are_refused(recipe_file):
    known = load_recipe(recipe_file(torch_compile_backend="aot_eager", torch_compile_mode="max-autotune"))
    assert validation_errors(known) == []
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file(torch_compile_backend="evil.module", torch_compile_mode="fast"))
    assert "torch_compile_backend is 'evil.module'. Take one of eager, " in str(caught.value)
    assert "torch_compile_mode is 'fast'. Take one of default, " in str(caught.value)
