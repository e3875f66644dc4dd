"""Output folders keep the files of others, and one command writes at a time; only own partial files are removed."""

import json
import os
import platform
import subprocess
import sys

import pytest
from helpers.models import forbid_model_loading
from helpers.paths import file_names

from prompt_tuning.cli.main import main
from prompt_tuning.errors import RecipeError
from prompt_tuning.runs.output_folder import hold_folder
from prompt_tuning.support.files import new_folder, remove_abandoned


def commands(recipe_file, tmp_path, folder):
    """Return a command of each kind that writes a folder, with the files that it would replace there."""
    recipe = str(recipe_file(output_dir=folder))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"recipe: {recipe_file(output_dir=None)}\nruns: {{a: {{}}}}\n")
    tasks = tmp_path / "tasks.yaml"
    trained = ("README.md", "recipe.yaml", "report.html", "template.yaml", "predictions", "results.json")
    output = ["--output_dir", str(folder)]
    plain = str(recipe_file(output_dir=None))
    text = (tmp_path / "recipe.yaml").read_text()
    model = text.partition("\n")[0]
    other = tmp_path / "other.yaml"
    other.write_text(text)
    tasks.write_text(
        f"{model}\nuse_cpu: true\nmethod: multitask_prompt_tuning\nnum_virtual_tokens: 4\ntasks: [{plain}, {other}]\n"
    )
    return {
        "train": (["train", recipe, *output], trained),
        "evaluate": (["evaluate", recipe, *output], ("report.html", "template.yaml", "predictions", "results.json")),
        "rank": (["rank", recipe, *output, "--templates", "question_answering/plain"], ("rank.md", "winner.yaml")),
        "sweep": (["sweep", str(sweep), *output], ("sweep.json", "sweep.md", "a/README.md")),
        "compare": (
            ["compare", plain, *output],
            ("compare.json", "compare.md", "compare.png", "recipe-seed42/report.html"),
        ),
        "multitask": (["train", str(tasks), *output], ("README.md", "results.json", "recipe/template.yaml")),
    }


@pytest.mark.parametrize("name", ["train", "evaluate", "rank", "sweep", "compare", "multitask"])
def test_a_folder_with_files_of_others_is_refused_before_a_model_loads(
    name, recipe_file, tmp_path, capsys, monkeypatch
):
    forbid_model_loading(monkeypatch)
    folder = tmp_path / "notes"
    command, files = commands(recipe_file, tmp_path, folder)[name]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("mine")
        assert main(command) == 2, file
        errors = capsys.readouterr().err
        top, _, inner = file.partition("/")
        held = folder / top if inner else folder
        assert f"{held}: it holds {inner or top}, which would be replaced, and is not a run of prompt-tuning" in errors
        assert (folder / file).read_text() == "mine"
        assert {path.name for path in folder.rglob("*")} == set(file.split("/"))
        (folder / file).unlink()
        if inner:
            (folder / top).rmdir()


@pytest.mark.parametrize("name", ["train", "evaluate", "sweep", "compare"])
def test_a_link_out_of_the_folder_is_refused_before_a_model_loads(name, recipe_file, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    folder, theirs = tmp_path / "run", tmp_path / "theirs"
    folder.mkdir()
    theirs.mkdir()
    (folder / ".prompt_tuning.lock").touch()
    command, _ = commands(recipe_file, tmp_path, folder)[name]
    link = folder / {"sweep": "a", "compare": "recipe-seed42"}.get(name, "predictions")
    link.symlink_to(theirs)
    assert main(command) in (1, 2)
    assert (
        f"{link}: a link to {theirs}, out of the run's folder. Remove it, or copy the file." in capsys.readouterr().err
    )
    assert not [*theirs.iterdir()]


def test_a_folder_with_other_files_is_taken_and_keeps_them(recipe_file, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    theirs = ("notes.txt", ".draft.partial-x", ".my.partial-notes", ".partial-checkpoint-next", ".partial-")
    for name in theirs:
        (folder / name).write_text("mine")
    assert main(["evaluate", str(recipe_file()), "--output_dir", str(folder)]) == 0
    assert {(folder / name).read_text() for name in theirs} == {"mine"}
    assert main(["evaluate", str(recipe_file()), "--output_dir", str(folder)]) == 0  # It is a run now.


def test_only_partial_files_of_dead_processes_of_this_host_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = platform.node()
    kept = {
        f".partial-{host}-{os.getpid()}-0123abcd", f".partial-elsewhere-{ended.pid}-0123abcd",
        f".report.html.partial-{os.getpid()}", f".partial-{host}-1-0123abcd", ".x.partial-y", ".partial-12",
    }  # fmt: skip
    gone = {
        f".partial-{host}-{ended.pid}-0123abcd", f".report.html.partial-{ended.pid}", ".partial-checkpoint-4",
        ".partial-checkpoint-4-0123abcd",
    }  # fmt: skip
    for name in kept | gone:
        (tmp_path / name).write_text("")
    (tmp_path / ".partial-checkpoint-6").mkdir()
    (tmp_path / ".partial-checkpoint-6" / "file").write_text("")
    with new_folder(tmp_path / "model"):  # It holds no lock of the folder beside it.
        assert kept | gone - {f".partial-{host}-{ended.pid}-0123abcd"} <= file_names(tmp_path)
    assert not (tmp_path / f".partial-{host}-{ended.pid}-0123abcd").exists()
    (tmp_path / "model").rmdir()
    remove_abandoned(tmp_path)
    assert file_names(tmp_path) == kept


HOLD = """
import sys
from pathlib import Path
from prompt_tuning.runs.output_folder import hold_folder
with hold_folder(Path(sys.argv[1]), ("results.json",)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_command_is_refused_with_the_process_and_host_of_the_first(recipe_file, tmp_path, capsys):
    run = tmp_path / "run"
    recipe = str(recipe_file())
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run)], **pipes) as first:
        assert first.stdout.readline() == "held\n"
        for command in (["train", recipe], ["evaluate", recipe, "--output_dir", str(run)]):
            assert main(command) == 2
            message = capsys.readouterr().err
            assert f"output_dir {run}: process {first.pid} on {platform.node()}, since " in message
            assert "writes it. Wait for its end, or name another --output_dir." in message
        (run / "results.json").write_text(json.dumps({"seed": 1}))
        first.kill()
    with hold_folder(run, ("results.json",)):  # The system has released it.
        assert f"process {os.getpid()} on" in (run / ".prompt_tuning.lock").read_text()
    assert (run / ".prompt_tuning.lock").read_text() == ""


def test_a_command_that_writes_nothing_leaves_nothing(recipe_file, tmp_path, capsys):
    (tmp_path / "here").mkdir()
    recipe = str(recipe_file(train_file=tmp_path / "none.jsonl"))
    for folder in (tmp_path / "new" / "run", tmp_path / "here"):
        assert main(["train", recipe, "--output_dir", str(folder)]) != 0
    assert "none.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("folder", ["file", "file/run", "/proc/run", "a\nb", "a\x1b[2Jb", ""])
def test_a_folder_that_cannot_be_written_is_refused_before_a_model_loads(
    folder, recipe_file, tmp_path, capsys, monkeypatch
):
    forbid_model_loading(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    recipe = str(recipe_file(output_dir=None))
    (tmp_path / "sweep.yaml").write_text(f"recipe: {recipe}\nruns: {{a: {{}}}}\n")
    for words in (["train", recipe], ["evaluate", recipe], ["sweep", "sweep.yaml"], ["rank", recipe]):
        try:
            code = main([*words, f"--output_dir={folder}"])
        except SystemExit as ended:  # argparse has refused the flag.
            code = ended.code
        errors = capsys.readouterr().err
        assert code == 2 and "Traceback" not in errors and "output_dir" in errors, errors
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, caplog):
    def none(fd, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with hold_folder(tmp_path / "run", ()):
        pass
    assert "this file system has no locks. Let no second command write the folder." in caplog.text


def test_a_full_disk_at_the_lock_is_no_wrong_name(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    with pytest.raises(OSError, match="No space left") as caught, hold_folder(tmp_path / "run", ()):
        pass
    assert not isinstance(caught.value, RecipeError)


def test_names_that_would_collide_with_a_file_of_the_run_are_refused_before_a_model_loads(
    recipe_file, tmp_path, capsys, monkeypatch
):
    forbid_model_loading(monkeypatch)
    recipe = str(recipe_file(output_dir=None))
    for name in ("sweep.json", "Sweep.md", '"a\\nb"'):
        (tmp_path / "sweep.yaml").write_text(f"recipe: {recipe}\nruns: {{{name}: {{}}}}\n")
        assert main(["sweep", str(tmp_path / "sweep.yaml"), "--output_dir", str(tmp_path / "runs")]) == 2
        expected = "Write the name without /" if "\\n" in name else f"the sweep writes its table to {name}"
        assert expected in capsys.readouterr().err
    for name in ("results.json", "checkpoint-4", "predictions", "ReadMe.md"):
        (tmp_path / f"{name}.yaml").write_text((tmp_path / "recipe.yaml").read_text())
        tasks = f"tasks: [{recipe}, {tmp_path / name}.yaml]\nmethod: multitask_prompt_tuning\nuse_cpu: true\n"
        (tmp_path / "tasks.yaml").write_text((tmp_path / "recipe.yaml").read_text().partition("\n")[0] + f"\n{tasks}")
        assert main(["train", str(tmp_path / "tasks.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
        assert f"{name}.yaml: a run has a file or folder {name}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "run").exists()
