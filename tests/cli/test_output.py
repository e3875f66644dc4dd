"""Standard streams that are closed, full or read by nobody, a terminal that is gone, a working directory that is."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.models import forbid_model_loading
from helpers.paths import file_names

from prompt_tuning.cli.main import main
from prompt_tuning.support.files import atomic_write
from prompt_tuning.training.trainer import PromptTuningTrainer

COMMAND = f"{sys.executable} -c 'import sys; from prompt_tuning.cli.main import main; sys.exit(main())'"


def shell(line, **kwargs):
    """Run a line of bash, in which TOOL is the command; return its exit code, its output and its errors."""
    line = line.replace("TOOL", COMMAND)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, **kwargs)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("TOOL templates > /dev/full", 1, "error: writing: No space left on device; no partial file was left\n"),
        ("TOOL templates >&-", 1, "error: standard output: it is closed. Send it to a file or to /dev/null.\n"),
        ("TOOL templates <&- >&- 2>&-", 1, ""),
        ("TOOL templates <&- > /dev/null", 0, ""),
        ("TOOL templates 2>&- > /dev/null", 0, ""),
        ("TOOL templates none/such 2>&-", 2, ""),
        ("TOOL templates none/such 2> /dev/full", 2, ""),
        ("set -o pipefail; TOOL templates | true", 141, ""),
        ("mkdir gone; cd gone; rmdir ../gone; TOOL templates > /dev/null", 1,
         "error: the working directory: No such file or directory; no partial file was left\n"),
    ],
)  # fmt: skip
def test_streams_and_folders_that_are_gone_give_one_line_and_the_right_code(line, code, error, tmp_path):
    # The pipe's reader is gone before anything is written.
    line = line.replace("| true", "| (exec 0<&-; sleep 0)") if "| true" in line else line
    assert shell(line, cwd=tmp_path) == (code, "", error)


def limited(monkeypatch, stream, number):
    """Let a stream fail in the second step of a training, as a pipe without a reader or a full disk does."""
    failing = []

    class Failing:
        def write(self, text):
            if failing:
                raise OSError(number, os.strerror(number))
            return len(text)

        def flush(self):
            pass

        def isatty(self):
            return False

    step = PromptTuningTrainer.training_step

    def noted(self, *args, **kwargs):
        if self.state.global_step == 1:
            failing.append(True)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PromptTuningTrainer, "training_step", noted)
    monkeypatch.setattr(sys, stream, Failing())


@pytest.mark.parametrize(
    ("stream", "number", "code"),
    [
        ("stdout", errno.EPIPE, 141),
        ("stdout", errno.ENOSPC, 1),
        ("stderr", errno.EPIPE, 141),
        ("stdout", errno.EIO, 1),
    ],
)
def test_a_training_whose_output_is_lost_stops_with_a_checkpoint(
    stream, number, code, recipe_file, tmp_path, capsys, monkeypatch
):
    recipe = str(recipe_file(logging_steps=1, save_strategy="no"))
    with monkeypatch.context() as patch:
        limited(patch, stream, number)
        words = ["--disable_tqdm", "false"] if stream == "stderr" else []
        assert main(["train", recipe, *words]) == code
    if stream == "stdout":
        name = "SIGPIPE" if number == errno.EPIPE else f"output: {os.strerror(number)}"
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"{name}: stopped after step 3, whose checkpoint is saved; to resume: ")
    # A bar is drawn every 0.1 seconds, which on a slow machine is one step earlier.
    step = 2 if stream == "stderr" and (tmp_path / "run" / "checkpoint-2").is_dir() else 3
    assert file_names(tmp_path / "run") == {f"checkpoint-{step}", "base_model.json", "recipe.yaml"}
    assert main(["train", recipe, "--resume_from_checkpoint", "true"]) == 0


@pytest.fixture
def not_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("not_under_nohup")
def test_a_hang_up_saves_a_checkpoint_although_the_terminal_is_gone(recipe_file, tmp_path, capsys, monkeypatch):
    step = PromptTuningTrainer.training_step

    def hung_up(self, *args, **kwargs):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGHUP)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PromptTuningTrainer, "training_step", hung_up)
    assert main(["train", str(recipe_file())]) == 129
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("SIGHUP: stopped after step 3, whose checkpoint is saved; to resume: ")
    assert file_names(tmp_path / "run") == {"checkpoint-3", "base_model.json", "recipe.yaml"}
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_an_output_that_cannot_be_written_is_refused_before_a_model_loads(run, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    (tmp_path / "file").write_text("mine")
    outputs = {"/proc/none/x.jsonl": "/proc/none", str(tmp_path / "file" / "x.jsonl"): tmp_path / "file"}
    for output, named in (outputs | {"/proc/x.jsonl": "/proc/x.jsonl"}).items():
        words = ["predict", "--adapter", str(run), "--input", str(tmp_path / "test.jsonl"), "--output", output]
        assert main(words) == 1
        [error] = capsys.readouterr().err.splitlines()
        assert error.startswith(f"error: {named}: ") and error.endswith("no partial file was left")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert main(["import-gguf", str(tmp_path / "model.gguf"), str(tmp_path / "file" / "model")]) == 1
    assert "no partial file was left" in capsys.readouterr().err


def test_a_read_only_file_system_is_reported_with_the_name_of_the_file(tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # Linux refuses it before it looks for the file.
    with pytest.raises(OSError, match="Read-only file system") as error, atomic_write(tmp_path / "x.json"):
        pass
    assert error.value.filename == str(tmp_path / "x.json")


def test_the_reason_why_safetensors_cannot_be_read_is_found_by_opening_them(run, capsys, monkeypatch):
    def unreadable(file, *args, **kwargs):
        raise FileNotFoundError(f"No such file or directory: {run}")

    monkeypatch.setattr("safetensors.torch.safe_open", unreadable)
    assert main(["predict", "--adapter", str(run), "--input", str(run.parent / "test.jsonl")]) == 1
    assert capsys.readouterr().err == f"error: {run}: Is a directory; no partial file was left\n"


def test_a_file_beside_facts_or_a_prompt_is_replaced_only_if_it_is_of_an_earlier_command(run, tmp_path, capsys):
    assert main(["card", str(run), "--output", str(tmp_path / "facts.json")]) == 0
    written = {"card": (tmp_path / "facts.json", tmp_path / "facts.md"), "inspect": (run, run / "inspection.json")}
    for command, (source, file) in written.items():
        for _ in range(2):
            assert main([command, str(source)]) == 0
        file.write_text('{"mine": true}')
        assert main([command, str(source)]) == 1
        assert f"error: {file}: " in capsys.readouterr().err and file.read_text() == '{"mine": true}'
        other = tmp_path / "other.md"
        assert main([command, str(source), "--output", str(other if command == "card" else tmp_path / "new")]) == 0


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_partial_folder(sent, code, run, tmp_path, capsys, monkeypatch):
    def end(*args, **kwargs):
        assert any(path.name.startswith(".partial-") for path in tmp_path.iterdir())
        signal.raise_signal(sent)

    monkeypatch.setattr("prompt_tuning.runs.export.write_export", end)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert main(["export", str(run), str(tmp_path / "exported")]) == code
    words = "interrupted" if sent == signal.SIGINT else f"ended by {signal.Signals(sent).name}"
    assert capsys.readouterr().err.endswith(f"\n{words}\n")
    assert not any(tmp_path.glob("*exported*")) and not any(tmp_path.glob(".partial-*"))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
