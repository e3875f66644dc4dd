"""Rows from files: every format, texts as they are written, and the line of a bad row."""

import contextlib
import csv
import io
import json
import os
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value
from helpers.rows import write_jsonl

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.files import WrittenJson, load_file
from prompt_tuning.data.formats import byte_lines
from prompt_tuning.data.loading import load_splits, row_origin, streamed_rows
from prompt_tuning.data.rows import column_types
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
    assert list(streamed_rows(stream, arguments(tmp_path / "rows.jsonl"))) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("document,summary\na,b\nc,d,e\n", "line 3: 3 cells, and the first line names 2 columns"),
        ("document,summary\na,b,\n", "line 2: 3 cells, and the first line names 2 columns"),
        ("document,summary\na,b\nc\nd,e\n", "line 3: 1 cell, and the first line names 2 columns"),
        ("document\nfirst\n\nthird\n", "line 3: empty; of one column each line is a row"),
    ],
)
def test_a_csv_that_pandas_would_shift_or_shorten_is_refused(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_splits(arguments(path))


def test_many_names_that_are_there_twice_are_found_in_one_pass(tmp_path):
    names = [f"c{number}" for number in range(30_000)]
    table, row = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    table.write_text(",".join([*names, *names]) + "\n")
    row.write_text("{" + ",".join(f'"{name}": 1' for name in [*names, names[-1]]) + "}\n")
    with pytest.raises(DataError, match=r"named twice: 'c0', .*, \.\.\.; rename one$"):
        load_splits(arguments(table))
    with pytest.raises(DataError, match="the key 'c29999' is there twice"):
        load_splits(arguments(row))


def test_rows_that_each_have_keys_of_their_own_are_no_table(tmp_path):
    rows = [{f"id{number}": "x"} for number in range(2001)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows.jsonl: more than 2,000 columns"):
        load_splits(arguments(path))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows[:-1]))
    with pytest.raises(DataError, match=r"no such column\. Name one of 'id0', .*, 'id29', \.\.\.\.$"):
        load_splits(arguments(path, text_column="x"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved"])
def test_a_table_of_too_many_columns_is_refused(kind, tmp_path):
    names = [f"name{number}" for number in range(2001)]
    (tmp_path / "rows.csv").write_text(f"{','.join(names)}\n{','.join(names)}\n")
    table = pa.table({name: ["x"] for name in names})
    pq.write_table(table, tmp_path / "rows.parquet")
    Dataset(table).save_to_disk(tmp_path / "saved")
    source = {"dataset_name": "saved"} if kind == "saved" else {"train_file": f"rows.{kind}"}
    ((key, name),) = source.items()
    with pytest.raises(DataError, match=r"more than 2,000 columns"):
        load_splits(DataArguments(task="summarization", **{key: str(tmp_path / name)}))


def test_keys_that_differ_by_row_do_not_become_fields_of_every_row(monkeypatch):
    monkeypatch.setattr("prompt_tuning.data.rows.pa.array", None)
    for values in ([{"a": 1}, {"b": 1}], [{"a": 1, "b": 1}, {"b": 1, "a": 1}], [[{"a": 1}], [{"a": 2}, {"b": 1}]]):
        assert column_types([{"x": value} for value in values]) == {"x": None}
        assert column_types([{"x": {"y": value}} for value in values]) == {"x": None}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_article_that_is_repeated_for_very_many_questions_is_refused(name, tmp_path):
    questions = [{"question": f"{number}?", "answers": {"text": ["a"]}} for number in range(600)]
    for size, is_refused in ((10_000, False), (20_000, True)):
        passage = {"context": "a" * size, "qas": questions}
        (tmp_path / name).write_text(json.dumps({"title": "t", "paragraphs": [passage]}))
        with contextlib.nullcontext() if not is_refused else pytest.raises(DataError, match="repeat its texts more"):
            assert len(load_file(tmp_path / name)) == 600


def test_of_a_sparse_file_one_part_is_read(monkeypatch):
    monkeypatch.setattr("prompt_tuning.data.formats.PART", 10)
    text = b"a long first line\n\nb\n0123456789\nthe end"
    assert [*byte_lines(io.BytesIO(text))] == text.splitlines(keepends=True)
    lines = byte_lines(io.BytesIO(b"a\n" + bytes(1000)))
    assert (next(lines), len(next(lines))) == (b"a\n", 10)


def test_empty_lines_of_a_csv_do_not_shift_line_numbers(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ndocument,summary\n\na b,c d\n\ne f,g\n\n")
    assert load_splits(arguments(path))["train"]["summary"] == ["c d", "g"]
    assert [row_origin(arguments(path), "train", row) for row in (0, 1)] == [f"{path}, line 4", f"{path}, line 6"]


def test_a_csv_cell_is_the_text_in_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffdocument,summary,year,label,score,note\nA,007,1990,0,0.5,\nNA,None,1991,1,0.25,x\n")
    first, second = load_splits(arguments(path))["train"]
    assert first == {"document": "A", "summary": "007", "year": 1990, "label": 0, "score": 0.5, "note": None}
    assert second == {"document": "NA", "summary": "None", "year": 1991, "label": 1, "score": 0.25, "note": "x"}
    streamed = load_splits(arguments(path, streaming=True), ("train",))["train"]
    assert list(streamed) == [first, second]
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


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_rows_are_those_of_the_file_although_its_time_and_size_did_not_change(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    for answer in ("Turin", "Paris"):
        if suffix == ".csv":
            path.write_text(f"document,summary\nA,{answer}\n")
        elif suffix == ".parquet":
            Dataset.from_list([{"document": "A", "summary": answer}]).to_parquet(path)
        else:
            path.write_text(json.dumps({"document": "A", "summary": answer}))
        os.utime(path, (10**9, 10**9))
        assert load_splits(arguments(path))["train"].to_list() == [{"document": "A", "summary": answer}]


def test_a_column_may_be_empty_in_the_first_ten_megabytes(tmp_path):
    rows = [{"document": "x" * 2000, "summary": None, "hints": []} for _ in range(6000)]
    rows.append({"document": "end", "summary": "2024", "hints": ["a", 1], "more": 0.5})
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    loaded = load_file(path)
    assert loaded[6000] == rows[-1]
    assert loaded[5999] == rows[-2] | {"more": None}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_pattern_names_several_files_and_a_tilde_the_home_folder(tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows" / "more").mkdir(parents=True)
    write_jsonl(tmp_path / "rows" / "b.jsonl", PAIRS[2:4])
    write_jsonl(tmp_path / "rows" / "a.jsonl", PAIRS[:2])
    write_jsonl(tmp_path / "rows" / "more" / "c.jsonl", PAIRS[4:])
    args = arguments("~/rows/**/*.jsonl", streaming=streaming)
    assert [*load_splits(args, ("train",))["train"]] == PAIRS
    assert row_origin(args, "train", 3) == f"{tmp_path}/rows/b.jsonl, line 2"
    assert [*load_file("~/rows/a.jsonl", streaming=streaming)] == PAIRS[:2]
    (tmp_path / "rows" / "folder.jsonl").mkdir()
    for nothing in ("~/rows/c*.jsonl", "~/rows/folder.jsonl"):
        with pytest.raises(DataError, match=f"{re.escape(nothing)}: no such file"):
            load_file(nothing, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_types_of_csv_columns_are_those_of_all_files_together(tmp_path, streaming):
    (tmp_path / "a.csv").write_text("document,label\nA,1\n")
    (tmp_path / "b.csv").write_text("document,label,more\nB,no,2\n")
    rows = [{"document": "A", "label": "1", "more": None}, {"document": "B", "label": "no", "more": 2}]
    assert [*load_file(tmp_path / "*.csv", streaming=streaming)] == rows


def test_a_parquet_file_keeps_its_types(tmp_path):
    path = tmp_path / "rows [1].parquet"
    times = pa.array([1704164645000000123], pa.timestamp("ns"))
    table = pa.table({"document": ["a"], "at": times, "number": pa.array([2**64 - 1], pa.uint64())})
    pq.write_table(table, path)
    expected = table.to_pylist()
    assert [*load_file(path)] == [*load_file(path, streaming=True)] == expected
    assert expected[0]["number"] == 2**64 - 1 and expected[0]["at"].nanosecond == 123


@pytest.mark.parametrize("settings", [{}, {"use_dictionary": False, "version": "1.0"}, {"data_page_version": "2.0"}])
@pytest.mark.parametrize("stored", [True, False])
def test_texts_within_values_of_parquet_are_those_that_arrow_reads(settings, stored, tmp_path):
    texts = pa.array([None if number % 7 == 0 else f"text {number % 50}" for number in range(600)])
    lists = pa.ListArray.from_arrays(range(0, 601, 2), texts)
    pairs = pa.MapArray.from_arrays(range(0, 601, 2), [f"key {number}" for number in range(600)], texts)
    columns = {"lists": lists, "maps": pairs, "nested": pa.ListArray.from_arrays(range(301), pairs)}
    columns |= {"large": lists.cast(pa.large_list(pa.large_string())), "two": lists.cast(pa.list_(pa.string(), 2))}
    columns |= {"bytes": lists.cast(pa.list_(pa.binary())), "turns": pa.array([[{"role": "a", "text": "b"}]] * 300)}
    columns |= {"labels": texts[:300].dictionary_encode(), "numbers": pa.array([[1, None]] * 300)}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=200, data_page_size=500, store_schema=stored, **settings)
    assert [*load_file(path, streaming=True)] == pq.read_table(path).to_pylist()


@pytest.mark.parametrize("value", [2**63, [2**64 - 1], {}, {"a": [{}]}, {"_type": "Value"}, [[]], {"": None}])
def test_values_that_datasets_does_not_write_are_kept(tmp_path, value):
    rows = [{"document": "a", "value": value}, {"document": "b", "value": value}]
    assert [*load_file(write_jsonl(tmp_path / "rows.jsonl", rows))] == rows


def test_texts_of_two_languages_stay_as_they_are_written(tmp_path):
    rows = [{"fr": "007", "en": "null"}, {"fr": 18, "en": "18"}]
    args = arguments(
        write_jsonl(tmp_path / "rows.jsonl", rows), task="translation", source_lang="fr", target_lang="en"
    )
    pairs = [row | {"translation": row} for row in rows]
    assert [*load_splits(args)["train"]] == pairs
    args.streaming = True
    assert list(streamed_rows(load_splits(args)["train"], args)) == pairs


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_groups_of_parquet_without_rows_are_read(use_dictionary, tmp_path):
    file, table = tmp_path / "rows.parquet", pa.table({"question": ["a", "b"], "choices": [["x"], []]})
    with pq.ParquetWriter(file, table.schema, use_dictionary=use_dictionary) as writer:
        for rows in (table[:0], table, table[:0]):
            writer.write_table(rows)
    assert [*load_file(file)] == [*load_file(file, streaming=True)] == table.to_pylist()


def test_a_text_in_parquet_that_is_not_utf8_names_its_file(tmp_path):
    file = tmp_path / "rows.parquet"
    texts = pa.array([b"Oslo", b"Osl\xb6"]).cast(pa.binary())
    pq.write_table(pa.table({"text": texts.view(pa.utf8())}), file)
    with pytest.raises(DataError, match=r"rows\.parquet: .*UTF8"):
        load_file(file)
    with pytest.raises(DataError, match=r"rows\.parquet: not a parquet file that can be read"):
        list(load_file(file, streaming=True))


def test_damaged_parquet_is_read_or_names_its_file(tmp_path):
    rows = [{"text": f"Ada lives in {place}.", "number": number} for number, place in enumerate(["Oslo", "Riga"] * 50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    draw = random.Random(7)
    for number in range(60):
        content = bytearray(whole[: len(whole) if number % 3 else draw.randrange(len(whole))])
        for _ in range(number % 4):
            content[draw.randrange(len(content))] = draw.randrange(256)
        file = tmp_path / f"{number}.parquet"
        file.write_bytes(content)
        for streaming in (False, True):
            try:
                list(load_file(file, streaming=streaming))
            except DataError as error:
                assert f"{number}.parquet" in str(error)


@pytest.mark.parametrize("kind", ("jsonl", "json", "csv", "tsv", "parquet"))
def test_what_is_no_file_is_named(kind, tmp_path):
    (tmp_path / f"folder.{kind}").mkdir()
    (tmp_path / f"loop.{kind}").symlink_to(tmp_path / f"loop.{kind}")
    (tmp_path / f"gone.{kind}").symlink_to(tmp_path / "nothing")
    for name in ("folder", "loop", "gone"):
        with pytest.raises((DataError, IsADirectoryError), match=f"{name}.{kind}"):
            load_file(tmp_path / f"{name}.{kind}")


def large(kind, number):
    """Return rows of a text of 10,000 characters that a parquet file has once."""
    text = "x" * 10_000
    written = pa.DictionaryArray.from_arrays([0] * number, [text])
    columns = {
        "texts": written.dictionary_decode(),
        "a dictionary": written,
        "a dictionary in lists": pa.ListArray.from_arrays(list(range(number + 1)), written),
        "lists in structs": pa.array([{"a": [text]}] * number),
        "bytes of one length": pa.array([text.encode()] * number, pa.binary(10_000)),
        "nulls": pa.nulls(number * 300),
        "a list of nulls": pa.array([[None] * number * 300], pa.list_(pa.int8())),
        "one text": pa.array([text * number]),
    }
    column = columns[kind]
    return pa.table({"document": column, "summary": pa.array(["a"] * len(column))})


KINDS = ["texts", "a dictionary", "a dictionary in lists", "lists in structs", "bytes of one length", "nulls"]


@pytest.mark.parametrize("kind", [*KINDS, "a list of nulls", "one text"])
def test_a_small_parquet_file_with_large_rows_is_refused(kind, tmp_path, monkeypatch):
    """The limits are a hundredth, so that a file that is not refused costs no more here."""
    monkeypatch.setattr("prompt_tuning.data.parquet.MIN_LIMIT", 5_000_000)
    path = tmp_path / "rows.parquet"
    pq.write_table(large(kind, 1000), path, compression="zstd")
    assert path.stat().st_size < 20_000
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"rows.parquet: its values take more than 5,000,000 bytes"):
            list(load_file(path, streaming=streaming))
    pq.write_table(large(kind, 100), path, compression="zstd")
    assert len(list(load_file(path, streaming=True))) in (1, 100, 30_000)


@contextlib.contextmanager
def little_memory():
    """Check that Arrow takes no more than 10 MB at a time in the block."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    yield
    pa.set_memory_pool(before)
    assert pool.max_memory() < 10_000_000


@pytest.mark.parametrize(
    ("name", "claim", "message"),
    [
        ("total_uncompressed_size", 1000, "its values take more than 5,000,000 bytes"),
        ("total_compressed_size", 8000, "its parts overlap"),
    ],
)
def test_the_end_of_a_parquet_file_does_not_hide_the_size_of_its_pages(name, claim, message, tmp_path, monkeypatch):
    def number(value):
        """Return Thrift's bytes of a number, as many as the true size takes."""
        length = -(-(2 * size).bit_length() // 7)
        return bytes(2 * value >> 7 * place & 127 | 128 * (place < length - 1) for place in range(length))

    monkeypatch.setattr("prompt_tuning.data.parquet.MIN_LIMIT", 5_000_000)
    path = tmp_path / "rows.parquet"
    table = pa.table({"document": ["x" * 40_000_000]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    size = getattr(pq.read_metadata(path).row_group(0).column(0), name)
    path.write_bytes(path.read_bytes().replace(number(size), number(claim)))
    assert getattr(pq.read_metadata(path).row_group(0).column(0), name) == claim
    with little_memory(), pytest.raises(DataError, match=f"rows.parquet: .*{message}"):
        list(load_file(path, streaming=True))


def test_a_row_that_repeats_a_text_is_refused_before_it_is_read_at_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr("prompt_tuning.data.parquet.MIN_LIMIT", 5_000_000)
    texts = pa.array(["x" * 10_000]).take(pa.array([0] * 4000))
    pq.write_table(pa.table({"document": pa.ListArray.from_arrays([0, 4000], texts)}), tmp_path / "rows.parquet")
    with little_memory(), pytest.raises(DataError, match=r"rows.parquet: its values take more than 5,000,000 bytes"):
        list(load_file(tmp_path / "rows.parquet", streaming=True))


def test_a_large_parquet_file_may_be_compressed_well(tmp_path, monkeypatch):
    monkeypatch.setattr("prompt_tuning.data.parquet.MIN_LIMIT", 0)
    passages = [f"{number} " * 500 for number in range(100)]
    rows = [{"context": passages[number // 30], "question": f"{number}?"} for number in range(3000)]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert list(load_file(tmp_path / "rows.parquet", streaming=True)) == rows


def test_a_date_that_python_does_not_have_names_its_file(tmp_path):
    pq.write_table(pa.table({"document": pa.array([2**31 - 1], pa.date32())}), tmp_path / "rows.parquet")
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"rows.parquet: not a parquet file that can be read"):
            list(load_file(tmp_path / "rows.parquet", streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["file", "saved"])
def test_no_file_and_no_address_of_an_image_is_opened(kind, streaming, tmp_path):
    place = {"bytes": b"no image", "path": "image.png"}
    row = {"document": "a", "summary": "b", "image": place, "images": [place], "more": {"image": place}}
    types = {"document": Value("string"), "summary": Value("string"), "image": Image(), "images": List(Image())}
    rows = Dataset.from_list([row], Features(types | {"more": {"image": Image()}}))
    pq.write_table(rows.data.table.cast(rows.features.arrow_schema), tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    source = {"train_file": "rows.parquet"} if kind == "file" else {"dataset_name": "saved"}
    args = DataArguments(
        task="summarization", streaming=streaming, **{key: str(tmp_path / name) for key, name in source.items()}
    )
    assert [*load_splits(args, ("train",))["train"]] == [row]


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, "no"])
def test_a_column_that_a_file_calls_json_is_an_error_if_it_is_none(value, tmp_path):
    rows = Dataset.from_list([{"a": 1}], Features({"a": WrittenJson()}))
    table = pa.table({"a": [value]}).replace_schema_metadata(rows.features.arrow_schema.metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="a column of JSON texts"):
        load_file(tmp_path / "rows.parquet")[0]
