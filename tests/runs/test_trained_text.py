"""An adapter reads trained ids; the hard prompt, a teacher and the start of a prompt read ordinary ids."""

import json
import shutil

import pytest
import torch
from helpers.models import tiny_tokenizer
from helpers.rows import question_rows, write_jsonl
from safetensors.torch import load_file
from transformers import LongT5Config

from prompt_tuning import Predictor
from prompt_tuning.cli.main import main
from prompt_tuning.data.loading import SPLITS
from prompt_tuning.encoding import text_search
from prompt_tuning.errors import PromptTuningError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.evaluate import evaluate
from prompt_tuning.runs.example_row import user_example
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.runs.train import train
from prompt_tuning.support.run_folder import RunFolder

ENDING = "\nAnswer:"


def prepared(recipe_file, splits=SPLITS, **settings):
    return prepare(load_recipe(recipe_file(**settings)), splits)


def ids_of(rows):
    return [row["input_ids"] for row in rows]


def test_every_split_has_trained_ids_and_the_hard_prompt_of_it_the_ordinary_ones(recipe_file):
    hard = prepared(recipe_file)
    for part in ("ending", "all"):
        soft = prepared(recipe_file, trained_text=part)
        text = soft.trained_text
        assert soft.reports == hard.reports and soft.init_ids == hard.init_ids
        for split in SPLITS:
            assert ids_of(soft.hard_prompt_rows(split)) == ids_of(hard.encoded[split])
            assert ids_of(hard.hard_prompt_rows(split)) == ids_of(hard.encoded[split])
            assert soft.encoded[split]["labels"] == hard.encoded[split]["labels"]
            for ids in ids_of(soft.encoded[split]):
                assert sum(id >= text.first_id for id in ids) >= 3
        assert text.first_id == hard.config.vocab_size and text.literals[-1] == ENDING


def test_another_split_alone_reads_the_training_rows_for_their_tokens(recipe_file, capsys):
    both = prepared(recipe_file, trained_text="all")
    alone = prepared(recipe_file, ("validation",), trained_text="all")
    assert alone.trained_text == both.trained_text
    assert ids_of(alone.encoded["validation"]) == ids_of(both.encoded["validation"])
    assert main(["render", str(recipe_file(trained_text="ending")), "-n", "1", "--split", "test"]) == 0
    shown = capsys.readouterr().out
    num_tokens = len(prepared(recipe_file, trained_text="ending").trained_text.tokens)
    assert f"({num_tokens} tokens of trained text, with *), nothing cut:" in shown
    assert shown.count(" *'") == num_tokens and "as the tokenizer reads it" not in shown
    assert main(["render", str(recipe_file(trained_text="all", train_file=None)), "--split", "test"]) == 1
    assert "trained_text all needs training rows. Set train_file." in capsys.readouterr().err


@pytest.mark.parametrize("selection", ["random", "bm25"])
def test_demonstrations_have_trained_ids_in_all_and_none_in_the_ending(selection, recipe_file):
    settings = {"num_demonstrations": 2, "demonstration_selection": selection, "max_source_tokens": 300}
    soft = {part: prepared(recipe_file, trained_text=part, **settings) for part in ("none", "ending", "all")}
    first_id = soft["all"].trained_text.first_id
    counts = {}
    for part in ("ending", "all"):
        assert ids_of(soft[part].hard_prompt_rows("test")) == ids_of(soft["none"].encoded["test"])
        counts[part] = {sum(id >= first_id for id in ids) for ids in ids_of(soft[part].encoded["test"])}
    assert counts["ending"] == {len(soft["ending"].trained_text.tokens)}
    # Each of three sources has the ending and the words between the columns.
    assert min(counts["all"]) > 3 * len(soft["ending"].trained_text.tokens)


def test_a_stream_has_the_trained_ids_of_its_first_rows(recipe_file):
    whole = prepared(recipe_file, trained_text="all")
    stream = prepared(recipe_file, trained_text="all", streaming="true", buffer_size=1)
    assert stream.trained_text == whole.trained_text
    streamed = [row["input_ids"] for row, _ in zip(stream.encoded["train"], range(24), strict=False)]
    assert streamed == ids_of(whole.encoded["train"])


def test_a_stream_skips_dropped_rows_before_the_first_that_has_trained_text(recipe_file, tmp_path, monkeypatch):
    rows = question_rows(4)
    long_rows = [row | {"question": row["question"] * 30} for row in rows]
    settings = {"trained_text": "all", "streaming": "true", "buffer_size": 1, "drop_overlong": "true"}
    settings["train_file"] = write_jsonl(tmp_path / "rows.jsonl", rows)
    expected = prepared(recipe_file, **settings).trained_text
    monkeypatch.setattr(text_search, "FIRST_ROWS", 4)
    write_jsonl(tmp_path / "rows.jsonl", [*long_rows, *rows])
    assert prepared(recipe_file, **settings).trained_text == expected


def test_rows_that_cannot_be_encoded_are_reported_as_without_trained_text(recipe_file, capsys):
    for settings in ({"max_source_tokens": 3}, {"max_source_tokens": 3, "drop_overlong": "true"}):
        errors = []
        for part in ("none", "ending", "all"):
            assert main(["check", str(recipe_file(trained_text=part, **settings))]) == 1
            errors.append(capsys.readouterr().err)
        assert "train.jsonl" in errors[0] and errors == errors[:1] * 3


def test_a_teacher_and_the_start_of_a_prompt_read_ordinary_ids(recipe_file):
    distilled = {"loss": "kl", "teacher_template": "question_answering/few_shot", "trained_text": "all"}
    both = prepared(recipe_file, **distilled)
    assert max(map(max, ids_of(both.teacher_rows))) < both.trained_text.first_id
    for init in ("demonstrations", "template"):
        settings = {"init": init, "num_virtual_tokens": None, "num_demonstrations": 1 if init == "template" else None}
        soft, hard = (prepared(recipe_file, trained_text=part, **settings) for part in ("all", "none"))
        assert soft.init_ids == hard.init_ids


def test_a_row_that_does_not_end_in_the_trained_ending_is_named_by_file_and_line(recipe_file, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("source: '{{ question }}ives: now'\ntarget: '{{ answers.text[0] }}'\n")
    rows = question_rows(3)
    rows[1]["question"] = "Who l"
    write_jsonl(tmp_path / "odd.jsonl", rows)
    settings = {"template": tmp_path / "own.yaml", "trained_text": "ending"}
    text = prepared(recipe_file, **settings).trained_text
    recipe = str(recipe_file(**settings, test_file=tmp_path / "odd.jsonl"))
    assert main(["check", recipe]) == 1
    assert "odd.jsonl, line 2: template " in (said := capsys.readouterr().err)
    assert f"the source does not end with the {len(text.tokens)} tokens of the trained ending 'ives: now'" in said
    # With `all` the row keeps its ordinary token, and the report counts it.
    assert main(["check", recipe, "--trained_text", "all"]) == 0
    assert "test: 3 rows, none cut, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens 0 trains nothing. Set trained_text: ending"),
        ({"num_virtual_tokens": 0, "method": "p_tuning"}, "with method p_tuning it must be at least 1"),
        ({"num_virtual_tokens": 0, "trained_text": "all", "method": "prefix_tuning"}, "leaves no prefix"),
        ({"num_virtual_tokens": 0, "trained_text": "all", "init": "random"}, "init has no effect with"),
        ({"num_virtual_tokens": 0, "trained_text": "all", "residual": "true"}, "residual has no effect with"),
        ({"num_virtual_tokens": -1}, "num_virtual_tokens is -1; it must be at least 0"),
        ({"trained_text": "all", "method": "p_tuning"}, "it belongs to prompt_tuning, prefix_tuning"),
        ({"trained_text": "all", "method": "lora", "num_virtual_tokens": None}, "it belongs to prompt_tuning, prefix"),
        ({"trained_text": "some"}, "trained_text"),
    ],
)
def test_settings_without_an_effect_are_refused(settings, message, recipe_file):
    with pytest.raises(PromptTuningError, match=message):
        load_recipe(recipe_file(**settings))


def test_no_virtual_tokens_stand_before_trained_text_alone(recipe_file):
    alone = prepared(recipe_file, num_virtual_tokens=0, trained_text="ending")
    assert alone.num_virtual_tokens == 0 and alone.init_ids is None
    settings = alone.recipe.resolved()  # They are the recipe.yaml of a run.
    assert load_recipe(settings).resolved() == settings


def predictions(folder, system, split="test"):
    lines = RunFolder(folder).predictions(split).read_text(encoding="utf-8").split("\n")
    return [json.loads(line)[system] for line in lines if line]


@pytest.mark.parametrize(
    "settings",
    [
        {"trained_text": "all", "num_virtual_tokens": 0},
        {"trained_text": "ending", "method": "prefix_tuning", "layer_vectors": "true"},
        {"trained_text": "all", "num_virtual_tokens": 0, "layer_vectors": "true", "model_name_or_path": "t5"},
        {"trained_text": "ending", "method": "prefix_tuning", "model_name_or_path": "bart"},
    ],
)
def test_a_run_predicts_as_it_was_evaluated_and_resumes_as_if_it_had_not_stopped(
    settings, recipe_file, tmp_path, model_folders
):
    model = model_folders[settings.get("model_name_or_path", "llama")]
    settings = settings | {"save_steps": 2, "save_strategy": "steps", "template": "question_answering/plain"}
    settings["model_name_or_path"] = model
    run = train(load_recipe(recipe_file(**settings)))
    rows = question_rows(9, 5)
    results = json.loads(RunFolder(run).results.read_text())
    text = prepared(recipe_file, **settings).trained_text
    assert results["text_tokens"] == len(text.tokens)
    assert results.get("virtual_tokens", 0) == settings.get("num_virtual_tokens", 6)
    card = RunFolder(run).card.read_text()
    assert f"{len(text.tokens)} tokens of the template's own text are trained" in card and "AutoPeft" not in card
    assert ("prompt-tuning export" in card) == (
        settings["model_name_or_path"] == model_folders["llama"] and "method" not in settings
    )
    predictor = Predictor.load(run)
    assert predictor.encoder.trained_text == text
    assert predictor(rows) == predictions(run, "soft_prompt")
    # The hard prompt is the one of a run without trained text.
    hard = evaluate(load_recipe(recipe_file(**settings, output_dir=tmp_path / "hard")))
    assert predictions(run, "hard_prompt") == predictions(hard, "hard_prompt")
    again = evaluate(load_recipe(recipe_file(**settings, output_dir=tmp_path / "again")), str(run))
    assert predictions(again, "soft_prompt") == predictions(run, "soft_prompt")
    example = user_example(run, json.dumps(rows[0]), "row")["own_example"]
    assert [example["hard_prompt"]] == predictions(hard, "hard_prompt")[:1]
    # A run that stopped after two steps ends with the same weights.
    second = tmp_path / "second"
    stopped = recipe_file(**settings, output_dir=second, resume_from_checkpoint=run / "checkpoint-2")
    train(load_recipe(stopped), evaluate_hard_prompt=False)
    weights, resumed = (load_file(RunFolder(folder).adapter_weights) for folder in (run, second))
    assert weights.keys() == resumed.keys() and all(torch.equal(weights[name], resumed[name]) for name in weights)
    start = predictor.model.get_base_model().get_input_embeddings().weight[text.start_ids]
    assert not torch.equal(weights["text_embeddings"], start)


def test_a_run_is_refused_with_another_template_or_other_text_of_the_training_rows(recipe_file, tmp_path, capsys):
    settings = {"trained_text": "ending", "num_virtual_tokens": 0, "save_strategy": "steps", "save_steps": 2}
    run = train(load_recipe(recipe_file(**settings)), evaluate_hard_prompt=False)
    recipe = str(recipe_file(**settings, output_dir=tmp_path / "other"))
    other = ["--template", "question_answering/instruction_last"]
    assert main(["check", recipe, "--resume_from_checkpoint", str(run / "checkpoint-2"), *other]) == 2
    assert "it trains other tokens of the template than the training rows" in capsys.readouterr().err
    assert main(["evaluate", recipe, "--adapter", str(run), *other]) == 1
    assert "it was trained on a template with the fixed text '\\nAnswer:'" in capsys.readouterr().err
    # A recipe that continues the adapter keeps its setting.
    assert main(["check", recipe, "--adapter", str(run)]) == 0
    assert main(["check", recipe, "--adapter", str(run), "--trained_text", "all"]) == 2
    assert f"adapter {run} has trained_text: ending. Set trained_text: ending." in capsys.readouterr().err
    # An ensemble reads every row once, so that its adapters train the same text.
    twin = shutil.copytree(run, tmp_path / "twin")
    assert main(["ensemble", recipe, "--adapters", str(run), str(twin)]) == 0
    together = predictions(tmp_path / "other" / "evaluate-test-ensemble-vote", "ensemble")
    assert together == predictions(run, "soft_prompt")
    config = RunFolder(run).adapter_config
    damaged = json.loads(config.read_text())
    config.write_text(json.dumps(damaged | {"trained_text": None}))
    assert main(["predict", "--adapter", str(run), "--input", str(tmp_path / "test.jsonl")]) == 1
    assert "trained_text is null" in capsys.readouterr().err
    damaged["trained_text"]["tokens"][0] = [0, 3, 999]
    config.write_text(json.dumps(damaged))
    assert main(["predict", "--adapter", str(run), "--input", str(tmp_path / "test.jsonl")]) == 1
    assert "trained_text: token [0, 3, 999], id " in capsys.readouterr().err
    assert main(["ensemble", recipe, "--adapters", str(twin), str(run)]) == 1
    assert f"{run}: it has other trained text than {twin}" in capsys.readouterr().err


def test_the_commands_take_trained_tokens_of_an_encoder_decoder_or_refuse_them(
    recipe_file, tmp_path, model_folders, capsys
):
    settings = {"trained_text": "ending", "layer_vectors": "true", "model_name_or_path": model_folders["bart"]}
    recipe = recipe_file(**settings, max_steps=1)
    assert main(["check", str(recipe)]) == 0
    assert "ok, train: 24 rows" in capsys.readouterr().out
    run = train(load_recipe(recipe), evaluate_hard_prompt=False)
    assert main(["inspect", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "encoder 1 " in shown and "decoder 1 " in shown
    assert main(["export", str(run), str(tmp_path / "served")]) == 1
    assert "vectors in every layer" in capsys.readouterr().err
    plain_run = train(
        load_recipe(
            recipe_file(**settings | {"layer_vectors": "false", "output_dir": tmp_path / "plain"}, max_steps=1)
        )
    )
    assert main(["export", str(plain_run), str(tmp_path / "served")]) == 1
    assert "an encoder-decoder model, and export takes causal models" in capsys.readouterr().err


def test_an_encoder_decoder_that_is_not_tested_is_refused_before_its_weights_are_read(recipe_file, tmp_path):
    folder = tmp_path / "longt5"
    LongT5Config(d_kv=8, num_heads=2, d_model=16, num_layers=1, vocab_size=400, d_ff=8).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    for settings in ({"trained_text": "ending"}, {"layer_vectors": "true"}):
        with pytest.raises(PromptTuningError, match=f"{next(iter(settings))}: longt5 has not been shown to be exact"):
            prepared(recipe_file, model_name_or_path=folder, **settings)
