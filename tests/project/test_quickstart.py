"""The quickstart's data agrees with its README, and its recipe starts from the demonstrations that it names."""

import json
import re
from collections import Counter
from itertools import chain

import pytest
from helpers.paths import ROOT

from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.templates.template import Template

FOLDER = ROOT / "recipes" / "quickstart"
SPLITS = {"train": 360, "validation": 75, "test": 140}
ROWS = {
    split: [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    for split in SPLITS
}


def test_the_numbers_of_rows_and_topics_are_right():
    assert {split: len(rows) for split, rows in ROWS.items()} == SPLITS
    assert len({row["title"] for row in chain(*ROWS.values())}) == 115


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_a_span_of_whole_words(split):
    for row in ROWS[split]:
        assert set(row) == {"id", "title", "context", "question", "answers"}
        assert row["question"].endswith("?") and row["answers"]["text"]
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text, row["id"]
            assert re.search(rf"(?<!\w){re.escape(text)}(?!\w)", row["context"]), row["id"]


def test_no_topic_and_no_passage_occurs_in_two_splits():
    for field in ("title", "context"):
        num_splits = Counter()
        for rows in ROWS.values():
            num_splits.update({row[field] for row in rows})
        assert set(num_splits.values()) == {1}, [value for value, count in num_splits.items() if count > 1]


def test_no_question_and_no_id_occurs_twice():
    for field in ("question", "id"):
        values = [" ".join(re.findall(r"\w+", row[field].lower())) for row in chain(*ROWS.values())]
        assert len(values) == len(set(values))


def test_the_soft_prompt_starts_from_the_text_of_the_few_shot_template(monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("recipes/quickstart/qa.yaml")
    shown = Template.load("recipes/quickstart/templates/two_examples.yaml")
    row = {"context": "C", "question": "Q"}
    plain = Template.load(recipe.prompt.template)
    text = recipe.prompt.init_text + plain.render(row, with_target=False).source
    assert shown.render(row, with_target=False).source == text
