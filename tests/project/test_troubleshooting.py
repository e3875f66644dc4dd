"""The table of docs/how-to/troubleshooting.md: a command here prints each message, letter for letter."""

import re
import shlex
import shutil

import pytest
from helpers.models import tiny_llama
from helpers.paths import ROOT
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main

COMMANDS = {
    "unknown setting num_train_epoch. Did you mean num_train_epochs?": "check recipe.yaml --num_train_epoch 3",
    "lora_r has no effect with method prompt_tuning; it belongs to lora": "check recipe.yaml --lora_r 4",
    "learning_rate is -1.0; it must be at least 0": "check recipe.yaml --learning_rate -1",
    "chinese.jsonl: 2 of 2 rows have references in another script than English": (
        "check recipe.yaml --test_file chinese.jsonl"
    ),
    "mine.jsonl: no such file": "check recipe.yaml --train_file mine.jsonl",
    "broken.jsonl, line 2: not JSON": "check recipe.yaml --train_file broken.jsonl",
    "gb.csv, line 1: not UTF-8 text (byte 0 of the line); save it as UTF-8": ("check recipe.yaml --train_file gb.csv"),
    "cells.csv, line 2: 4 cells, and the first line names 3 columns": "check recipe.yaml --train_file cells.csv",
    "empty.jsonl: the template writes no source or no target for 2 rows": "check recipe.yaml --train_file empty.jsonl",
    "template summarization/plain needs the column 'document', and dialogues.jsonl has 'dialogue', 'summary'": (
        "check recipe.yaml --train_file dialogues.jsonl --task summarization --template summarization/plain"
    ),
    "train.jsonl, line 1: the source has 42 tokens with nothing left to cut": (
        "check recipe.yaml --max_source_tokens 12 --truncate question"
    ),
    "train.jsonl, line 1: the target has 2 tokens with its end, max_target_tokens is 1": (
        "check recipe.yaml --max_target_tokens 1"
    ),
    "the target 'Turin' is not among the row's choices ('yes', 'no')": (
        "check recipe.yaml --template question_answering/yes_no"
    ),
    "lines.jsonl: 2 of 2 targets are texts that no prediction can be": "check recipe.yaml --train_file lines.jsonl",
    "not one of 4 demonstrations fits beside any row": (
        "check recipe.yaml --num_demonstrations 4 --max_source_tokens 40"
    ),
    "init text has 27 tokens and num_virtual_tokens is 2": (
        "check recipe.yaml --init text --init_text 'Answer the question with a few words.' --num_virtual_tokens 2"
    ),
    "480 virtual tokens, max_source_tokens 96 and max_target_tokens 12 make 588 positions, the model has 512": (
        "check recipe.yaml --num_virtual_tokens 480"
    ),
    "test: 24 of 24 rows are in the training split with the same target": (
        "check recipe.yaml --test_file train.jsonl"
    ),
    "model_name_or_path Qwen/Qwen3-0.6B: not a folder here, and not found on the hub": (
        "check recipe.yaml --model_name_or_path Qwen/Qwen3-0.6B"
    ),
    "dataset rajpurkar/squad, split train: Couldn't reach": "check hub.yaml",
    "metric 'evaluate-metric/bertscore': it is Python code that is not part of this package": (
        "check recipe.yaml --metrics evaluate-metric/bertscore"
    ),
    "run holds checkpoint-4 already": "train recipe.yaml",
    "output_dir notes: it holds README.md, which would be replaced": "train recipe.yaml --output_dir notes",
    "resume_from_checkpoint: no checkpoint in nothing": (
        "train recipe.yaml --output_dir nothing --resume_from_checkpoint true"
    ),
    "none: no adapter_config.json there": "evaluate recipe.yaml --adapter none",
    "run was trained on tiny-llama (hidden size 32), the model here is other (hidden size 64)": (
        "evaluate recipe.yaml --adapter run --model_name_or_path other"
    ),
    "run: its adapter names the base model ./tiny-llama, a folder that only this machine has": (
        "push run --repo_id me/squad-prompt"
    ),
}
# These messages need a hub, a second process or a model that fails; the test beside each prints it.
ELSEWHERE = {
    "this token may not write to ann/squad": "tests/hub/test_upload.py",
    "the connection to http://localhost:9 failed": "tests/hub/test_upload.py",
    "another process of this run is gone, or its host cannot be reached": "tests/training/test_distributed.py",
    "the loss is nan, and nothing was saved of it; its rows: ": "tests/runs/test_multitask.py",
    "out of memory (CUDA out of memory": "tests/training/test_callbacks.py",
    "writes it. Wait for its end, or name another --output_dir.": "tests/runs/test_output_folder.py",
    "GPUs are visible, and this process uses one of them": "tests/training/test_arguments.py",
    "bitsandbytes needs bitsandbytes>=0.46.1, which is not installed": "tests/training/test_precision.py",
}
RECIPE = """\
model_name_or_path: tiny-llama
task: question_answering
template: question_answering/plain
num_virtual_tokens: 6
max_source_tokens: 96
max_target_tokens: 12
output_dir: run
max_steps: 4
use_cpu: true
disable_tqdm: true
"""
FILES = "train_file: train.jsonl\nvalidation_file: validation.jsonl\ntest_file: test.jsonl\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory, model_folders, tokenizer):
    """Return a folder with a finished run, and with files that have each error."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(model_folders["llama"], folder / "tiny-llama")
    tiny_llama(len(tokenizer), hidden_size=64).save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    for split, count, shift in (("train", 24, 0), ("validation", 6, 3), ("test", 9, 5)):
        write_jsonl(folder / f"{split}.jsonl", question_rows(count, shift))
    write_jsonl(folder / "dialogues.jsonl", [{"dialogue": "Ann: Hello.", "summary": "Ann greets."}])
    chinese = {"context": "渡船在港口。", "question": "在哪里？", "answers": {"text": ["港口"], "answer_start": [3]}}
    write_jsonl(folder / "chinese.jsonl", [chinese, chinese])
    (folder / "broken.jsonl").write_text('{"context": "Ada lives in Turin."}\n{"context" "Bruno"}\n')
    (folder / "gb.csv").write_text("文章,问题,答案\n渡船在港口。,在哪里？,港口\n", encoding="gb18030")
    (folder / "cells.csv").write_text("context,question,answers\nAda, who sails, lives in Turin.,Where?\n")
    empty, several_lines = (
        {"context": "Ada lives in Turin.", "question": "Where?", "answers": {"text": [text], "answer_start": [13]}}
        for text in ("", "Turin\nItaly")
    )
    write_jsonl(folder / "empty.jsonl", [empty, empty])
    write_jsonl(folder / "lines.jsonl", [several_lines, several_lines])
    (folder / "notes").mkdir()
    (folder / "notes" / "README.md").write_text("My notes.\n")
    (folder / "recipe.yaml").write_text(RECIPE + FILES)
    (folder / "hub.yaml").write_text(f"{RECIPE}dataset_name: rajpurkar/squad\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "recipe.yaml"]) == 0
    return folder


@pytest.mark.parametrize("name", ["troubleshooting.md", "troubleshooting.zh-CN.md"])
def test_the_table_has_exactly_the_tested_messages(name):
    blocks = (ROOT / "docs" / "how-to" / name).read_text(encoding="utf-8").split("\n\n")
    (table,) = [block for block in blocks if next(iter(COMMANDS)) in block]
    assert re.findall(r"(?m)^\| `(.+?)` \|", table) == [*COMMANDS, *ELSEWHERE]


@pytest.mark.parametrize("message", COMMANDS)
def test_a_command_prints_the_message(message, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    failed = main(shlex.split(COMMANDS[message]))
    assert message in capsys.readouterr().err
    assert bool(failed) != message.startswith("test: ")  # Leaked rows are a warning.


@pytest.mark.parametrize("message", ELSEWHERE)
def test_another_test_holds_the_message(message):
    assert message in (ROOT / ELSEWHERE[message]).read_text(encoding="utf-8")
