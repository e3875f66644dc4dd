"""Objects of JSON that hold several rows: SQuAD's own files, tables by columns, rows by their id."""

import json

import pandas as pd
import pytest

from prompt_tuning import Template
from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.cli.main import main
from prompt_tuning.data.loading import load_splits, row_origin
from prompt_tuning.data.rows import read_row
from prompt_tuning.errors import DataError
from prompt_tuning.runs.input_rows import _line_rows, raise_error

PASSAGES = [
    {
        "context": "Ada lives in Turin.",
        "qas": [
            {"id": "1", "question": "Where?", "answers": [{"text": "Turin", "answer_start": 13}]},
            {
                "id": "2",
                "question": "When?",
                "answers": [],
                "is_impossible": True,
                "plausible_answers": [{"text": "x"}],
            },
        ],
    },
    {"context": "Bo eats.", "qas": [{"id": "3", "question": "Who?", "answers": [{"text": "Bo", "answer_start": 0}]}]},
]
SQUAD = {"version": "v2.0", "data": [{"title": "Ada", "paragraphs": PASSAGES}, {"paragraphs": PASSAGES[1:]}]}
ROWS = [{"document": "One.", "summary": "1"}, {"document": "Two.", "summary": "2"}]


def rows_of(path, content, task="question_answering", streaming=False):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    args = DataArguments(task=task, train_file=str(path), streaming=streaming)
    return args, list(load_splits(args, ("train",))["train"])


@pytest.mark.parametrize("streaming", [False, True])
def test_the_questions_of_squads_own_file_are_rows(tmp_path, streaming):
    args, rows = rows_of(tmp_path / "train.json", SQUAD, streaming=streaming)
    plain = Template.load("question_answering/unanswerable")
    shown = [(row["context"], row["question"], plain.render(row).target) for row in rows]
    assert shown == [
        ("Ada lives in Turin.", "Where?", "Turin"),
        ("Ada lives in Turin.", "When?", "unanswerable"),
        ("Bo eats.", "Who?", "Bo"),
        ("Bo eats.", "Who?", "Bo"),
    ]
    assert rows[0]["title"] == "Ada" and rows[3]["title"] is None and rows[1]["is_impossible"] is True
    assert row_origin(args, "train", 2) == f"{tmp_path / 'train.json'}, line 1, row 2"


def test_a_list_of_passages_and_the_lines_of_mrqa_are_rows(tmp_path):
    questions = ["Where?", "When?", "Who?"]
    assert [row["question"] for row in rows_of(tmp_path / "a.json", PASSAGES)[1]] == questions
    header = {"header": {"dataset": "NewsQA", "split": "dev"}}
    mrqa = {
        "id": "",
        "context": "Ada lives in Turin.",
        "qas": [{"qid": "q", "question": "Where?", "answers": ["Turin"]}],
    }
    lines = "".join(json.dumps(item) + "\n" for item in (header, mrqa, *PASSAGES))
    args, rows = rows_of(tmp_path / "b.jsonl", lines)
    assert [row["question"] for row in rows] == ["Where?", *questions]
    assert Template.load("question_answering/plain").render(rows[0]).references == ("Turin",)
    assert row_origin(args, "train", 2) == f"{tmp_path / 'b.jsonl'}, line 3, row 1"


def test_a_story_of_newsqa_answers_by_its_places(tmp_path):
    questions = [
        {"q": "Where?", "consensus": {"s": 13, "e": 19}, "isAnswerAbsent": 0.0},
        {"q": "Why?", "consensus": {"noAnswer": True}, "isAnswerAbsent": 1.0},
    ]
    content = {"data": [{"storyId": "s", "text": "Ada lives in Turin. ", "questions": questions}], "version": "1"}
    rows = rows_of(tmp_path / "a.json", content)[1]
    assert rows == [
        {"context": "Ada lives in Turin. ", "question": "Where?", "answers": ["Turin."]},
        {"context": "Ada lives in Turin. ", "question": "Why?", "answers": []},
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"data": ROWS},
        {"version": 1, "rows": ROWS},
        {"document": ["One.", "Two."], "summary": ["1", "2"]},
        {"columns": ["document", "summary"], "index": [0, 1], "data": [["One.", "1"], ["Two.", "2"]]},
        pd.DataFrame(ROWS).to_json(),
        pd.DataFrame(ROWS).to_json(orient="split"),
        pd.DataFrame(ROWS).to_json(orient="table", index=False),
        pd.DataFrame(ROWS).to_json(orient="records", indent=1),
    ],
)
def test_tables_of_every_orientation_are_rows(tmp_path, content):
    assert rows_of(tmp_path / "rows.json", content, "summarization")[1] == ROWS


def test_rows_by_their_id_are_rows_with_the_id(tmp_path):
    content = {"x7": ROWS[0], "x9": ROWS[1] | {"source": "web"}}
    assert rows_of(tmp_path / "rows.json", content, "summarization")[1] == [
        {"id": "x7", "document": "One.", "summary": "1", "source": None},
        {"id": "x9", "document": "Two.", "summary": "2", "source": "web"},
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"translation": {"fr": "Un.", "en": "One."}},
        {"translation": {"fr": "Un.", "en": "One."}, "meta": {"fr": "x"}},
        {"document": "One.", "parts": [{"text": "One."}]},
        {"question": "Where?", "answers": [{"text": "Turin"}], "context": "Ada lives in Turin."},
        {"context": "Ada lives in Turin.", "qas": "none", "paragraphs": ["a"], "questions": [{"q": "x"}]},
        {"context": "Ada lives in Turin.", "question": "Where?", "qas": [{"question": "When?"}], "header": {"a": 1}},
        {"id": "7", "text": ["One."], "questions": [{"q": "x", "consensus": {"s": 0, "e": 1}}]},
    ],
)
def test_one_object_that_is_a_row_stays_one(tmp_path, row):
    assert rows_of(tmp_path / "row.json", row)[1] == [row]
    assert rows_of(tmp_path / "row.jsonl", json.dumps(row))[1] == [row]


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json"])
def test_a_row_of_lists_is_a_table_only_as_a_whole_file(tmp_path, name):
    row = {"document": ["One.", "Two."], "summary": ["1"]}
    content = json.dumps(row) if name.endswith("l") else json.dumps([row])
    assert rows_of(tmp_path / name, content, "summarization")[1] == [row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"train": ROWS, "validation": ROWS},
            r"rows.json, line 1: it holds the lists of rows 'train', 'validation'. Save each in a file of its own",
        ),
        (
            {"document": ["One.", "Two."], "summary": ["1"]},
            r"its columns have 2, 1 values \('document', 'summary'\). Make them equal, or put an object that",
        ),
        ({"data": [{"paragraphs": [{"qas": [{"question": "Where?"}]}]}]}, "line 1: an item has no 'context'"),
    ],
)
def test_an_object_whose_rows_are_not_known_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / "rows.json", content)


def test_a_preview_and_a_prediction_read_the_same_rows(tmp_path, recipe_file, capsys):
    (tmp_path / "train.json").write_text(json.dumps(SQUAD))
    first = {"title": "Ada", "context": "Ada lives in Turin."} | PASSAGES[0]["qas"][0]
    blank = {"is_impossible": None, "plausible_answers": None}
    assert read_row(str(tmp_path / "train.json")) == first | blank
    assert read_row(json.dumps(PASSAGES[0])) == {"context": "Ada lives in Turin."} | PASSAGES[0]["qas"][0]
    lines = [json.dumps(row).encode() + b"\n" for row in (PASSAGES[0], first)]
    rows = list(_line_rows(lines, None, "-", raise_error))
    assert [(origin, row["question"]) for origin, row in rows] == [
        ("standard input, line 1, row 0", "Where?"),
        ("standard input, line 1, row 1", "When?"),
        ("standard input, line 2", "Where?"),
    ]
    recipe = str(recipe_file(train_file=tmp_path / "train.json"))
    assert main(["render", recipe, "-n", "2"]) == 0
    assert "-- target: ' unanswerable<eos>'" in capsys.readouterr().out
    assert main(["train", recipe, "--max_steps", "1"]) == 0
    predicting = ["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "train.json")]
    assert main([*predicting, "--output", str(tmp_path / "out.jsonl")]) == 0
    predicted = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["question"] for row in predicted] == ["Where?", "When?", "Who?", "Who?"]
