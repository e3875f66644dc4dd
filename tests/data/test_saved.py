"""Folders that `save_to_disk` wrote, as dataset_name: only what state.json names is read, and nothing outside."""

import json
import os
import shutil

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import load_splits
from prompt_tuning.errors import DataError

ROWS = Dataset.from_dict({"document": [f"Text {number}." for number in range(6)], "summary": list("abcdef")})


def splits_of(folder, **settings):
    return load_splits(DataArguments(task="summarization", dataset_name=str(folder), **settings))


def counts(splits):
    return {split: len(rows) for split, rows in splits.items()}


def test_leftovers_of_map_and_of_an_earlier_save_are_not_read(tmp_path):
    folder = tmp_path / "saved [1]"
    DatasetDict(train=ROWS, validation=ROWS.select(range(2))).save_to_disk(folder, num_shards={"train": 3})
    DatasetDict(train=ROWS, validation=ROWS.select(range(2))).save_to_disk(folder)
    load_from_disk(folder)["train"].map(lambda row: {"summary": row["summary"] * 2})
    assert len(list((folder / "train").glob("*.arrow"))) == 5
    splits = splits_of(folder)
    assert counts(splits) == {"train": 6, "validation": 2}
    assert splits["train"]["summary"][:] == list("abcdef")
    assert len(list((folder / "train").glob("*.arrow"))) == 5
    stream = splits_of(folder, streaming=True)["train"]
    assert [row["summary"] for row in stream] == list("abcdef")


def test_one_saved_dataset_is_the_training_split_or_the_one_that_it_was(tmp_path):
    ROWS.with_format("numpy").save_to_disk(tmp_path / "one")
    assert counts(splits_of(tmp_path / "one")) == {"train": 6}
    assert splits_of(tmp_path / "one")["train"][0] == {"document": "Text 0.", "summary": "a"}
    DatasetDict(train=ROWS, dev=ROWS).save_to_disk(tmp_path / "two")
    state = tmp_path / "two" / "dev" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_split": "dev"}))
    assert counts(splits_of(tmp_path / "two" / "dev", validation_split="dev")) == {"validation": 6}
    with pytest.raises(DataError, match=r"split devel: the folder has train, dev. Name one of them"):
        splits_of(tmp_path / "two", validation_split="devel")


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "{tmp}/other/data-00000-of-00001.arrow", ".."])
def test_a_state_that_names_a_file_outside_of_the_folder_is_refused(tmp_path, name):
    for folder in ("one", "other"):
        ROWS.save_to_disk(tmp_path / folder)
    state = tmp_path / "one" / "state.json"
    files = [{"filename": name.format(tmp=tmp_path)}]
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": files}))
    with pytest.raises(DataError, match="which is outside of it"):
        splits_of(tmp_path / "one")


def test_a_link_or_a_split_out_of_the_folder_is_refused(tmp_path):
    for folder in ("one", "other"):
        ROWS.save_to_disk(tmp_path / folder)
    file = tmp_path / "one" / "data-00000-of-00001.arrow"
    file.unlink()
    file.symlink_to(tmp_path / "other" / file.name)
    with pytest.raises(DataError, match="which is outside of it"):
        splits_of(tmp_path / "one")
    DatasetDict(train=ROWS).save_to_disk(tmp_path / "both")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "../other"]}')
    with pytest.raises(DataError, match=r"it names \.\./other, which is outside of it"):
        splits_of(tmp_path / "both")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_dict.json", "{"),
        ("dataset_dict.json", "[]"),
        ("dataset_dict.json", '{"splits": [1]}'),
        ("train/state.json", "{}"),
        ("train/state.json", '{"_data_files": [{"filename": null}]}'),
        ("train/state.json", '{"_data_files": [{"filename": "gone.arrow"}]}'),
        ("train/state.json", None),
        ("train/data-00000-of-00001.arrow", "no table"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, file, content):
    DatasetDict(train=ROWS).save_to_disk(tmp_path / "saved")
    if content is None:
        (tmp_path / "saved" / file).unlink()
    else:
        (tmp_path / "saved" / file).write_text(content)
    with pytest.raises(DataError, match=r"dataset .*saved.*\. Save it again by save_to_disk"):
        splits_of(tmp_path / "saved")


def test_rows_that_were_saved_again_are_read_again(tmp_path):
    ROWS.save_to_disk(tmp_path / "saved")
    assert len(splits_of(tmp_path / "saved")["train"]) == 6
    shutil.rmtree(tmp_path / "saved")
    ROWS.select(range(3)).save_to_disk(tmp_path / "saved")
    assert len(splits_of(tmp_path / "saved")["train"]) == 3


def test_rows_of_the_same_size_and_time_are_read_again(tmp_path):
    file = tmp_path / "saved" / "data-00000-of-00001.arrow"
    for summaries in ("abc", "xyz"):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        Dataset.from_dict({"document": ["t"] * 3, "summary": list(summaries)}).save_to_disk(tmp_path / "saved")
        os.utime(file, (1_000_000_000, 1_000_000_000))
        assert splits_of(tmp_path / "saved")["train"]["summary"][:] == list(summaries)


def test_settings_of_the_hub_are_refused_for_a_saved_folder(tmp_path):
    ROWS.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"dataset_revision has no effect: .*saved is a folder of save_to_disk"):
        splits_of(tmp_path / "saved", dataset_revision="main")


BOMBS = {
    "compressed": pa.array(["x" * 10_000]),
    "a dictionary": pa.DictionaryArray.from_arrays([0] * 100, ["x"]),
    "a view": pa.array(["x"], pa.string_view()),
    "a view in a list": pa.array([["x"]], pa.list_(pa.string_view())),
    "nulls": pa.nulls(100_000),
    "nulls in a list": pa.ListArray.from_arrays([0, 100_000], pa.nulls(100_000)),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [*BOMBS, "not UTF-8"])
def test_a_saved_file_that_is_not_valid_or_has_large_rows_is_refused(kind, streaming, tmp_path):
    ROWS.save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved" / "data-00000-of-00001.arrow"
    column = BOMBS.get(kind, pa.array([b"\xff"]).view(pa.binary()).cast(pa.binary()).view(pa.string()))
    table = pa.table({"document": column})
    options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
    with pa.ipc.new_stream(file, table.schema, options=options) as stream:
        stream.write_table(table)
    with pytest.raises(
        DataError, match=r"saved, split train: .*(data-00000.*(compressed|view|dictionary|memory)|UTF8)"
    ):
        splits_of(tmp_path / "saved", streaming=streaming)


def test_buffers_that_overlap_are_refused(tmp_path):
    Dataset.from_dict({"a": ["x" * 10_000], "b": ["y" * 10_000]}).save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved" / "data-00000-of-00001.arrow"
    content = bytearray(file.read_bytes())
    sizes = content.index((10_000).to_bytes(8, "little"))
    content[sizes : sizes + 8] = (20_000).to_bytes(8, "little")
    file.write_bytes(content)
    with pytest.raises(DataError, match="its rows take far more memory than the file"):
        splits_of(tmp_path / "saved")
