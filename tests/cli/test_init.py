"""init writes a recipe that runs at once, from rows of other names and formats, and replaces no file unasked."""

import csv
import io
import json
import shutil
import sys

import pandas as pd
import pytest
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.recipe.drafts import read_pairs
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.check import check

QUICK = ["--yes", "--no_measurement", "--use_cpu=true"]


def settings_of(path):
    return {pair.key: pair.value for pair in read_pairs(path)}


@pytest.fixture
def init(tmp_path, model_folders, monkeypatch, capsys):
    """Return a function that runs init in an empty folder and returns the settings that it wrote, after a check."""
    monkeypatch.chdir(tmp_path)

    def run(data, *flags, quick=QUICK):
        command = ["init", str(data), "--model_name_or_path", str(model_folders["llama"]), *quick, *flags]
        assert main(command) == 0, capsys.readouterr().err
        check(load_recipe(tmp_path / "recipe.yaml"))
        return settings_of(tmp_path / "recipe.yaml")

    return run


def renamed(count):
    """Make rows of questions as a program would export them, with columns of other names."""
    rows = []
    for row in question_rows(count):
        rows.append(
            {"nr": row["id"], "seite": row["context"], "was": row["question"], "fund": row["answers"]["text"][0]}
        )
    return rows


def write_csv(path, rows, delimiter):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


RENAMED = {"context_column": "seite", "question_column": "was", "answer_column": "fund"}


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet"])
def test_tables_of_other_names_become_a_recipe_that_checks(name, init, tmp_path):
    rows = renamed(40)
    if name == "rows.parquet":
        pd.DataFrame(rows).to_parquet(tmp_path / name)
    else:
        write_csv(tmp_path / name, rows, ";" if name == "rows.csv" else "\t")
    settings = init(name)
    assert settings["train_file"] == name and settings["task"] == "question_answering"
    assert {key: settings[key] for key in RENAMED} == RENAMED
    assert (settings["test_size"], settings["validation_size"], settings["lang"]) == ("8", "4", "en")
    assert settings["output_dir"] == "runs/rows" and "use_cpu" in settings
    prompt = load_recipe(tmp_path / "recipe.yaml").prompt
    assert (prompt.method, prompt.init, prompt.trained_text) == ("prompt_tuning", "demonstrations", "ending")


def test_nested_squad_is_cut_by_passage(init, tmp_path, capsys):
    paragraphs = []
    for row in question_rows(12):
        answers = [{"text": "Oslo", "answer_start": 0}]
        qas = [{"id": row["id"] + letter, "question": row["question"], "answers": answers} for letter in "abcd"]
        paragraphs.append({"context": f"{row['context']} Number {row['id']} is in Oslo.", "qas": qas})
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    settings = init("squad.json")
    assert settings["task"] == "question_answering" and "context_column" not in settings
    text = (tmp_path / "recipe.yaml").read_text()
    assert "They have 12 different values of context, and equal ones stay together." in text
    rows = check(load_recipe(tmp_path / "recipe.yaml"))[""].rows
    contexts = [set(rows[split]["context"]) for split in ("train", "validation", "test")]
    assert all(contexts) and not contexts[0] & contexts[1] and not contexts[0] & contexts[2]


def test_a_folder_of_chinese_rows_keeps_its_splits(init, tmp_path):
    for split, count in (("train", 12), ("dev", 4)):
        rows = []
        for number in range(count):
            passage = f"{split}第{number}号渡船于{1900 + number}年用橡木建造，在卑尔根运送邮件四十年。"
            rows.append({"文章": passage, "问题": f"第{number}号渡船是哪一年建造的？", "答案": f"{1900 + number}年"})
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    settings = init(tmp_path)
    assert settings["validation_file"] == f"{tmp_path}/dev.jsonl" and "validation_size" not in settings
    assert (settings["lang"], settings["test_size"], settings["question_column"]) == ("zh", "2", "问题")
    assert settings["template"] == "question_answering/zh_instruction_last"
    assert "Its words are English" not in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("exception", ["few_rows", "untested_model"])
def test_auto_is_written_with_what_rows_or_model_do_not_allow(exception, init, tmp_path, model_folders):
    write_jsonl(tmp_path / "rows.jsonl", question_rows(8 if exception == "few_rows" else 24))
    flags = []
    if exception == "untested_model":
        flags = ["--model_name_or_path", str(tmp_path / "model")]
        shutil.copytree(model_folders["t5"], tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "longt5"}))
    settings = init("rows.jsonl", *flags)
    assert settings["method"] == "auto"
    assert settings.get("init") == ("vocab" if exception == "few_rows" else None)
    assert settings.get("trained_text") == ("none" if exception == "untested_model" else None)


def chinese_questions(*answers):
    """Make rows in Chinese whose answers are these in turn."""
    rows = []
    for number, place in enumerate("东西南北上中下前后左右"):
        answer = answers[number % len(answers)]
        rows.append({"文章": f"{place}镇的渡船星期一停开。", "问题": f"{place}镇今天有船吗？", "答案": answer})
    return rows


CHINESE_ROWS = {
    "zh_instruction_last": [
        {"正文": f"{town}镇的渡船停开，因为桥要修。", "摘要": f"{town}镇停船"} for town in "东西南北上中下前"
    ],
    "zh_yes_no": chinese_questions("是", "否"),
    "yes_no": chinese_questions("yes", "no"),
}


@pytest.mark.parametrize("name", CHINESE_ROWS)
def test_a_csv_in_chinese_gets_its_language_and_a_template_in_chinese(name, init, tmp_path):
    text = pd.DataFrame(CHINESE_ROWS[name]).to_csv(index=False)
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8-sig")  # Excel writes a byte-order mark.
    settings = init("rows.csv")
    assert (settings["lang"], settings["template"].partition("/")[2]) == ("zh", name)
    assert settings.get("text_column", settings.get("question_column")) in ("正文", "问题")


def test_a_csv_in_gb18030_is_refused_with_the_command_that_converts_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = pd.DataFrame(CHINESE_ROWS["zh_yes_no"])
    for encoding in ("gb18030", "gbk"):
        rows.to_csv("rows.csv", index=False, encoding=encoding)
        assert main(["init", "rows.csv", "--no_measurement"]) == 1
        error = capsys.readouterr().err
        assert "rows.csv, line 1: not UTF-8 text (byte 0 of the line); save it as UTF-8" in error
        assert "`iconv -f GB18030 -t UTF-8 rows.csv > utf8.csv`" in error
    (tmp_path / "rows.csv").write_text("père,mère\n", encoding="latin-1")
    assert main(["init", "rows.csv", "--no_measurement"]) == 1
    assert "iconv" not in capsys.readouterr().err


def test_the_measured_recipe_has_its_costs_and_leaves_no_other_file(init, tmp_path, capsys):
    write_csv(tmp_path / "pairs.csv", [{"fr": f"Le bateau {n}.", "en": f"The boat {n}."} for n in range(24)], ",")
    flags = ("--source_lang", "en", "--target_lang", "fr", "--max_steps", "7", "--num_virtual_tokens", "4")
    settings = init("pairs.csv", *flags, "--init=vocab", quick=["--use_cpu=true"])
    assert (settings["source_lang"], settings["max_steps"], settings["init"]) == ("en", "7", "vocab")
    text = (tmp_path / "recipe.yaml").read_text()
    assert "so that 7 steps take about" in text and "The prompt has 4 virtual tokens." in text
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.csv", "recipe.yaml"}
    shown = capsys.readouterr().out
    assert "--input new.csv --output predicted.csv" in shown
    assert "Train: prompt-tuning train recipe.yaml" in shown and "train_runtime" not in shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_asked_only_what_rows_do_not_show(init, tmp_path, monkeypatch, capsys):
    write_csv(tmp_path / "pairs.csv", [{"fr": f"Le bateau {n}.", "en": f"The boat {n}."} for n in range(24)], ",")
    monkeypatch.setattr(sys, "stdin", Terminal("en\n"))
    assert init("pairs.csv", quick=["--no_measurement"])["target_lang"] == "fr"
    assert capsys.readouterr().err.count("?") == 1
    (tmp_path / "recipe.yaml").unlink()
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    assert init("pairs.csv", quick=["--no_measurement"])["target_lang"] == "en"


def test_a_terminal_is_asked_for_columns_that_do_not_show_the_task(init, tmp_path, monkeypatch, capsys):
    write_csv(tmp_path / "notes.csv", [{"a": f"{n} one", "b": "short", "c": f"{n} two"} for n in range(24)], ",")
    answers = Terminal("summarization\nc\nb\n")
    monkeypatch.setattr(sys, "stdin", answers)
    settings = init("notes.csv", quick=["--no_measurement"])
    assert (settings["text_column"], settings["summary_column"]) == ("c", "b")
    for wrong in ("poetry\n", "summarization\nz\nb\n"):
        (tmp_path / "recipe.yaml").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "stdin", Terminal(wrong))
        assert main(["init", "notes.csv", "--no_measurement"]) == 1
        assert "error: notes.csv: " in capsys.readouterr().err and not (tmp_path / "recipe.yaml").exists()


def test_a_file_is_replaced_only_if_told(init, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("mine")
    assert main(["init", "rows.jsonl", *QUICK]) == 2
    assert "recipe.yaml: the file is there already. Name another --output" in capsys.readouterr().err
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    write_jsonl(tmp_path / "rows.jsonl", question_rows(20))
    assert init("rows.jsonl", "--overwrite")["task"] == "question_answering"
    assert main(["init", "rows.jsonl", "--output", "rows.jsonl", "--overwrite", *QUICK]) == 2
    assert main(["init", "none.csv", "--output", "other.yaml", *QUICK]) == 1
    assert "none.csv" in capsys.readouterr().err and not (tmp_path / "other.yaml").exists()


def test_names_of_a_stranger_stay_text(init, tmp_path, capsys):
    evil = "was\nmodel_name_or_path: evil/model\x1b[2J\u2028metrics: [evil/metric]"
    rows = [{"seite": row["seite"], evil: row["was"], "fund": row["fund"]} for row in renamed(20)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = init("rows.jsonl")
    assert settings["question_column"] == evil and "evil" not in settings["model_name_or_path"]
    assert "metrics" not in settings
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err


def test_interrupted_while_it_measures_it_names_the_recipe(tmp_path, model_folders, monkeypatch, capsys):
    def interrupted(path, **_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prompt_tuning.runs.measure.measure", interrupted)
    write_jsonl(tmp_path / "rows.jsonl", question_rows(20))
    assert main(["init", "rows.jsonl", "--yes", "--model_name_or_path", str(model_folders["llama"])]) == 130
    assert "interrupted; recipe.yaml is written, without measured costs" in capsys.readouterr().err
    assert "prompt-tuning try runs/rows" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"a": "1", "b": "2"}, "rows.jsonl: the columns ('a', 'b') do not show the task"),
        (question_rows(1)[0], "rows.jsonl: there is only one row, so that none can be kept for a test"),
    ],
)
def test_rows_from_which_no_recipe_can_be_made(row, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert main(["init", "rows.jsonl", *QUICK]) == 1
    assert problem in capsys.readouterr().err and not (tmp_path / "recipe.yaml").exists()


def test_a_recipe_that_does_not_run_is_written_and_its_errors_are_named(tmp_path, model_folders, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", question_rows(20))
    model = str(model_folders["llama"])
    flags = ["--yes", "--use_cpu=true", "--model_name_or_path", model, "--metrics", "no_such_metric"]
    assert main(["init", "rows.jsonl", *flags]) == 2
    error = capsys.readouterr().err
    assert "no_such_metric" in error and "recipe.yaml is written. Correct it, and run `prompt-tuning check" in error
    assert settings_of(tmp_path / "recipe.yaml")["metrics"] == ["no_such_metric"]
