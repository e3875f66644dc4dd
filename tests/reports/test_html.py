"""The HTML report: its contents, its safety, and its behaviour in a browser."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from helpers.browser import CHROMIUM, Browser
from helpers.made_runs import make_run
from helpers.rows import PLACES

from prompt_tuning.cli.main import main
from prompt_tuning.hub.upload import plan_upload
from prompt_tuning.reports import html as report
from prompt_tuning.reports import report_rows
from prompt_tuning.reports.charts import histogram, line_chart

EVIL = "</script><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\"' onload=x {{ 7 * 7 }}"


class Page(HTMLParser):
    """Collect the elements with their attributes, the texts by element, and the body rows of the table of rows."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.texts = {}
        self.inside = []
        self.rows = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.inside.append(tag)
        if tag == "tr" and attributes.get("id", "").startswith("row-"):
            self.rows.append([])
        if self.rows and "data-label" in attributes:
            self.rows[-1].append([attributes["data-label"], attributes.get("data-value"), ""])

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:  # An element such as br has no end.
            pass

    def handle_data(self, text):
        self.texts.setdefault(self.inside[-1] if self.inside else "", []).append(text)
        if self.rows and self.rows[-1] and {"td", "th"} & {*self.inside}:
            self.rows[-1][-1][2] += text

    def column(self, name):
        return [next(cell for cell in row if cell[0] == name) for row in self.rows]


def read(folder):
    return Page(report.write_report(folder).read_text(encoding="utf-8"))


def shown(text):
    """Return a text as HTML reads it. The tiny model also writes carriage returns."""
    return re.sub("\r\n?", "\n", text) or "(nothing)"


def test_train_and_evaluate_write_a_report_of_their_results(recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(eval_strategy="steps", eval_steps=2, logging_steps=1))
    run = tmp_path / "run"
    assert main(["train", recipe, "--max_source_tokens", "30", "--learning_rate", "0.3"]) == 0
    text = (run / "report.html").read_text()
    results = json.loads((run / "results.json").read_text())
    page = Page(text)
    saved = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [cell[2] for cell in page.column("reference")] == [row["references"][0] for row in saved]
    for name, label in (("hard_prompt", "hard prompt alone"), ("soft_prompt", "with soft prompt")):
        assert [cell[2] for cell in page.column(label)] == [shown(row[name]) for row in saved]
        place = 0 if name == "hard_prompt" else 1
        scores = [float(cell[2].split(" → ")[place]) for cell in page.column("f1")]
        assert sum(scores) / 9 == pytest.approx(results[name]["f1"], abs=0.05)
        assert f"{results[name]['exact_match']:.2f}" in page.texts["td"]
    assert "is not its mean" not in text
    assert "Loss by step" in text and "f1 by step, on the validation rows" in text
    logged = json.loads((run / "log_history.json").read_text())
    losses = [f"{entry['loss']:.5g}" for entry in logged if "loss" in entry]
    assert len(losses) == 4 and {*losses} <= {*page.texts["td"]}
    assert results["cut_rows"] and f"{results['cut_rows']} of 9 sources were cut to fit max_source_tokens." in text
    assert "Tokens cut from a source" in text and (run / "recipe.yaml").read_text()[:40] in "".join(page.texts["pre"])

    (run / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(run)]) == 0 and capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text() == text
    uploaded = plan_upload(run, "me/run", "me/base")
    assert {path.name for path in run.iterdir()} - {*uploaded} >= {"report.html", "log_history.json", "predictions"}

    assert main(["evaluate", recipe, "--adapter", str(run), "--max_source_tokens", "30"]) == 0
    alone = Page((run / "evaluate-test-soft_prompt" / "report.html").read_text())
    assert alone.column("with soft prompt") == page.column("with soft prompt")
    assert not any(cell[0] in ("gain", "hard prompt alone") for cell in alone.rows[0])
    assert "max_source_tokens: 30" in "".join(alone.texts["pre"])
    for report_page, leaked in (
        (page, "9 nearly the same as a training row"),
        (alone, "none; no training rows were read"),
    ):
        assert leaked in report_page.texts["dd"] and (run / "template.yaml").read_text() in report_page.texts["pre"]


def test_the_training_split_has_a_report_and_incomplete_rows_are_reported(recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(output_dir=tmp_path / "on_train"))
    assert main(["evaluate", recipe, "--split", "train", "--output_dir", str(tmp_path / "on_train")]) == 0
    assert (tmp_path / "on_train" / "report.html").is_file()
    rows = tmp_path / "on_train" / "predictions" / "train.jsonl"
    for text, message in (("", "0 rows, but results.json has 24"), (rows.read_text()[:-9], "line 24: not JSON")):
        rows.write_text(text)
        assert main(["report", str(tmp_path / "on_train")]) == 1 and message in capsys.readouterr().err


def test_a_run_that_trains_nothing_has_one_column_and_no_curves(recipe_file, tmp_path):
    assert main(["train", str(recipe_file(method="none", num_virtual_tokens=None))]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert len(page.rows) == 9 and len(page.rows[0]) == 6
    assert {"Curves", "Largest gains and losses"}.isdisjoint(page.texts["h2"])


def test_the_rows_own_columns_and_all_metrics_are_in_the_cells(tmp_path):
    scores = {"hard_prompt": {"f1": 40.0, "exact_match": 0.0}, "soft_prompt": {"f1": 90.0, "exact_match": 50.0}}
    columns = {"context": "It rains. " * 60, "question": "Does it <b>rain</b>?"}
    changes = {number: {"scores": scores, "columns": columns} for number in range(12)}
    changes[1] |= {"hard_prompt": "in the town", "soft_prompt": "in a town"}
    page = read(make_run(tmp_path / "run", changes=changes))
    cell = page.column("source")[0][2].split()
    assert cell[:4] == ["question", "Does", "it", "<b>rain</b>?"] and "context" in cell
    assert {cell[2] for cell in page.column("f1")} == {"40.0 → 90.0"}
    assert {cell[2] for cell in page.column("exact_match")} == {"0.0 → 50.0"}
    assert {cell[1] for cell in page.column("exact_match")} == {"50.0"}  # It is sorted by what was trained.
    assert {"the", "a"} <= {*page.texts["mark"]} and "town" not in "".join(page.texts["mark"])


def test_each_logged_point_is_drawn(tmp_path):
    facts = {"method": "prompt_tuning", "train_steps": 300, "train_seconds": 3, "trainable_parameters": 9}
    run = make_run(tmp_path / "run", results=facts | {"total_parameters": 99, "evaluation_seconds": 1})
    log = [{"loss": 1 / step, "step": step} for step in range(1, 301)]
    (run / "log_history.json").write_text(json.dumps(log))
    page = read(run)
    assert [tag for tag, _ in page.elements].count("circle") == 300
    assert {f"{entry['loss']:.5g}" for entry in log} <= {*page.texts["td"]}


@pytest.mark.parametrize("name", ["soft_prompt", "lora", "full"])
def test_gains_and_losses_are_counted_and_named(name, tmp_path):
    text = report.write_report(make_run(tmp_path / "run", ("hard_prompt", name))).read_text()
    assert "11 better, 1 worse, 0 the same" in text
    gains = re.findall(r'<a href="#row-(\d+)">', text)
    assert gains == ["1", "3", "5", "7", "9", "4"]  # Equal gains are in the order of rows, before the loss.
    assert text.count("+100.0") == 5 + 6 and "2 / " not in text


def test_closed_choices_and_the_recipes_own_metric(tmp_path):
    scores = {name: {"exact_match": 8.33} for name in ("hard_prompt", "soft_prompt")}
    run = make_run(
        tmp_path, results=scores | {"decoding": {"choice_normalization": "tokens"}}, metrics=["exact_match"]
    )
    page = read(run)
    assert {cell[1] for cell in page.column("exact_match")} == {"0.0", "100.0"}
    assert "the most likely of the row's choices, normalised by tokens" in page.texts["dd"]


def test_a_corpus_metric_is_marked_as_sentence_level(tmp_path):
    scores = {name: {"bleu": 12.0, "bleu_signature": "nrefs:1"} for name in ("hard_prompt", "soft_prompt")}
    run = make_run(tmp_path, results=scores | {"task": "translation"}, target_lang="zho_Hans")
    text = report.write_report(run).read_text()
    assert "the bleu of all rows is not its mean. The score of a text with fewer than four tokens is 0." in text
    assert "nrefs:1" in text and 'lang="zho-Hans"' in text


def test_rows_that_are_not_shown_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(report_rows, "ROWS_SHOWN", 4)
    monkeypatch.setattr(report_rows, "CHARACTERS_SHOWN", 300)
    page = read(make_run(tmp_path, changes={2: {"source": "山川" * 500}}))
    assert len(page.rows) == 4 and "The first 4 of 12 rows are shown." in page.texts["strong"]
    assert "700 characters are left out here" in "".join(page.texts["div"])
    assert "山川山川" in "".join(page.texts["summary"])  # Chinese has no spaces.
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert [link for link in links if link.startswith("#row-")] == ["#row-1", "#row-3"]
    assert "row 9" in "".join(page.texts["li"])  # A link would lead nowhere.


def test_no_text_of_the_run_is_executed_or_loads_anything(tmp_path):
    changes = {
        0: {"soft_prompt": EVIL}, 1: {"hard_prompt": EVIL}, 2: {"source": EVIL}, 3: {"references": [EVIL]},
    }  # fmt: skip
    facts = {"model": EVIL, "template": EVIL, "split": "test", "adapter": EVIL, "versions": {EVIL: EVIL}}
    run = make_run(tmp_path / "<b>run", changes=changes, results=facts, lang='en" onload="x', init_text=EVIL)
    (run / "template.yaml").write_text(EVIL)
    text = report.write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == tags.count("style") == 1
    assert not {"img", "link", "iframe", "object", "embed", "base", "form", "b", "use", "image"} & {*tags}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("style", "src", "srcset", "data") for name in attributes)
        assert re.fullmatch(r"#[\w-]+", attributes.get("href", "#a"))
    assert page.column("with soft prompt")[0][2] == page.column("hard prompt alone")[1][2] == EVIL
    (style,), (script,) = page.texts["style"], page.texts["script"]
    assert "url(" not in style and "@import" not in style and "http" not in script
    policy = next(element["content"] for _, element in page.elements if "http-equiv" in element)
    hashes = [base64.b64encode(hashlib.sha256(element.encode()).digest()).decode() for element in (style, script)]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert f"style-src 'sha256-{hashes[0]}'" in policy and f"script-src 'sha256-{hashes[1]}'" in policy


def test_the_report_is_accessible(tmp_path):
    page = read(make_run(tmp_path))
    first = dict(reversed(page.elements))
    assert first["html"] == {"lang": "en"} and {"title", "main", "nav", "header"} <= {*first}
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") and tags.count("h1") == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    drawn = [attributes for tag, attributes in page.elements if tag == "svg" and "role" in attributes]
    assert len(drawn) == 2
    assert all({*attributes["aria-labelledby"].split()} <= {*ids} for attributes in drawn)


def test_colours_have_contrast_in_light_and_dark():
    style = report.Path(report.__file__).with_name("report_template.html").read_text()

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for scheme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = {name: luminance(colour) for name, colour in re.findall(r"--(\w+): (#\w{6})", scheme)}
        for name in ("text", "muted", "link", "good", "bad", "first", "second", "focus"):
            for behind in ("page", "soft"):
                low, high = sorted([colours[name], colours[behind]])
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, behind)


def test_a_folder_without_a_run_or_without_predictions_is_reported(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "no results.json there" in capsys.readouterr().err
    run = make_run(tmp_path / "run")
    (run / "predictions" / "test.jsonl").unlink()
    assert main(["report", str(run)]) == 1
    assert "predictions/test.jsonl: no such file. A report shows" in capsys.readouterr().err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "values", [[5], [0, 0], [3, 4], [1, 10**6], list(range(173)), [0, 1, 2, 19, 20], [7, 26], [99, 100, 1999]], ids=str
)
def test_a_histogram_counts_every_row_once(values):
    bars = histogram("title", "tokens", values).bars
    assert sum(bar.count for bar in bars) == len(values) and len(bars) <= 20
    assert all(bar.count == sum(bar.first <= value <= bar.last for value in values) for bar in bars)
    assert all(bar.last + 1 == after.first for bar, after in pairwise(bars))
    assert all(bar.x >= 66 and bar.x + bar.width <= 462.5 and bar.y >= 14 for bar in bars)


def test_curves_leave_out_values_that_are_not_finite_and_stay_inside():
    series = {"training": [(1, math.nan), (2, 3.25), (40, 0.001)], "validation": [(40, math.inf)]}
    chart = line_chart("Loss", "loss", series, (2, "the best checkpoint"))
    (line,) = chart.lines
    assert line.name == "training" and len(line.points) == 2 and "from 3.25 at step 2" in chart.description
    assert all(66 <= x <= 462 and 14 <= y <= 228 for x, y in line.points)
    assert line_chart("Loss", "loss", {"training": [(1, math.nan)]}) is None
    assert len(line_chart("f1", "f1", {"validation": [(1, 0.0), (2, 0.0)]}).y_ticks) >= 2
    assert len(line_chart("loss", "loss", {"validation": [(1, 1e-12), (2, 3e-13)]}).y_ticks) >= 2


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    run = make_run(
        tmp_path_factory.mktemp("runs") / ("a-long-name" * 9),
        changes={0: {"soft_prompt": EVIL}, 2: {"source": "x" * 500}},
        results={"method": "prompt_tuning", "train_steps": 40, "train_rows": 8, "train_seconds": 3, "model": "m" * 200,
                 "trainable_parameters": 99, "total_parameters": 1000, "evaluation_seconds": 1,
                 "best_checkpoint": "checkpoint-20"},
    )  # fmt: skip
    log = [{"loss": 3 / step, "learning_rate": 0.1, "step": step} for step in (10, 20, 30, 40)]
    log += [{"eval_loss": 2.0, "eval_f1": 30.0, "eval_runtime": 1.0, "step": 20}]
    (run / "log_history.json").write_text(json.dumps(log))
    return report.write_report(run)


VISIBLE = "[...document.querySelectorAll('#rows tbody tr:not([hidden])')].map(row => row.cells[0].textContent)"


def test_rows_are_searched_and_sorted_in_a_browser(browser, page_file):
    browser.open(page_file)
    assert browser.run(VISIBLE) == [str(number) for number in range(12)]
    find = "search.value = {!r}; search.dispatchEvent(new Event('input')); found.textContent"
    assert browser.run(find.format("ROME")) == "1 of 12 rows" and browser.run(VISIBLE) == ["4"]
    browser.run("location.hash = '#row-9'")
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run("found.textContent") == "12 rows"  # A link to a hidden row shows it again.
    heads = browser.run("[...document.querySelectorAll('#rows thead th button')].map(each => each.textContent)")
    assert heads[0] == "row" and heads[-1] == "gain" and len({*heads}) == len(heads) == 7
    press = "document.querySelectorAll('#rows thead button')[{}].click()"
    sorting = "[...document.querySelectorAll('[aria-sort]')].map(each => [each.textContent, each.ariaSort])"
    browser.run(press.format(6))
    assert browser.run(sorting) == [["gain", "ascending"]] and browser.run(VISIBLE)[:2] == ["0", "4"]
    browser.run(press.format(0))
    browser.run(press.format(0))
    assert browser.run(sorting) == [["row", "descending"]]
    assert browser.run(VISIBLE) == [str(number) for number in reversed(range(12))]
    browser.run(press.format(2))
    assert browser.run("document.querySelector('#rows tbody tr').cells[2].textContent") == min(PLACES)
    choose = "kind.value = {!r}; kind.dispatchEvent(new Event('change')); found.textContent"
    assert browser.run(choose.format("worse")) == "2 of 12 rows"
    assert {*browser.run(VISIBLE)} == {"0", "4"}
    assert browser.run(choose.format("cut")) == "4 of 12 rows"
    assert browser.errors == [] and browser.requests == [page_file.as_uri()]


@pytest.mark.parametrize("width", [320, 360, 900, 1100, 1280])
def test_nothing_is_wider_than_the_screen(width, browser, page_file):
    browser.open(page_file, width=width)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    wide = "[...document.querySelectorAll('main *')].filter(each => !each.closest('.scroll, .hide, svg') && "
    wide += "each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))"
    assert browser.run(wide) == []
    fits = browser.run("(each => each.scrollWidth <= each.clientWidth)(document.querySelector('.scroll'))")
    assert fits or width < 360
    shown = browser.run("getComputedStyle(document.querySelector('#rows tbody td')).display")
    assert shown == ("block" if width < 1024 else "table-cell")
    assert browser.errors == [] and browser.requests == [page_file.as_uri()]


def test_no_name_of_a_metric_is_broken_within_its_word(browser, page_file):
    browser.open(page_file, width=1100)
    browser.run("head = document.querySelector('#rows thead .number button'); head.textContent = 'exact_match'")
    browser.run("words = document.createRange(); words.selectNodeContents(head)")
    assert browser.run("words.getClientRects().length") == 1


def test_without_scripts_the_rows_are_a_plain_table(browser, page_file):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page_file)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("getComputedStyle(tools).display") == "none"
    assert browser.run("document.querySelectorAll('#rows tbody tr').length") == 12
    assert browser.run("document.querySelectorAll('#rows button').length") == 0


def test_the_keyboard_reaches_every_control_and_shows_the_focus(browser, page_file):
    browser.open(page_file)
    seen = []
    for _ in range(80):
        for kind in ("rawKeyDown", "keyUp"):
            browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        focus = "(each => each && [each.tagName, getComputedStyle(each).outlineStyle])(document.activeElement)"
        seen.append(tuple(browser.run(focus)))
    assert {tag for tag, _ in seen} >= {"A", "INPUT", "BUTTON", "SUMMARY", "DIV"}
    assert all(outline != "none" for tag, outline in seen if tag != "BODY")
