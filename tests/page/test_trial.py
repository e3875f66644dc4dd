"""What the page shows, without the page: rows, systems, prompts and streamed answers."""

import json
import shutil
import threading
from dataclasses import replace

import pytest
import torch
from helpers.models import forbid_model_loading, tiny_llama
from safetensors.torch import save_file

from prompt_tuning.encoding.text_tokens import TextToken
from prompt_tuning.encoding.trained_text import TrainedText
from prompt_tuning.errors import AdapterError, DataError
from prompt_tuning.page.prompts import prompt_segments, start_ids
from prompt_tuning.page.rows import Box, EvaluatedRow, row_labels, row_of_boxes
from prompt_tuning.page.trial import AS_TEXT, HARD, TRAINED, Piece, Trial, run_words
from prompt_tuning.runs.answers import generate_texts
from prompt_tuning.support.run_folder import RunFolder


@pytest.fixture
def tried(trial):
    (run,) = trial.runs.values()
    return run


def whole(trial, run, system, row):
    return [*trial.answer(run, system, run.question(system, row))][-1]


def test_an_evaluated_row_is_answered_as_the_run_answered_it(trial, tried, tried_folder):
    lines = [json.loads(line) for line in (tried_folder / "predictions" / "test.jsonl").read_text().splitlines()]
    saved = {line["source"]: line for line in lines}
    assert list(tried.systems) == [HARD, TRAINED, AS_TEXT]
    for row in tried.rows:
        assert whole(trial, tried, TRAINED, row.values).text == saved[row.source]["soft_prompt"] == row.prediction
        assert whole(trial, tried, HARD, row.values).text == saved[row.source]["hard_prompt"]


def test_the_text_that_the_prompt_started_from_is_found_and_read_as_text(trial, tried):
    tokenizer = tried.task.encoder.tokenizer
    assert len(tried.start) == tried.num_virtual_tokens
    text = tokenizer.decode(tried.start)
    assert text.count("Question:") == text.count("Answer:") == 2
    row = tried.rows[1].values
    question = tried.question(AS_TEXT, row)
    with trial.predictor.model.disable_adapter():
        (expected,) = generate_texts(
            trial.predictor.model, tokenizer, [question.source], (), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    assert whole(trial, tried, AS_TEXT, row).text == expected
    assert "".join(part for part, _ in tried.segments(AS_TEXT, question)).startswith(text.replace("\n", "↵\n"))


@pytest.mark.parametrize("start", [torch.zeros(6, 7), torch.zeros(32), torch.tensor(1.0)])
def test_a_start_of_another_shape_is_named(start, tokenizer, tmp_path):
    save_file({"initial_prompt": start}, tmp_path / "initial_prompt.safetensors")
    with pytest.raises(AdapterError, match=r"initial_prompt.safetensors: not the start of a prompt of this model"):
        start_ids(RunFolder(tmp_path), {"init": "demonstrations"}, tiny_llama(len(tokenizer)), tokenizer)


def test_rows_are_shown_the_worst_first(tried):
    scores = [row.score for row in tried.rows]
    assert scores == sorted(scores) and len(scores) == 9
    assert not any(map(tried.is_changed, tried.rows))
    assert tried.labels[1].startswith(f"f1 {scores[1]:.0f} · {tried.rows[1].values['question']} → ")


def test_answers_stream_and_a_caller_can_leave(trial, tried):
    row = tried.rows[1].values
    pieces = [*trial.answer(tried, TRAINED, tried.question(TRAINED, row))]
    counts = [piece.new_tokens for piece in pieces]
    assert len(pieces) > 2 and counts == sorted(counts) and [piece.is_whole for piece in pieces].count(True) == 1
    before = threading.active_count()
    left = trial.answer(tried, TRAINED, tried.question(TRAINED, row))
    next(left)
    left.close()
    assert threading.active_count() == before
    assert whole(trial, tried, TRAINED, row).text == pieces[-1].text


def test_facts_name_tokens_seconds_and_the_score(tried):
    question = tried.question(TRAINED, tried.rows[1].values)
    facts = tried.facts(TRAINED, question, Piece("Oslo", 3, 0.5, is_whole=True), ["Oslo"])
    assert facts == f"{len(question.source) + tried.num_virtual_tokens} tokens read, 3 written, 0.50 s, f1 100.0"
    assert "f1" not in tried.facts(TRAINED, question, Piece("Oslo", 3, 0.5), ["Oslo"])


def test_virtual_tokens_and_trained_text_are_marked(tried):
    question = tried.question(TRAINED, tried.rows[1].values)
    (virtual, row) = tried.segments(TRAINED, question)
    assert virtual[1].startswith(f"{tried.num_virtual_tokens} virtual tokens") and row[1] is None
    assert prompt_segments(tried.task.encoder, [20], 3, [])[0] == ("□ □ □", "3 virtual tokens")
    encoder = tried.task.encoder
    first, second, third = encoder.tokenizer("Question: Where", add_special_tokens=False).input_ids[:3]
    text = TrainedText("all", ("Question:",), (TextToken(0, 0, 1, second),), first_id=len(encoder.tokenizer))
    parts = prompt_segments(replace(encoder, trained_text=text), [first, text.first_id, third], 0, [])
    decode = encoder.tokenizer.decode
    assert parts == [(decode(first), None), (decode(second), "trained text"), (decode(third), None)]


def test_a_row_of_ones_own_keeps_what_a_click_filled_in_and_is_not_changed():
    boxes = [Box("en", "translation", language="en"), Box("text", "text"), Box("choices", "choices", is_text=False)]
    row = {"translation": {"en": "a", "de": "b"}, "text": "c", "choices": ["d"], "extra": 1}
    shown = [box.shown(row) for box in boxes]
    assert shown == ["a", "c", '["d"]'] and row_of_boxes(boxes, shown, row) == row
    changed = row_of_boxes(boxes, ["A", "C", '["D", "E"]'], row)
    assert changed == {"translation": {"en": "A"}, "text": "C", "choices": ["D", "E"], "extra": 1}
    with pytest.raises(DataError, match="choices: not JSON"):
        row_of_boxes(boxes, ["A", "C", "D"], {})


def test_a_row_is_named_by_its_shortest_column():
    rows = [EvaluatedRow({"long": "word " * 100, "short": f"Why {n}?"}, (), "", "", None) for n in range(2)]
    boxes = [Box("long", "long"), Box("short", "short")]
    assert row_labels(rows, boxes, None) == ["Why 0? → (nothing)", "Why 1? → (nothing)"]


def test_a_run_whose_rows_are_gone_takes_rows_of_ones_own(tried_folder, tmp_path, trial):
    folder = shutil.copytree(tried_folder, tmp_path / "moved")
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace(str(tried_folder.parent / "test.jsonl"), "gone.jsonl"))
    (run,) = Trial.load([str(folder)]).runs.values()
    assert not run.rows and "gone.jsonl" in run.problem and [box.label for box in run.boxes] == ["context", "question"]
    row, references = run.row(None, "Perth", ["Ada lives in Perth.", "Where does Ada live?"])
    assert row == {"context": "Ada lives in Perth.", "question": "Where does Ada live?"} and references == ["Perth"]


def test_several_runs_of_one_base_are_named_and_keep_their_prompts(tried_folder, tmp_path, trial):
    other = shutil.copytree(tried_folder, tmp_path / "other")
    both = Trial.load([str(tried_folder), f"second={other}"])
    (alone,) = trial.runs.values()
    assert list(both.runs) == ["run", "second"]
    row = alone.rows[1]
    for run in both.runs.values():
        for system in (HARD, TRAINED, AS_TEXT):
            assert whole(both, run, system, row.values).text == whole(trial, alone, system, row.values).text


def test_a_changed_file_of_rows_is_noticed(tried):
    row = tried.rows[1]
    assert tried.is_changed(replace(row, values=row.values | {"question": "Another?"}))


def test_a_run_of_several_tasks_stands_for_its_tasks(tried_folder, tmp_path):
    results = json.loads((tried_folder / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({"seed": 1, "tasks": {"a": results, "b": results}}))
    words = [str(tried_folder), f"x={tried_folder}", str(tmp_path), "user/name"]
    assert run_words(words) == [*words[:2], str(tmp_path / "a"), str(tmp_path / "b"), "user/name"]


def test_a_run_that_is_not_one_is_refused_before_a_model_loads(tmp_path, monkeypatch):
    forbid_model_loading(monkeypatch)
    with pytest.raises(AdapterError, match="gone"):
        Trial.load([str(tmp_path / "gone")])
