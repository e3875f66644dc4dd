"""The command evaluate: scores, folders and adapters."""

import json
import re
import shutil

from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl
from transformers import GenerationConfig

from prompt_tuning.cli.main import main
from prompt_tuning.metrics.loading import load_metrics


def test_evaluate_repeats_the_scores_of_train(run, recipe_file, tmp_path):
    results = json.loads((run / "results.json").read_text())
    recipe = str(recipe_file())
    assert main(["evaluate", recipe, "--adapter", str(run), "--per_device_eval_batch_size", "2"]) == 0
    soft = json.loads((run / "evaluate-test-soft_prompt" / "results.json").read_text())
    assert soft["soft_prompt"] == results["soft_prompt"] and "hard_prompt" not in soft
    assert main(["evaluate", recipe, "--output_dir", str(tmp_path / "hard")]) == 0
    hard = json.loads((tmp_path / "hard" / "results.json").read_text())
    assert hard["hard_prompt"] == results["hard_prompt"] and hard["rows"] == 9
    assert json.loads((run / "results.json").read_text()) == results
    assert main(["evaluate", recipe, "--split", "validation", "--output_dir", str(tmp_path / "v")]) == 0
    assert (tmp_path / "v" / "predictions" / "validation.jsonl").is_file()
    evaluating = str(recipe_file(eval_strategy="steps", eval_steps=2))
    assert main(["evaluate", evaluating, "--split", "train", "--max_train_samples", "2"]) == 0


def test_settings_of_a_models_generation_config_are_reported(recipe_file, tmp_path, model_folders, capsys):
    model_folder = tmp_path / "own"
    shutil.copytree(model_folders["llama"], model_folder)
    generation_settings = dict(repetition_penalty=1.3, no_repeat_ngram_size=1, length_penalty=1.0, min_length=0)
    generation_settings |= dict(suppress_tokens=[7], do_sample=True, temperature=0.7, num_beams=2)
    GenerationConfig(**generation_settings, eos_token_id=1).save_pretrained(model_folder)
    assert (
        main(["train", str(recipe_file(model_name_or_path=model_folder, method="none", num_virtual_tokens=None))]) == 0
    )
    assert json.loads((tmp_path / "run" / "results.json").read_text())["decoding"] == {
        "max_new_tokens": 12, "num_beams": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 1,
        "suppress_tokens": [7],
    }  # fmt: skip
    assert "greedy, up to 12 tokens, repetition_penalty 1.3" in (tmp_path / "run" / "report.html").read_text()


def test_an_evaluation_does_not_overwrite_a_run(run, recipe_file, capsys):
    before = {file.name: file.read_bytes() for file in run.glob("*") if file.is_file()}
    flags = ["--split", "validation", "--output_dir", str(run)]
    assert main(["evaluate", str(recipe_file()), "--adapter", str(run), *flags]) == 2
    assert main(["ensemble", str(recipe_file()), "--adapters", str(run), f"{run}/.", *flags]) == 2
    assert capsys.readouterr().err.count(f"output_dir {run} holds a run of train") == 2
    assert before == {file.name: file.read_bytes() for file in run.glob("*") if file.is_file()}


def test_an_evaluation_does_not_overwrite_one_of_another_adapter(run, recipe_file, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "second")
    recipe = str(recipe_file(output_dir=tmp_path / "evaluated"))
    assert main(["evaluate", recipe, "--adapter", str(run)]) == main(["evaluate", recipe, "--adapter", str(run)]) == 0
    assert main(["evaluate", recipe]) == 0  # It writes to another folder.
    assert main(["evaluate", recipe, "--adapter", f"{run}/"]) == 0  # This is the same folder.
    assert main(["evaluate", recipe, "--adapter", str(tmp_path / "second")]) == 2
    assert re.search(rf"holds the evaluation of {run}/?; name another --output_dir", capsys.readouterr().err)


def test_incomplete_files_are_named(run, recipe_file, model_folders, tmp_path, capsys):
    recipe = str(recipe_file())
    messages = {
        "adapter_model.safetensors": "the adapter's weights are corrupt or incomplete",
        "adapter_config.json": "adapter_config.json: not the configuration of an adapter",
    }
    for name, message in messages.items():
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])
        for command in (["evaluate", recipe, "--adapter", str(run)], ["inspect", str(run)]):
            assert main(command) == 1 and message in capsys.readouterr().err
        (run / name).write_bytes(whole)
    (run / "results.json").write_text("{")
    for command in ("show", "card", "report"):
        assert main([command, str(run)]) == 1 and "results.json: not JSON" in capsys.readouterr().err
    shutil.copytree(model_folders["llama"], tmp_path / "whole")
    assert main(["evaluate", recipe, "--adapter", str(tmp_path / "whole")]) == 1
    assert "is a whole model, as method: full trains" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused(run, recipe_file, tmp_path, capsys, tokenizer, monkeypatch):
    from helpers.models import tiny_llama

    tiny_llama(len(tokenizer), hidden_size=64).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    forbid_model_loading(monkeypatch)
    recipe = str(recipe_file(model_name_or_path=tmp_path / "other"))
    assert main(["evaluate", recipe, "--adapter", str(run)]) == 1
    errors = capsys.readouterr().err
    assert "was trained on" in errors and "(hidden size 64)" in errors
    assert main(["evaluate", recipe, "--adapter", str(tmp_path)]) == 1
    assert "no adapter_config.json there" in capsys.readouterr().err


def test_a_split_that_the_recipe_does_not_have_is_reported(recipe_file, capsys):
    recipe = str(recipe_file(test_file=None))
    assert main(["evaluate", recipe]) == main(["render", recipe, "--split", "test"]) == 1
    assert capsys.readouterr().err.count("no test rows; set test_file") == 2


def test_evaluate_predict_and_the_report_have_the_same_scores(recipe_file, tmp_path):
    """Corpus metrics are those of all rows together, though rows are predicted in batches."""
    metrics = ["squad", "sacrebleu", "chrf", "ter", "rouge"]
    recipe = str(recipe_file(metrics=f"[{', '.join(metrics)}]"))
    assert main(["train", recipe, "--learning_rate", "0.3"]) == 0
    run, evaluated = tmp_path / "run", tmp_path / "evaluated"
    small = ["--per_device_eval_batch_size", "2", "--output_dir", str(evaluated)]
    assert main(["evaluate", recipe, "--adapter", str(run), *small]) == 0
    scores = json.loads((evaluated / "results.json").read_text())["soft_prompt"]
    assert scores == json.loads((run / "results.json").read_text())["soft_prompt"]

    predicted = tmp_path / "predicted.jsonl"
    command = ["predict", "--adapter", str(run), "--input", str(tmp_path / "test.jsonl"), "--output", str(predicted)]
    assert main([*command, "--batch_size", "4"]) == 0
    rows = [json.loads(line) for line in predicted.read_text().splitlines()]
    texts = [row["prediction"] for row in rows]
    assert any(texts)
    again = load_metrics(metrics)(texts, [row["answers"]["text"] for row in rows])
    assert scores == {name: value if isinstance(value, str) else round(value, 2) for name, value in again.items()}
    report = (evaluated / "report.html").read_text()
    assert all(f"{scores[name]:.2f}</td>" in report for name in ("f1", "bleu", "chrf", "ter", "rougeL"))


def test_rows_without_a_reference_are_counted(recipe_file, tmp_path, capsys):
    recipe = recipe_file(template=tmp_path / "mine.yaml", method="none", num_virtual_tokens=None, max_steps=None)
    (tmp_path / "mine.yaml").write_text(
        "source: 'Q: {{ question }} A:'\nreferences: answers.text\n"
        "target: '{% if answers.text | join %} {{ answers.text[0] }}{% else %} none{% endif %}'\n"
    )
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    for number, texts in ((2, []), (5, []), (7, [""])):
        row = json.loads(lines[number])
        lines[number] = json.dumps(row | {"answers": row["answers"] | {"text": texts}})
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["check", str(recipe)]) == 0
    assert "test: 9 rows, none cut, 3 without a reference answer" in capsys.readouterr().out
    assert main(["evaluate", str(recipe)]) == 0
    assert "3 of these rows have no reference answer" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "evaluate-test-hard_prompt" / "results.json").read_text())
    assert results["splits"]["test"]["rows_without_reference"] == 3
    assert main(["evaluate", str(recipe), "--metrics", "chrf"]) == 1
    assert "line 3: row has no reference answer; 1 more row has none either" in capsys.readouterr().err


def test_a_column_of_references_is_needed_only_in_evaluated_rows(recipe_file, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.yaml").write_text(
        "source: '{{ question }}'\ntarget: '{{ answers.text[0] }}'\nreferences: 'answers.text + others'\n"
    )
    recipe = recipe_file(template=tmp_path / "mine.yaml", validation_file=None)
    write_jsonl(tmp_path / "test.jsonl", [row | {"others": ["there"]} for row in question_rows(3)])
    assert main(["train", str(recipe), "--max_steps", "1"]) == 0
    first = json.loads((tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()[0])
    assert first["references"] == ["Turin", "there"]
    forbid_model_loading(monkeypatch)
    assert main(["evaluate", str(recipe), "--split", "train"]) == 2
    assert "mine.yaml needs the column 'others', and " in capsys.readouterr().err
    write_jsonl(tmp_path / "test.jsonl", question_rows(3))
    assert main(["check", str(recipe)]) == 2
    assert "test.jsonl has 'id', 'context', 'question', 'answers'" in capsys.readouterr().err
