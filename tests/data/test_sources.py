"""init finds the splits of a file, a folder or a data set of the hub by their names."""

import pytest
from datasets import Dataset, DatasetDict
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.data.sources import find_source
from prompt_tuning.errors import DataError


def test_files_of_a_folder_are_its_splits(tmp_path):
    for name in ("train-00001.jsonl", "train-00002.jsonl", "dev.jsonl", "my_test.v2.csv"):
        write_jsonl(tmp_path / name, question_rows(1))
    (tmp_path / "PROVENANCE.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("nothing")
    assert find_source(str(tmp_path), {}) == {
        "train_file": f"{tmp_path}/train-0000*.jsonl",
        "validation_file": f"{tmp_path}/dev.jsonl",
        "test_file": f"{tmp_path}/my_test.v2.csv",
    }
    write_jsonl(tmp_path / "train-0000x.jsonl", question_rows(1))
    write_jsonl(tmp_path / "train.csv", question_rows(1))
    with pytest.raises(DataError, match="several files are of one split"):
        find_source(str(tmp_path), {})


def test_one_file_of_any_name_is_for_training(tmp_path):
    path = write_jsonl(tmp_path / "anything.jsonl", question_rows(1))
    assert find_source(str(path), {}) == find_source(str(tmp_path), {}) == {"train_file": str(path)}
    assert find_source(f"{tmp_path}/*.jsonl", {}) == {"train_file": f"{tmp_path}/*.jsonl"}


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="no file of rows"):
        find_source(str(tmp_path), {})
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, question_rows(1))
    with pytest.raises(DataError, match=r"its files \('a.jsonl', 'b.jsonl'\) do not say which is train"):
        find_source(str(tmp_path), {})
    with pytest.raises(DataError, match="no such folder"):
        find_source(str(tmp_path / "absent" / "x"), {})


def test_splits_of_a_data_set_are_named_only_if_their_names_are_not_the_usual_ones(tmp_path, monkeypatch):
    rows = Dataset.from_list(question_rows(2))
    DatasetDict({"train": rows, "dev": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    saved = {"dataset_name": str(tmp_path / "saved"), "validation_split": "dev"}
    assert find_source(str(tmp_path / "saved"), {}) == saved
    hub = {}
    monkeypatch.setattr("prompt_tuning.data.loading.hub_answers", lambda *args: True)
    monkeypatch.setattr("prompt_tuning.data.loading.get_dataset_split_names", lambda *args, **settings: hub["splits"])
    for splits, settings in (
        (["validation"], {"train_split": "validation"}),
        (["test", "train"], {}),
        (["training", "val"], {"train_split": "training", "validation_split": "val"}),
    ):
        hub["splits"] = splits
        assert find_source("owner/set", {}) == {"dataset_name": "owner/set"} | settings
    hub["splits"] = ["a", "b"]
    with pytest.raises(DataError, match="none is train"):
        find_source("owner/set", {})
    assert find_source("owner/set", {"train_split": "b"}) == {"dataset_name": "owner/set"}
