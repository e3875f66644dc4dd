"""rank with a model behind an API: halving by the metric of its answers, cost, and how it resumes."""

import json

import pytest
from helpers.api_server import api_server, prompt_of
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.recipe.loading import load_recipe

pytest.importorskip("openai", reason="the package openai is not installed")

KEY = "sk-a-secret-of-the-test"
WORDS = ("one", "two", "three", "four")


@pytest.fixture
def rank(recipe_file, model_folders, tmp_path, monkeypatch):
    """Return a function that ranks four templates on 32 rows, of which the server knows the third best."""
    forbid_model_loading(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_jsonl(tmp_path / "validation.jsonl", question_rows(32, 3))
    lines = [
        f"{word}:\n  source: '{word}. {{{{ context }}}} {{{{ question }}}}'\n"
        f"  target: '{{{{ answers.text[0] }}}}{'' if word == 'one' else '.'}'\n  references: answers.text\n"
        for word in WORDS
    ]
    (tmp_path / "mine.yaml").write_text("".join(lines))
    recipe = recipe_file(
        model_name_or_path="openai:big", tokenizer_name=model_folders["llama"], num_virtual_tokens=None
    )

    def run(server, *flags):
        where = ["--output_dir", str(tmp_path / "rank"), "--base_url", server.url, "--finalists", "1"]
        return main(["rank", str(recipe), "--templates", str(tmp_path / "mine.yaml"), *where, *flags])

    with api_server() as server:
        # Only the third template is always answered; the first never, and with an empty text.
        chances = {"one": 0, "two": 1, "three": 3, "four": 2}
        server.answer = lambda body: (
            {} if len(prompt_of(body)) % 3 < chances[prompt_of(body).split(".")[0]] else {"text": ""}
        )
        yield lambda *flags: run(server, *flags), server


def test_rank_halves_by_the_answers_and_pays_each_once(rank, tmp_path, capsys):
    run, server = rank
    assert run("--token_prices", "1000", "1000", "--max_cost", "0.4", "--api_concurrency", "1") == 1
    assert "max_cost 0.4" in capsys.readouterr().err
    assert run("--token_prices", "1000", "1000") == 0
    facts = json.loads((tmp_path / "rank" / "rank.json").read_text())
    best = f"{tmp_path}/mine.yaml:three"
    assert facts["halving"] == [[4, 8], [2, 16], [1, 32]] and facts["winner"] == best
    assert facts["candidates"][best]["f1"] == {"score": 100, "low": 100, "high": 100}
    worst = facts["candidates"][f"{tmp_path}/mine.yaml:one"]
    assert worst["rows"] == 8 == worst["counts"]["empty"] and worst["f1"]["against_winner"]["difference"] == -100
    assert worst["f1"]["p"] == pytest.approx(2 / 2**8)
    prompts = [prompt_of(body) for body in server.bodies]
    assert len(prompts) == len(set(prompts))
    assert facts["api"]["requests"] + facts["api"]["from_cache"] == 4 * 8 + 2 * 8 + 16
    printed = capsys.readouterr().out.replace("`", "")
    assert "log-likelihood" not in printed and "mine.yaml:one: 8 answers are empty" in printed
    assert f"requests to {server.url}" in printed
    assert len((tmp_path / "rank" / "predictions.jsonl").read_text().splitlines()) == 32
    assert {key for _, key, _ in server.requests} == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8 and not [path for path in files if KEY.encode() in path.read_bytes()]
    sent = len(server.requests)
    assert run("--token_prices", "1000", "1000") == 0 and len(server.requests) == sent
    assert load_recipe(tmp_path / "rank" / "winner.yaml", ["--base_url", server.url]).prompt.template == best


def test_the_answers_of_another_server_are_not_mixed_with_those_of_a_ranking(rank, capsys):
    run, _ = rank
    assert run() == 0
    assert run("--base_url", "http://127.0.0.1:9/v1") == 2
    assert "other settings or rows (base_url)" in capsys.readouterr().err
