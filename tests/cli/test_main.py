"""The command line: help, exit codes, and commands that need no file of their own."""

import errno
import os
import re
import shutil
import subprocess
import sys

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Sequence, Split

import prompt_tuning as pt
from prompt_tuning.cli.main import main

COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "inspect",
    "ensemble",
    "render",
    "check",
    "import-gguf",
    "show",
    "report",
    "card",
    "templates",
    "push",
    "compare",
    "rank",
    "sweep",
    "schema",
    "init",
    "recipes",
]


def test_inspect_and_ensemble_run_on_trained_adapters(run, recipe_file, tmp_path, capsys):
    assert main(["inspect", str(run), "-n", "2"]) == 0
    assert "moved" in capsys.readouterr().out
    assert {"inspection.json", "inspection.png"} <= {path.name for path in run.iterdir()}
    other = tmp_path / "other"
    assert main(["train", str(recipe_file(output_dir=other, seed=7))]) == 0
    assert main(["ensemble", str(recipe_file()), "--adapters", str(run), str(other)]) == 0
    assert "together, by vote" in capsys.readouterr().out
    assert main(["show", str(run / "evaluate-test-ensemble-vote")]) == 0
    assert main(["ensemble", str(recipe_file()), "--adapters", str(run)]) == 1
    assert "an ensemble needs at least two, found 1" in capsys.readouterr().err


def test_usage_errors_end_with_2(capsys):
    for command in (["predict"], ["evaluate"], ["nonsense"], ["predict", "--adapter", "x", "--unknown", "1"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
    assert main(["train"]) == 2 and "no recipe. Name one" in capsys.readouterr().err
    assert main(["train", "none.yaml"]) == 2
    assert "none.yaml: no such recipe" in capsys.readouterr().err


def test_without_a_command_all_commands_are_listed(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert not shown.out and "Begin with `prompt-tuning init DATA`" in shown.err
    assert "Look at what a prompt does" in shown.err


@pytest.mark.parametrize(
    ("word", "advice"), [("trian", "Did you mean train?"), ("lr", "`prompt-tuning --help` lists all.")]
)
def test_a_wrong_command_is_answered_with_the_nearest(word, advice, capsys):
    with pytest.raises(SystemExit):
        main([word, "recipe.yaml"])
    assert capsys.readouterr().err.endswith(f"prompt-tuning: error: {word}: no such command. {advice}\n")


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"prompt-tuning {pt.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_torch_and_has_examples(command):
    code = (
        "import sys; from prompt_tuning.cli.main import main\n"
        f"try: main({[command, '--help'] if command else ['--help']})\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "prompt-tuning" in shown.stdout and ("examples:" in shown.stdout or not command)
    examples = shown.stdout.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert all(re.match(r"  (prompt-tuning|accelerate launch|echo|  --\w+) .{,110}$", line) for line in examples)


@pytest.mark.parametrize("number", (errno.EFBIG, errno.EIO, errno.ELOOP))
def test_an_error_of_the_disk_is_one_line(number, tmp_path, monkeypatch, capsys):
    def fail(args, overrides):
        raise OSError(number, os.strerror(number), str(tmp_path / "results.json"))

    monkeypatch.setattr("prompt_tuning.cli.show.run", fail)
    assert main(["show", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'results.json'}: {os.strerror(number)}; no partial file was left\n"


@pytest.mark.parametrize("name", ["home", "home/cache/datasets"])
def test_a_cache_that_cannot_be_written_is_an_error_that_names_its_variable(name, tmp_path, monkeypatch, capsys):
    def fail(args, overrides):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / name))

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setattr("prompt_tuning.cli.show.run", fail)
    assert main(["show", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("was left. Set HF_HOME to a folder that can be written.\n")


def test_a_panic_of_a_tokenizer_is_an_error(recipe_file, model_folders, tmp_path, capfd):
    folder = tmp_path / "panics"
    shutil.copytree(model_folders["llama"], folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = Sequence([Split(Regex("(.+)+[^\\s\\S]"), "isolated"), tokenizer.pre_tokenizer])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert main(["check", str(recipe_file(model_name_or_path=str(folder)))]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: tokenizer: Onig: ") and "Check the files of the model" in last
