import base64
import io
import json
import re
import resource
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers.models import forbid_model_loading, tokenizer_with_beginning
from helpers.rows import question_rows, write_jsonl
from transformers import AutoModelForCausalLM

from prompt_tuning.cli.main import main
from prompt_tuning.encoding.decoding import cut_at_stop
from prompt_tuning.errors import DataError, ModelError
from prompt_tuning.runs.api_client import Reply, openai_client
from prompt_tuning.runs.export import export_runs
from prompt_tuning.runs.exported import ExportedTask
from prompt_tuning.runs.requests import Requests
from prompt_tuning.support.files import read_json_lines


@pytest.fixture
def exported(make_run, tmp_path):
    """Return the folder of an export with one task, qa, whose rows are 9 rows of the test split."""
    return export_runs([make_run()], tmp_path / "out", rows=[make_run.rows])


def server_of(folder, task):
    """Return a function that answers requests as a server of the folder does: texts without special tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    lock = threading.Lock()

    def send(body):
        ids = torch.tensor([body["prompt"]])
        settings = dict(max_new_tokens=body["max_tokens"], do_sample=False, pad_token_id=0)
        with lock, torch.inference_mode():
            new = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
        text = task.encoder.tokenizer.decode(new, skip_special_tokens=True)
        stopped = min((text.split(stop)[0] for stop in body.get("stop", [])), key=len, default=text)
        reason = "length" if stopped == text and new[-1] != 1 else "stop"
        return Reply(text=stopped, finish_reason=reason)

    return send


def test_a_request_is_a_body_of_the_completions_api(exported, make_run, monkeypatch, capsys):
    forbid_model_loading(monkeypatch)
    assert main(["requests", str(exported), "--task", "qa", "--input", make_run.rows]) == 0
    bodies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(bodies) == 9
    task = ExportedTask.load(exported, "qa")
    assert bodies[0].keys() == {"model", "prompt", "max_tokens", "temperature", "stop"}
    assert bodies[0]["stop"] == ["\n"] and bodies[0]["max_tokens"] == 12 and bodies[0]["temperature"] == 0
    assert all(body["prompt"][:6] == task.tokens.ids for body in bodies)


def test_an_input_without_rows_is_reported(exported, tmp_path, monkeypatch):
    task = ExportedTask.load(exported, "qa")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(DataError, match="standard input: no rows"):
        Requests(task, "m").write(output=str(tmp_path / "requests.jsonl"))
    assert not (tmp_path / "requests.jsonl").exists()


def test_sent_rows_are_predicted_resumed_and_scored_as_the_run_does(exported, make_run, recipe_file, tmp_path):
    task = ExportedTask.load(exported, "qa")
    send, sent = server_of(exported, task), []
    output = tmp_path / "answers.jsonl"

    def breaks(body):
        sent.append(body)
        if len(sent) == 5:
            raise ModelError("the server is gone")
        return send(body)

    with pytest.raises(ModelError, match="gone"):
        Requests(task, "m").send(make_run.rows, str(output), breaks, concurrency=1)
    assert not output.exists()
    Requests(task, "m").send(make_run.rows, str(output), send, concurrency=3)
    assert [path.name for path in tmp_path.glob(".answers*")] == []

    predicted = tmp_path / "predicted.jsonl"
    run = str(tmp_path / "runs/qa")
    command = ["predict", "--adapter", run, "--input", make_run.rows, "--output", str(predicted)]
    assert main(command) == 0
    assert output.read_text("utf-8") == predicted.read_text("utf-8")

    recipe = str(recipe_file(model_name_or_path=tmp_path / "base"))
    folders = [str(tmp_path / name) for name in ("one", "two")]
    assert main(["evaluate", recipe, "--predictions", str(output), "--output_dir", folders[0]]) == 0
    assert main(["evaluate", recipe, "--adapter", run, "--output_dir", folders[1]]) == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["soft_prompt"] == results[1]["soft_prompt"]
    assert main([*command, "--truncated"]) == 0
    assert main(["evaluate", recipe, "--predictions", str(predicted), "--output_dir", str(tmp_path / "three")]) == 0
    counts = json.loads((tmp_path / "three" / "results.json").read_text())["prediction_counts"]
    assert counts == results[1]["prediction_counts"] and counts["soft_prompt"]["at_limit"] > 0


def test_a_server_that_takes_no_token_ids_gets_text(exported, make_run, tmp_path, monkeypatch):
    prompts = []

    def send(body):
        prompts.append(body["prompt"])
        return Reply(text="x", finish_reason="stop")

    monkeypatch.setattr("prompt_tuning.runs.api_client.openai_client", lambda url: send)
    command = ["requests", str(exported), "--task", "qa", "--input", make_run.rows, "--url", "http://127.0.0.1:1/v1"]
    assert main([*command, "--output", str(tmp_path / "answers.jsonl"), "--text", "--concurrency", "1"]) == 0
    assert len(prompts) == 9 and all(prompt.startswith("<|prompt:qa:0|>") for prompt in prompts)


def test_embeddings_of_the_rows_let_the_base_model_answer_alike(exported, make_run, tmp_path):
    task = ExportedTask.load(exported, "qa")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    by_ids = server_of(exported, task)
    files = [tmp_path / name for name in ("ids.jsonl", "embeddings.jsonl")]
    for file, flags in zip(files, ([], ["--prompt_embeds"]), strict=True):
        command = ["requests", str(exported), "--task", "qa", "--input", make_run.rows, "--output", str(file)]
        assert main([*command, *flags]) == 0
    for with_ids, body in zip(*map(read_json_lines, files), strict=True):
        assert "prompt" not in body and body["max_tokens"] == with_ids["max_tokens"]
        content = base64.b64decode(body["prompt_embeds"])
        embeds = torch.load(io.BytesIO(content), weights_only=True)
        assert embeds.shape == (len(with_ids["prompt"]), 32) and len(content) < embeds.nbytes + 2000
        settings = {"max_new_tokens": body["max_tokens"], "do_sample": False, "pad_token_id": 0}
        new = base.generate(inputs_embeds=embeds[None], **settings)[0]
        text = task.encoder.tokenizer.decode(new, skip_special_tokens=True)
        assert cut_at_stop(text, body["stop"]) == cut_at_stop(by_ids(with_ids).text, body["stop"])


def test_answers_of_other_rows_are_not_taken(exported, make_run, tmp_path):
    task = ExportedTask.load(exported, "qa")

    def breaks(body):
        raise ModelError("the server is gone")

    partial = tmp_path / f".answers.jsonl.qa-{task.checksum[:8]}.partial"
    row = question_rows(1)[0] | {"question": "another?", "prediction": "x"}
    partial.write_text(json.dumps(row) + "\n" + '{"half')
    with pytest.raises(DataError, match=r"answers of other rows .*Remove it"):
        Requests(task, "m").send(make_run.rows, str(tmp_path / "answers.jsonl"), breaks)
    assert partial.read_text() == json.dumps(row) + "\n"  # The line without an end is cut.


@pytest.mark.parametrize("line", ["nope", "[]", '{"question": "x"}', '{"prediction": 7}', "[" * 10**5])
def test_a_damaged_file_of_answers_is_named(line, exported, make_run, tmp_path):
    task = ExportedTask.load(exported, "qa")
    partial = tmp_path / f".answers.jsonl.qa-{task.checksum[:8]}.partial"
    partial.write_text(line + "\n")
    with pytest.raises(DataError, match=r"\.partial, line 1: "):
        Requests(task, "m").send(make_run.rows, str(tmp_path / "answers.jsonl"), lambda body: Reply("x"))


def test_a_full_disk_keeps_the_answers_and_a_link_is_not_followed(exported, make_run, tmp_path):
    task = ExportedTask.load(exported, "qa")
    partial = tmp_path / f".answers.jsonl.qa-{task.checksum[:8]}.partial"
    (tmp_path / "mine").write_text("of the user")
    partial.symlink_to("mine")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, unlimited[1]))
    try:
        with pytest.raises(DataError, match=r"\.partial: File too large. Its answers are kept"):
            Requests(task, "m").send(make_run.rows, str(tmp_path / "answers.jsonl"), lambda body: Reply("x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (tmp_path / "mine").read_text() == "of the user"
    sent = []

    def send(body):
        sent.append(body)
        return Reply("x")

    Requests(task, "m").send(make_run.rows, str(tmp_path / "answers.jsonl"), send)
    assert 0 < len(sent) < 9 and len(read_json_lines(tmp_path / "answers.jsonl")) == 9


def test_an_id_that_no_added_token_has_is_refused(exported, monkeypatch):
    forbid_model_loading(monkeypatch)
    file = exported / "prompts.json"
    saved = json.loads(file.read_text())
    for key, ids in (("ids", [399]), ("ids", [406]), ("ids", [10**30]), ("text_ids", [10**9])):
        file.write_text(json.dumps(saved | {"tasks": {"qa": saved["tasks"]["qa"] | {key: ids}}}))
        with pytest.raises(DataError, match=r"prompts.json: qa: the id .* is not that of an added token"):
            ExportedTask.load(exported, "qa")


def test_a_stop_text_at_the_start_of_an_answer_is_asked_for_again(exported, make_run, tmp_path):
    task = ExportedTask.load(exported, "qa")

    def send(body):
        text = "" if "stop" in body else "\n\nTurin\nand more"
        return Reply(text=text, finish_reason="stop" if "stop" in body else "length")

    Requests(task, "m").send(make_run.rows, str(tmp_path / "answers.jsonl"), send)
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert {json.loads(line)["prediction"] for line in lines} == {"Turin"}


def test_predictions_of_other_rows_are_not_scored(recipe_file, tmp_path, capsys):
    rows = question_rows(9, 5)
    for rows_of_file, message in ((rows[:3], "it has 3 rows"), (rows[::-1], r"line 1: not .*test.jsonl, line 1")):
        write_jsonl(tmp_path / "predicted.jsonl", [row | {"prediction": "x"} for row in rows_of_file])
        assert main(["evaluate", str(recipe_file()), "--predictions", str(tmp_path / "predicted.jsonl")]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_text_is_refused_where_a_server_makes_other_ids_of_it(make_run, tmp_path):
    bytes_only = export_runs([make_run()], tmp_path / "out", rows=[make_run.rows])
    Requests(ExportedTask.load(bytes_only, "qa"), "m", as_text=True).write(make_run.rows, str(tmp_path / "x"))
    assert json.loads((tmp_path / "x").read_text().splitlines()[0])["prompt"].startswith("<|prompt:qa:0|>")
    prefixed = export_runs(
        [make_run("p", tokens=tokenizer_with_beginning(), base="other")], tmp_path / "p", rows=[make_run.rows]
    )
    with pytest.raises(DataError, match=r"line 1: tokenized again, its text has other token ids"):
        Requests(ExportedTask.load(prefixed, "p"), "m", as_text=True).write(make_run.rows, str(tmp_path / "y"))
    assert not (tmp_path / "y").exists()


def test_a_task_that_is_not_there_is_named(exported, tmp_path):
    with pytest.raises(DataError, match=r"no task 'x'. It has qa"):
        ExportedTask.load(exported, "x")
    with pytest.raises(DataError, match=r"no prompts.json there"):
        ExportedTask.load(tmp_path, "qa")


class Answers(BaseHTTPRequestHandler):
    """A server that is busy at first, and then answers with the length of the prompt."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.path, self.headers["Authorization"], body))
        busy = len(self.server.bodies) == 1
        answer = {"choices": [{"text": str(len(body["prompt"])), "finish_reason": "stop", "index": 0}]}
        answer |= {"id": "1", "object": "text_completion", "created": 0, "model": "m"}
        content = json.dumps({"error": {"message": "busy"}} if busy else answer).encode()
        self.send_response(503 if busy else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def test_a_busy_server_is_asked_again_through_the_client_of_openai(exported, make_run, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="the package openai is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.bodies = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    task = ExportedTask.load(exported, "qa")
    Requests(task, "m").send(make_run.rows, str(tmp_path / "answers.jsonl"), openai_client(url))
    server.shutdown()
    server.server_close()
    path, key, body = server.bodies[-1]
    assert path == "/v1/completions" and key == "Bearer sk-mine" and len(server.bodies) == 10
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 9 and all(line["prediction"].isdecimal() for line in lines)
    monkeypatch.setattr("prompt_tuning.runs.api_client.TRIES", 1)
    with pytest.raises(ModelError, match=r"no answer .*run the same command again to resume"):
        openai_client(url)(body)


def test_requests_without_the_client_name_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModelError, match=r"Install prompt-tuning\[serve\]"):
        openai_client("http://127.0.0.1:1/v1")
