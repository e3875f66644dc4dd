"""The Chinese recipe trains on rows of our own: its templates, the text that the model reads, and its card."""

import json
from dataclasses import replace

import pytest
from helpers.paths import ROOT
from helpers.rows import write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.templates.template import Template, load_templates

RECIPE = "recipes/question_answering/xquad-zh_qwen3_prompt_tuning.yaml"
TEMPLATES = "recipes/question_answering/templates/chinese.yaml"
CITIES = ["杭州", "成都", "西安", "厦门", "哈尔滨", "昆明"]


def rows(count, shift=0):
    result = []
    for number in range(count):
        city, year = CITIES[(number + shift) % len(CITIES)], 1990 + number
        context = f"王芳于{year}年搬到{city}，在一家出版社担任编辑，周末常去湖边的图书馆。"
        result.append(
            {
                "id": str(number),
                "context": context,
                "question": "她搬到了哪座城市？",
                "answers": {"text": [city], "answer_start": [context.index(city)]},
            }
        )
    return result


def test_the_recipe_trains_and_is_scored_as_chinese(model_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    files = [
        f"--{split}_file={write_jsonl(tmp_path / f'{split}.jsonl', rows(count, shift))}"
        for split, count, shift in (("train", 8, 0), ("validation", 2, 1), ("test", 4, 2))
    ]
    model = f"--model_name_or_path={model_folders['llama']}"
    run = tmp_path / "run"
    quick = [
        "--max_steps=2",
        "--max_source_tokens=256",
        "--max_target_tokens=12",
        "--init_demonstrations=1",
        "--use_cpu=true",
    ]
    assert main(["train", RECIPE, model, *files, *quick, f"--output_dir={run}", "--disable_tqdm=true"]) == 0
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "language:\n- zh\n" in card and "      args:\n        language: zh\n" in card
    facts = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert facts["template"] == f"{TEMPLATES}:instruction_last"
    assert facts["soft_prompt"].keys() == {"exact_match", "f1"}


@pytest.mark.parametrize("name", load_templates(TEMPLATES)[0])
def test_no_template_puts_a_space_where_chinese_has_none(name, tokenizer):
    (row,) = rows(1)
    template = Template.load(name)
    words = template.render(row).source.replace(row["context"], "").replace(row["question"], "")
    assert words.strip() and words.isascii() is False and " " not in words
    labels = Encoder(template, tokenizer).row(row)["labels"]
    assert tokenizer.decode([label for label in labels if label != -100]) == "杭州<eos>"


def test_demonstrations_are_written_as_the_row_that_is_trained_on(tokenizer):
    (row,) = rows(1)
    few_shot = replace(Template.load(f"{TEMPLATES}:plain"), demonstrations=(row,))
    written = Encoder(Template.load(f"{TEMPLATES}:plain"), tokenizer).demonstration(row)
    assert few_shot.render(row).source.startswith(f"{written}\n\n") and written.endswith("答案：杭州")
