"""Check that one Predictor answers the rows of several runs, each as the run alone does."""

import re
from pathlib import Path

import pytest
import torch
from helpers.models import forbid_model_loading, tiny_llama, tiny_t5
from helpers.rows import question_rows
from peft import LoraConfig

from prompt_tuning import Predictor
from prompt_tuning.errors import AdapterError, DataError, PromptTuningError
from prompt_tuning.models.several_prompts import check_kinds


def mixed(names, count=9):
    """Return rows of tasks in turn."""
    return [row | {"task": names[number % len(names)]} for number, row in enumerate(question_rows(count, 5))]


def alone(runs, rows):
    """Return what each row's run, loaded alone, writes for the row."""
    predictors = {name: Predictor.load(run) for name, run in runs.items()}
    return [predictors[row["task"]]([row])[0] for row in rows]


def with_stop(run, stop):
    """Change the stop texts of a run."""
    file = Path(run, "template.yaml")
    file.write_text(re.sub(r"(?m)^stop:.*\n(- .*\n)*", "", file.read_text()) + f"stop: {stop}\n")


def test_mixed_rows_are_answered_as_their_runs_alone_answer_them(make_run, monkeypatch):
    runs = {
        "qa": make_run("qa"),
        "p": make_run("p", method="p_tuning", seed=1),
        "text": make_run("text", method="cpt", num_virtual_tokens=None, init_text="Answer the question.", seed=2),
        "short": make_run("short", seed=3, generation_max_length=3),
    }
    with_stop(runs["p"], '["e", " a"]')
    rows = mixed([*runs], 12)
    expected = alone(runs, rows)
    assert len(set(expected)) > 4
    predictor = Predictor.load(list(runs.values()))
    batches = []
    generate = predictor.model.generate

    def counted(**kwargs):
        batches.append(len(kwargs["input_ids"]))
        return generate(**kwargs)

    monkeypatch.setattr(predictor.model, "generate", counted)
    assert predictor(rows) == expected and batches == [12]
    assert predictor(rows, batch_size=5) == expected and batches[1:] == [5, 5, 2]
    assert predictor(rows[:2], batch_tokens=1) == expected[:2] and batches[4:] == [1, 1]
    assert [next(predictor.stream(iter(rows))).text] == expected[:1]


@pytest.mark.parametrize("kind", ["prefixes", "closed questions", "encoder-decoder", "layer vectors"])
def test_rows_that_no_one_batch_takes_are_answered_too(kind, make_run, tokenizer):
    closed = {"template": "question_answering/yes_no", "max_source_tokens": 128}
    first, second = {
        "prefixes": ({"method": "prefix_tuning"}, {"method": "prefix_tuning", "num_virtual_tokens": 6}),
        "closed questions": ({}, closed),
        "encoder-decoder": ({"model": tiny_t5(len(tokenizer))}, {"model": tiny_t5(len(tokenizer)), **closed}),
        "layer vectors": ({"layer_vectors": "true"}, {}),
    }[kind]
    runs = {"first": make_run("first", **first), "second": make_run("second", seed=1, **second)}
    rows = mixed([*runs], 6)
    predictor = Predictor.load([f"{name}={run}" for name, run in runs.items()])
    answers = list(predictor.stream(rows, with_scores=True))
    assert [answer.text for answer in answers] == alone(runs, rows)
    for row, answer in zip(rows, answers, strict=True):
        single = Predictor.load(runs[row["task"]])
        (expected,) = single.stream([row], with_scores=True)
        assert answer.text == expected.text and answer.score == pytest.approx(expected.score, abs=1e-5)


def test_a_score_is_the_mean_log_probability_of_the_answer(make_run):
    run = make_run()
    with_stop(run, '["e"]')
    predictor = Predictor.load(run)
    rows = question_rows(6)
    for row, answer in zip(rows, predictor.stream(rows, with_scores=True), strict=True):
        source = predictor.read(row).source
        written = predictor.model.generate(
            torch.tensor([source]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=1
        )[0, len(source) :].tolist()
        tokenizer = predictor.encoder.tokenizer
        count = next(n for n in range(13) if tokenizer.decode(written[:n]).strip().startswith(answer.text))
        if not count:
            assert answer.score is None
            continue
        ids = torch.tensor([source + written[:count]])
        labels = ids.clone()
        labels[:, : len(source)] = -100
        assert answer.score == pytest.approx(-predictor.model(input_ids=ids, labels=labels).loss.item(), abs=1e-4)


def test_runs_that_do_not_belong_together_are_refused_before_a_model_loads(make_run, tokenizer, monkeypatch):
    runs = {name: make_run(name, method=name) for name in ("prompt_tuning", "prefix_tuning")}
    other = make_run("other", model=tiny_llama(len(tokenizer), seed=1), base="base2")
    again = make_run("again", base="base3", max_source_tokens=64)
    forbid_model_loading(monkeypatch)
    first = runs["prompt_tuning"]
    for several, message in {
        (first, runs["prefix_tuning"]): "it trained keys and values, and .*prompt_tuning embeddings. One model takes",
        (first, other): "other was trained on .*, which has other weights",
        (first, first): "another run has the name prompt_tuning",
    }.items():
        with pytest.raises(PromptTuningError, match=message):
            Predictor.load(several)
    with pytest.raises(pytest.fail.Exception):  # The same weights in another folder are the same model.
        Predictor.load([first, again])


def test_a_run_without_a_prompt_is_loaded_alone():
    for config, kind in ((LoraConfig(task_type="CAUSAL_LM"), "a run of lora"), (None, "a whole model")):
        with pytest.raises(AdapterError, match=f"runs/mine: {kind}, .* Load it alone"):
            check_kinds([(Path("runs/mine"), config)])


def test_a_row_of_no_task_is_refused_by_name(make_run):
    predictor = Predictor.load([make_run("a"), make_run("b", seed=1)])
    row = question_rows(1)[0]
    with pytest.raises(DataError, match=r"row 0: no column 'task'\. Give it one of a, b"):
        predictor([row])
    with pytest.raises(DataError, match="row 0: the task 'c' is not loaded"):
        predictor([row | {"task": "c"}])
