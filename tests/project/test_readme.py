"""Commands, links, names and examples of the documentation work."""

import json
import pkgutil
import re
import shlex
from collections import Counter

import pytest
from helpers.paths import ROOT

from prompt_tuning.cli.main import main
from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.templates.loading import shipped_templates
from prompt_tuning.templates.template import Template

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TEMPLATES = (ROOT / "docs" / "reference" / "templates.md").read_text(encoding="utf-8")
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


DOCS = "".join(page.read_text(encoding="utf-8") for page in sorted(ROOT.glob("docs/**/*.md")))
LINES = "\n".join(blocks("bash", README + DOCS)).replace("\\\n", "").splitlines()
COMMANDS = [line for line in LINES if "prompt-tuning" in line]


@pytest.mark.real_model
@pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is missing: `make test` imports it")
def test_the_python_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    (example,) = blocks("python")
    lines = [line for line in example.splitlines() if line and not re.match("from|import", line)]
    assert len(lines) <= 15
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    model = tmp_path / "models" / MODEL.name  # It has one of the 30 layers, since all would take a minute.
    model.mkdir(parents=True)
    for file in MODEL.iterdir():
        (model / file.name).symlink_to(file)
    (model / "config.json").unlink()
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": 1}
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert "16 rows, none cut" in capsys.readouterr().out
    assert (tmp_path / "runs" / "from_python" / "adapter_model.safetensors").is_file()


def test_the_readme_has_at_most_1500_words():
    assert len(README.split()) <= 1500


def test_the_example_of_a_template_loads(tmp_path):
    (example,) = blocks("yaml", TEMPLATES)
    (tmp_path / "mine.yaml").write_text(example)
    assert Template.load(tmp_path / "mine.yaml").columns == {"context", "question", "answers"}


def test_the_numbers_of_shipped_templates_are_right():
    counts = Counter(name.split("/")[0] for name in shipped_templates())
    (promised,) = re.findall(r"(\d+) are shipped .*?(\d+) for\s.*?(\d+) for .*?(\d+) for", TEMPLATES, re.DOTALL)
    assert f"{promised[0]} are shipped" in README
    assert [*map(int, promised)] == [counts.total(), *(counts[task] for task in reversed(MAIN_METRIC))]


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


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_names_recipes_and_flags_that_exist(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    _, command, *words = shlex.split(line, comments=True)
    if command == "templates":  # It needs no model, so the test runs it.
        assert main([command, *words]) == 0
        # The quickstart's rows have no choices.
        unfit = "left out: 1 of .* which read columns that the row does not have\n"
        assert re.sub(unfit, "", capsys.readouterr().err) == ""
        return
    with pytest.raises(SystemExit):
        main([command, "--help"])
    flags = set(re.findall(r"--\w+|-\w", capsys.readouterr().out))
    overrides = [word for word in words[1:] if word not in ("-n", "3", "--predictions", "answers.jsonl")]
    if command == "rank":  # It also takes the flags of a recipe.
        flags |= {f"--{name}" for name in vars(load_recipe(words[0]).prompt)}
    if words[0].startswith("--") or command in ("init", "push", "rank", "export", "requests"):
        assert {word for word in words if word.startswith("--")} <= flags
        return
    recipe = "recipes/quickstart/qa.yaml" if words[0] == "mine.yaml" else words[0]  # The file mine.yaml is a copy.
    try:
        load_recipe(recipe, overrides)
    except RecipeError as error:  # The reader's files do not exist here; nothing else may be wrong.
        assert all("no such file" in problem for problem in str(error).splitlines())


def test_the_table_of_commands_has_all_of_them(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"(?m)^    ([a-z][a-z-]+)(?= |$)", capsys.readouterr().out))
    table = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (`.+?`) \|", table)
    assert commands <= {word.split()[0] for word in re.findall("`(.+?)`", " ".join(rows))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_or_a_heading_leads_to_one(page):
    for target in re.findall(r"\]\((?!https?:)(.+?)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_every_name_of_the_package_exists(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/-])(?:tests|benchmarks|prompt_tuning|recipes)/[\w/-]+\.\w+", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`prompt_tuning\.([a-zA-Z_.]+)", text):
        assert pkgutil.resolve_name(f"prompt_tuning.{name}")
