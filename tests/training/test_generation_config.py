"""Check that settings of a model's generation_config.json hold for each row of an evaluation as if it were alone."""

import shutil

import pytest
from helpers.rows import question_rows
from helpers.trainers import BUILDERS, encoded, soft, trainer
from transformers import GenerationConfig

from prompt_tuning.encoding.batching import source_length
from prompt_tuning.engine.dispatch import get_base
from prompt_tuning.errors import ModelError, RecipeError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.answers import generate_texts
from prompt_tuning.runs.evaluate import load_model
from prompt_tuning.runs.prepare import prepare

SETTINGS = {
    "stop strings": {"stop_strings": [*"abcdefghijklmnopqrstuvwxyz0123456789"]},
    "suppressed tokens": {"suppress_tokens": list(range(2, 200))},
    "the last token": {"forced_eos_token_id": 37},
    "bad words": {"bad_words_ids": [[number] for number in range(10, 390)]},
    "the fewest new tokens": {"min_new_tokens": 5, "eos_token_id": list(range(1, 300))},
    "the fewest tokens": {"min_length": 90, "eos_token_id": list(range(1, 300))},  # Sources count in a causal model.
    "beams": {"num_beams": 3},
}
WITHOUT_EFFECT = {
    "a dictionary": {"return_dict_in_generate": True, "output_hidden_states": True, "output_scores": True},
    "sampling": {"do_sample": True, "temperature": 3.0, "top_k": 0},
}


def sources_of(rows, architecture):
    causal = architecture != "t5"
    return [
        ids[: source_length(labels)] if causal else ids
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]


CASES = {
    "llama": [*SETTINGS, *WITHOUT_EFFECT],
    "t5": ["stop strings", "the last token", "the fewest tokens", *WITHOUT_EFFECT],
    "no prompt": ["stop strings", "the fewest tokens", "a dictionary"],
}


@pytest.mark.parametrize(
    ("architecture", "settings"), [(name, settings) for name, cases in CASES.items() for settings in cases]
)
def test_a_row_has_the_settings_of_the_model_in_every_batch(architecture, settings, tokenizer, tmp_path):
    model = BUILDERS["llama"](len(tokenizer)) if architecture == "no prompt" else soft(architecture, tokenizer)
    run = trainer(model, tokenizer, tmp_path, generation_num_beams=None)
    rows = encoded(tokenizer, question_rows(3, 3), architecture == "t5")
    plain = run.predict_texts(rows)
    changes = (SETTINGS | WITHOUT_EFFECT)[settings]
    if architecture == "t5" and "min_length" in changes:
        changes = changes | {"min_length": 5}
    get_base(model).generation_config.update(**changes)
    run = trainer(model, tokenizer, tmp_path, generation_num_beams=None)
    together = run.predict_texts(rows)
    assert together == [run.predict_texts(rows.select([number]))[0] for number in range(len(rows))]
    texts = generate_texts(model, tokenizer, sources_of(rows, architecture), (), **run.generation_kwargs)
    assert together == texts
    assert (together == plain) == (settings in WITHOUT_EFFECT)


@pytest.mark.parametrize(
    ("architecture", "setting", "warned"),
    [("t5", {"min_length": 14}, True), ("t5", {"min_length": 13}, False), ("llama", {"min_length": 99}, False),
     ("llama", {"min_new_tokens": 13}, True)],
)  # fmt: skip
def test_more_tokens_than_the_limit_are_reported(
    architecture, setting, warned, recipe_file, model_folders, tmp_path, caplog
):
    shutil.copytree(model_folders[architecture], tmp_path / "base")
    GenerationConfig(eos_token_id=1, **setting).save_pretrained(tmp_path / "base")
    recipe = load_recipe(recipe_file(model_name_or_path=tmp_path / "base", method="none"))
    load_model(prepare(recipe, ("test",)))
    (name,) = setting
    assert (f"sets {name} {setting[name]}, and a prediction has at most 12 tokens" in caplog.text) == warned


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_a_text_at_the_limit_is_counted_although_the_model_ends_it_there(architecture, tokenizer, tmp_path):
    model = soft(architecture, tokenizer)
    run = trainer(model, tokenizer, tmp_path, generation_num_beams=None)
    rows = encoded(tokenizer, question_rows(3, 3), architecture == "t5")
    _, expected = run.predict_texts_to_limit(rows)
    assert any(expected)
    get_base(model).generation_config.update(forced_eos_token_id=1)
    assert run.predict_texts_to_limit(rows)[1] == expected


def test_an_end_that_the_tokenizer_does_not_know_is_not_the_limit(tokenizer, tmp_path):
    model = soft("llama", tokenizer)
    run = trainer(model, tokenizer, tmp_path, generation_num_beams=None)
    rows = encoded(tokenizer, question_rows(1, 3))
    end = int(run.predict(rows).predictions[0, 2])
    get_base(model).generation_config.update(eos_token_id=[1, end])
    assert run.predict_texts_to_limit(rows)[1] == [False]


@pytest.mark.parametrize(
    "setting",
    [
        {"token_healing": True},
        {"prompt_lookup_num_tokens": 3},
        {"forced_bos_token_id": 5},
        {"penalty_alpha": 0.6},
        {"force_words_ids": [[5]]},
    ],
)
def test_a_setting_that_does_not_hold_for_rows_of_a_batch_is_refused_before_training(setting, tokenizer, tmp_path):
    model = soft("llama", tokenizer)
    (name,) = setting
    run = trainer(model, tokenizer, tmp_path)
    with pytest.raises(RecipeError, match=f"generate: {name} does not hold for rows of a batch"):
        run.evaluate(**setting)
    model.get_base_model().generation_config.update(**setting)
    with pytest.raises(ModelError, match=rf"generation_config.json of .*: {name} does not hold for rows of a batch"):
        trainer(model, tokenizer, tmp_path)


def test_very_long_stop_strings_of_a_model_are_refused(tokenizer, tmp_path):
    model = soft("llama", tokenizer)
    model.get_base_model().generation_config.update(stop_strings=["a" * 600, "b" * 600])
    with pytest.raises(ModelError, match="stop_strings has more than 1,000 characters"):
        trainer(model, tokenizer, tmp_path)
