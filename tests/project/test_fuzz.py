"""Damaged files of a stranger end no command with a traceback, hold none up, and change nothing outside of a run.

`make fuzz` runs 20,000 cases of all kinds. FUZZ_CASES and FUZZ_START choose others.
"""

import os

from helpers.fuzz import KINDS, fuzz, recipe, rows, template

CASES = os.environ.get("FUZZ_CASES")
START = int(os.environ.get("FUZZ_START", "0"))


def test_damaged_files_make_errors_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = KINDS if CASES else {template: 4, rows: 1, recipe: 1}
    counts, problems = fuzz(tmp_path, range(START, START + int(CASES or 30)), kinds)
    for outcome, count in sorted(counts.items()):
        print(f"{outcome:40} {count:6}")
    assert not problems, "\n\n".join(problems[:20])
