"""A name of a stranger stays a text on one line in every table and page, and no terminal obeys it."""

import re
import warnings

import pytest

from prompt_tuning.reports.markdown import fence, inline_code
from prompt_tuning.reports.styles import TERMINAL
from prompt_tuning.studies import inspect
from prompt_tuning.studies.compare_table import comparison_text, draw
from prompt_tuning.studies.figures import new_figure
from prompt_tuning.studies.rank_table import rank_text
from prompt_tuning.studies.sweep import sweep_text
from prompt_tuning.support.tables import markdown_table, text_table
from prompt_tuning.support.text import one_line

NAME = "a|b\\|c <img src=x> `code` *y* [x](y) $\\frac{$ \x1b[2J\u202e\x9b\x00 www.a.b\n# Evil\r\n| 1 | 2 |"


def ranked():
    score = {"rows": 8, "log_likelihood": {"mean": -1.0, "low": -2.0, "high": 0.0}}
    score |= {NAME: {"score": 1.0, "low": 0.0, "high": 2.0}}
    other = {"rows": 4, "lacking_rows": 1, "log_likelihood": {"mean": -2.0, "against_winner": against()}}
    similar = score | {NAME: {"score": 0.5, "p": 0.5, "against_winner": against()}}
    candidates = {NAME: score, f"{NAME}2": other, f"{NAME}3": similar}
    facts = {"metric": NAME, "rows": 8, "winner": NAME, "test": NAME, "candidates": candidates, "next": None}
    return facts | {"halving": [[3, 4], [2, 8]], "left_out": {NAME: NAME}}


def against():
    return {"difference": -1.0, "low": -2.0, "high": 0.0, "p": 0.5, "in_words": NAME}


def compared():
    part = {"score": 1.0, "low": 0.0, "high": 2.0, "of_seeds": [1.0], "against_first": against(), "train_seconds": 1.0}
    part |= {"trainable_parameters": 4, "adapter_bytes": 16, "seconds_per_100_predictions": 1.0, "steps": 1}
    part |= {"served_by": NAME, "tried": {"0.1": 1.0, "0.2": 2.0}, "learning_rate": 0.2}
    parts = {"parts": {NAME: part, f"{NAME}2": part}}
    return {"metric": NAME, "rows": 8, "seeds": [1], "test": NAME, "equal_time": parts, **parts}


def swept():
    run = {"metric": NAME, "hard_prompt": 1.0, "tuned": 2.0, "evaluation_seconds": 1.0}
    return {NAME: {"error": NAME}, f"{NAME}2": run}


@pytest.mark.parametrize(
    "text",
    [
        rank_text(ranked()),
        comparison_text(compared()),
        sweep_text(swept()),
        markdown_table((inline_code(NAME), "b"), [(inline_code(NAME), "1"), ("c", inline_code(NAME))]),
        inline_code(NAME),
    ],
    ids=["rank", "compare", "sweep", "table", "code"],
)
def test_a_name_of_a_stranger_is_no_markup_and_no_control_character(text):
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "\\x1b[2J" in text
    # GitHub takes a pipe for the end of a cell, in code too, unless a single backslash is before it.
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) <= 1
    plain = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    for markup in ("<img", "[x](", "*y*", "www.", "# Evil", "1 | 2", "`"):
        assert markup not in plain, markup


def test_a_name_of_a_stranger_takes_one_line_of_a_table_for_a_terminal():
    report = {"adapter": "a", "virtual_tokens": 1, "method": "PROMPT_TUNING", "model": "m", "initial_prompt": None}
    report |= {"vocabulary": {"size": 3, "mean": 1.0, "low": 0.5, "high": 2.0}, "similarity": [[1.0]], "caution": ""}
    near = [{"token": NAME, "cosine": 1.0}]
    report["tokens"] = [{"token": 0, "norm": 1.0, "norm_percentile": 5.0, "nearest": near}]
    for text in (text_table((NAME, "F1"), [(NAME, "1")]), inspect.inspection_text(report)):
        [line] = [line for line in text.splitlines() if line.endswith("1") or line.endswith("1.00")][-1:]
        assert "\\x1b[2J\\u202e\\x9b\\x00 www.a.b # Evil | 1 | 2 |" in line


@pytest.mark.parametrize(("write", "facts"), [(rank_text, ranked), (comparison_text, compared), (sweep_text, swept)])
def test_a_terminal_gets_no_markdown_and_no_control_character(write, facts):
    text = write(facts(), TERMINAL)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    text = text.replace(one_line(NAME), "")
    assert not re.search(r"(?m)^\||\|$|---", text)


def test_a_fence_shows_control_characters_and_keeps_lines_and_tabs():
    assert fence("a\x1b[2J\n\tb").split("\ue002") == ["```text", "a\\x1b[2J", "\tb", "```"]


def test_names_in_pictures_are_not_formulas(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its font has no such signs.
        draw(compared(), new_figure("compare.png", 4, 3), tmp_path / "compare.png")
    assert (tmp_path / "compare.png").is_file()
