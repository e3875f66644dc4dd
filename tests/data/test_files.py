"""Rows from files: every format, texts as they are written, and the line of a bad row."""

import csv
import json

import pytest
from datasets import Dataset
from helpers.rows import write_jsonl

from prompt_tuning.arguments.arguments import DataArguments
from prompt_tuning.data.files import load_file
from prompt_tuning.data.loading import load_splits, row_origin, streamed_rows
from prompt_tuning.errors import DataError

PAIRS = [{"document": f"Text {number}.", "summary": f"T{number}"} for number in range(5)]


def arguments(path, **settings):
    return DataArguments(**({"task": "summarization", "train_file": str(path)} | settings))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, PAIRS)
    elif suffix == ".json":
        path.write_text(json.dumps(PAIRS))
    elif suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["document", "summary"])
            writer.writeheader()
            writer.writerows(PAIRS)
    else:
        Dataset.from_list(PAIRS).to_parquet(path)
    assert load_splits(arguments(path))["train"].to_list() == PAIRS


def test_names_of_files_are_not_patterns(tmp_path):
    for name in ("a [v2]", "a v"):
        (tmp_path / name).mkdir()
    file = write_jsonl(tmp_path / "a [v2]" / "rows[1]*?.jsonl", PAIRS)
    for other in ("a [v2]/rows1*?.jsonl", "a [v2]/rows[1]xy.jsonl", "a v/rows[1]*?.jsonl"):
        write_jsonl(tmp_path / other, PAIRS[:1])
    for streaming in (False, True):
        assert [*load_file(file, streaming=streaming)] == PAIRS


def test_texts_that_are_dates_stay_texts(tmp_path):
    rows = [
        {"document": f"1910-01-0{number}", "summary": f"1912-01-0{number}", "more": {"on": [f"1914-01-0{number}"]}}
        for number in range(1, 4)
    ]
    for path in (write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "rows.json"):
        path.write_text(path.read_text() if path.suffix == ".jsonl" else json.dumps(rows))
        assert load_splits(arguments(path))["train"].to_list() == rows
    stream = load_splits(arguments(tmp_path / "rows.jsonl", streaming=True))["train"]
    with pytest.raises(DataError, match="line 1: a text that is a date was read as a time"):
        list(streamed_rows(stream, arguments(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("document,summary\na,b\nc,d,e\n", "line 3: 3 cells, and the first line names 2 columns"),
        ("document,summary\na,b,\n", "line 2: 3 cells, and the first line names 2 columns"),
        ("document\nfirst\n\nthird\n", "line 3: empty; of one column each line is a row"),
    ],
)
def test_a_csv_that_pandas_would_shift_or_shorten_is_refused(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_splits(arguments(path))


def test_empty_lines_of_a_csv_do_not_shift_line_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ndocument,summary\n\na b,c d\n\ne f,g\n\n")
    assert load_splits(arguments(path))["train"]["summary"] == ["c d", "g"]
    assert [row_origin(arguments(path), "train", row) for row in (0, 1)] == [f"{path}, line 4", f"{path}, line 6"]


@pytest.mark.parametrize("first", ["Paris", "2024-01-02"])
def test_dates_stay_texts_in_a_file_of_several_chunks(tmp_path, first):
    """Write 10 MB, because Arrow reads that much at a time and makes times of a chunk that has only dates."""
    path = tmp_path / "rows.jsonl"
    other = "2024-01-02" if first == "Paris" else "Paris"
    texts = [first] * 6000 + [other] * 6000
    write_jsonl(path, [{"document": "x" * 2000, "summary": text, "answers": {"text": [text]}} for text in texts])
    rows = load_splits(arguments(path))["train"]
    assert rows["summary"] == texts and [answers["text"][0] for answers in rows["answers"]] == texts


def test_texts_that_start_like_a_time_do_not_change_other_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"t": "2024-01-02 10:00:00 a", "n": 1, "d": {"a": 1}}, {"t": "y", "n": "x", "d": {"b": "2"}}]
    write_jsonl(path, rows)
    assert load_file(path).to_list() == rows
    path.write_text('{"t": "2024-01-02 10:00:00", "n": [1]} {"t": "y", "n": [2]}\n')  # Two rows are on one line.
    assert load_file(path)["n"] == [[1], [2]]


def test_a_csv_cell_is_the_text_in_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffdocument,summary,year,label,score,note\nA,007,1990,0,0.5,\nNA,None,1991,1,0.25,x\n")
    first, second = load_splits(arguments(path))["train"]
    assert first == {"document": "A", "summary": "007", "year": 1990, "label": 0, "score": 0.5, "note": None}
    assert second == {"document": "NA", "summary": "None", "year": 1991, "label": 1, "score": 0.25, "note": "x"}
    streamed = load_splits(arguments(path, streaming=True), ("train",))["train"]
    assert [row["summary"] for row in streamed] == ["007", "None"]
    path.write_text("document,summary\nA,0.5\nB,1\n")  # As a number the second would be printed 1.0.
    assert [row["summary"] for row in load_splits(arguments(path))["train"]] == ["0.5", "1"]
    path.write_text("document,summary,summary\na,b,c\n")
    with pytest.raises(DataError, match=r"rows.csv: columns named twice: 'summary'"):
        load_splits(arguments(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b'{"document": "a", "summary": "b"}\n{"document": "a", \n', "line 2: not JSON"),
        (b'\xef\xbb\xbf{"document": "a"}\n{"document": \n', "line 2: not JSON"),
        ('{"document": "a", "summary": "b"}\n\n{"document": "é"}\n'.encode("latin-1"), "line 3: not UTF-8"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows.jsonl") as caught:
        load_splits(arguments(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.csv", "document,summary\n"), ("rows.json", "[]\n"), ("rows.jsonl", "\n\n"), ("rows.jsonl", "{}\n{}\n")],
)
def test_a_file_without_rows_is_reported(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{name}: no rows"):
        load_splits(arguments(path))


def test_a_table_without_rows_is_reported(tmp_path):
    path = tmp_path / "rows.parquet"
    Dataset.from_dict({"document": []}).to_parquet(path)
    with pytest.raises(DataError, match=r"rows.parquet: no rows"):
        load_splits(arguments(path))


def test_dates_do_not_hide_another_error_of_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"document": "2024-01-02", "summary": "b"}\n{"document": \n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: not JSON"):
        load_splits(arguments(path))
