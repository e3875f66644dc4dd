"""Settings of version 0.1.0: a setting that is gone names its replacement, and its runs still predict."""

import pytest

from prompt_tuning.cli.main import main
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.old_settings import GONE


@pytest.mark.parametrize(
    ("key", "replacement"),
    [
        ("load_in_4bit", 'quantization_config: {"quant_method": "bitsandbytes", "load_in_4bit": true}'),
        ("bnb-4bit-quant-type", '"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}'),
        (
            "quant_type",
            'quantization_config: {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8Weight',
        ),
    ],
)
def test_a_setting_of_0_1_0_that_is_gone_names_its_replacement(recipe_file, key, replacement, capsys):
    assert main(["check", str(recipe_file(**{key: "true"}))]) == 2
    message = capsys.readouterr().err
    assert f"line 15: {key.replace('-', '_')} is not a setting any more. Set " in message and replacement in message
    assert main(["check", str(recipe_file()), f"--{key}", "true"]) == 2
    assert f"command line: {key} is not a setting any more. Set " in capsys.readouterr().err


@pytest.mark.parametrize("setting", GONE.values())
def test_the_replacement_of_a_setting_is_a_setting(recipe_file, setting):
    name, _, value = setting.partition(": ")
    path = recipe_file()
    path.write_text(f"{path.read_text()}{setting}\n")
    for recipe in (load_recipe(path), load_recipe(recipe_file(), [f"--{name}", value])):
        assert recipe.model.quantization_config["quant_method"]


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
def test_a_quantized_run_of_0_1_0_predicts_with_the_replacement_of_its_settings(recipe_file, saved, quantization):
    path = recipe_file(**saved)
    if quantization is None:
        with pytest.raises(RecipeError, match=r"cannot be translated\. Set quantization_config: "):
            load_recipe(path, for_prediction=True)
        return
    settings = load_recipe(path, for_prediction=True).model.quantization_config
    if settings.pop("quant_method") == "torchao":
        settings = settings["quant_type"]["default"]
    assert settings == quantization


def test_a_run_of_0_1_0_that_switched_quantization_off_predicts_without_it(recipe_file):
    path = recipe_file(load_in_4bit=False, load_in_8bit=False)
    assert load_recipe(path, for_prediction=True).model.quantization_config is None
