"""Splits of a recipe: columns, limits, origins of rows, and all errors at once."""

import pytest
from helpers.rows import write_jsonl

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import load_splits, row_origin, with_standard_columns
from prompt_tuning.errors import DataError
from prompt_tuning.templates.preview import rename_columns

PAIRS = [{"document": f"Text {number}.", "summary": f"T{number}"} for number in range(5)]


def arguments(path, **settings):
    return DataArguments(**({"task": "summarization", "train_file": str(path)} | settings))


def test_splits_need_not_have_the_same_columns(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", PAIRS)
    test = write_jsonl(tmp_path / "test.jsonl", [row | {"id": 1} for row in PAIRS])
    splits = load_splits(arguments(train, test_file=str(test), max_train_samples=2, max_predict_samples=3))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "test": 3}


def test_columns_are_renamed_to_the_standard_ones(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"dialogue": "A: Hi.", "document": "other", "gist": "Hi."}])
    rows = load_splits(arguments(path, text_column="dialogue", summary_column="gist"))["train"]
    assert rows[0] == {"document": "A: Hi.", "summary": "Hi."}
    with pytest.raises(DataError, match=r"^text_column text: .*rows\.jsonl has no such column\. Name one of 'dia"):
        load_splits(arguments(path, text_column="text"))
    with pytest.raises(DataError, match=r"^summary_column short: .* Name one of 'dialogue', 'document', 'gist'\.$"):
        load_splits(arguments(path, text_column="dialogue", summary_column="short"))


def test_a_row_to_predict_is_read_by_the_column_that_training_read():
    row = {"document": "the abstract", "body": "the whole text"}
    assert (
        with_standard_columns(row, DataArguments(task="summarization", text_column="body"))["document"]
        == "the whole text"
    )
    assert (
        with_standard_columns({"document": "a"}, DataArguments(task="summarization", text_column="body"))["document"]
        == "a"
    )


def test_two_columns_named_by_languages_become_a_translation(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("fr,en\nBonjour.,Good morning.\n", encoding="utf-8")
    rows = load_splits(arguments(path, task="translation", source_lang="fr", target_lang="en"))["train"]
    assert rows[0]["translation"] == {"fr": "Bonjour.", "en": "Good morning."}


def test_a_translation_of_two_columns_of_other_names_is_read_by_every_command(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"src": "Bonjour.", "Anglais": "Good morning."}])
    args = arguments(
        path, task="translation", source_lang="fr", target_lang="en", source_column="src", target_column="Anglais"
    )
    assert load_splits(args)["train"][0]["translation"] == {"fr": "Bonjour.", "en": "Good morning."}
    assert with_standard_columns({"src": "Bonjour."}, args)["translation"] == {"fr": "Bonjour."}
    shown, _ = rename_columns({"src": "Bonjour.", "Anglais": "Good morning."}, vars(args), "fr", "en")
    assert shown["translation"] == {"fr": "Bonjour.", "en": "Good morning."}


def test_a_split_without_rows_is_reported(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"rows.jsonl: no rows; the train split needs at least one"):
        load_splits(arguments(path, max_train_samples=0))
    path.write_text("\n\n")
    with pytest.raises(DataError, match=r"rows.jsonl: no rows"):
        load_splits(arguments(path, streaming=True), ("train",))


def test_every_bad_split_is_reported_at_once(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_bytes(b"")
    test.write_bytes(b"{")
    with pytest.raises(DataError) as caught:
        load_splits(arguments(train, test_file=str(test)))
    assert "train.jsonl: the file is empty" in str(caught.value) and "test.jsonl, line 1: not JSON" in str(
        caught.value
    )


def test_the_origin_of_a_row_is_its_line_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert row_origin(arguments(path), "train", 1) == f"{path}, line 3"
    table = tmp_path / "rows.csv"
    table.write_text('a,b\n1,"two\nlines"\n3,4\n')
    assert row_origin(arguments(table), "train", 1) == f"{table}, line 4"
    assert row_origin(DataArguments(dataset_name="squad"), "train", 7) == "squad[train], row 7"


def test_an_unreachable_hub_is_an_error_with_advice():
    with pytest.raises(DataError, match=r"dataset nobody/nothing, split train.*local train_file"):
        load_splits(DataArguments(dataset_name="nobody/nothing"), ("train",))
