"""Find the rows in an object of JSON that holds several: SQuAD's articles, a table by columns, rows by their id."""

from __future__ import annotations

from typing import Any

from prompt_tuning.support.text import listed

Row = dict[str, Any]

USUAL_COLUMNS = {"context", "question", "answers", "document", "summary", "translation"}

ROWS_KEYS = ("data", "rows", "examples", "instances")
"""The keys under which a file may have its rows."""

NESTED_KEYS = ('"paragraphs"', '"qas"', '"questions"', '"header"')
"""A line of JSON Lines without any of these is one row."""


def nested_rows(value: Row) -> list[Row] | None:
    """Return the questions of an article or a passage as rows; None if an object is a row itself.

    Articles are those of SQuAD (`paragraphs`) and NewsQA (`questions`), passages those of SQuAD and MRQA (`context`
    and `qas`). MRQA's first line, its `header`, has no rows.

    Raises:
        KeyError: a passage lacks its context, or a question its text.
    """
    if "question" in value:
        return None
    if _all_have(value.get("paragraphs"), "qas"):
        rows = []
        for passage in value["paragraphs"]:
            rows += _of_passage(passage, value.get("title"))
        return rows
    if "context" in value and _all_have(value.get("qas"), "question"):
        return _of_passage(value, value.get("title"))
    if isinstance(value.get("text"), str) and _all_have(value.get("questions"), "consensus"):
        return [_of_newsqa(value["text"], question) for question in value["questions"]]
    return [] if set(value) == {"header"} and isinstance(value["header"], dict) else None


def rows_of_file(value: Row) -> list[Row] | None:
    """Return the rows of a json file that is one object; None if the object is the only row.

    Raises:
        ValueError: the object has several lists, and nothing says which one holds the rows.
    """
    if set(value) >= {"columns", "data"} and _are(value["data"], list):
        return [dict(zip(value["columns"], cells, strict=True)) for cells in value["data"]]
    for key in ROWS_KEYS:
        if _are(value.get(key), dict):
            return _expanded(value[key])
    if value and _are([*value.values()], list):
        return _of_columns(value)
    if _are([*value.values()], dict):
        return _of_objects(value)
    return nested_rows(value)


def _expanded(objects: list[Row]) -> list[Row]:
    """Return rows, with the questions of articles and passages as rows."""
    rows: list[Row] = []
    for item in objects:
        nested = nested_rows(item)
        rows += [item] if nested is None else nested
    return rows


def _of_passage(passage: Row, title: Any) -> list[Row]:
    shared = {"context": passage["context"]} if title is None else {"title": title, "context": passage["context"]}
    return [shared | question for question in passage["qas"]]


def _of_newsqa(story: str, question: Row) -> Row:
    """Return a question of NewsQA, whose answer is a place in the story; it has none if its readers found none."""
    place = question["consensus"]
    answers = [story[place["s"] : place["e"]].strip()] if "s" in place else []
    return {"context": story, "question": question["q"], "answers": answers}


def _of_columns(columns: dict[str, list[Any]]) -> list[Row]:
    """Return the rows of a table that is a list for each column."""
    if len(columns) > 1 and all(_are(items, dict) for items in columns.values()):
        raise ValueError(f"it holds the lists of rows {listed([*columns])}. Save each in a file of its own")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"its columns have {listed([*lengths.values()])} values ({listed([*lengths])}). Make them "
            "equal, or put an object that is one row into a list"
        )
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _of_objects(objects: dict[str, Row]) -> list[Row] | None:
    """Return the rows of an object that has them by their id, or by column and number as pandas writes a table."""
    numbers = list(map(str, range(len(next(iter(objects.values()))))))
    if numbers and all(list(values) == numbers for values in objects.values()):
        return _of_columns({name: list(values.values()) for name, values in objects.items()})
    has_common_keys = len(objects) > 1 and set.intersection(*map(set, objects.values()))
    if not has_common_keys or objects.keys() & USUAL_COLUMNS:
        return None
    return _expanded([{"id": key} | row for key, row in objects.items()])


def _all_have(items: Any, key: str) -> bool:
    """Return True if a value is a list of objects of which each has a key."""
    return _are(items, dict) and all(key in item for item in items)


def _are(items: Any, kind: type) -> bool:
    return isinstance(items, list) and bool(items) and all(isinstance(item, kind) for item in items)
