"""Use a run with PEFT's and transformers' own loaders, lm-evaluation-harness and experiment trackers.

lm_eval and trackio are not among the test requirements: `pip install lm_eval trackio` lets their tests run.
"""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys

import pytest
import torch
import yaml
from helpers.rows import question_rows, write_jsonl
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

from prompt_tuning import Template
from prompt_tuning.cli.main import main

# PEFT gives this warning each time it generates with a prompt.
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")


def installed(package):
    is_installed = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not is_installed, reason=f"{package} is not installed: pip install {package}")


def run_python(*words, **environment):
    """Run Python in another process, because these packages warn on import."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=os.environ | environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def train_briefly(recipe_file, **settings):
    recipe = recipe_file(template="question_answering/plain", max_steps=2, learning_rate=0.1, **settings)
    assert main(["train", str(recipe), "--save_strategy", "no"]) == 0


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        # PEFT 0.21.2 loses the cache of transformers 5.24 (tests/upstream/test_peft_causal.py).
        ("soft_prompt", {}, {"use_cache": False}),
        ("lora", {"method": "lora", "num_virtual_tokens": None}, {}),
    ],
    ids=["prompt_tuning", "lora"],
)
def test_plain_peft_and_a_pipeline_write_what_the_run_wrote(
    name, settings, options, recipe_file, model_folders, tmp_path
):
    train_briefly(recipe_file, **settings)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
    writer = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(model_folders["llama"]))
    for row in lines(tmp_path / "run" / "predictions" / "test.jsonl")[:3]:
        written = writer(row["source"], max_new_tokens=12, do_sample=False, return_full_text=False, **options)
        assert written[0]["generated_text"].lstrip().split("\n")[0].strip() == row[name]


def test_plain_pefts_forward_with_a_prefix_writes_what_the_run_wrote(recipe_file, model_folders, tmp_path):
    """Use PEFT's forward, because its `generate` puts a prefix before every new token."""
    train_briefly(recipe_file, method="prefix_tuning")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folders["llama"])
    for row in lines(tmp_path / "run" / "predictions" / "test.jsonl")[:3]:
        source = tokenizer(row["source"]).input_ids
        ids = list(source)
        while len(ids) < len(source) + 12 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            ids.append(logits.argmax().item())
        text = tokenizer.decode(ids[len(source) :], skip_special_tokens=True)
        assert text.lstrip().split("\n")[0].strip() == row["soft_prompt"]


def closed_rows(count):
    rows = question_rows(count, 5)
    for number, row in enumerate(rows):
        row["answers"] = {"text": ["yes" if number % 2 else "no"], "answer_start": [0]}
    return rows


def harness_task(folder, template, test_file):
    """Write a task of lm-evaluation-harness with the template's texts and choices, and return its folder."""
    template = Template.load(template)
    choices = [choice.strip() for choice in template.answer_choices.split("|||")]
    task = {
        "task": "closed_questions", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(test_file)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": template.source,
        "doc_to_choice": choices, "doc_to_target": f"{{{{ {choices}.index(answers.text[0]) }}}}",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    folder.mkdir()
    (folder / "closed_questions.yaml").write_text(yaml.safe_dump(task))
    return folder


def harness(model, adapter, task, batch_size=1):
    """Return the accuracy of the harness's own command, and its scores of each row's choices."""
    output = task / f"batch-{batch_size}"
    arguments = f"pretrained={model},peft={adapter},dtype=float32"
    run_python(
        "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments, "--tasks", "closed_questions",
        "--include_path", task, "--batch_size", batch_size, "--device", "cpu", "--output_path", output,
        "--log_samples", HF_DATASETS_OFFLINE="1",
    )  # fmt: skip
    (results,), (samples,) = output.rglob("results_*.json"), output.rglob("samples_*.jsonl")
    scores = [[float(likelihood) for likelihood, _ in row["filtered_resps"]] for row in lines(samples)]
    return json.loads(results.read_text())["results"]["closed_questions"]["acc,none"], scores


@installed("lm_eval")
def test_lm_evaluation_harness_reaches_the_same_accuracy(recipe_file, model_folders, tmp_path):
    recipe = recipe_file(template="question_answering/yes_no", max_source_tokens=128, metrics="[exact_match]")
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", closed_rows(20))
    assert main(["train", str(recipe), "--save_strategy", "no", "--learning_rate", "0.01"]) == 0
    ours = lines(tmp_path / "run" / "predictions" / "test.jsonl")
    assert {row["soft_prompt"] for row in ours} == {"yes", "no"}  # Equal answers would show nothing.

    task = harness_task(tmp_path / "task", "question_answering/yes_no", tmp_path / "test.jsonl")
    accuracy, scores = harness(model_folders["llama"], tmp_path / "run", task)
    assert [row["soft_prompt"] for row in ours] == [
        ("yes", "no")[torch.tensor(row_scores).argmax()] for row_scores in scores
    ]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert accuracy == pytest.approx(results["soft_prompt"]["exact_match"] / 100, abs=1e-4)


@installed("trackio")
def test_report_to_sends_the_metrics_to_trackio(recipe_file, tmp_path):
    recipe = recipe_file(eval_strategy="steps", eval_steps=2, logging_steps=2, report_to="trackio", project="cards")
    path = os.pathsep.join(sys.path)
    run_python("-m", "prompt_tuning", "train", recipe, TRACKIO_DIR=str(tmp_path / "trackio"), PYTHONPATH=path)
    (database,) = (tmp_path / "trackio").rglob("cards*.db")
    with sqlite3.connect(database) as rows:
        logged = " ".join(str(row) for row in rows.execute("select metrics from metrics"))
    assert "eval/f1" in logged and "train/loss" in logged


def test_report_to_sends_the_metrics_of_a_recipe_to_tensorboard(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    recipe = recipe_file(eval_strategy="steps", eval_steps=2, logging_steps=2, report_to="tensorboard")
    assert main(["train", str(recipe), "--save_strategy", "no"]) == 0
    events = b"".join(file.read_bytes() for file in (tmp_path / "logs").rglob("events.out.tfevents*"))
    assert b"eval/f1" in events and b"train/loss" in events
