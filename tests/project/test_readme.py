"""The README, its figures and the names of the pages are right; test_docs.py has links and commands."""

import json
import pkgutil
import re
from collections import Counter

import pytest
from helpers.paths import ROOT

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.cli.main import main
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.templates.loading import shipped_templates
from prompt_tuning.templates.template import Template

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PYTHON = (ROOT / "docs" / "get-started" / "python.md").read_text(encoding="utf-8")
TEMPLATES = (ROOT / "docs" / "reference" / "templates.md").read_text(encoding="utf-8")
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.real_model
@pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is missing: `make test` imports it")
def test_the_python_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    example = blocks("python", PYTHON)[-1]
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    model = tmp_path / "models" / MODEL.name  # It has one of the 30 layers, since all would take a minute.
    model.mkdir(parents=True)
    for file in MODEL.iterdir():
        (model / file.name).symlink_to(file)
    (model / "config.json").unlink()
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": 1}
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "python.md", "exec"), {})
    assert "16 rows, none cut" in capsys.readouterr().out
    assert (tmp_path / "runs" / "from_python" / "adapter_model.safetensors").is_file()


def test_the_readme_has_at_most_1000_words_and_no_long_paragraph():
    assert len(README.split()) <= 1000
    prose = re.sub(r"(?m)^\|.*$", "", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    assert [text for text in prose.split("\n\n") if len(text.strip().splitlines()) > 4] == []


def test_the_example_of_a_template_loads(tmp_path):
    (example,) = blocks("yaml", TEMPLATES)
    (tmp_path / "mine.yaml").write_text(example)
    assert Template.load(tmp_path / "mine.yaml").columns == {"context", "question", "answers"}


def test_the_numbers_of_shipped_templates_are_right():
    counts = Counter(name.split("/")[0] for name in shipped_templates())
    (promised,) = re.findall(r"(\d+) are shipped .*?(\d+) for\s.*?(\d+) for .*?(\d+) for", TEMPLATES, re.DOTALL)
    assert [*map(int, promised)] == [counts.total(), *(counts[task] for task in reversed(MAIN_METRIC))]


def test_the_page_on_recipes_has_the_learning_rate_of_each_method():
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    (cell,) = re.findall(r"\| `learning_rate` \| by method: (.+?)\. ", page)
    shown = {}
    for part in cell.split(", "):
        rate, _, names = part.partition(" for ")
        shown |= {name: float(rate) for name in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", names))}
    assert shown == {row.name: row.learning_rate for row in METHODS.values() if row.trains}
    (joint,) = re.findall(r"\((\S+) with `trained_text`", cell)
    assert float(joint) == METHODS["prompt_tuning"].joint_learning_rate


def test_the_quickstart_prints_the_table_of_the_readme(tmp_path, capsys):
    facts = json.loads((ROOT / "model_cards" / "quickstart.json").read_text(encoding="utf-8"))
    (tmp_path / "results.json").write_text(json.dumps(facts["results"]))
    main(["show", str(tmp_path)])
    table, _, _ = capsys.readouterr().out.partition("\n\n")
    assert blocks("text") == [table + "\n"]


def test_contributing_describes_every_package():
    folders = {path.parent.name for path in (ROOT / "prompt_tuning").glob("*/__init__.py")}
    assert set(re.findall(r"(?m)^\| `(\w+)/` \|", CONTRIBUTING)) == folders


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([\w-]+)", "\n".join(blocks("bash") + blocks("bash", CONTRIBUTING)), re.MULTILINE)
    assert targets[:2] == ["quickstart", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_table_of_commands_has_all_of_them(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"(?m)^    ([a-z][a-z-]+)(?= |$)", capsys.readouterr().out))
    table = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (`.+?`) \|", table)
    assert commands <= {word.split()[0] for word in re.findall("`(.+?)`", " ".join(rows))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_every_name_of_the_package_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/-])(?:tests|benchmarks|prompt_tuning|recipes)/[\w/-]+\.\w+", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`prompt_tuning\.([a-zA-Z_.]+)", text):
        assert pkgutil.resolve_name(f"prompt_tuning.{name}")
