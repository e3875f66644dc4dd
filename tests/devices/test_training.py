"""Run Trainer and the commands on a pretended GPU: the results of the CPU, and a bounded number of waits."""

import json

import pytest
import torch
from datasets import Dataset
from helpers.rows import PLACES, question_rows
from helpers.trainers import encoded, prompt_of, soft, trainer
from transformers import TrainerCallback

from prompt_tuning import Encoder, Template, encode
from prompt_tuning.cli.main import main

PLACE = Template(
    "{{ context }} {{ question.split()[2] }}", "{{ answers.text[0] }}", answer_choices=" ||| ".join(PLACES)
)
GPU = dict(use_cpu=False, report_to="none")


class Waits(TrainerCallback):
    """Note the waits of each step."""

    def __init__(self, log):
        self.log = log
        self.of_steps = []

    def on_step_begin(self, *args, **kwargs):
        self.before = self.log.num_waits

    def on_step_end(self, *args, **kwargs):
        self.of_steps.append(self.log.num_waits - self.before)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_gpu_trains_evaluates_and_predicts_as_the_cpu_does_and_a_step_waits_at_most_20_times(
    device, tokenizer, tmp_path, on_gpu
):
    rows = encoded(tokenizer, question_rows(7, 3))
    settings = dict(report_to="none", learning_rate=0.1)
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path / "cpu", **settings)
    run.train()
    expected = run.evaluate(), run.predict_texts(rows), prompt_of(run.model)
    with on_gpu(device) as log:
        waits = Waits(log)
        model = soft("llama", tokenizer)
        run = trainer(model, tokenizer, tmp_path / "gpu", callbacks=[waits], **settings | GPU)
        assert run.args.device == torch.device(device)
        run.train()
        metrics, texts, prompt = run.evaluate(), run.predict_texts(rows), prompt_of(model).cpu()
    assert len(waits.of_steps) == 6
    assert max(waits.of_steps) <= 20
    assert torch.allclose(prompt, expected[2], atol=1e-3)
    assert metrics["eval_loss"] == pytest.approx(expected[0]["eval_loss"], rel=1e-4)
    assert texts == expected[1]


def evaluation_waits(tokenizer, folder, on_gpu, rows, *, choices):
    """Return how often an evaluation of one batch waits, and its predictions."""
    if choices:
        rows, _ = encode(Dataset.from_list(question_rows(rows)), Encoder(PLACE, tokenizer))
    else:
        rows = encoded(tokenizer, question_rows(rows))
    model = soft("llama", tokenizer)
    with on_gpu() as log:
        run = trainer(model, tokenizer, folder, per_device_eval_batch_size=16, **GPU)
        run.predict_texts(rows)
        log.__init__()
        predicted = run.predict_texts(rows)
        return log.num_waits, predicted


@pytest.mark.parametrize("choices", [False, True])
def test_the_waits_of_an_evaluation_do_not_grow_with_its_rows(choices, tokenizer, tmp_path, on_gpu):
    few, _ = evaluation_waits(tokenizer, tmp_path / "few", on_gpu, 3, choices=choices)
    many, predicted = evaluation_waits(tokenizer, tmp_path / "many", on_gpu, 12, choices=choices)
    assert len(predicted) == 12
    assert few == many


def test_train_predict_and_rank_run_on_a_gpu(recipe_file, tmp_path, capsys, on_gpu):
    def results(folder, use_cpu):
        recipe = recipe_file(output_dir=folder / "run", max_steps=2, use_cpu=use_cpu)
        assert main(["train", str(recipe)]) == 0
        capsys.readouterr()
        assert main(["predict", "--adapter", str(folder / "run"), "--input", str(tmp_path / "test.jsonl")]) == 0
        predicted = capsys.readouterr().out
        assert main(["rank", str(recipe), "--output_dir", str(folder / "rank"), "--finalists", "1"]) == 0
        scores = json.loads((folder / "run" / "results.json").read_text("utf-8"))
        ranked = json.loads((folder / "rank" / "rank.json").read_text("utf-8"))
        return predicted, scores["soft_prompt"], ranked["winner"]

    expected = results(tmp_path / "cpu", "true")
    with on_gpu():
        predicted, scores, winner = results(tmp_path / "gpu", "false")
    assert (predicted, winner) == (expected[0], expected[2])
    assert scores == pytest.approx(expected[1], rel=1e-3)


@pytest.mark.parametrize("method", ["p_tuning", "prefix_tuning", "lora"])
def test_what_a_gpu_trains_predicts_there_what_it_predicts_on_the_cpu(method, recipe_file, tmp_path, capsys, on_gpu):
    short = dict(max_steps=1, max_predict_samples=1, num_virtual_tokens=None if method == "lora" else 6)
    recipe = recipe_file(method=method, use_cpu="false", **short)
    predict = ["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "test.jsonl")]
    with on_gpu():
        assert main(["train", str(recipe)]) == 0
        capsys.readouterr()
        assert main(predict) == 0
        on_device = capsys.readouterr().out
    assert main(predict) == 0
    assert capsys.readouterr().out == on_device


def test_several_tasks_are_trained_and_evaluated_on_a_gpu_as_on_the_cpu(recipe_file, tmp_path, on_gpu):
    for name in ("one.yaml", "two.yaml"):
        recipe_file().rename(tmp_path / name)
    task = ("task", "train_file", "validation_file", "test_file", "template", "max_source_tokens", "max_target_tokens")
    settings = dict.fromkeys(task) | dict(method="multitask_prompt_tuning", max_steps=2)
    settings["tasks"] = f"[{tmp_path}/one.yaml, {tmp_path}/two.yaml]"

    def results(name, use_cpu):
        recipe = recipe_file(output_dir=tmp_path / name, use_cpu=use_cpu, **settings)
        assert main(["train", str(recipe)]) == 0
        return [(tmp_path / name / task / "predictions" / "test.jsonl").read_text() for task in ("one", "two")]

    expected = results("cpu", "true")
    with on_gpu():
        assert results("gpu", "false") == expected
