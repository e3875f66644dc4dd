"""Train, evaluate, write and choose on a pretended GPU with each method and kind of architecture, as on the CPU.

The suite tries two methods with each architecture, and DEVICES_METHODS=5 all of them.
"""

import os

import pytest
import torch
from helpers.architectures import build
from helpers.trainers import BUILDERS, trainer
from transformers import MambaConfig, MambaForCausalLM

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import AdapterError
from prompt_tuning.models.prompts import add_adapter, add_soft_prompt, prompt_config

METHODS = {
    "prompt_tuning": {},
    "p_tuning": dict(encoder_hidden_size=16),
    "prefix_tuning": {},
    "lora": dict(lora_target_modules="all-linear"),
    "multitask_prompt_tuning": dict(tasks=["a", "b"]),
}
# Each has another attention, position, expert, window or cache; Mamba takes PEFT's forward.
ARCHITECTURES = (
    "llama", "mixtral", "bloom", "gemma2, window 6", "gpt2", "opt", "phi3", "mamba", "t5", "bart",
)  # fmt: skip
METHODS_EACH = int(os.environ.get("DEVICES_METHODS", "2"))  # DEVICES_METHODS=5 tries all methods.
REFUSED = [("mamba", "prefix_tuning"), ("mamba", "lora")]  # PEFT refuses LoRA in Mamba's linear layers.
CELLS = [
    (architecture, method)
    for number, architecture in enumerate(ARCHITECTURES)
    for place, method in enumerate(METHODS)
    if (place - number) % 5 < METHODS_EACH and (architecture, method) not in REFUSED
]


def base_model(architecture, vocabulary):
    if architecture in BUILDERS:
        return BUILDERS[architecture](vocabulary)
    if architecture != "mamba":
        return build(architecture, vocabulary, positions=256)
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=vocabulary, hidden_size=32, state_size=4, num_hidden_layers=2, use_mambapy=False, pad_token_id=0,
        eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    return MambaForCausalLM(config).requires_grad_(False).eval()


def outcome(architecture, method, tokenizer, folder, **settings):
    """Return the losses, trained weights, texts and choices of a short run."""
    base = base_model(architecture, len(tokenizer))
    torch.manual_seed(2)
    config = prompt_config(base, 5, PromptArguments(method=method, **METHODS[method]))
    model = add_adapter(base, config) if method == "lora" else add_soft_prompt(base, config)
    settings |= dict(max_steps=2, learning_rate=1e-2, save_strategy="no", report_to="none")
    run = trainer(model, tokenizer, folder, train=8, evaluation=3, **settings)
    if method == "multitask_prompt_tuning":
        run.train_dataset = run.train_dataset.add_column("task_ids", [0, 1] * 4)
        run.eval_dataset = run.eval_dataset.add_column("task_ids", [1, 0, 1])
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry] + [run.evaluate()["eval_loss"]]
    weights = [weight.detach().cpu().flatten() for weight in model.parameters() if weight.requires_grad]
    closed = run.eval_dataset.add_column("choices", [["yes", "no"]] * 3)
    closed = closed.add_column("choice_ids", [[[5], [6, 7]]] * 3)
    try:
        choices = run.predict_texts(closed)
    except AdapterError as error:
        assert method == "multitask_prompt_tuning" and "choices: a prompt of several tasks" in str(error)
        choices = None
    return losses, torch.cat(weights), run.predict_texts(run.eval_dataset), choices


# PEFT says how it places LoRA in the linear layers of GPT-2 and Mixtral.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore:The following .*pattern:RuntimeWarning")
@pytest.mark.parametrize(("architecture", "method"), CELLS)
def test_a_gpu_trains_evaluates_writes_and_chooses_as_the_cpu_does(architecture, method, tokenizer, tmp_path, on_gpu):
    losses, weights, texts, choices = outcome(architecture, method, tokenizer, tmp_path)
    with on_gpu():
        on_device = outcome(architecture, method, tokenizer, tmp_path, use_cpu=False)
    assert on_device[0] == pytest.approx(losses, rel=1e-4)
    assert torch.allclose(on_device[1], weights, atol=1e-4)
    assert on_device[2:] == (texts, choices)
