"""compare: the runs that it trains, those that it does not train again, and the recipes that it refuses."""

import json
import re
import sys

import pytest
from helpers.models import forbid_model_loading, tiny_llama
from helpers.rows import question_rows, write_jsonl
from safetensors.torch import load_file, save_file

from prompt_tuning.cli.main import main
from prompt_tuning.studies.compare_results import mean_over_seeds


@pytest.fixture
def recipes(recipe_file, tmp_path):
    """Return recipes by name: no training, a soft prompt, LoRA."""
    paths = {}
    for name, changes in {
        "hard": {"method": "none"},
        "soft": {},
        "lora": {"method": "lora", "num_virtual_tokens": None},
    }.items():
        paths[name] = recipe_file(output_dir=None, **changes).rename(tmp_path / f"{name}.yaml")
    return paths


def compared(recipes, tmp_path, *flags):
    names = [str(path) for path in recipes.values()]
    return main(["compare", *names, "--output_dir", str(tmp_path / "runs"), "--seeds", "1", "2", *flags])


def test_recipes_are_run_once_with_each_seed_and_compared_in_a_table(recipes, tmp_path, capsys, monkeypatch):
    assert compared(recipes, tmp_path, "--max_steps", "3") == 0
    table = capsys.readouterr().out
    folder = tmp_path / "runs"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "hard-seed1", "soft-seed1", "soft-seed2", "lora-seed1", "lora-seed2",
    }  # fmt: skip
    report = json.loads((folder / "compare.json").read_text())
    assert report["metric"] == "f1" and report["rows"] == 9
    results = json.loads((folder / "soft-seed2" / "results.json").read_text())
    assert "hard_prompt" not in results and results["train_steps"] == 3
    soft = report["parts"]["soft"]
    assert soft["of_seeds"][1] == results["soft_prompt"]["f1"] and soft["low"] <= soft["score"] <= soft["high"]
    assert soft["trainable_parameters"] == 6 * 32 and soft["adapter_bytes"] > 6 * 32 * 4
    assert report["parts"]["hard"]["trainable_parameters"] == 0 and "against_first" not in report["parts"]["hard"]
    assert "\nsoft " in table and "9 rows; seeds 1, 2" in table
    assert "they leave out what another seed changes" not in table  # The scores of soft have it.
    assert "| soft " in (folder / "compare.md").read_text() and "|" not in table
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")

    forbid_model_loading(monkeypatch)  # Every run is finished.
    assert compared(recipes, tmp_path, "--max_steps", "3") == 0
    assert json.loads((folder / "compare.json").read_text()) == report
    assert compared(recipes, tmp_path, "--max_steps", "4") == 2
    assert "was run with other settings (max_steps)" in capsys.readouterr().err
    train, test = ((tmp_path / f"{split}.jsonl").read_text() for split in ("train", "test"))
    for split, rows in (("train", question_rows(24, 1)), ("test", question_rows(9, 2))):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
        assert compared(recipes, tmp_path, "--max_steps", "3") == 1
        errors = capsys.readouterr().err
        name = "soft" if split == "train" else "hard"
        assert (
            f"{name}-seed1 was run before this changed: " in errors and f"{split}.jsonl, or the template's" in errors
        )
        (tmp_path / "train.jsonl").write_text(train)
    asked = test.replace("Where does", "In which town does")  # The answers stay the same.
    (tmp_path / "test.jsonl").write_text(asked)
    assert asked != test and compared(recipes, tmp_path, "--max_steps", "3") == 1
    assert "hard-seed1 was run before this changed: " in capsys.readouterr().err


def refused(command, file, change, capsys):
    """Change a file that a finished run read, return the error, and put the file back."""
    kept = file.read_bytes()
    change()
    assert file.read_bytes() != kept and main(command) == 1
    file.write_bytes(kept)
    errors = capsys.readouterr().err
    assert "-seed1 was run before this changed: " in errors
    return errors


def test_a_finished_run_is_refused_if_its_inputs_changed(recipe_file, tokenizer, tmp_path, capsys):
    model, start = tmp_path / "model", tmp_path / "start"
    tiny_llama(len(tokenizer)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    template = tmp_path / "mine.yaml"
    asked = "source: '{{ question }}'\ntarget: ' {{ answers.text[0] }}'\n"
    template.write_text(asked + "stop: [x]\nanswer_choices: Turin ||| {{ answers.text[0] }}\n")
    settings = {"model_name_or_path": model, "template": template, "max_steps": 1}
    assert main(["train", str(recipe_file(output_dir=start, **settings))]) == 0
    soft = recipe_file(output_dir=None, init="adapter", init_adapter=start, num_virtual_tokens=None, **settings)
    command = ["compare", str(soft), "--output_dir", str(tmp_path / "runs"), "--seeds", "1"]
    assert main(command) == 0 and main(command) == 0
    capsys.readouterr()
    text = template.read_text()
    adapter = start / "adapter_model.safetensors"
    for old, new in (("[x]", "[y]"), ("Turin", "Turin ||| Rome")):
        errors = refused(
            command, template, lambda old=old, new=new: template.write_text(text.replace(old, new)), capsys
        )
        assert "test.jsonl, or the template's words or answers" in errors
    other = {name: value + 1 for name, value in load_file(adapter).items()}
    assert f"init_adapter {start}" in refused(
        command, adapter, lambda: save_file(other, adapter, {"format": "pt"}), capsys
    )
    weights = model / "model.safetensors"
    errors = refused(command, weights, lambda: tiny_llama(len(tokenizer), seed=9).save_pretrained(model), capsys)
    assert f"model_name_or_path {model}" in errors
    assert main(command) == 0  # Every file has its old content.


def test_a_finished_run_is_refused_if_changed_inputs_are_in_no_row(recipe_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()  # A folder of that name is not the metric.
    template, metric = tmp_path / "mine.yaml", tmp_path / "mine.py"
    template.write_text(
        "source: '{{ question }}'\ntarget: ' {{ answers.text[0] }}'\n"
        "demonstrations:\n- {question: Where is Ada, answers: {text: [Turin]}}\n"
    )
    metric.write_text(METRIC)
    settings = {"template": template, "init": "template", "num_virtual_tokens": None, "streaming": "true"}
    recipe = recipe_file(output_dir=None, max_steps=1, metrics=f"[squad, {metric}]", **settings)
    command = ["compare", str(recipe), "--output_dir", str(tmp_path / "runs"), "--seeds", "1", "--metric", "length"]
    command.append("--trust_remote_code")
    assert main(command) == 0 and main(command) == 0
    capsys.readouterr()
    for file, old, new, named in (
        (template, "Turin", "Kyoto", "init"),
        (tmp_path / "train.jsonl", "Turin", "Kyoto", "train"),
        (metric, "1.0", "2.0", "metrics"),
    ):
        changed = file.read_text().replace(old, new)
        assert named in refused(command, file, lambda file=file, changed=changed: file.write_text(changed), capsys)


METRIC = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"length": 1.0}
"""


def test_the_card_of_the_first_run_also_has_the_score_of_its_template(recipes, tmp_path):
    soft, hard = str(recipes["soft"]), str(recipes["hard"])
    assert main(["compare", soft, hard, "--output_dir", str(tmp_path), "--seeds", "1", "2", "--max_steps", "1"]) == 0
    alone = json.loads((tmp_path / "hard-seed1" / "results.json").read_text())
    first, second = (json.loads((tmp_path / f"soft-seed{seed}" / "results.json").read_text()) for seed in (1, 2))
    assert first["hard_prompt"] == alone["hard_prompt"] and "hard_prompt" not in second
    seconds = first["prediction_seconds"]
    assert seconds.keys() == {"soft_prompt", "hard_prompt"} and first["evaluation_seconds"] == pytest.approx(
        sum(seconds.values())
    )
    card = (tmp_path / "soft-seed1" / "README.md").read_text()
    assert "| hard prompt alone " in card


def test_recipes_that_cannot_be_compared_are_refused_before_training(recipes, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    twice = {"one": recipes["soft"], "other": recipes["soft"]}
    assert compared(twice, tmp_path) == 2
    assert "two recipes have the same file name" in capsys.readouterr().err
    text = recipes["lora"].read_text()
    recipes["lora"].write_text(text.replace("question_answering", "summarization"))
    assert compared(recipes, tmp_path) == 2
    assert "the recipes have different tasks (question_answering, summarization)" in capsys.readouterr().err


def test_errors_that_would_follow_training_are_raised_before_it(recipes, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    assert compared(recipes, tmp_path, "--metric", "rougeL") == 2
    assert "metric rougeL: the metrics of hard give exact_match, f1. Name one of them." in capsys.readouterr().err
    metric = tmp_path / "mine.py"
    metric.write_text(METRIC.replace("1.0", "len(predictions)"))
    assert compared(recipes, tmp_path, "--metrics", str(metric), "--metric", "length", "--trust_remote_code") == 2
    error = capsys.readouterr().err
    assert "length is not a mean over rows, and of such metrics only bleu, chrf, ter have a test" in error
    several = tmp_path / "several.yaml"
    model = next(line for line in recipes["soft"].read_text().splitlines() if line.startswith("model_name"))
    tasks = f"tasks: [{recipes['soft']}, {recipes['hard']}]"
    several.write_text(f"{model}\nmethod: multitask_prompt_tuning\n{tasks}\nnum_virtual_tokens: 4\n")
    assert compared({"several": several, "soft": recipes["soft"]}, tmp_path) == 2
    assert "several has several tasks. Compare recipes of one task." in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert compared(recipes, tmp_path) == 1
    assert "compare.png needs matplotlib. Run: pip install matplotlib" in capsys.readouterr().err


def test_recipes_with_different_rows_are_refused_before_training(recipes, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    other = write_jsonl(tmp_path / "other.jsonl", question_rows(4))
    same_answers = write_jsonl(tmp_path / "asked.jsonl", [row | {"question": "Where?"} for row in question_rows(9, 5)])
    text = recipes["soft"].read_text()
    del recipes["lora"]
    for rows in (other, same_answers):
        recipes["soft"].write_text(text.replace(str(tmp_path / "test.jsonl"), str(rows)))
        assert compared(recipes, tmp_path, "--max_steps", "1") == 1
        assert "hard and soft would be evaluated on different rows" in capsys.readouterr().err
    answers = {"text": ["Nowhere"], "answer_start": [0]}
    others = write_jsonl(tmp_path / "others.jsonl", [row | {"answers": answers} for row in question_rows(9, 5)])
    recipes["soft"].write_text(text.replace(str(tmp_path / "test.jsonl"), str(others)))
    assert compared(recipes, tmp_path, "--max_steps", "1") == 1
    assert "hard and soft would be evaluated on different rows" in capsys.readouterr().err
    unlike = tmp_path / "unlike.yaml"
    unlike.write_text("source: '{{ context }} {{ question }}'\ntarget: '{{ answers.text[0] | upper }}'\n")
    recipes["soft"].write_text(re.sub("(?m)^template: .*$", f"template: {unlike}", text))
    assert compared(recipes, tmp_path, "--max_steps", "1") == 1
    assert "the template of soft has other references than that of hard" in capsys.readouterr().err


def test_a_few_shot_prompt_is_run_with_each_seed_if_seeds_draw_its_demonstrations(recipes, tmp_path, capsys):
    drawn = recipes["hard"].rename(tmp_path / "drawn.yaml")
    drawn.write_text(drawn.read_text() + "num_demonstrations: 1\n")
    nearest = tmp_path / "nearest.yaml"
    nearest.write_text(drawn.read_text() + "demonstration_selection: bm25\n")
    assert compared({"drawn": drawn, "nearest": nearest}, tmp_path) == 0
    names = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert names == {"drawn-seed1", "drawn-seed2", "nearest-seed1"}


def test_recipes_with_different_metrics_or_languages_are_refused(recipes, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    del recipes["lora"]
    text = recipes["soft"].read_text()
    recipes["soft"].write_text(text + "lang: zh\n")
    assert compared(recipes, tmp_path) == 2
    assert "hard is scored by squad and soft by squad (language zh). Give both the same" in capsys.readouterr().err
    recipes["soft"].write_text(text + "metrics: [exact_match, squad]\n")
    assert compared(recipes, tmp_path) == 2
    assert "hard is scored by squad and soft by exact_match, squad" in capsys.readouterr().err


def test_a_repeated_seed_is_run_once_and_a_row_may_hold_a_line_separator(recipes, tmp_path, capsys):
    rows = [row | {"context": f"A story.\u2028It ends here.\x85 {row['context']}"} for row in question_rows(9, 5)]
    write_jsonl(tmp_path / "test.jsonl", rows)
    flags = ["--output_dir", str(tmp_path / "runs"), "--max_steps", "1", "--seeds", "1", "1"]
    assert main(["compare", str(recipes["hard"]), str(recipes["soft"]), *flags]) == 0
    table = capsys.readouterr().out
    assert "9 rows; seeds 1; intervals and p: 2000 draws of rows, p by the signs of so few rows" in table
    assert "they leave out what another seed changes" in table


def test_a_corpus_metric_of_several_seeds_has_their_mean_interval_and_largest_p():
    """Average the intervals, because that of the first seed would not hold the mean score of two seeds."""
    first = {"one": {"low": 9, "high": 11}, "two": {"low": 8, "high": 10, "p": 0.2}}
    second = {"one": {"low": 29, "high": 31}, "two": {"low": 8, "high": 10, "p": 0.001}}
    means = mean_over_seeds([first, second])
    assert means == {"one": {"low": 19, "high": 21}, "two": {"low": 8, "high": 10, "p": 0.2}}
