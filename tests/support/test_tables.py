"""Tables as text."""

import re

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
