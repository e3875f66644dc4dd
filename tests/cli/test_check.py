"""The commands check and render, and the errors that train reports before a model loads."""

import json

import pytest
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl

from prompt_tuning import Template
from prompt_tuning.cli.main import main


def test_render_shows_text_tokens_loss_and_cuts(recipe_file, capsys):
    assert main(["render", str(recipe_file()), "-n", "2", "--max_source_tokens", "30"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("== ") == 2 and "train.jsonl, line 1" in shown
    assert "6 virtual tokens, then 30 source tokens" in shown and "cut to fit max_source_tokens" in shown
    assert "tokens that carry loss:" in shown and "'<eos>'" in shown


def test_check_names_every_error_at_once_and_reads_no_weights(recipe_file, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    good = recipe_file()
    assert main(["check", str(good)]) == 0
    assert "ok, train: 24 rows, none cut" in capsys.readouterr().out
    for omitted, message in (
        (("test_file", "validation_file"), "no rows to evaluate on; set test_file or validation_file"),
        (("train_file",), "no training rows; set train_file"),
    ):
        assert main(["check", str(recipe_file(**dict.fromkeys(omitted)))]) == 1
        assert message in capsys.readouterr().err
    good = recipe_file()
    rows = question_rows(6)
    rows[2]["answers"] = {"text": [""], "answer_start": [0]}
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "test.jsonl").write_text("\n")
    assert main(["check", str(good), "--template", "question_answering/none", "--init", "text"]) == 2
    errors = capsys.readouterr().err
    assert "template question_answering/none: " in errors and "init_text is missing" in errors
    assert main(["check", str(good), "--metrics", "squat"]) == 2
    errors = capsys.readouterr().err
    assert "test.jsonl: no rows" in errors and "Did you mean squad?" in errors
    write_jsonl(tmp_path / "test.jsonl", question_rows(2))
    assert main(["check", str(good)]) == 1
    assert "train.jsonl, line 3: template question_answering/plain: the target is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"model_name_or_path": "/no/such/model"}, 1, "model_name_or_path /no/such/model: no such folder"),
        ({"model_name_or_path": "nobody/nothing"}, 1, "not a folder here, and not found on the hub"),
        ({"template": "summarization/plain"}, 2, "needs the column 'document'"),
        ({"metrics": "[squad, exact_match]"}, 2, "both give 'exact_match', with different values"),
        ({"metric_for_best_model": "bleu"}, 2, "metric_for_best_model bleu: the metrics give exact_match, f1"),
        ({"metrics": "[ter]", "metric_for_best_model": "ter", "greater_is_better": "true"}, 2, "when it is lower"),
        ({"template": "mine.yaml"}, 2, "template mine.yaml: no such file"),
        ({"max_source_tokens": 4}, 1, "train.jsonl, line 1: the source has"),
        ({"max_source_tokens": 600}, 1, "make 618 positions, the model has 512"),
        ({"init": "text", "init_text": "Ada lives in Turin.", "num_virtual_tokens": 2}, 2, "num_virtual_tokens is 2"),
        ({"eval_strategy": "steps", "validation_file": None}, 1, "there are no validation rows"),
        ({"train_file": None}, 1, "no training rows; set train_file"),
        ({"resume_from_checkpoint": "true"}, 2, "no checkpoint in"),
        ({"resume_from_checkpoint": "True"}, 2, "no checkpoint in"),
        ({"resume_from_checkpoint": "gone"}, 2, "resume_from_checkpoint gone: no such folder"),
        ({"resume_from_checkpoint": "{folder}"}, 2, "no checkpoint; name a folder checkpoint-N, or true"),
        ({"dataloader_drop_last": "true", "per_device_train_batch_size": 25}, 1, "leaves out all 24 training rows"),
        ({"validation_file": None, "test_file": None}, 1, "no rows to evaluate on; set test_file"),
        ({"max_source_tokens": 4, "drop_overlong": "true"}, 1, "train.jsonl: all rows were left out as too long"),
        ({"max_source_tokens": 5, "max_target_tokens": 1}, 1, "train.jsonl, line 1: the source has"),
    ],
)  # fmt: skip
def test_bad_input_stops_before_the_model_loads(recipe_file, tmp_path, capsys, monkeypatch, changes, code, message):
    forbid_model_loading(monkeypatch)
    changes = {name: tmp_path if value == "{folder}" else value for name, value in changes.items()}
    assert main(["train", str(recipe_file(**changes))]) == code
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            {"method": "lora", "num_virtual_tokens": None, "lora_target_modules": "[nowhere]"},
            2,
            "lora_target_modules: Target modules",
        ),
        (
            {"generation_max_length": 450},
            1,
            "max_source_tokens 96 and generation_max_length 450 make 552 positions, the model has 512",
        ),
        (
            {"loss": "kl", "teacher_template": "{folder}/long.yaml", "max_teacher_tokens": 4000},
            1,
            "the longest row in teacher_template has",
        ),
    ],
)
def test_errors_that_only_the_model_shows_are_explained(recipe_file, tmp_path, capsys, changes, code, message):
    plain = Template.load("question_answering/plain")
    (tmp_path / "long.yaml").write_text(Template("Read this. " * 300 + plain.source, plain.target).to_yaml())
    changes = {name: value.format(folder=tmp_path) if name == "teacher_template" else value
               for name, value in changes.items()}  # fmt: skip
    assert main(["train", str(recipe_file(**changes))]) == code
    assert message in capsys.readouterr().err


def test_an_init_without_effect_on_an_encoder_decoders_prefix_is_refused(recipe_file, model_folders, capsys):
    prefix = {"model_name_or_path": model_folders["t5"], "method": "prefix_tuning", "init": "text"}
    recipe = recipe_file(**prefix, init_text="Answer.", num_virtual_tokens=None, template="question_answering/t5")
    assert main(["check", str(recipe)]) == 2
    assert "init text has no effect: an encoder-decoder's prefix starts from noise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "source", "target", "message"),
    [
        ("prompt_tuning", 236, 256, None),  # Encoder and decoder have separate limits.
        ("prefix_tuning", 256, 256, None),
        (
            "prompt_tuning",
            237,
            12,
            "20 virtual tokens and max_source_tokens 237 make 257 positions",
        ),
        ("prefix_tuning", 257, 12, "max_source_tokens 257 make 257 positions, the model has 256"),
        ("prompt_tuning", 96, 257, "max_target_tokens 257 make 257 positions, the model has 256"),
    ],
)
def test_encoder_and_decoder_have_separate_position_limits(
    method, source, target, message, recipe_file, model_folders, capsys
):
    settings = {"model_name_or_path": model_folders["bart"], "num_virtual_tokens": 20, "method": method}
    recipe = recipe_file(**settings, max_source_tokens=source, max_target_tokens=target)
    assert main(["check", str(recipe)]) == (1 if message else 0)
    assert (message or "") in capsys.readouterr().err


def test_prefix_cross_is_refused_for_a_causal_model(recipe_file, capsys):
    assert main(["check", str(recipe_file(method="prefix_tuning", prefix_cross="false"))]) == 2
    assert "prefix_cross false has no effect: llama has no encoder" in capsys.readouterr().err


def test_rows_without_a_reference_are_refused_before_generation(recipe_file, tmp_path, capsys):
    rows = [{"document": f"The boat left at {hour}.", "summary": "It left.", "right": []} for hour in range(3)]
    files = {
        f"{split}_file": write_jsonl(tmp_path / f"{split}.jsonl", rows) for split in ("train", "validation", "test")
    }
    template = tmp_path / "own.yaml"
    template.write_text("source: '{{ document }}'\ntarget: '{{ summary }}'\nreferences: right\n")
    recipe = str(recipe_file(task="summarization", template=template, **files))
    assert main(["check", recipe]) == 1
    assert "test.jsonl, line 1: row has no reference answer; 2 more rows have none either" in (capsys.readouterr().err)
    assert main(["check", recipe, "--truncate", "documents"]) == 2
    assert "truncate names 'documents', and its source reads 'document'" in capsys.readouterr().err


def test_a_line_break_that_a_tag_takes_away_is_a_warning(recipe_file, tmp_path, caplog):
    template = tmp_path / "own.yaml"
    template.write_text(
        "source: |-\n  {% if context %}{{ context }}{% endif %}\n  {{ question }}\ntarget: '{{ answers.text[0] }}'\n"
    )
    assert main(["check", str(recipe_file(template=template))]) == 0
    assert "'{% if context %}{{ context }}{% endif %}' is written without the line break after its tag" in caplog.text
    assert "Write +%} or {%+ to keep them" in caplog.text


CONDITIONAL = "source: '{% if label != 2 %}{{ text }}{% endif %}'\ntarget: '{{ names[label] }}'\n"


def labelled(tmp_path, labels):
    """Write the files of a recipe whose template is empty for rows with the label 2."""
    template = tmp_path / "conditional.yaml"
    template.write_text(CONDITIONAL)
    files = {}
    for split in ("train", "validation", "test"):
        rows = [
            {"text": f"Ship {number}", "label": label, "names": ["no", "yes", ""]}
            for number, label in enumerate(labels)
        ]
        files[f"{split}_file"] = write_jsonl(tmp_path / f"{split}.jsonl", rows)
    return {"template": template, "task": "summarization", "metrics": "[exact_match]"} | files


def test_rows_that_a_template_leaves_empty_are_an_error_or_left_out_and_counted(recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(**labelled(tmp_path, [0, 1, 2, 0, 2, 1, 0, 1])))
    assert main(["check", recipe]) == 1
    errors = capsys.readouterr().err
    assert "train.jsonl, line 3: template" in errors and "the source is empty" in errors
    assert "(the same in 1 more row)" in errors and errors.count("the source is empty") == 3
    assert "train.jsonl: the template writes no source or no target for 2 rows. Correct the rows or" in errors
    assert "set drop_empty: true" in errors
    assert main(["check", recipe, "--drop_empty", "true"]) == 0
    assert "train: 6 rows, none cut, 2 left out as empty" in capsys.readouterr().out
    settings = {"method": "none", "num_virtual_tokens": None, "drop_empty": "true"}
    assert main(["train", str(recipe_file(**labelled(tmp_path, [0, 1, 2, 0, 2, 1, 0, 1]), **settings))]) == 0
    assert "2 more rows were left out, as the template writes nothing for them" in capsys.readouterr().out
    sizes = json.loads((tmp_path / "run" / "results.json").read_text())["splits"]
    assert sizes["test"].items() >= {"rows": 6, "cut_rows": 0, "empty_rows": 2}.items()
    assert main(["check", str(recipe_file(**labelled(tmp_path, [2, 2]), drop_empty="true"))]) == 1
    assert "train.jsonl: all rows were left out as empty" in capsys.readouterr().err


def test_a_row_without_a_target_is_left_out_though_its_question_is_in_training(recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(drop_empty="true", init="demonstrations", num_virtual_tokens=None, max_source_tokens=192))
    rows = question_rows(3)
    empty = rows[0] | {"answers": {"text": [""], "answer_start": [0]}}
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [empty, *rows])
    assert main(["train", recipe, "--max_steps", "1"]) == 0
    errors = capsys.readouterr().err
    assert "test: 3 of 4 rows are in the training split with the same target (" in errors
    assert "test.jsonl, line 2 = " in errors and "test.jsonl, line 1 = " not in errors


def test_a_mistake_in_a_template_is_reported_once(recipe_file, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("source: '{{ question.first }}'\ntarget: x\n")
    files = {"test_file": None, "validation_file": None, "eval_strategy": "'no'"}
    assert main(["check", str(recipe_file(template=tmp_path / "own.yaml", **files))]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "has no attribute 'first'" in line]
    assert len(lines) == 1 and "train.jsonl, line 1: " in lines[0] and "(the same in 23 more rows)" in lines[0]


@pytest.mark.parametrize("name", ["http:x", "-a/b", "x" * 200, "a/b/"])
def test_a_model_name_that_no_hub_can_have_is_an_error_of_the_recipe(name, recipe_file, capsys):
    assert main(["check", str(recipe_file(model_name_or_path=f'"{name}"'))]) in (1, 2)
    assert f"model_name_or_path {name}: " in capsys.readouterr().err
