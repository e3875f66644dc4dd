"""Tables that are written hold their rows: a reader finds each text where it was."""

import json

import pandas as pd
import pytest

from prompt_tuning.data.rows import open_rows
from prompt_tuning.data.writing import write_table

TEXTS = ["a\rb", "c\r\nd", "e\nf", 'g"h', "i,j", "k\tl", " m ", "\r", None]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "rows.json"])
def test_line_breaks_and_signs_within_a_cell_stay_in_it(name, tmp_path):
    rows = [{"nr": f"nr {number}", "text": text} for number, text in enumerate(TEXTS)]
    (tmp_path / "lines").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_table(tmp_path / "lines", tmp_path / name)
    assert [row for _, row in open_rows(tmp_path / name)] == rows
    if name == "rows.csv":
        read = pd.read_csv(tmp_path / name, keep_default_na=False)
        assert read["text"].tolist() == [text or "" for text in TEXTS]
