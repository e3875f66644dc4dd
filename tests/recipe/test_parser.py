"""The parser of recipes: a file and flags are typed alike, whatever the spelling of a key or value."""

import yaml

from prompt_tuning.recipe.loading import load_recipe


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


def test_a_key_may_be_written_with_dashes(recipe_file):
    recipe = load_recipe(recipe_file(**{"method": "lora", "num_virtual_tokens": None, "learning-rate": 0.5}))
    assert recipe.training.learning_rate == 0.5 == recipe.resolved()["learning_rate"]
    assert (
        load_recipe(recipe_file(), ["--no_average_tokens_across_devices"]).resolved()["average_tokens_across_devices"]
        is False
    )


def test_numbers_within_a_mapping_are_numbers_and_stay_so_in_a_saved_recipe(recipe_file, tmp_path):
    recipe = recipe_file(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs="{min_lr: 1e-5}")
    for path in (recipe, tmp_path / "again.yaml"):
        loaded = load_recipe(path)
        assert loaded.training.lr_scheduler_kwargs == {"min_lr": 1e-5}
        (tmp_path / "again.yaml").write_text(yaml.safe_dump(loaded.resolved()))  # It has min_lr: 1.0e-05.
