"""Streamed training: exactly the rows of the file, errors with their line, and a stop that changes nothing."""

import json
from itertools import islice

import pytest
import torch
from datasets import IterableDataset
from helpers.models import forbid_model_loading, tiny_llama
from helpers.rows import question_rows, write_jsonl
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from prompt_tuning import PromptTuningTrainer, add_soft_prompt, prompt_config
from prompt_tuning.cli.main import main
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.runs.train import train


@pytest.fixture
def streamed(recipe_file, tmp_path):
    """Return a recipe that streams 24 rows. Keywords change settings."""

    def write(**changes):
        return recipe_file(**({"streaming": "true", "buffer_size": 8} | changes))

    return write


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


def rows_of(recipe, count):
    return [row["input_ids"] for row in islice(prepare(load_recipe(recipe), ("train",)).encoded["train"], count)]


def test_every_pass_has_every_row_once_in_an_order_by_the_seed(streamed):
    whole = rows_of(streamed(streaming="false"), 24)

    def stream(count, **changes):
        prepared = prepare(load_recipe(streamed(**changes)), ("train", "test"))
        return [row["input_ids"] for row in islice(prepared.encoded["train"], count)], prepared.reports["train"]

    in_order, report = stream(60, buffer_size=1)
    assert in_order == [*whole, *whole, *whole[:12]] and report.rows >= 60
    shuffled, _ = stream(2 * 24 + 20)
    assert shuffled[:24] != whole and sorted(shuffled[:20]) != sorted(whole[:20])
    assert all(row in shuffled for row in whole) and shuffled == stream(68)[0] != stream(68, seed=7)[0]
    passes, _ = stream(48, buffer_size=1000)
    assert sorted(passes[:24]) == sorted(passes[24:]) == sorted(whole) and passes[:24] != passes[24:]
    assert stream(10, max_train_samples=4, buffer_size=1)[0] == [*whole[:4], *whole[:4], *whole[:2]]


def test_a_streamed_run_takes_the_same_steps_as_rows_that_are_read_whole(streamed, tmp_path):
    whole = {"streaming": "false", "train_sampling_strategy": "sequential", "buffer_size": None}
    train(load_recipe(streamed(buffer_size=1, output_dir=tmp_path / "stream")), evaluate_hard_prompt=False)
    train(load_recipe(streamed(**whole, output_dir=tmp_path / "whole")), evaluate_hard_prompt=False)
    assert torch.equal(adapter(tmp_path / "stream"), adapter(tmp_path / "whole"))
    results = json.loads((tmp_path / "stream" / "results.json").read_text())
    assert results["train_steps"] == 4 and results["stream"]["rows"] >= 16 and "train_rows" not in results
    card = (tmp_path / "stream" / "README.md").read_text()
    read = results["stream"]["rows"]
    assert f"{read} read of a stream |" in card and f"{read} rows" not in card
    assert "a stream, 4 steps" in (tmp_path / "stream" / "report.html").read_text()
    assert main(["check", str(tmp_path / "stream" / "recipe.yaml")]) == 0  # The saved recipe runs again.


@pytest.mark.parametrize("endless", [False, True])
def test_trainer_loses_its_place_in_the_second_pass_of_a_stream_unless_all_passes_are_one(
    endless, streamed, tmp_path, tokenizer
):
    """Resume in the second pass: Trainer skips 9 batches of the first, which has 6, and repeats the second."""
    rows = rows_of(streamed(streaming="false"), 6)
    passes = IterableDataset.from_generator(lambda: ({"input_ids": row, "labels": row} for row in rows))

    def prompt(folder, max_steps, resume=False):
        args = TrainingArguments(
            str(tmp_path / folder), max_steps=max_steps, save_steps=9, per_device_train_batch_size=1, use_cpu=True,
            learning_rate=0.1, lr_scheduler_type="constant", disable_tqdm=True, report_to="none",
            dataloader_pin_memory=False,
        )  # fmt: skip
        base = tiny_llama(len(tokenizer))
        torch.manual_seed(0)
        model = add_soft_prompt(base, prompt_config(base, 4))
        trainer = Trainer(model, args, train_dataset=passes.repeat(None) if endless else passes)
        trainer.train(resume_from_checkpoint=resume)
        return model.prompt_encoder["default"].embedding.weight

    prompt("stopped", 9)
    assert torch.equal(prompt("stopped", 14, resume=True), prompt("whole", 14)) == endless


def test_a_run_stopped_in_its_second_pass_resumes_bit_for_bit(streamed, tmp_path, monkeypatch):
    settings = dict(max_steps=14, save_steps=9, save_total_limit=5)
    whole = train(load_recipe(streamed(**settings, output_dir=tmp_path / "whole")), evaluate_hard_prompt=False)
    path = streamed(**settings, output_dir=tmp_path / "stopped")
    monkeypatch.setattr(PromptTuningTrainer, "log", stop_at(10))
    assert main(["train", str(path)]) == 130
    monkeypatch.undo()
    resumed = train(load_recipe(path, ["--resume_from_checkpoint", "true"]), evaluate_hard_prompt=False)
    assert torch.equal(adapter(whole), adapter(resumed))
    facts = [json.loads((folder / "results.json").read_text())["stream"] for folder in (whole, resumed)]
    assert facts[0] == facts[1]


def stop_at(step):
    def log(trainer, *args, **kwargs):
        if trainer.state.global_step >= step:
            raise KeyboardInterrupt

    return log


def test_cut_and_dropped_rows_are_counted_at_the_end(streamed, tmp_path, capsys):
    rows = question_rows(24)
    rows[5]["answers"] = {"text": ["a very long answer that goes on and on " * 3], "answer_start": [0]}
    write_jsonl(tmp_path / "train.jsonl", rows)
    budget = {
        "max_source_tokens": 32,
        "drop_overlong": "true",
        "buffer_size": 1,
        "max_steps": 6,
        "save_strategy": "'no'",
    }
    assert main(["train", str(streamed(**budget))]) == 0
    report = prepare(load_recipe(streamed(**budget, streaming="false")), ("train",)).reports["train"]
    facts = json.loads((tmp_path / "run" / "results.json").read_text())["stream"]
    assert report.dropped_rows == 1 and facts["dropped_rows"] >= 1
    assert facts["cut_rows"] >= report.cut_rows > 0 and facts["longest"] == report.longest
    assert f"train: a stream: {facts['rows']} rows read, {facts['cut_rows']} cut by" in capsys.readouterr().err


def test_empty_rows_of_a_stream_are_left_out_and_counted(streamed, tmp_path, capsys):
    rows = question_rows(24)
    rows[5]["question"] = ""
    write_jsonl(tmp_path / "train.jsonl", rows)
    (tmp_path / "own.yaml").write_text("source: '{{ question }}'\ntarget: '{{ answers.text[0] }}'\n")
    settings = {"template": tmp_path / "own.yaml", "buffer_size": 1, "max_steps": 6, "save_strategy": "'no'"}
    assert main(["train", str(streamed(**settings))]) == 1
    assert "train.jsonl, line 6: " in (error := capsys.readouterr().err) and "Set drop_empty: true" in error
    assert main(["train", str(streamed(**settings, drop_empty="true"))]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["stream"]["empty_rows"] >= 1
    assert "left out as empty" in capsys.readouterr().err


@pytest.mark.parametrize("place", [3, 150])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace('"question"', '"query"'), "null"),
        (lambda line: line[:-5], "not JSON"),
        (lambda line: line.replace("lives", "lívès"), "not UTF-8"),
    ],
    ids=["null", "json", "latin-1"],
)
def test_a_bad_row_is_reported_with_its_line_before_training_or_when_it_is_read(
    place, change, message, streamed, tmp_path, capsys, monkeypatch
):
    lines = [json.dumps(row, ensure_ascii=False) for row in question_rows(160)]
    lines[place] = change(lines[place])
    encoding = "latin-1" if message == "not UTF-8" else "utf-8"
    (tmp_path / "train.jsonl").write_text("\n\n".join(lines) + "\n", encoding=encoding)
    if place == 3:
        forbid_model_loading(monkeypatch)
    assert main(["train", str(streamed(max_steps=60))]) == 1
    error = capsys.readouterr().err
    assert f"train.jsonl, line {2 * place + 1}: " in error and message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "streaming: a stream has no known length. Set max_steps"),
        ({"init": "frequent"}, "streaming: init frequent needs all training rows"),
        ({"init": "demonstrations", "num_virtual_tokens": None}, "streaming: init demonstrations needs all"),
        ({"num_demonstrations": 2}, "streaming: num_demonstrations 2 needs all"),
        ({"loss": "kl", "teacher_template": "question_answering/plain"}, "teacher_template with loss kl needs all"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy group_by_length needs all"),
        ({"dataloader_num_workers": 2}, "dataloader_num_workers has no effect"),
        ({"buffer_size": 0}, "buffer_size is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_a_stream_cannot_have_are_an_error(changes, message, streamed, tmp_path, capsys):
    recipe = streamed(**changes)
    (tmp_path / "train.jsonl").write_text("{")
    assert main(["train", str(recipe)]) == 2
    assert message in capsys.readouterr().err


def test_a_streamed_training_split_is_not_evaluated(streamed, capsys):
    assert main(["render", str(streamed())]) == 2
    assert "add --streaming false to read the split whole" in capsys.readouterr().err
    assert main(["render", str(streamed()), "--streaming", "false", "-n", "1"]) == 0
