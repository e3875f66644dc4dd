"""The same texts in training, evaluation, a stream, prediction and preview, whatever the shape of the rows."""

import csv
import json
import random

import pandas as pd
import pytest
from helpers.rows import write_jsonl

import prompt_tuning as pt
from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import load_splits, streamed_rows
from prompt_tuning.data.rows import read_row
from prompt_tuning.encoding.dataset import encode
from prompt_tuning.runs.answers import Answer, read_question
from prompt_tuning.runs.predict import predict
from prompt_tuning.runs.predictor import Predictor
from prompt_tuning.templates.preview import render_on_row
from prompt_tuning.templates.template import Template

ROWS = 200
PRINTED = "{{ v|tojson if v is iterable and v is not string else v }}"
TEMPLATE = Template(
    source=f"{PRINTED}~{PRINTED.replace('v', 'w')}~{{% if v == 1 %}}one{{% endif %}}~{{{{ v is string }}}}",
    target=PRINTED,
)
TEXTS = [
    "007",
    "18",
    "null",
    "true",
    "NaN",
    "1e5",
    "2024-01-02",
    "10:30",
    "Ada",
    "é\u2028x",
    " a ",
    "😀",
    "[]",
    "0.10",
]
KEYS = ["b", "a", "c"]


def number(draw):
    kind = draw.randrange(5)
    if kind == 0:
        return draw.randint(-3, 3)
    if kind == 1:
        return draw.choice([2**53 + 1, 2**63, -(2**63), 2**64, 10**30])
    return draw.uniform(-1, 1) * 10 ** draw.randint(-20, 20) if kind < 4 else float(draw.randint(0, 9))


def nested(draw, depth=2):
    kind = draw.randrange(5 if depth else 3)
    if kind == 3:
        return [nested(draw, depth - 1) for _ in range(draw.randrange(3))]
    if kind == 4:
        return {key: nested(draw, depth - 1) for key in draw.sample(KEYS, draw.randrange(4))}
    return draw.choice([draw.choice(TEXTS), number(draw), draw.random() < 0.5])


def cell(draw):
    return draw.choice([*TEXTS, "a, b", "a; b", 'say "hi"', "two\nlines", "a\tb", "NA", "None"])


def pairs(draw, v, w):
    return [{"v": v(draw), "w": w(draw)} for _ in range(ROWS)]


def mixed(draw):
    return draw.choice([draw.choice(TEXTS), number(draw), True])


def label(draw):
    return draw.randrange(3)


def write_json(path, rows):
    path.write_text(json.dumps(rows, indent=1))


def write_marked(path, rows):
    lines = "\n\n".join(json.dumps(row) for row in rows)
    path.write_text(f"\ufeff{lines}\r\n", encoding="utf-8")


def write_csv(separator):
    def write(path, rows):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerows([["v", "w"], *(row.values() for row in rows)])

    return write


SHAPES = {
    "numbers beside texts": ("jsonl", write_jsonl, mixed, mixed),
    "texts that look like values": ("jsonl", write_jsonl, lambda draw: draw.choice(TEXTS), label),
    "floats in a list": ("json", write_json, lambda draw: draw.uniform(-1, 1), lambda draw: [number(draw)]),
    "whole numbers beside others": ("json", write_json, number, number),
    "labels": ("jsonl", write_jsonl, label, lambda draw: draw.random()),
    "nested values": ("jsonl", write_jsonl, nested, nested),
    "a mark and empty lines": ("jsonl", write_marked, mixed, nested),
    "cells and labels": ("csv", write_csv(","), label, cell),
    "semicolons": ("csv", write_csv(";"), cell, lambda draw: draw.uniform(0, 1)),
    "tabs": ("tsv", write_csv("\t"), label, cell),
    "capitals and an index": ("CSV", lambda path, rows: pd.DataFrame(rows).to_csv(path), cell, label),
    "parquet": ("parquet", lambda path, rows: pd.DataFrame(rows).to_parquet(path), cell, lambda draw: draw.random()),
}


@pytest.fixture
def predicted_sources(llama, tokenizer, tmp_path, monkeypatch):
    """Return a function that returns the sources that predict makes of a file."""
    sources = []
    encoder = pt.Encoder(TEMPLATE, tokenizer, max_source_tokens=4000, max_target_tokens=4000)

    def read(encoder, data, row, task):
        sources.append(encoder.source(row).text)
        return read_question(encoder, data, row, task)

    model = pt.add_soft_prompt(llama, pt.prompt_config(llama, 2))
    monkeypatch.setattr(Predictor, "load", lambda *args, **kwargs: Predictor(model, encoder, {}))
    monkeypatch.setattr("prompt_tuning.runs.input_rows.read_question", read)
    monkeypatch.setattr(Predictor, "answers", lambda self, questions, **_: [Answer("", False, False)] * len(questions))

    def predicted(file):
        sources.clear()
        predict(["run"], str(file), str(tmp_path / "out.jsonl"))
        return list(sources)

    return encoder, predicted


@pytest.mark.parametrize("shape", SHAPES)
def test_every_path_reads_the_same_texts(shape, predicted_sources, tmp_path):
    suffix, write, v, w = SHAPES[shape]
    rows = pairs(random.Random(shape), v, w)
    file = tmp_path / f"rows.{suffix}"
    write(file, rows)
    encoder, predicted = predicted_sources
    args = DataArguments(task="summarization", train_file=str(file), test_file=str(file))
    splits = load_splits(args)
    trained, report = encode(splits["train"], encoder, training=True)
    assert report.rows == ROWS
    evaluated, _ = encode(splits["test"], encoder)
    texts = list(trained["source"])
    assert texts == list(evaluated["source"]) == predicted(file)
    args.streaming = True
    stream = load_splits(args, ("train",))["train"]
    assert [encoder.training_row(row)["source"] for row in streamed_rows(stream, args)] == texts
    first, _ = render_on_row({"t": TEMPLATE}, read_row(str(file)), {})
    assert texts[0] in first[0]
    if suffix.startswith("json"):
        assert json.dumps([*splits["train"]]) == json.dumps(rows)
        assert texts == [TEMPLATE.render(row).source for row in rows]
        shown = [render_on_row({"t": TEMPLATE}, read_row(json.dumps(row)), {})[0][0] for row in rows]
        assert all(f"\n{text}\n" in preview for text, preview in zip(texts, shown, strict=True))
    else:
        for text, row in zip(texts, rows, strict=True):
            assert text.startswith(f"{row['v']}~{row['w']}~")
            assert ("~one~" in text) == (row["v"] == 1)


def test_a_missing_value_is_null_in_every_path(predicted_sources, tmp_path):
    template = Template(source="{{ v }}~{{ w is none }}", target="x")
    encoder, predicted = predicted_sources
    object.__setattr__(encoder, "template", template)
    file = write_jsonl(tmp_path / "rows.jsonl", [{"v": 1, "w": 2}, {"v": 1}, {"v": 2, "w": None}])
    args = DataArguments(task="summarization", train_file=str(file))
    texts = ["1~False", "1~True", "2~True"]
    assert [encoder.training_row(row)["source"] for row in load_splits(args)["train"]] == texts == predicted(file)
    args.streaming = True
    stream = load_splits(args)["train"]
    assert [encoder.training_row(row)["source"] for row in streamed_rows(stream, args)] == texts
