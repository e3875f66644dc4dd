"""A recipe that trains a saved adapter further: what it may not contradict, and what has no effect."""

from dataclasses import replace

import pytest
from peft import CartridgeConfig, LoraConfig, PromptTuningConfig

from prompt_tuning.errors import RecipeError
from prompt_tuning.models.encoder_decoder_prefix import EncoderDecoderPrefixConfig
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.continued_adapter import check_adapter_settings

PROMPT = PromptTuningConfig(num_virtual_tokens=6)
LORA = LoraConfig(r=4, lora_alpha=32, lora_dropout=0.1, use_rslora=True)


@pytest.fixture
def check(recipe_file):
    """Return a function that checks the settings of a recipe against the configuration of an adapter."""

    def run(config, **settings):
        recipe = load_recipe(recipe_file(**{"num_virtual_tokens": None} | settings))
        check_adapter_settings(replace(recipe, prompt=replace(recipe.prompt, adapter="runs/x")), config)

    return run


@pytest.mark.parametrize(
    ("config", "settings", "messages"),
    [
        (PROMPT, {"num_virtual_tokens": 8}, ["num_virtual_tokens: 6"]),
        (
            CartridgeConfig(num_virtual_tokens=6, num_frozen_tokens=2),
            {"method": "cartridge", "num_virtual_tokens": 7, "num_frozen_tokens": 3},
            ["num_virtual_tokens: 6", "num_frozen_tokens: 2"],
        ),
        (
            EncoderDecoderPrefixConfig(num_virtual_tokens=6),
            {"method": "prefix_tuning", "prefix_cross": "false"},
            ["prefix_cross: true"],
        ),
        (
            LORA,
            {"method": "lora", "lora_r": 16, "lora_alpha": 8, "lora_dropout": 0.2, "lora_use_dora": "true"},
            ["lora_r: 4", "lora_alpha: 32", "lora_dropout: 0.1", "lora_use_dora: false"],
        ),
    ],
    ids=["prompt", "cartridge", "prefix", "lora"],
)
def test_sizes_that_contradict_the_adapter_are_refused(config, settings, messages, check):
    with pytest.raises(RecipeError) as error:
        check(config, **settings)
    assert str(error.value).splitlines() == [f"adapter runs/x has {message}. Set {message}." for message in messages]


@pytest.mark.parametrize(
    ("config", "settings", "names"),
    [
        (PROMPT, {"num_virtual_tokens": 6}, ""),
        (PROMPT, {"init": "text", "init_text": "Answer.", "residual": "true"}, "init, init_text, residual"),
        (PROMPT, {"init": "template", "num_demonstrations": 2}, ""),
        (PROMPT, {"init": "template"}, "init"),
        (LORA, {"method": "lora"}, ""),
        # The recipe of a run names the defaults too.
        (LORA, {"method": "lora", "lora_r": 8, "lora_target_modules": "[q_proj]"}, "lora_target_modules, lora_r"),
    ],
    ids=str,
)
def test_settings_without_effect_are_reported(config, settings, names, check, caplog):
    check(config, **settings)
    message = f"no effect beside adapter runs/x, which is trained further as it was saved: {names}"
    assert [record.getMessage() for record in caplog.records] == ([message] if names else [])
