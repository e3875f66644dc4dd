"""The page how-to/own-data.md: its commands run on its files, and the shown settings are those that init writes."""

import re
import shlex
import shutil

import pandas as pd
import pytest
from helpers.paths import ROOT

from prompt_tuning.cli.main import main

PAGE = (ROOT / "docs" / "how-to" / "own-data.md").read_text(encoding="utf-8")
TRANSCRIPTS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=["questions", "notes", "pairs", "wenti"])
def test_the_commands_of_a_transcript_lead_to_predictions(transcript, model_folders, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "docs" / "how-to" / "own", tmp_path, dirs_exist_ok=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(model_folders["llama"])
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line)[2:] for line in re.findall(r"(?m)^\$ .*", transcript)]
    init, train, predict = commands
    assert main([*init, "--no_measurement", "--use_cpu=true"]) == 0
    printed = capsys.readouterr().out
    shown = re.findall(r"(?m)^\$ .*\n\.\.\.\n((?:.+\n)*?)(?=\.\.\.|\$)", transcript)[0]
    assert [line for line in shown.splitlines() if line not in printed.splitlines()] == []
    assert main([*train, "--max_steps", "1"]) == 0
    assert main(predict) == 0
    rows = pd.read_csv(tmp_path / predict[-1], keep_default_na=False)
    assert len(rows) in (20, 24) and rows["prediction"].map(type).eq(str).all()
