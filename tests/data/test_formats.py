"""What cannot be read of a file is named with its line; what pandas and spreadsheets write is read."""

import pandas as pd
import pytest

from prompt_tuning.data.files import load_file
from prompt_tuning.data.formats import name_of_row
from prompt_tuning.data.rows import open_rows
from prompt_tuning.errors import DataError

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", 'null\n{"a": 1}\n', "line 1: expected a JSON object, found null"),
        ("rows.jsonl", '{"a": 1}\n\n[1]\n', "line 3: expected a JSON object, found list"),
        ("rows.json", '[{"a": 1},\n"x"]', "line 2: expected a JSON object, found str"),
        ("rows.jsonl", '{"a": "x\0"}\n', "line 1: a NUL byte"),
        ("rows.csv", "a,b\n1,x\0\n", "line 2: a NUL byte"),
        ("rows.jsonl", '{"a": 1}\n{"a": "\\ud83d"}\n', r"line 2: half a character, '\\ud83d', is not text"),
        ("rows.json", '[{"a": 1},\n\n{"a": {"b": "\\udc00"}}]', "line 3: half a character"),
        ("rows.jsonl", '{"a": 1}\n'.encode("utf-16"), "line 1: UTF-16 text"),
        ("rows.csv", "a,b\n1,2\n".encode("utf-16-be"), "line 1: a NUL byte, as in UTF-16"),
        (
            "rows.jsonl",
            f'{{"a": 1}}\n{{"a": {DEEP}}}\n',
            "line 2: lists and objects inside each other deeper than 100",
        ),
        (
            "rows.json",
            f'[{{"a": 1}},\n{{"a": {DEEP[99_800:100_200]}}}]',
            "line 2: lists and objects inside each other",
        ),
        ("rows.jsonl", f'{{"a": 1}}\n{{"a": {"9" * 5000}}}\n', "line 2: a number of more than 4300 digits"),
        ("rows.json", f'[{{"a": 1}},\n{{"a": {"9" * 5000}}}]', "line 2: a number of more than 4300 digits"),
        ("rows.jsonl", '{"a": 1e400}\n', "line 1: 1e400 is too large a number"),
        ("rows.jsonl", '{"a": NaN}\n', "line 1: NaN is not a value of JSON"),
        ("rows.jsonl", '{"a": 1, "b": 2, "a": 3}\n', "line 1: the key 'a' is there twice"),
        ("rows.jsonl", '{"a": 1} {"a": 2}\n', "line 1: not JSON: Extra data"),
        ("rows.json", '[{"a": 1},\n]', "line 2: not JSON"),
        ("rows.json", '[{"a": 1}\n{"a": 2}]', "line 2: not JSON: Expecting ','"),
        ("rows.json", '[{"a": 1}]\nx', "line 2: not JSON: Extra data"),
        ("rows.csv", 'a,b\n1,"x\n2,3\n', "line 3: not csv"),
        ("rows.tsv", 'a\tb\n1\t"x" y\n', "line 2: not csv"),
        ("rows.csv", "a,b\r\t", "line 2: 1 cell, and the first line names 2 columns"),
        ("rows.csv", "a,,b\n1,2,3\n", r"column 2 has no name .* to_csv\(..., index=False\)"),
        ("rows.parquet", "a,b", "not a parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, content, message, streaming):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"{name}(: |, ){message}"):
        list(load_file(path, streaming=streaming))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tsv"])
def test_tables_of_pandas_are_read_with_their_separator_and_index(tmp_path, suffix, separator):
    rows = [{"document": "one, two; three", "label": 0}, {"document": "a\tb\nc", "label": 1}]
    path = tmp_path / f"rows{suffix}"
    separator = "\t" if suffix == ".tsv" else separator
    pd.DataFrame(rows).to_csv(path, sep=separator, encoding="utf-8-sig")
    expected = [{"Unnamed: 0": number} | row for number, row in enumerate(rows)]
    assert [*load_file(path)] == [*load_file(path, streaming=True)] == expected
    pd.DataFrame(rows[:1]).to_csv(path, sep=separator, index=False, lineterminator="\r")
    assert [*load_file(path)] == rows[:1]


def test_a_json_file_holds_an_array_or_objects_one_after_the_other(tmp_path):
    path = tmp_path / "rows.JSON"
    rows = [{"a": "[1]"}, {"a": {"b": ["}"]}}]
    for content in ('[{"a": "[1]"},\n {"a": {"b": ["}"]}} ]\n', '{"a": "[1]"}\n{\n"a": {"b": ["}"]}}', "\ufeff"):
        if content != "\ufeff":
            path.write_text(content)
        else:
            path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
        assert [*load_file(path)] == rows


def test_the_rows_of_an_array_on_one_line_are_told_apart(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": 2},\n{"a": 3}, {"a": 4}]')
    names = [origin.removeprefix(f"{path}, ") for origin, _ in open_rows(path)]
    assert names == ["line 1", "line 1, row 1", "line 2", "line 2, row 3"]
    assert name_of_row([path], 3) == f"{path}, line 2, row 3"
    path.write_text('[{"a": 1}, null]')
    with pytest.raises(DataError, match="line 1, row 1: expected a JSON object, found null"):
        load_file(path)
