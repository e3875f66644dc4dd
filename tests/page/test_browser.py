"""The page in a real browser. `make test-browser` runs these tests, and takes the pictures of docs/images."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.rows import HOSTILE

from prompt_tuning.page.trial import Trial
from prompt_tuning.support.run_folder import RunFolder

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
RUN = os.environ.get("BROWSER_RUN", "")
"""The run whose pictures are taken. Without it no browser is started."""
PICTURES = ROOT / "docs" / "images"
ROWS_AT_ONCE = 8  # of the page
LARGEST = 300_000  # bytes of a picture

pytestmark = pytest.mark.skipif(not RUN, reason="`make test-browser` runs it")


def served(*runs):
    """Start the command, and return its process and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prompt_tuning", "try", *map(str, runs), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line + process.stderr.read()
    return process, line.split()[0]


@pytest.fixture(scope="module")
def address(tried_folder, tmp_path_factory):
    """Serve the tiny run twice, under two names; Ctrl-C must end the command with code 130 and no traceback."""
    second = shutil.copytree(tried_folder, tmp_path_factory.mktemp("second") / "copy")
    process, url = served(tried_folder, second)
    yield url
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and errors.endswith("interrupted\n")


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """Open the page; at the end nothing may have been asked of another host, and no error be in the console."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.get_by_role("button", name="Answer").first.wait_for()
    yield page
    assert errors == []
    assert requests and [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    page.close()


def answers(page):
    """Return the answers of the three systems after the last is complete."""
    facts = "[...document.querySelectorAll('textarea, input')].filter(field => field.offsetParent && / s(, f1|$)/"
    page.wait_for_function(
        f"() => {facts}.test(field.value)).length >= 3 && !document.querySelector('.generating')", timeout=180_000
    )
    page.wait_for_timeout(300)
    return [page.get_by_label(name, exact=True).first.input_value() for name in ("Hard prompt", "Trained prompt")]


def click_row(page, number):
    page.locator(".rows:visible input[type=radio]").nth(number).check()
    page.wait_for_timeout(500)
    return answers(page)


def test_two_clicked_rows_are_answered_as_in_the_run(page, tried_folder):
    lines = [json.loads(line) for line in (tried_folder / "predictions" / "test.jsonl").read_text().splitlines()]
    saved = {line["source"].partition("\n")[0]: line for line in lines}
    for number in (1, 2):
        hard, trained = click_row(page, number)
        row = saved[page.get_by_label("context").first.input_value()]
        texts = [row[system].replace("\r", "\n") for system in ("hard_prompt", "soft_prompt")]  # As any field has it.
        assert [hard, trained] == texts
        assert page.get_by_label("Reference (may stay empty)").first.input_value() == row["references"][0]


def test_the_prompt_is_shown_with_virtual_tokens_marked(page):
    click_row(page, 1)
    page.get_by_text("The prompt as the model sees it").first.click()
    shown = page.get_by_text("virtual tokens, shown as the text they started from")
    shown.first.wait_for()
    assert page.locator(".prompt:visible").count() == 3


def test_a_row_of_ones_own_is_answered(page):
    click_row(page, 1)
    before = page.get_by_label("Trained prompt", exact=True).first.input_value()
    page.get_by_label("context").first.fill("Zoe was born in Riga and lives in Lima.")
    page.get_by_label("question").first.fill("Where does Zoe live?")
    page.get_by_role("button", name="Answer").first.click()
    page.wait_for_function(
        "before => [...document.querySelectorAll('.answer textarea')][1].value !== before", arg=before, timeout=60_000
    )
    assert answers(page)[1] != before


def test_a_strangers_text_is_shown_as_text(page):
    labels = page.locator(".rows:visible label").all_inner_texts()
    (hostile,) = [number for number, label in enumerate(labels) if "onerror" in label]
    assert HOSTILE[:60] in labels[hostile]
    click_row(page, hostile)
    page.get_by_text("The prompt as the model sees it").first.click()
    page.wait_for_timeout(500)
    assert page.get_by_label("question").first.input_value() == HOSTILE
    assert HOSTILE in page.locator(".prompt:visible").first.inner_text()
    for selector in ("img[src=x]", "a[href^=javascript]", ".katex", "math"):
        assert page.locator(selector).count() == 0, selector


def test_the_keyboard_alone_is_enough(page):
    def tab_to(condition):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"() => {{ const on = document.activeElement; return Boolean({condition}); }}"):
                return
        pytest.fail(f"no Tab leads to {condition}")

    tab_to("on.type === 'radio'")
    page.keyboard.press("Space")
    page.wait_for_timeout(500)
    assert answers(page)[1]
    tab_to("on.tagName === 'TEXTAREA' && !on.disabled")
    page.keyboard.press("Control+a")
    page.keyboard.type("Zoe lives in Lima.")
    tab_to("on.tagName === 'BUTTON' && on.innerText === 'Answer'")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    assert answers(page)[1] and page.get_by_label("context").first.input_value() == "Zoe lives in Lima."


def test_a_narrow_window_needs_no_scrolling_to_the_side(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert click_row(page, 1)[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_menu_chooses_among_runs(page):
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name="copy").click()
    page.wait_for_timeout(500)
    assert page.locator(".rows:visible").count() == 1
    page.locator(".rows:visible input[type=radio]").nth(1).check()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.answer textarea')].filter(field => field.value).length >= 3",
        timeout=60_000,
    )


def mended_row(run):
    """Return the number, in the order of the page, of the first row that only the trained prompt answers right."""
    (tried,) = Trial.load([run]).runs.values()
    lines = [json.loads(line) for line in RunFolder(Path(run)).predictions("test").read_text().splitlines()]
    hard = {line["source"]: line["hard_prompt"] for line in lines}
    for number, row in enumerate(tried.rows):
        if row.score == 100 and len(hard[row.source]) > 20 and hard[row.source] not in row.references:
            return number
    pytest.fail("the prompt mends no row")


def test_pictures_of_page_and_report(chromium):
    """Take the pictures of the documentation."""
    PICTURES.mkdir(exist_ok=True)
    number = mended_row(RUN)
    process, url = served(RUN)
    try:
        page = chromium.new_page(viewport={"width": 1280, "height": 1120})
        page.goto(url)
        for place in range(0, number // ROWS_AT_ONCE * ROWS_AT_ONCE, ROWS_AT_ONCE):
            page.get_by_role("button", name="Better rows").click()
            page.get_by_text(f"the worst first: {place + ROWS_AT_ONCE + 1} to").wait_for()
        click_row(page, number % ROWS_AT_ONCE)
        page.get_by_text("The prompt as the model sees it").click()
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        page.screenshot(path=PICTURES / "try.png")
        page.goto((Path(RUN).resolve() / "report.html").as_uri())
        page.screenshot(path=PICTURES / "report.png")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    for name in ("try.png", "report.png"):
        assert 20_000 < (PICTURES / name).stat().st_size < LARGEST
