"""Numbers that nobody can mean, and names of other tools: both are refused with what to write, all at once."""

import dataclasses
import re
import typing

import pytest
from helpers.models import forbid_model_loading

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.other_names import SETTINGS_OF, hint
from prompt_tuning.recipe.parser import RecipeParser
from prompt_tuning.recipe.ranges import RANGES, Range, range_error

# Shares or numbers of rows, and a pair of prices, have rules of their own.
SIZES = {"validation_size", "test_size", "token_prices"}


@pytest.fixture(scope="module")
def parser():
    return RecipeParser()


def number_settings():
    """Return the names of all settings that are numbers, with their defaults."""
    settings = {}
    for block in (ModelArguments, DataArguments, PromptArguments, PromptTuningArguments):
        hints = typing.get_type_hints(block)
        for field in dataclasses.fields(block):
            if re.search(r"\b(int|float)\b", re.sub(r"Literal\[.*?\]", "", str(hints[field.name]))):
                settings[field.name] = field.default
    return settings


def wrong_values(allowed):
    """Return numbers just outside of a range."""
    values = ["nan", "inf", "-inf", str(allowed.low - 1), str(-1e30), str(10**400)]
    if allowed.above:
        values.append(str(allowed.low))
    if allowed.high is not None:
        values += [str(allowed.high + 1)] + [str(allowed.high)] * allowed.below
    if allowed.steps:
        values.append("2.5")
    return [value for value in values if value != str(allowed.besides)]


def test_every_number_has_a_range_that_holds_its_default():
    settings = number_settings()
    assert settings.keys() - SIZES == RANGES.keys()
    for name, default in settings.items():
        assert default is None or range_error(name, default) is None


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_its_range_is_refused_in_a_recipe_and_on_a_command_line(name, parser):
    for value in wrong_values(RANGES[name]):
        error = parser.pair_error(name, value)
        if "invalid int value" not in error:  # An int is neither nan nor inf.
            assert error.startswith(f"{name} is ") and error.endswith(f"it must be {RANGES[name]}")
        assert parser.flag_errors([f"--{name}", value]) == [f"command line: {error}"]
        assert parser.flag_errors([f"--{name.replace('_', '-')}={value}"]) == [f"command line: {error}"]
    least = RANGES[name].low + RANGES[name].above
    assert parser.pair_error(name, str(least)) is None


def test_a_range_reads_as_words():
    assert str(Range(0, 1, below=True)) == "at least 0 and below 1"
    assert str(RANGES["max_steps"]) == "at least 1, or -1"
    assert str(RANGES["eval_steps"]) == "above 0, and whole from 1 on"
    assert 0.5 in RANGES["eval_steps"] and 2 in RANGES["eval_steps"] and 2.5 not in RANGES["eval_steps"]


def test_names_types_and_ranges_of_file_and_command_line_are_reported_at_once_with_their_lines(recipe_file):
    path = recipe_file(learning_rate="high", seed=2**32, lr=1, num_train_epochs=0)
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            path,
            ["--learning_rate", "high", "--num_virtual_tokens", "-3", "--epochs", "2", "--bf16", "--top_p=2", "x"],
        )
    lines = str(caught.value).splitlines()
    typed = "argument --learning_rate/--learning-rate: invalid float value: 'high'"
    number = {line.split(":")[0]: place for place, line in enumerate(path.read_text().splitlines(), 1)}
    assert lines == [
        f"{path}, line {number['learning_rate']}: {typed}",
        f"{path}, line {number['seed']}: seed is 4294967296; it must be at least 0 and at most 4294967295",
        f"{path}, line {number['lr']}: unknown setting lr. Set learning_rate.",
        f"{path}, line {number['num_train_epochs']}: num_train_epochs is 0.0; it must be above 0",
        f"command line: {typed}",
        "command line: num_virtual_tokens is -3; it must be at least 0",
        "command line: unknown setting epochs. Set num_train_epochs.",
        "command line: unknown setting top_p. Leave it out: predictions are greedy, or by generation_num_beams.",
    ]


@pytest.mark.parametrize("command", ["train", "evaluate", "render", "check", "rank", "compare", "sweep", "ensemble"])
def test_every_command_refuses_them_before_a_model_loads(command, recipe_file, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    words = [command, str(recipe_file())]
    if command == "sweep":
        (tmp_path / "sweep.yaml").write_text(f"recipe: {words[1]}\nruns: {{a: {{seed: 1}}, b: {{seed: 2}}}}\n")
        words[1] = str(tmp_path / "sweep.yaml")
    if command == "ensemble":
        words += ["--adapters", "a", "b"]
    try:
        code = main([*words, "--learning_rate", "nan", "--weight_decay=-1", "--num_beams", "4"])
    except SystemExit as ended:  # compare has a flag --learning_rates, which could have been meant.
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err
    for message in (
        "learning_rate is nan; it must be",
        "weight_decay is -1.0; it",
        "num_beams. Set generation_num_beams.",
    ):
        assert message in error


def test_numbers_of_a_command_itself_are_reported_together_with_those_of_the_recipe(recipe_file, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["rank", str(recipe_file()), "--rows", "-3", "--seeds", "1", "x", "--finalist", "2", "--lr", "3"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    for message in (
        "--rows: it is -3, and must be at least 1", "--seeds: expected a whole number, found 'x'",
        "unrecognized arguments: --finalist. Did you mean --finalists?", "unknown setting lr. Set learning_rate.",
    ):  # fmt: skip
        assert message in error


def test_flags_that_are_near_a_flag_of_their_command_get_its_name(recipe_file, capsys):
    for words, message in (
        (["predict", "--adapter", "x", "--batchsize", "3"], "--batchsize. Did you mean --batch_size?"),
        (["predict", "--adapter", "x", "--num_beams", "3"], "--num_beams. `prompt-tuning predict --help` lists"),
        (["evaluate", str(recipe_file()), "--adapters", "x"], "--adapters. Did you mean --adapter?"),
        (["push", "x", "--repo_id", "a", "--base-models", "b"], "--base-models. Did you mean --base_model?"),
        (["predict", "--adaptor", "x", "--input", "y"], "--adaptor. Did you mean --adapter?"),
        (["ensemble", str(recipe_file()), "--adaptors", "x"], "--adaptors. Did you mean --adapters?"),
        (["requests", "x", "--tasks=qa"], "--tasks. Did you mean --task?"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert f"unrecognized arguments: {message}" in capsys.readouterr().err


def test_a_seed_that_compare_would_ignore_is_refused(recipe_file, capsys):
    recipe = str(recipe_file())
    for flag in (["--seed", "3"], ["--seed=3"]):
        assert main(["compare", recipe, *flag]) == 2
        assert "seed has no effect, since every recipe is trained with every one of --seeds" in capsys.readouterr().err


def test_a_hint_names_a_setting_that_exists_and_no_name_is_both(parser):
    for names, others in SETTINGS_OF.items():
        assert parser.has_setting(re.match(r"\w+", names)[0])
        for other in others.split():
            assert not parser.has_setting(other), other
            assert hint(other, [], "") == f"Set {names}."


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("num_beams", "Set generation_num_beams."),
        ("lr", "Set learning_rate."),
        ("source_prefix", "Write the words into the template's source."),
        ("overwrite_output_dir", "Name another output_dir, or remove the folder: no run overwrites another one."),
        ("batch-size", "Set per_device_train_batch_size."),
        ("max_length", "Set max_source_tokens and max_target_tokens."),
        ("model", "Set model_name_or_path."),
        ("train_data", "Set train_file."),
        ("padding_side", "Leave it out: it changes no result here."),
        ("warmup_ratio", "Set warmup_steps."),
        ("temperature", "Leave it out: predictions are greedy, or by generation_num_beams."),
        ("lora_rank", "Set lora_r."),
        ("learnin_rate", "Did you mean learning_rate?"),
        ("zebra", "`prompt-tuning train --help_all` lists all settings."),
    ],
)
def test_a_wrong_name_is_answered_with_what_to_write(name, advice, parser):
    assert parser.pair_error(name, "1") == f"unknown setting {name}. {advice}"
    assert parser.flag_errors([f"--{name}", "1"]) == [f"command line: unknown setting {name}. {advice}"]


def test_help_shows_values_and_ranges_in_the_width_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    _, flags = capsys.readouterr().out.split("the base model:\n")
    assert max(map(len, flags.splitlines())) < 80
    assert "columns. (question_answering, summarization, translation)" in " ".join(flags.split())
    assert "in training. (default: 0.0; at least 0 and below 1)" in " ".join(flags.split())
    assert "--learning_rate" not in flags
    assert main(["train", "--help_all"]) == 0
    flags = " ".join(capsys.readouterr().out.split())
    assert "of training. (default: 42; at least 0 and at most 4294967295)" in flags
    assert "--score_choices true|false" in flags and "--no_score_choices" not in flags


def test_a_recipe_that_cannot_be_read_does_not_hide_wrong_flags(recipe_file, capsys):
    assert main(["train", "--num_virtual_token", "3", str(recipe_file())]) == 2
    error = capsys.readouterr().err
    assert "3: no such recipe." in error
    assert "unknown setting num_virtual_token. Did you mean num_virtual_tokens?" in error


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1", "1.5"])
def test_sizes_of_splits_are_shares_or_numbers_of_rows(size, recipe_file):
    with pytest.raises(RecipeError, match=r"validation_size is .*; it must be a share between 0 and 1, or a whole"):
        load_recipe(recipe_file(validation_file=None), [f"--validation_size={size}"])
