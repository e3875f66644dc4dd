"""What README says can be typed, can be typed."""

import re
import shlex
from collections import Counter

import pytest
from conftest import ROOT

from prompt_tuning.cli import main
from prompt_tuning.config import TASKS, load_recipe
from prompt_tuning.errors import RecipeError
from prompt_tuning.template import Template, shipped_templates

README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.real_model
@pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is missing: `make test` imports it")
def test_the_python_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    (example,) = blocks("python")
    for folder in ("models", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert "16 rows, none cut" in capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "adapter_model.safetensors").is_file()


def test_the_template_example_is_one(tmp_path):
    (example,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(example)
    assert Template.load(tmp_path / "mine.yaml").columns == {"context", "question", "answers"}


def test_as_many_templates_as_promised():
    counts = Counter(name.split("/")[0] for name in shipped_templates())
    (promised,) = re.findall(r"(\d+) are shipped .*?(\d+) for\s.*?(\d+) for .*?(\d+) for", README, re.DOTALL)
    assert [*map(int, promised)] == [counts.total(), *(counts[task] for task in TASKS)]


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert targets[:2] == ["quickstart", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize("line", [line for line in "\n".join(blocks("bash")).splitlines() if "prompt-tuning" in line])
def test_every_command_names_recipes_and_flags_that_exist(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    _, command, *words = shlex.split(line, comments=True)
    if command == "templates":  # needs no model, so it is run
        assert main([command, *words]) == 0
        # The quickstart's rows have no choices.
        assert re.sub("left out: 1 of .* which read columns that the row has not\n", "", capsys.readouterr().err) == ""
        return
    with pytest.raises(SystemExit):
        main([command, "--help"])
    own = set(re.findall(r"--\w+|-\w", capsys.readouterr().out))
    overrides = [word for word in words[1:] if word not in ("-n", "3")]
    if words[0].startswith("--") or command in ("push", "rank"):
        assert {word for word in words if word.startswith("--")} <= own
        return
    with pytest.raises(RecipeError) as caught:  # the reader's own files are not here; nothing else may be wrong
        load_recipe(words[0], overrides)
    assert all("no such file" in problem for problem in str(caught.value).splitlines())
