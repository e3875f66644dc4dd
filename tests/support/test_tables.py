"""Tables as text."""

import re
import unicodedata

import pytest

from prompt_tuning.reports.shown_rows import row_texts, shortened_line
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


def num_cells(text):
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def test_a_chinese_character_takes_two_cells_of_a_table():
    rows = [("中文，全角", "1.5"), ("hard prompt", "12.0")]
    assert text_table(("模板", "F1"), rows, align=("left", "right")).splitlines() == [
        "模板           F1",
        "中文，全角    1.5",
        "hard prompt  12.0",
    ]
    assert len(set(map(num_cells, markdown_table(("模板", "F1"), rows).splitlines()))) == 1


@pytest.mark.parametrize("width", [12, 20, 31, 60])
def test_a_table_in_chinese_fits_the_terminal_and_loses_no_character(width):
    sentence = "渡船在大雾散去之前离开了港口，GPU 服务器昨天晚上又坏了。" * 3
    lines = text_table(("名称", "内容"), [("甲", sentence)], width=width).splitlines()
    assert max(map(num_cells, lines)) <= width
    assert set(sentence) - {" "} <= set("".join(lines))


def test_shown_rows_in_chinese_fit_a_line():
    source = "图书馆周末十点开门。" * 40
    row = {"row": 0, "source": source, "references": ["十点"], "hard_prompt": source}
    (text,) = row_texts([row], ["hard_prompt"], "f1", 1)
    lines = text.splitlines()
    assert max(map(num_cells, lines[1:-2])) <= 110 and "".join(line[4:] for line in lines[1:-2]) == source
    assert num_cells(shortened_line(source)) <= 100 and shortened_line("十点") == "十点"
