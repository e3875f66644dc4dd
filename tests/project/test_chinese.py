"""Rows in Chinese: the recipe and its data, the templates in Chinese, and the text that the model reads."""

import json
import re
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
from helpers.paths import ROOT

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.metrics.loading import load_metrics
from prompt_tuning.studies.rank_candidates import choose_templates
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.loading import shipped_templates
from prompt_tuning.templates.template import Template

RECIPE = "recipes/chinese/qa.yaml"
README = ROOT / "README.zh-CN.md"
OWN_DATA = ROOT / "docs" / "how-to" / "own-data.zh-CN.md"
PAGES = [*ROOT.glob("*.zh-CN.md"), *ROOT.glob("docs/**/*.zh-CN.md"), ROOT / "recipes" / "chinese" / "README.md"]
METRICS = ("exact_match", "squad", "squad", "rouge")
SCORES = ("exact_match", "exact_match", "f1", "rougeL")
IN_CHINESE = [name for name in shipped_templates() if "/zh_" in name]
SPLITS = {
    split: [json.loads(line) for line in (ROOT / f"recipes/chinese/{split}.jsonl").read_text("utf-8").splitlines()]
    for split in ("train", "validation", "test")
}
ROWS = SPLITS["train"]


def test_the_recipe_trains_and_is_scored_as_chinese(model_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    model = f"--model_name_or_path={model_folders['llama']}"
    run = tmp_path / "run"
    quick = [
        "--max_steps=1",
        "--max_source_tokens=256",
        "--max_target_tokens=48",
        "--init=vocab",
        "--num_virtual_tokens=4",
        "--max_predict_samples=4",
        "--max_train_samples=8",
        "--use_cpu=true",
    ]
    assert main(["train", RECIPE, model, *quick, f"--output_dir={run}", "--disable_tqdm=true"]) == 0
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "language:\n- zh\n" in card and "      args:\n        language: zh\n" in card
    facts = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert facts["template"] == "question_answering/zh_plain"
    assert facts["soft_prompt"].keys() == {"exact_match", "f1"}


@pytest.mark.parametrize("name", IN_CHINESE)
def test_no_template_puts_a_space_or_an_english_word_where_chinese_has_none(name, tokenizer):
    row = ROWS[0] | {
        "answers": {"text": ["是"]},
        "choices": ["东海", "是"],
        "document": "渡船停了。",
        "summary": "停船",
        "translation": {"zh": "船", "en": "A"},
    }
    template = Template.load(name)
    languages = language_variables("en", "zh")
    words = template.render(row, languages).source
    for text in (row["context"], row["question"], row["document"], "- 东海", "- 是", "A"):
        words = words.replace(text, "")
    assert words.strip() and not re.search(r"[ -~]", words)
    target = template.render(row, languages).target
    assert target in ("是", "停船", "船")
    labels = Encoder(template, tokenizer, languages=languages).row(row)["labels"]
    assert tokenizer.decode([label for label in labels if label != -100]).removesuffix("<eos>").endswith(target)


@pytest.mark.parametrize("task", ["question_answering", "summarization", "translation"])
def test_each_task_has_templates_in_chinese(task):
    kinds = {name.partition("/zh_")[2] for name in IN_CHINESE if name.startswith(task)}
    assert {"plain", "instruction", "instruction_last", "chat"} <= kinds


@pytest.mark.parametrize(("lang", "expected"), [("zh", True), ("zh-CN", True), ("en", False), (None, False)])
def test_templates_in_chinese_are_ranked_for_chinese_only(lang, expected):
    data = DataArguments(task="summarization", lang=lang)
    recipe = SimpleNamespace(data=data, prompt=PromptArguments(template="summarization/plain"))
    names, left_out = choose_templates(recipe, None)
    assert ("summarization/zh_plain" in names) is expected and not left_out and "summarization/chat" in names
    named, _ = choose_templates(recipe, ["summarization/zh_plain"])
    assert named == ["summarization/zh_plain"]


def test_demonstrations_are_written_as_the_row_that_is_trained_on(tokenizer):
    row = ROWS[0]
    plain = Template.load("question_answering/zh_plain")
    few_shot = replace(plain, demonstrations=(row,))
    written = Encoder(plain, tokenizer).demonstration(row)
    assert few_shot.render(row).source.startswith(f"{written}\n\n") and written.endswith("答案：三号楼和五号楼")


def test_the_rows_are_spans_of_passages_that_no_two_splits_share():
    contexts = {split: {row["context"] for row in rows} for split, rows in SPLITS.items()}
    assert {split: len(rows) for split, rows in SPLITS.items()} == {"train": 72, "validation": 16, "test": 48}
    assert len(set.union(*contexts.values())) == sum(map(len, contexts.values())) == 34
    questions = [row["question"] for rows in SPLITS.values() for row in rows]
    assert len(questions) == len(set(questions))
    for row in chain(*SPLITS.values()):
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text, row["id"]


def scored_examples():
    rows = []
    for line in OWN_DATA.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and re.fullmatch(r"\d+\.\d", cells[2]):
            rows.append(cells)
    return rows


def test_the_page_shows_what_the_metrics_give():
    rows = scored_examples()
    assert len(rows) >= 8
    for prediction, reference, *scores, _ in rows:
        for metric, name, score in zip(METRICS, SCORES, scores, strict=True):
            found = load_metrics([metric], language="zh")([prediction], [[reference]])[name]
            assert f"{found:.1f}" == score, (prediction, metric)


@pytest.mark.parametrize("code", ["zh", "zh-CN", "zh-TW", "zho_Hans"])
def test_all_codes_of_chinese_split_alike_where_the_page_says_so(code):
    rows = [cells[:2] for cells in scored_examples()]
    predictions, references = [row[0] for row in rows], [[row[1]] for row in rows]
    score = load_metrics(["squad", "rouge", "sacrebleu", "chrf"], language=code)
    scores = score(predictions, references)
    assert scores == load_metrics(["squad", "rouge", "sacrebleu", "chrf"], language="zh")(predictions, references)
    assert "tok:zh" in scores["bleu_signature"] and "nw:2" in scores["chrf_signature"]
    for metric, key in (("sacrebleu", "bleu"), ("chrf", "chrf")):  # They keep case, width and punctuation.
        only = load_metrics([metric], language=code)
        changed = [
            only([text], [["渡船九点开，GPU 共120台。"]])[key]
            for text in ("渡船九点开，gpu 共120台。", "渡船九点开,GPU 共１２０台")
        ]
        assert (
            max(changed)
            < 100
            == pytest.approx(only(["渡船九点开，GPU 共120台。"], [["渡船九点开，GPU 共120台。"]])[key])
        )


@pytest.mark.parametrize("words", ["无法回答", "无法回答。", "unanswerable"])
def test_no_answer_is_read_in_chinese(words):
    score = load_metrics(["squad"], language="zh")
    assert score([words], [[]])["exact_match"] == 100.0
    assert score([words], [["他无法回答"]])["exact_match"] == 0.0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_in_chinese_has_chinese_punctuation_and_spaces_beside_latin_letters(page):
    examples = r"(?m)^\|.*\| \d+\.\d \|.*$"
    text = re.sub(r"(?s)```.*?```|\]\([^)]*\)", "", re.sub(examples, "", page.read_text(encoding="utf-8")))
    words = re.sub(r"`[^`\n]*`", "a", text)
    assert not re.findall(r"[一-鿿][,;:!?(]|[一-鿿]\.(?!\w)|[,;:!?)][一-鿿]", words)
    assert not re.findall(r"[一-鿿][A-Za-z0-9]|[A-Za-z0-9%][一-鿿]", words)
    assert not re.findall(r"[一-鿿] [一-鿿]|[，。：；、（）] (?!\|)|(?<!\|) [，。：；、（）]", words)


def test_the_chinese_readme_has_no_figure_of_its_own():
    shown, original = (
        set(re.findall(r"\d+(?:[.,]\d+)+", re.sub(r"(?s)```(?:bash|python)\n.*?```", "", text.read_text("utf-8"))))
        for text in (README, ROOT / "README.md")
    )
    assert len(shown) > 30 and shown <= original
    assert "](README.zh-CN.md)" in (ROOT / "README.md").read_text("utf-8") and "](README.md)" in README.read_text(
        "utf-8"
    )
