"""Splits that are cut from one file: grouped by passage, repeatable, counted."""

import logging

import pytest
from datasets import Dataset
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import load_splits, row_origin, split_origin
from prompt_tuning.errors import DataError

QUESTIONS = []
for passage in range(20):
    for question in range(1 + passage % 3):
        text = f"Passage {passage}" if question else f" passage  {passage} "
        QUESTIONS.append({"context": text, "question": f"Q{question}", "answers": {"text": ["a"]}})


@pytest.fixture
def file(tmp_path):
    return write_jsonl(tmp_path / "all.jsonl", QUESTIONS)


def arguments(file, **settings):
    return DataArguments(task="question_answering", train_file=str(file), **settings)


def passages(rows):
    return {text.split()[1] for text in rows["context"]}


def test_rows_of_one_passage_are_in_one_split_and_every_row_is_in_one(file, caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    splits = load_splits(arguments(file, validation_size=0.2, test_size=8))
    assert passages(splits["train"]) | passages(splits["validation"]) | passages(splits["test"]) == set(
        map(str, range(20))
    )
    assert sum(len(passages(rows)) for rows in splits.values()) == 20
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 23, "validation": 8, "test": 8}
    assert (
        f"{file}: cut by test_size 8, validation_size 0.2 into 8 test, 23 train, 8 validation rows; "
        "rows with the same context stay together"
    ) in caplog.text


def test_a_split_does_not_depend_on_the_command_the_order_or_the_other_split(file, tmp_path):
    both = load_splits(arguments(file, validation_size=0.2, test_size=8))
    alone = load_splits(arguments(file, validation_size=0.2, test_size=8), ("test",))
    assert list(alone) == ["test"] and alone["test"].to_list() == both["test"].to_list()
    assert load_splits(arguments(file, test_size=8))["test"].to_list() == both["test"].to_list()
    turned = write_jsonl(tmp_path / "turned.jsonl", QUESTIONS[::-1])
    assert passages(load_splits(arguments(turned, test_size=8))["test"]) == passages(both["test"])
    other = load_splits(arguments(file, validation_size=0.2, test_size=8, split_seed=1))
    assert passages(other["test"]) != passages(both["test"])


def test_single_rows_are_cut_to_the_exact_number(tmp_path):
    rows = [{"document": f"Text {number}.", "summary": "T", "context": "the same"} for number in range(10)]
    rows.append({"document": None, "summary": "T"})
    rows.append({"document": None, "summary": "U"})
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    args = DataArguments(task="summarization", train_file=str(file), test_size=0.25, max_train_samples=4)
    splits = load_splits(args)
    assert len(splits["test"]) == 3 and len(splits["train"]) == 4


def test_translations_are_grouped_by_their_source(tmp_path, caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    pairs = [{"fr": f"F{number // 2}", "en": f"E{number}"} for number in range(12)]
    file = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    args = DataArguments(
        task="translation", train_file=str(file), source_lang="fr", target_lang="en", validation_size=0.5
    )
    splits = load_splits(args)
    sources = {split: {pair["fr"] for pair in rows["translation"]} for split, rows in splits.items()}
    assert not sources["train"] & sources["validation"] and len(splits["train"]) == 6
    assert "rows with the same text to translate stay together" in caplog.text


def test_the_origin_of_a_row_is_its_line_in_the_one_file(file):
    args = arguments(file, validation_size=0.2, test_size=8)
    splits = load_splits(args)
    lines = file.read_text().splitlines()
    seen = set()
    for split, rows in splits.items():
        for index, row in enumerate(rows):
            origin, _, line = row_origin(args, split, index).rpartition(", line ")
            assert origin == str(file) and row["context"] in lines[int(line) - 1]
            seen.add(line)
    assert len(seen) == len(QUESTIONS)
    assert split_origin(args, "test") == f"{file}, test_size 8" and split_origin(args, "train") == str(file)


def test_a_saved_dataset_is_cut_too(tmp_path):
    Dataset.from_list(QUESTIONS).save_to_disk(tmp_path / "saved")
    args = DataArguments(task="question_answering", dataset_name=str(tmp_path / "saved"), test_size=8)
    splits = load_splits(args)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 31, "test": 8}


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (1, {"test_size": 0.5}, "1 row with 1 passage cannot be cut, since no passage is left that fits train"),
        (6, {"test_size": 6}, "no passage is left that fits train. Change test_size 6, or add rows"),
        (6, {"test_size": 3, "validation_size": 3}, "no passage is left that fits train"),
    ],
)
def test_a_split_without_rows_is_refused(tmp_path, count, settings, message):
    file = write_jsonl(tmp_path / "rows.jsonl", question_rows(count))
    with pytest.raises(DataError, match=message):
        load_splits(arguments(file, **settings))


def test_one_large_passage_is_not_split(tmp_path):
    rows = [{"context": "one", "question": str(number), "answers": {"text": ["a"]}} for number in range(9)]
    file = write_jsonl(tmp_path / "rows.jsonl", [*rows, QUESTIONS[0]])
    assert len(load_splits(arguments(file, test_size=0.1))["test"]) == 1
    with pytest.raises(
        DataError, match="10 rows with 2 passages cannot be cut, since no passage is left that fits validation"
    ):
        load_splits(arguments(file, test_size=0.1, validation_size=0.1))
