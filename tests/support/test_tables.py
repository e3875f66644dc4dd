"""Tables as text."""

import re

import pytest

from prompt_tuning.support.tables import markdown_table, text_table


def test_no_text_ends_a_cell_of_a_markdown_table():
    table = markdown_table(("run", "F1"), [("a|b\nc", 1.50), ("", "1,234")])
    lines = table.splitlines()
    assert len(lines) == 4 and len(set(map(len, lines))) == 1
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert "| a\\|b c |" in table and "| 1.5  " in table and "| 1,234 |" in table


def test_a_text_table_aligns_numbers_as_they_were_formatted():
    table = text_table(("", "F1"), [("hard prompt", "1.50"), ("soft", "-12.0")], align=("left", "right"))
    assert table == "                F1\nhard prompt   1.50\nsoft         -12.0"


WIDE = (("candidate", "rows", "log-likelihood", "95 %", "against the winner"), [
    ["question_answering/plain", "40", "-0.52", "-0.61 to -0.44", ""],
    ["a name of several words", "20", "-1.20", "-1.40 to -1.01", "-0.68 (-0.90 to -0.40)"],
])  # fmt: skip


@pytest.mark.parametrize("width", [30, 50, 60, 70, 80, 120])
def test_a_table_fits_the_terminal_and_loses_no_word(width):
    text = text_table(*WIDE, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert {*" ".join(WIDE[0][1:]).split()} <= {*text.replace(":", " ").split()}
    for row in WIDE[1]:
        assert {*" ".join(row).split()} <= {*text.split()}


def test_a_table_has_no_limit_unless_a_terminal_reads_it(monkeypatch):
    assert len(text_table(*WIDE).splitlines()) == 3
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, text_table(*WIDE).splitlines())) <= 60
