"""The page of gradio's components: what it answers, and what it does not offer."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from helpers.rows import HOSTILE

VISITOR = SimpleNamespace(session_hash="ann")


@pytest.fixture(scope="module")
def page(trial):
    pytest.importorskip("gradio", reason="the page needs prompt-tuning[try]")
    from prompt_tuning.page.blocks import build_page

    loops, make = [], asyncio.new_event_loop

    def recorded():
        loops.append(make())
        return loops[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", recorded)
        yield build_page(trial)
    for loop in loops:  # Gradio closes none.
        loop.close()


@pytest.fixture(scope="module")
def client(page):
    from starlette.testclient import TestClient

    from prompt_tuning.page.server import page_app

    with TestClient(page_app(page, "127.0.0.1"), base_url="http://127.0.0.1:7860") as client:
        yield client


def panel(page):
    """Return the panel of the only run, whose methods are the page's functions."""
    return next(of_page.fn.__self__ for of_page in page.fns.values() if hasattr(of_page.fn, "__self__"))


def shown(updates):
    """Return what the page shows after all updates."""
    values = {}
    for update in updates:
        values |= update
    return values


def test_a_clicked_row_fills_the_boxes_and_is_answered_by_each_system(page, trial):
    of_run = panel(page)
    run = of_run.run
    clicked, reference, *texts = of_run.fill(1, VISITOR)
    assert texts == [run.rows[1].values[name] for name in ("context", "question")]
    assert reference == run.rows[1].references[0]
    values = shown(of_run.answer(VISITOR, clicked, reference, *texts))
    columns = of_run.columns
    assert len(columns) == 3
    assert values[columns["trained prompt"].answer] == run.rows[1].prediction
    assert all(" s, f1 " in values[column.facts] for column in columns.values())


def test_a_row_of_ones_own_has_no_score_and_a_bad_one_a_note(page):
    of_run = panel(page)
    values = shown(of_run.answer(VISITOR, None, "", "Ada lives in Perth.", "Where does Ada live?"))
    assert all("f1" not in values[column.facts] for column in of_run.columns.values())
    values = shown(of_run.answer(VISITOR, None, "", "Ada lives in Perth.", "Where? " * 900))
    assert "max_source_tokens is 160" in values[of_run.note]["value"] and values[of_run.note]["visible"]


def test_another_question_ends_an_answer(page):
    of_run = panel(page)
    clicked, reference, *texts = of_run.fill(1, VISITOR)
    answer = of_run.answer(VISITOR, clicked, reference, *texts)
    next(answer), next(answer)
    of_run.stop_earlier(VISITOR)
    assert len(list(answer)) == 0


def test_rows_are_turned_and_stay_within_the_rows(page):
    of_run = panel(page)
    place, update = of_run.turn(8, 0)
    assert place == 8 and update["label"].endswith("9 to 9 of 9 rows") and update["choices"][0][1] == 8
    assert of_run.turn(8, 8)[0] == 8 and of_run.turn(-8, 0)[0] == 0


def test_a_strangers_text_is_only_in_components_of_plain_text(page):
    """Hold markdown and HTML to the page's own words; every other component shows text as it is."""
    config = page.get_config_file()
    written = [part["props"].get("value") for part in config["components"] if part["type"] in ("markdown", "html")]
    assert written == ["# What the prompt does"]
    kinds = {part["type"] for part in config["components"]}
    assert kinds <= {
        "accordion", "button", "column", "dropdown", "form", "highlightedtext", "markdown", "radio", "row", "state",
        "textbox",
    }  # fmt: skip
    assert HOSTILE[:20] in json.dumps(config["components"], ensure_ascii=False, default=str).replace('\\"', '"')
    assert not any(part["props"].get("info") for part in config["components"])  # It would be read as markdown.


def test_the_page_answers_only_this_machine_and_loads_nothing_from_elsewhere(client, tried_folder):
    response = client.get("/")
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    for path in ("/docs", f"/gradio_api/file={tried_folder / 'recipe.yaml'}", "/monitoring"):
        assert client.get(path).status_code in (403, 404), path
    config = client.get("/config").json()
    assert not config["analytics_enabled"] and config["footer_links"] == []
    assert all(dependency["api_visibility"] == "private" for dependency in config["dependencies"])
    assert "fonts.googleapis.com" not in response.text and not config["stylesheets"]
