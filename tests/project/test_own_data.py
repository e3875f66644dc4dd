"""The pages on own data: their commands run on their files, and the shown settings are those that init writes."""

import re
import shlex
import shutil

import pandas as pd
import pytest
from helpers.paths import ROOT

from prompt_tuning.cli.main import main

HOW_TO = ROOT / "docs" / "how-to"


def blocks(page, language="text"):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


TRANSCRIPTS = [*blocks(HOW_TO / "own-data.md"), "".join(blocks(HOW_TO / "own-data.zh-CN.md"))]


@pytest.fixture
def folder(model_folders, tmp_path, monkeypatch):
    """Return the working folder, with the pages' files and a tiny model."""
    shutil.copytree(HOW_TO / "own", tmp_path, dirs_exist_ok=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(model_folders["llama"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=["questions", "notes", "pairs", "wenti"])
def test_the_commands_of_a_transcript_lead_to_predictions(transcript, folder, capsys):
    commands = [shlex.split(line)[2:] for line in re.findall(r"(?m)^\$ .*", transcript)]
    init, train, predict = commands
    assert main([*init, "--no_measurement", "--use_cpu=true"]) == 0
    printed = capsys.readouterr().out
    shown = transcript.split("\n$ ")[0].splitlines()[1:]
    assert len(shown) > 4 and [line for line in shown if line not in ("...", *printed.splitlines())] == []
    assert main([*train, "--max_steps", "1"]) == 0
    assert main(predict) == 0
    rows = pd.read_csv(folder / predict[-1], keep_default_na=False)
    assert len(rows) in (20, 24) and rows["prediction"].map(type).eq(str).all()


def test_the_python_example_of_the_chinese_readme_runs(folder, capsys):
    quick = ["--max_steps", "1", "--yes", "--no_measurement", "--use_cpu=true"]
    assert main(["init", "wenti.csv", "--output", "mine.yaml", *quick]) == 0
    (example,) = blocks(ROOT / "README.zh-CN.md", "python")
    exec(compile(example, "README.zh-CN.md", "exec"), {})
    assert "'f1'" in capsys.readouterr().out and (folder / "runs" / "mine" / "report.html").is_file()
