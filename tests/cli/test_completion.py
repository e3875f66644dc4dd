"""A shell completes commands, flags, settings of recipes and their values, without starting a program."""

import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from prompt_tuning.cli.main import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="needs prompt-tuning[completion]")
    path = tmp_path_factory.mktemp("completion") / "prompt-tuning.bash"
    with path.open("w") as file, redirect_stdout(file):
        assert main(["completion", "bash"]) == 0
    return path


def completed(script, *words):
    """Return what bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in words)
    body = f"shopt -s extglob; source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
    body += 'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}; '
    body += "$(complete -p prompt-tuning | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", body], capture_output=True, text=True, timeout=30)
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tra", ["train"]),
        ("evaluate --spl", ["--split", "--split_seed"]),
        ("evaluate --split t", ["test", "train"]),
        ("train --learning_ra", ["--learning_rate"]),
        ("train --method prompt_", ["prompt_tuning"]),
        ("show --js", ["--json"]),
    ],
)
def test_bash_completes(words, offered, script):
    assert sorted({*completed(script, "prompt-tuning", *words.split())}) == offered


def test_a_missing_shtab_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 2
    assert capsys.readouterr().err == (
        "error: completion: shtab is not installed. Install prompt-tuning[completion].\n"
    )
