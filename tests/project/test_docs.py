"""Links, commands and snippets of the pages: each leads somewhere, is checked, or says "Not run here"."""

import json
import re
import shlex
import shutil
from collections import Counter

import pytest
import yaml
from helpers.paths import ROOT
from helpers.rows import question_rows

from prompt_tuning.cli.main import _parser
from prompt_tuning.cli.parsing import usage_errors
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.other_names import flag_name, split_flags
from prompt_tuning.recipe.parser import RecipeParser

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md"), *ROOT.glob("benchmarks/*.md")]
WITH_BLOCKS = [page for page in PAGES if page.name not in ("CHANGELOG.md", "README.zh-CN.md")]
MARK = "Not run here"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
MADE_BY_THE_SITE = {"reference/settings.md", "reference/command-line.md", "reference/python.md"}
SETTINGS = RecipeParser()
# Files that a reader has: rows and recipes of their own.
OF_THE_READER = re.compile(r"(my/|mine|new\.|questions\.|rows\.|small\.|large\.|base\.|methods\.|ROW)")
FILE = re.compile(r"[\w./-]+\.(ya?ml|jsonl?|csv|tsv|parquet)")


def name_of(page):
    return str(page.relative_to(ROOT))


def slug(title):
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def blocks(page):
    """Return the fenced blocks of a page as language, code and the paragraph before."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield match[1], match[2], text[: match.start()].rstrip().rpartition("\n\n")[2]


def in_language(language, mark=None):
    """Return the blocks of a language, without those before which the mark is written."""
    return [
        pytest.param(page, code, id=f"{name_of(page)}:{number}")
        for page in WITH_BLOCKS
        for number, (of, code, before) in enumerate(blocks(page))
        if of == language and (mark is None or mark not in before)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_file_or_a_heading_leads_to_one(page):
    for target in re.findall(r"\]\((?!https?:)(.+?)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        if heading:
            titles = re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))
            assert heading in map(slug, titles), target


def test_the_menu_of_the_site_has_every_page():
    listed = re.findall(r"[\w./-]+\.md", json.dumps(SITE["nav"]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert sorted(listed) == sorted(pages | MADE_BY_THE_SITE)


def test_no_sentence_is_in_two_places():
    counts = Counter()
    for page in WITH_BLOCKS:
        prose = re.sub(r"(?ms)^```.*?^```$|^\|.*?$", "", page.read_text(encoding="utf-8"))
        sentences = [" ".join(text.split()) for text in re.split(r"(?<=[.:])\s|\n\n", prose)]
        counts.update(sentence for sentence in sentences if sentence.count(" ") >= 9)
    assert len(counts) > 500 and [sentence for sentence, count in counts.items() if count > 1] == []


def test_every_question_is_two_clicks_from_the_start():
    questions = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    assert len(re.findall(r"(?m)^\| .+\? \|", questions)) >= 20
    for start in ("README.md", "docs/README.md"):
        assert re.search(r"\]\((docs/)?questions\.md\)", (ROOT / start).read_text(encoding="utf-8")), start


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_a_block_has_a_language_that_a_test_reads(page):
    assert {language for language, _, _ in blocks(page)} <= {"bash", "json", "python", "yaml", "text"}


@pytest.mark.parametrize(("page", "code"), in_language("bash"))
def test_every_command_is_one_that_its_parser_takes(page, code, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    text = page.read_text(encoding="utf-8")
    marked = any(MARK in before for _, block, before in blocks(page) if block == code)
    for line in code.replace("\\\n", " ").splitlines():
        check_command(shlex.split(line, comments=True), text, marked=marked)


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_every_command_of_a_transcript_is_one_that_its_parser_takes(page, capsys):
    text = page.read_text(encoding="utf-8")
    for language, code, _ in blocks(page):
        for line in re.findall(r"(?m)^\$ (.+)", code if language == "text" else ""):
            check_command(shlex.split(line), text, folder=page.parent / "own")


def check_command(words, page, folder=ROOT, *, marked=False):
    """Fail if a command is unknown, if it has a wrong flag, or if it names a file that nothing makes."""
    if words[:3] == ["accelerate", "launch", "--config_file"]:
        assert (ROOT / words[3]).is_file() and words[4:6] == ["-m", "prompt_tuning"]
        words = ["prompt-tuning", *words[6:]]
    program, *rest = words or ["export"]
    if program == "export":
        return
    if program == "make":
        assert re.search(rf"(?m)^{rest[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"))
    elif program == "python" and rest[0] != "-m":
        assert (ROOT / rest[0]).is_file()
    elif program == "prompt-tuning":
        check_words(rest, page, folder)
    else:
        assert marked, f"{program}: run it in a test, or write '{MARK}' before its block"


def check_words(words, page, folder):
    args, rest = _parser().parse_known_args(words)
    assert usage_errors(args, rest) == []
    for setting in split_flags(rest):
        assert SETTINGS.has_setting(flag_name(setting[0])) and SETTINGS.flag_errors(setting) == []
    made = [*re.findall(r"(?:--output|--predictions_file|-o|>) (\S+)", page)]
    for word in filter(FILE.fullmatch, words):
        assert (folder / word).exists() or word in made or OF_THE_READER.match(word), f"{word}: nothing makes it"
    recipe = getattr(args, "recipe", None)
    if isinstance(recipe, str) and (ROOT / recipe).is_file():
        try:
            load_recipe(recipe, rest)
        except RecipeError as error:  # The reader's files do not exist here; nothing else may be wrong.
            assert all("no such file" in problem for problem in str(error).splitlines())


@pytest.mark.parametrize(("page", "code"), in_language("yaml", MARK))
def test_every_recipe_and_template_in_a_page_can_be_read(page, code):
    settings = yaml.safe_load(code)
    if settings is None or "source" in settings:
        return  # It is a comment for editors, or a template, which test_readme.py loads.
    parts = (settings, settings.get("ranges", {}), *settings.get("runs", {}).values())
    names = {name for part in parts for name in part} - {"runs", "ranges", "recipe", "learning_rates"}
    assert all(SETTINGS.has_setting(name) for name in names)


@pytest.mark.parametrize(("page", "code"), in_language("json"))
def test_every_row_in_a_page_is_json(page, code):
    assert json.loads(code)


def python_blocks(name):
    return [code for language, code, _ in blocks(ROOT / name) if language == "python"]


PYTHON, PREDICT = "docs/get-started/python.md", "docs/how-to/predict.md"
RUN_BELOW = ("README.md", PYTHON, PREDICT)


@pytest.mark.parametrize(("page", "code"), in_language("python", MARK))
def test_every_python_snippet_is_run_by_a_test(page, code):
    assert name_of(page) in RUN_BELOW, f"run it in a test, or write '{MARK}' before its block"


def test_the_python_snippets_run_on_a_tiny_model(recipe_file, model_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SmolLM2-135M-Instruct").symlink_to(model_folders["llama"])
    shutil.copy(recipe_file(max_steps=1), "mine.yaml")
    names = {"rows": question_rows(4), "frame": question_rows(30)}
    run_snippets("README.md", names)
    short = '"max_steps": 1, "use_cpu": True, "max_source_tokens": 96, "max_target_tokens": 12'
    changes = {"max_steps=40": "max_steps=1", "runs/mine": "runs/other", '"max_steps": 40': short}
    run_snippets(PYTHON, names, number=2, changes=changes)  # test_readme.py runs the third one.
    shutil.copytree("runs/mine", "runs/quickstart")
    run_snippets(PREDICT, names)


def run_snippets(page, names, number=1, changes=()):
    codes = [code for language, code, _ in blocks(ROOT / page) if language == "python"]
    for code in codes[:number]:
        for old in changes:
            code = code.replace(old, changes[old])
        exec(compile(code, page, "exec"), names)
