"""Models behind an API: what is sent, paid once, counted and kept apart; a fake server answers."""

import gzip
import json
import re
import signal
import sqlite3
import threading
import time

import pytest
from helpers.api_server import api_server
from helpers.models import forbid_model_loading

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import ModelError
from prompt_tuning.runs.api_answers import cache_file
from prompt_tuning.runs.api_client import Reply, in_order, openai_client
from prompt_tuning.runs.teacher import Targets, target_row

pytest.importorskip("openai", reason="the package openai is not installed")

KEY = "sk-a-secret-of-the-test"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with api_server() as started:
        yield started


@pytest.fixture
def evaluate(server, recipe_file, model_folders, tmp_path, monkeypatch):
    """Return a function that evaluates the test split with the server, and returns exit code and results."""
    forbid_model_loading(monkeypatch)

    def run(*flags, output="evaluated", **settings):
        settings = {
            "model_name_or_path": "openai:big", "tokenizer_name": model_folders["llama"], "num_virtual_tokens": None,
            "max_steps": None,
        } | settings  # fmt: skip
        recipe = str(recipe_file(**settings))
        folder = tmp_path / output
        code = main(["evaluate", recipe, "--base_url", server.url, "--output_dir", str(folder), *flags])
        return code, json.loads((folder / "results.json").read_text()) if code == 0 else None

    return run


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def test_an_evaluation_sends_the_hard_prompt_and_scores_the_answers(evaluate, server, tmp_path, capsys):
    server.busy = 1
    code, results = evaluate("--token_prices", "1.0", "2.0")
    assert code == 0
    path, key, body = server.requests[-1]
    assert (path, key) == ("/v1/completions", f"Bearer {KEY}") and len(server.requests) == 10
    assert body.keys() == {"model", "prompt", "max_tokens", "temperature", "stop"}
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"]) == ("big", 12, 0, ["\n"])
    rows = predictions(tmp_path / "evaluated")
    assert {row["source"] for row in rows} == {body["prompt"] for body in server.bodies}
    assert results["hard_prompt"]["exact_match"] == 100 and results["model"] == "openai:big"
    api = results["api"]
    assert (api["requests"], api["from_cache"], api["input_tokens"], api["output_tokens"]) == (9, 0, 90, 18)
    assert (api["cost"], api["paid"]) == (pytest.approx(126e-6), pytest.approx(126e-6))
    assert api["models"] == {"served-7b": 9} and api["system_fingerprints"] == {"fp_1": 9}
    assert results["prediction_counts"]["hard_prompt"]["refused"] == 0
    assert "9 requests to http://127.0.0.1" in capsys.readouterr().out
    assert "9 requests to" in (tmp_path / "evaluated" / "report.html").read_text()
    assert "base_url" not in results["recipe"]


def test_a_repeated_evaluation_pays_nothing(evaluate, server, tmp_path):
    assert evaluate()[0] == 0
    sent = len(server.requests)
    code, results = evaluate("--api_concurrency", "1", output="again")
    assert code == 0 and len(server.requests) == sent
    assert (results["api"]["requests"], results["api"]["from_cache"]) == (0, 9)
    assert predictions(tmp_path / "again") == predictions(tmp_path / "evaluated")
    assert evaluate("--max_target_tokens", "11", output="other")[1]["api"]["requests"] == 9


def test_a_broken_evaluation_resumes_without_paying_twice(evaluate, server, monkeypatch, capsys):
    server.status, server.error = 400, {"message": "too long for me"}
    answered = []

    def breaks(body):
        answered.append(body)
        server.busy = 10**6 if len(answered) == 4 else 0
        return {}

    server.answer = breaks
    code, _ = evaluate("--api_concurrency", "1")
    assert code == 1 and "too long for me" in capsys.readouterr().err
    server.busy, server.answer = 0, lambda body: {}
    code, results = evaluate()
    assert code == 0 and results["api"]["from_cache"] == 4 and results["api"]["requests"] == 5


def test_equal_requests_at_the_same_time_are_paid_once(evaluate, server, tmp_path):
    (tmp_path / "same.jsonl").write_text((_row() + "\n") * 6)
    code, results = evaluate(test_file=tmp_path / "same.jsonl")
    assert code == 0 and len(server.requests) == 1
    assert (results["api"]["requests"], results["api"]["from_cache"]) == (1, 5)


def _row():
    answers = {"text": ["Oslo"], "answer_start": [13]}
    return json.dumps({"id": "1", "context": "Ada lives in Oslo.", "question": "Where?", "answers": answers})


def test_requests_at_once_are_limited(evaluate, server):
    assert evaluate("--api_concurrency", "2")[0] == 0
    assert server.most_at_once <= 2


def test_max_cost_stops_before_it_is_passed_and_resumes(evaluate, server, capsys):
    flags = ("--token_prices", "1000", "1000", "--api_concurrency", "2")
    code, _ = evaluate(*flags, "--max_cost", "0.28")
    message = capsys.readouterr().err
    paid = len(server.requests)
    assert code == 1 and "max_cost 0.28" in message and "run the same command again" in message
    assert 0 < paid < 9 and paid * 0.012 <= 0.28
    code, results = evaluate(*flags)
    assert code == 0 and results["api"]["from_cache"] == paid
    assert results["api"]["paid"] == pytest.approx((9 - paid) * 0.012)


def test_refused_empty_and_cut_answers_are_counted_apart(evaluate, server):
    parts = [
        {"text": None, "refusal": "I cannot help with that."},
        {"text": "", "finish_reason": "content_filter"},
        {"text": " "},
        {"text": "Tur", "finish_reason": "length"},
        {"text": "Turin\nand more", "finish_reason": "length"},
    ]
    by_prompt = {}

    def answer(body):
        prompt = body["messages"][0]["content"]
        return by_prompt.setdefault(prompt, parts[len(by_prompt)] if len(by_prompt) < len(parts) else {})

    server.answer = answer
    code, results = evaluate("--api_endpoint", "chat", "--api_concurrency", "1")
    assert code == 0
    counts = results["prediction_counts"]["hard_prompt"]
    assert counts == {"at_limit": 1, "within_character": 0, "empty": 1, "refused": 2}


def test_a_chat_template_and_demonstrations_are_sent_as_messages(evaluate, server, tmp_path):
    (tmp_path / "chat.yaml").write_text(
        "chat: true\nsystem: Answer with one word.\nsource: '{{ context }} {{ question }}'\n"
        "target: '{{ answers.text[0] }}'\n"
    )
    code, _ = evaluate(
        template=tmp_path / "chat.yaml", tokenizer_name=_chat_tokenizer(tmp_path), num_demonstrations=1,
        max_source_tokens=400,
    )  # fmt: skip
    assert code == 0
    path, _, body = server.requests[0]
    roles = [message["role"] for message in body["messages"]]
    assert path == "/v1/chat/completions" and roles == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == "Answer with one word." and "prompt" not in body


def _chat_tokenizer(folder):
    from helpers.models import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokenizer.save_pretrained(folder / "chat-tokenizer")
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(folder / "chat-tokenizer")
    return folder / "chat-tokenizer"


def test_text_is_one_message_for_a_server_that_only_chats(evaluate, server):
    assert evaluate("--api_endpoint", "chat")[0] == 0
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["user"]


def test_closed_questions_are_answered_by_text(evaluate, server, tmp_path):
    (tmp_path / "closed.yaml").write_text(
        "source: '{{ context }} {{ question }} Answer:'\ntarget: '{{ answers.text[0] }}'\n"
        f"answer_choices: '{' ||| '.join(_places())}'\n"
    )
    texts = iter(["turin.", "Nowhere at all"])
    server.answer = lambda body: {} if "logprobs" in body else {"text": next(texts, "Oslo")}
    code, results = evaluate("--api_concurrency", "1", template=tmp_path / "closed.yaml")
    assert code == 0 and results["decoding"]["choices"] == "by text"
    assert results["answers"]["taken"]["hard_prompt"] == {"Oslo": 7, "Turin": 1, "Nowhere at all": 1}
    assert results["prediction_counts"]["hard_prompt"]["no_choice"] == 1


def test_closed_questions_are_answered_by_likelihood_where_the_server_lists_tokens(evaluate, server, tmp_path):
    (tmp_path / "closed.yaml").write_text(
        "source: '{{ context }} {{ question }} Answer:'\ntarget: '{{ answers.text[0] }}'\n"
        f"answer_choices: '{' ||| '.join(_places())}'\n"
    )
    # Turin has two tokens, of which the first is the likeliest; Porto has one and is likelier than both together.
    tokens = {" Tu": -0.2, " Porto": -1.0, " Por": -0.5, " Oslo": -3.0}

    def answer(body):
        last = [{"rin": -2.0, "x": -0.1}] if body["prompt"].endswith(" Tu") else [tokens]
        return {"text": "x", "logprobs": {"top_logprobs": last}, "finish_reason": "length"}

    server.answer = answer
    code, results = evaluate(template=tmp_path / "closed.yaml")
    assert code == 0 and results["decoding"]["choices"] == "by likelihood"
    assert results["answers"]["taken"]["hard_prompt"] == {"Porto": 9}
    assert "uncertain" not in results["prediction_counts"]["hard_prompt"]
    assert {body["logprobs"] for body in server.bodies} == {20} and len(server.requests) == 18

    def of_llama_cpp(body):
        after = {"x": -0.1}
        if body["prompt"].endswith(" Tu"):
            after = {"rin": -2.0}
        elif body["prompt"].endswith("Answer:"):
            after = {" Tu": -0.2, " Por": -0.5}
        listed = [{"token": token, "logprob": value} for token, value in after.items()]
        return {"text": "x", "logprobs": {"content": [{"token": "x", "logprob": -1, "top_logprobs": listed}]}}

    # Only Turin is listed whole, with -2.2 in all; Porto may have as much as -0.6.
    server.answer = of_llama_cpp
    settings = dict(model_name_or_path="openai:other", template=tmp_path / "closed.yaml", output="other")
    code, results = evaluate(**settings)
    assert code == 0 and results["answers"]["taken"]["hard_prompt"] == {"Turin": 9}
    assert results["prediction_counts"]["hard_prompt"]["uncertain"] == 9


def _places():
    from helpers.rows import PLACES

    return PLACES


def test_the_key_is_in_no_file_and_no_message(evaluate, server, tmp_path, capsys, caplog):
    listed = [{KEY: -1.0}]
    server.answer = lambda body: {"text": f"Your key is {KEY}", "logprobs": {"top_logprobs": listed}}  # It quotes it.
    assert evaluate()[0] == 0
    server.status, server.error, server.busy = 401, {"message": f"Incorrect key {KEY}"}, 10**6
    assert evaluate("--max_target_tokens", "11", output="refused")[0] == 1
    printed = capsys.readouterr()
    assert "answers 401" in printed.err and KEY not in printed.err + printed.out + caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert cache_file() in files and (tmp_path / "evaluated" / "report.html") in files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert cache_file().stat().st_mode & 0o077 == 0


def test_the_key_is_in_no_target_that_a_teacher_writes(server, recipe_file, model_folders, tmp_path, capsys, caplog):
    server.answer = lambda body: {"text": f"Your key is {KEY}"}
    recipe = recipe_file(
        model_name_or_path="openai:big", tokenizer_name=model_folders["llama"], num_virtual_tokens=None
    )
    command = ["predict", "--recipe", str(recipe), "--base_url", server.url, "--input", str(tmp_path / "test.jsonl")]
    assert main([*command, "--output", str(tmp_path / "taught.jsonl"), "--as_targets"]) == 0
    assert (tmp_path / "taught.jsonl").read_text().count("Your key is") == 9
    printed = capsys.readouterr()
    assert KEY not in printed.err + printed.out + caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert cache_file() in files and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_only_the_command_line_names_a_server_and_a_key(recipe_file, model_folders, tmp_path, capsys):
    settings = dict(model_name_or_path="openai:big", tokenizer_name=model_folders["llama"], num_virtual_tokens=None)
    api = {"base_url": "https://elsewhere.example/v1", "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    assert main(["evaluate", str(recipe_file(**settings, **api))]) == 2
    errors = capsys.readouterr().err
    assert "'https://elsewhere.example/v1', and only the command line" in errors and "AWS_SECRET" in errors
    assert main(["evaluate", str(recipe_file(**settings))]) == 2
    assert "no file decides which server is asked. Give --base_url" in capsys.readouterr().err
    (tmp_path / "runs.yaml").write_text(
        f"recipe: {recipe_file(**settings)}\nruns:\n  a: {{base_url: https://elsewhere.example/v1}}\n"
    )
    assert main(["compare", str(tmp_path / "runs.yaml")]) == 2
    assert "only the command line decides which server" in capsys.readouterr().err


def test_predict_answers_rows_in_their_order(server, recipe_file, model_folders, tmp_path, capsys):
    recipe = recipe_file(
        model_name_or_path="openai:big", tokenizer_name=model_folders["llama"], num_virtual_tokens=None,
        num_demonstrations=1, max_source_tokens=200,
    )  # fmt: skip
    command = ["predict", "--recipe", str(recipe), "--base_url", server.url, "--input", str(tmp_path / "test.jsonl")]
    assert main([*command, "--output", str(tmp_path / "out.csv"), "--truncated"]) == 0
    assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert len(server.requests) == 9 and server.bodies[0]["prompt"].count("Question:") == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [row["answers"]["text"][0] for row in rows]
    assert "at_limit" in (tmp_path / "out.csv").read_text().splitlines()[0]
    assert "90 tokens in, 18 out" in capsys.readouterr().err
    assert main([*command, "--score"]) == main(["predict", "--base_url", server.url, "--adapter", "x"]) == 2
    server.status, server.busy, server.error = 400, 10**6, {"message": "no"}
    (tmp_path / "new.jsonl").write_text(_row())
    assert main([*command[:-1], str(tmp_path / "new.jsonl"), "--output", str(tmp_path / "new.out")]) == 1
    assert "new.jsonl, line 1: http" in capsys.readouterr().err and not (tmp_path / "new.out").exists()


def test_a_teacher_writes_training_rows_of_answers_that_two_prompts_agree_on(
    server, recipe_file, model_folders, tmp_path, capsys
):
    # The answers agree by the main metric of the task, whatever the recipe's metrics are.
    settings = dict(num_virtual_tokens=None, metrics="[exact_match]")
    recipe = recipe_file(model_name_or_path="openai:big", tokenizer_name=model_folders["llama"], **settings)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    unlabelled = [{name: value for name, value in row.items() if name != "answers"} for row in rows]
    (tmp_path / "new.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in unlabelled))

    def answer(body):
        (number,) = (number for number, row in enumerate(rows) if row["context"] in body["prompt"])
        if number == 1 and body["prompt"].startswith("Read"):
            return {"text": "Atlantis"}
        return {
            0: {"text": ""},
            2: {"finish_reason": "length"},
            3: {"text": "", "finish_reason": "content_filter"},
        }.get(number, {})

    server.answer = answer
    command = ["predict", "--recipe", str(recipe), "--base_url", server.url, "--input", str(tmp_path / "new.jsonl")]
    command += ["--output", str(tmp_path / "taught.jsonl"), "--as_targets"]
    (tmp_path / "other.yaml").write_text(
        "source: 'Read: {{ context }} {{ question }}'\ntarget: '{{ answers.text[0] }}'\n"
    )
    assert main([*command, "--agree", str(tmp_path / "other.yaml")]) == 0
    taught = [json.loads(line) for line in (tmp_path / "taught.jsonl").read_text().splitlines()]
    assert taught == [row | {"answers": row["answers"]["text"]} for row in rows[4:]]
    sent = len(server.requests)
    assert sent == 9 + 1 + 6  # Once without stop texts. What the first template does not answer is not asked again.
    printed = capsys.readouterr().err
    assert "4 of 9 predictions are no target, and their rows are left out" in printed
    assert "1 of 9 predictions is different from those of another template" in printed
    assert "1 of 9 predictions is refused by the server" in printed
    assert main([*command, "--agree", str(tmp_path / "other.yaml"), "--agreement", "0"]) == 0
    assert len((tmp_path / "taught.jsonl").read_text().splitlines()) == 6 and len(server.requests) == sent
    server.answer = lambda body: {"text": ""}
    (tmp_path / "new.jsonl").write_text(json.dumps(unlabelled[0] | {"context": "New."}))
    assert main(command) == 1 and "no answer can be a target" in capsys.readouterr().err
    assert main([*command, "--agree", "question_answering/plain"]) == 2
    assert "--agree question_answering/plain: it is the recipe's own template." in capsys.readouterr().err
    assert main([*command[:-1], "--agree", "x"]) == main(["predict", "--adapter", "x", "--as_targets"]) == 2
    assert main(["check", str(recipe_file()), "--train_file", str(tmp_path / "taught.jsonl")]) == 0


@pytest.mark.parametrize(
    ("data", "row", "expected"),
    [
        (
            {"task": "translation", "source_lang": "fr", "target_lang": "en"},
            {"translation": {"fr": "a", "en": "b"}},
            {"translation": {"fr": "a", "en": "new"}},
        ),
        (
            {"task": "translation", "source_lang": "fr", "target_lang": "en", "target_column": "english"},
            {"fr": "a"},
            {"fr": "a", "english": "new"},
        ),
        ({"task": "summarization", "summary_column": "short"}, {"short": "b"}, {"short": "new"}),
        ({"task": "question_answering"}, {"answers": {"text": ["b"]}}, {"answers": ["new"]}),
    ],
)
def test_a_target_is_written_to_the_column_that_the_recipe_reads(data, row, expected):
    assert target_row(row, "new", DataArguments(**data)) == expected


def test_equal_answers_agree_also_where_the_metric_is_0():
    targets = Targets(DataArguments(task="translation", source_lang="fr", target_lang="en"))
    assert targets.lowest_score(["Yes.", "Yes."]) == targets.lowest_score(["Yes."]) == 100
    assert targets.lowest_score(["Yes.", "Yes.", "Never."]) < 50


def test_compare_sets_a_model_behind_an_api_beside_one_that_is_loaded(
    server, recipe_file, model_folders, tmp_path, capsys
):
    settings = dict(method="none", num_virtual_tokens=None, max_steps=None)
    small = recipe_file(**settings).rename(tmp_path / "small.yaml")
    large = recipe_file(model_name_or_path="openai:big", tokenizer_name=model_folders["llama"], **settings)
    large = large.rename(tmp_path / "large.yaml")
    command = ["compare", str(small), str(large), "--output_dir", str(tmp_path / "compared")]
    assert main([*command, "--base_url", server.url]) == 0
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert compared["parts"].keys() == {"small", "large"} and len(server.requests) == 9
    assert re.search(r"large +100\.0 ", capsys.readouterr().out)
    assert "base_url" not in (tmp_path / "compared" / "large-seed42" / "recipe.yaml").read_text()
    assert main([*command, "--base_url", server.url]) == 0 and len(server.requests) == 9
    capsys.readouterr()
    assert main([*command, "--base_url", "http://127.0.0.1:9/v1"]) == 1
    assert "model_name_or_path openai:big" in capsys.readouterr().err


def test_the_functions_of_python_take_the_address_from_their_caller(server, recipe_file, model_folders, tmp_path):
    from prompt_tuning import evaluate

    recipe = recipe_file(
        model_name_or_path="openai:big", tokenizer_name=model_folders["llama"], num_virtual_tokens=None
    )
    run = evaluate(recipe, base_url=server.url, output_dir=tmp_path / "python")
    assert run.results["api"]["requests"] == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base_url", "http://ann:pw@host/v1"], "without a password"),
        (["--base_url", "ftp://host/v1"], "expected an address"),
        (["--token_prices", "1"], "Set two numbers"),
        (["--max_cost", "1"], "max_cost has no effect without token_prices"),
        (["--generation_num_beams", "2"], "an API has no beams"),
        (["--api_key_env", "NOT_SET"], "no such variable"),
        (["--adapter", "someone/prompt"], "takes none"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_sent(evaluate, server, capsys, flags, message):
    assert evaluate(*flags)[0] != 0
    assert message in capsys.readouterr().err and not server.requests


def test_a_model_behind_an_api_is_not_trained(evaluate, server, recipe_file, model_folders, capsys):
    recipe = recipe_file(model_name_or_path="openai:big", tokenizer_name=model_folders["llama"])
    assert main(["train", str(recipe), "--base_url", server.url]) == 2
    assert "is not trained. Set method: none" in capsys.readouterr().err
    assert main(["evaluate", str(recipe_file(tokenizer_name=model_folders["llama"]))]) == 2
    assert "tokenizer_name has no effect without" in capsys.readouterr().err


def test_a_damaged_cache_is_named(evaluate, server, capsys):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(b"no database" * 100)
    assert evaluate()[0] == 1 and f"{cache_file()}: the answers of APIs cannot be read" in capsys.readouterr().err
    cache_file().unlink()
    assert evaluate()[0] == 0
    with sqlite3.connect(cache_file()) as database:
        database.execute("UPDATE replies SET reply = '{\"text\": 1}'")
    assert evaluate(output="again")[0] == 1


ODD_ANSWERS = (
    b"", b"<html>", b'"x"', b"[1]", b"null", b"{nope", b"[" * 10**5, b'{"choices": "x"}', b'{"choices": [7]}',
    b"\xff\xfe{", b'{"choices": {"a": 1}}', b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}", b'{"error": "x"}',
)  # fmt: skip
ODD_PARTS = (
    {"message": "x"}, {"message": [1]}, {"text": 7}, {}, {"logprobs": "x"}, {"logprobs": {"top_logprobs": "x"}},
    {"logprobs": {"top_logprobs": {"a": 1}}}, {"logprobs": {"top_logprobs": [[1]]}}, {"logprobs": {"content": "x"}},
    {"logprobs": {"top_logprobs": [{"a": 10**400, "b": "x", "c": None}]}}, {"logprobs": {"content": ["x"]}},
    {"logprobs": {"content": [{"top_logprobs": [{"a": 1}, {"token": [1], "logprob": -1}, 7]}]}},
    {"logprobs": {"content": [{"top_logprobs": 7}]}},
)  # fmt: skip
ODD_USAGES = ("x", [1], 7, {"prompt_tokens": -5, "completion_tokens": True}, {"prompt_tokens": 10**400})


def test_an_answer_of_another_shape_is_an_error_or_has_no_such_part(server, monkeypatch):
    send = openai_client(server.url)
    body = {"model": "m", "prompt": "x", "max_tokens": 3, "temperature": 0}
    for server.content in ODD_ANSWERS:
        with pytest.raises(ModelError, match=r"its answer (cannot be read|has no choices)"):
            send(body)
    for parts in ODD_PARTS:
        server.content = json.dumps({"choices": [parts]}).encode()
        assert send(body) == Reply("", listed={"": -1.0} if "7]" in str(parts) else {})
    for usage in ODD_USAGES:
        server.content = json.dumps({"choices": [{"text": "x"}], "usage": usage}).encode()
        assert send(body) == Reply("x")
    server.content = json.dumps({"choices": [{"text": "x" * 1000}]}).encode()
    assert send(body).text == "x" * 1000
    monkeypatch.setattr("prompt_tuning.runs.api_client.MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="larger than 1,000 bytes"):
        send(body)


def test_rows_follow_no_server_to_another_address(server):
    server.status, server.headers, server.busy = 307, {"Location": f"{server.url}/elsewhere"}, 1
    with pytest.raises(ModelError, match=r"it answers 307: .* names another address"):
        openai_client(server.url)({"model": "m", "prompt": "x", "max_tokens": 3, "temperature": 0})
    assert [path for path, _, _ in server.requests] == ["/v1/completions"]


def test_a_long_error_of_a_server_is_cut(server):
    server.status, server.error, server.busy = 400, {"message": "x" * 10**5}, 1
    with pytest.raises(ModelError, match=r"answers 400: .*xxx\. Run") as error:
        openai_client(server.url)({"model": "m", "prompt": "x", "max_tokens": 3, "temperature": 0})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(("bound", "value"), [("MAX_BYTES", 10**5), ("MAX_SECONDS", 0.1)])
def test_an_error_without_an_end_is_cut(bound, value, server, monkeypatch):
    monkeypatch.setattr(f"prompt_tuning.runs.api_client.{bound}", value)
    sent = []

    def endless():
        while sum(map(len, sent)) < 10**8:
            sent.append(b"x" * 10**4)
            yield sent[-1]
            time.sleep(0.001)

    server.status, server.stream, server.busy = 400, endless(), 1
    with pytest.raises(ModelError, match="answers 400: Error code: 400"):
        openai_client(server.url)({"model": "m", "prompt": "x", "max_tokens": 3, "temperature": 0})
    assert sum(map(len, sent)) < 10**7


def test_a_compressed_answer_is_not_unpacked(server):
    server.headers, server.content = {"Content-Encoding": "gzip"}, gzip.compress(b'{"choices": []}')
    with pytest.raises(ModelError, match="its answer cannot be read"):
        openai_client(server.url)({"model": "m", "prompt": "x", "max_tokens": 3, "temperature": 0})


def test_a_second_interrupt_leaves_a_server_that_never_answers(monkeypatch):
    answered, asking = threading.Event(), []

    def interrupt():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def answer(number):
        asking.append(threading.current_thread())
        interrupt()
        answered.wait(10)

    def warn(*_):
        threading.Timer(0.2, interrupt).start()  # By then the answer that is on the way is waited for.

    monkeypatch.setattr("prompt_tuning.runs.api_client.logger.warning", warn)
    with pytest.raises(KeyboardInterrupt):
        list(in_order([0], answer, 1))
    assert asking[0].is_alive() and asking[0].daemon
    answered.set()
