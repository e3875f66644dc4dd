"""The command predict on a run that is not trained: streams, tables, columns on request, tasks and processes."""

import json
import os
import shutil
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import forked
from helpers.rows import question_rows, write_jsonl

from prompt_tuning import Predictor
from prompt_tuning.cli.main import main
from prompt_tuning.data.rows import open_rows
from prompt_tuning.encoding.batching import streamed_batches
from prompt_tuning.errors import TemplateError
from prompt_tuning.runs.input_rows import lines_until_silence


@pytest.fixture
def run(make_run):
    return make_run("run")


def test_bad_lines_of_a_pipe_are_reported_and_the_file_has_the_other_rows(run, tmp_path, capsys):
    pipe, out = tmp_path / "pipe.jsonl", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    good = json.dumps(question_rows(1)[0])
    (tmp_path / "lines").write_text("\n".join([good, "[1]", '{"context": "a"}', good, "", "{", good]) + "\n")
    with subprocess.Popen(["sh", "-c", f"cat {tmp_path}/lines > {pipe}"]):
        assert main(["predict", "--adapter", str(run), "--input", str(pipe), "--output", str(out)]) == 1
    assert len(out.read_text().splitlines()) == 3
    errors = capsys.readouterr().err
    assert all(f"{pipe}, line {line}" in errors for line in (2, 3, 6)) and "3 rows without a prediction" in errors


def test_a_batch_of_a_stream_does_not_wait_for_rows_that_do_not_come():
    """Check it by a pipe that stays open: its rows are a batch as soon as it has been silent."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as pipe:
        lines = lines_until_silence(stream, 0.05)
        pipe.write(b"first\nsecond\nbe")
        batches = streamed_batches(lines, len, 8, 100)
        assert next(batches) == [b"first\n", b"second\n"]
        pipe.write(b"gun\n" + b"long\n" * 9)
        assert next(batches) == [b"begun\n", *[b"long\n"] * 7]
        pipe.write(b"without an end")
        pipe.close()
        assert list(batches) == [[b"long\n"] * 2 + [b"without an end"]]
    assert list(streamed_batches([5, 1, 1, None, None, 9, 1, 1], int, 3, 8)) == [[5], [1, 1], [9], [1, 1]]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet", "out.json", "out.JSONL"])
def test_an_output_has_the_format_of_its_name(name, run, tmp_path, capsys):
    rows = question_rows(3)
    rows[0] |= {"note": 'a "quoted", text\nof two lines', "number": 1}
    rows[1]["number"] = 2.5
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    command = ["predict", "--adapter", str(run), "--input", str(source), "--truncated", "--score"]
    capsys.readouterr()
    assert main(command) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (tmp_path / "kept").write_text("")
    (tmp_path / name).symlink_to("kept")
    assert main([*command, "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "kept").stat().st_size and not list(tmp_path.glob(".partial-*"))
    written = [row for _, row in open_rows(tmp_path / name)]
    assert [*written[0]] == [*expected[0]]
    for row, other in zip(written, expected, strict=True):
        assert row["prediction"] == (other["prediction"] or row["prediction"])
        for column in ("note", "truncated", "score", "number", "answers"):
            value = row[column] if isinstance(row[column], str | None) else json.dumps(row[column])
            assert value == (other[column] if isinstance(other[column], str | None) else json.dumps(other[column]))
    assert main([*command, "--output", str(tmp_path / "out.xlsx")]) == 1
    assert "out.xlsx: .xlsx is not written. Name a file ending in .json" in capsys.readouterr().err


def test_nan_of_a_parquet_file_is_null_in_json_and_never_a_text(run, tmp_path, capsys):
    rows = [row | {"rating": float("nan")} for row in question_rows(2)]
    source, output = tmp_path / "rows.parquet", tmp_path / "out.jsonl"
    pq.write_table(pa.Table.from_pylist(rows), source)
    command = ["predict", "--adapter", str(run), "--input", str(source), "--output", str(output)]
    assert main(command) == 0
    written = [json.loads(line, parse_constant=pytest.fail) for line in output.read_text("utf-8").split("\n")[:-1]]
    assert [row["rating"] for row in written] == [None, None]
    assert "2 of 2 rows have a number that JSON does not have" in capsys.readouterr().err
    pq.write_table(pa.Table.from_pylist([row | {"question": float("nan")} for row in rows]), source)
    assert main(command) == 1
    assert f"{source}, row 0: template {run}/template.yaml: a value it prints is NaN" in capsys.readouterr().err
    encoder = Predictor.load(run).encoder
    with pytest.raises(TemplateError, match="The column answers holds a float"):
        encoder.row(rows[0] | {"answers": float("nan")})


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_failed_prediction_leaves_no_new_folder(name, run, make_run, tmp_path, capsys):
    shutil.rmtree(tmp_path / "base")
    output = tmp_path / "new" / "deep" / name
    assert main(["predict", "--adapter", str(run), "--input", make_run.rows, "--output", str(output)]) == 1
    assert str(tmp_path / "base") in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_truncated_rows_and_scores_are_columns_on_request(run, tmp_path, capsys):
    rows = question_rows(3)
    rows[1]["context"] *= 30
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    command = ["predict", "--adapter", str(run), "--input", str(source), "--batch_tokens", "300"]
    capsys.readouterr()
    assert main([*command, "--truncated", "--score"]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["truncated"] for row in predicted] == [False, True, False]
    assert all(isinstance(row["at_limit"], bool) for row in predicted)
    assert all(row["score"] < 0 if row["prediction"] else row["score"] is None for row in predicted)
    assert main(command) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[0])) == {*rows[0], "prediction"}


def test_rows_of_several_runs_are_predicted_by_their_task(run, tmp_path, capsys):
    rows = [row | {"task": task} for row, task in zip(question_rows(4), ["run", "second"] * 2, strict=True)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    command = ["predict", "--input", str(source), "--adapter", str(run), f"second={run}"]
    capsys.readouterr()
    assert main(command) == 0
    together = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    assert together == Predictor.load(run)(rows)
    write_jsonl(source, [*rows, question_rows(1)[0]])
    assert main(command) == 1
    assert "rows.jsonl, line 5: no column 'task'. Give it one of run, second." in capsys.readouterr().err


def test_processes_of_a_launch_write_one_file_in_the_order_of_the_rows(run, tmp_path, capsys):
    source = write_jsonl(tmp_path / "rows.jsonl", question_rows(7))
    words = ["predict", "--adapter", str(run), "--input", str(source), "--batch_size", "2"]
    assert main([*words, "--output", str(tmp_path / "alone.csv")]) == 0
    for done in forked.run_in_two("prompt_tuning", *words, "--output", tmp_path / "out.csv"):
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "alone.csv").read_text()
    assert not list(tmp_path.glob(".partial-*"))


def test_several_processes_share_no_standard_input_or_output(run, make_run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["predict", "--adapter", str(run)]) == 2
    assert "cannot share standard input or a pipe. Name a file" in capsys.readouterr().err
    assert main(["predict", "--adapter", str(run), "--input", make_run.rows]) == 2
    assert "cannot share standard output. Name a file" in capsys.readouterr().err
