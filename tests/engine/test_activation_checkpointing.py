"""Check that activation checkpointing changes no gradient, and is refused where a prefix would be lost."""

import pytest
import torch
from helpers.architectures import MULTITASK, PREFIXES, PROMPT, PROMPT_METHODS, SETTINGS, WINDOWS, build, right_padded
from helpers.models import forbid_model_loading
from helpers.trainers import soft_trainer, trainer

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import AdapterError
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

METHODS = PROMPT_METHODS | {"multitask_prompt_tuning": MULTITASK}
SOFT = [name for name in METHODS if name not in PREFIXES]
PACKED = [name for name in SETTINGS if name != "bloom"]
# Each of the other two paths has a model: BLOOM and eager attention read rows behind a cache, other models do not.
CELLS = [(name, method) for name in PACKED for method in ("prompt_tuning", "prefix_tuning")]
CELLS.remove(("mistral, window 3", "prefix_tuning"))  # This prefix is longer than the window.
CELLS += [("llama", method) for method in METHODS if method not in ("prompt_tuning", "prefix_tuning")]
CELLS += [(name, method) for name in ("bloom", "llama, eager", "llama, untested") for method in SOFT]


def base_model(name):
    base = build(name.removesuffix(", eager").removesuffix(", untested"))
    if name.endswith(", eager"):
        base.set_attn_implementation("eager")
    if name.endswith(", untested"):
        base.config.model_type = "unknown"
    return base


def prompted(base, method, length=PROMPT):
    arguments = PromptArguments(**METHODS[method])
    config = prompt_config(base, length, arguments, ids=range(20, 20 + length))
    torch.manual_seed(3)
    return add_soft_prompt(base, config, None, arguments.encoder_hidden_size if arguments.residual else None)


def gradient(model, method, bfloat16):
    model.train().zero_grad()
    batch = right_padded()
    if method == "multitask_prompt_tuning":
        batch["task_ids"] = torch.tensor([0, 1, 0, 1])
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        model(**batch).loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize(
    ("architecture", "method", "bfloat16"),
    [(*cell, False) for cell in CELLS] + [(*cell, True) for cell in CELLS if cell[0] in ("llama", "mixtral", "bloom")],
)
def test_activation_checkpointing_changes_no_gradient(architecture, method, bfloat16):
    model = prompted(base_model(architecture), method)
    expected = gradient(model, method, bfloat16)
    base = base_model(architecture)
    base.activation_checkpointing_enable({"use_reentrant": False})
    model = prompted(base, method)
    assert (model.execution_path.name == "packed") == (architecture in PACKED)
    # Rows that were read behind a cache are read by another path, which rounds in other places.
    bound = 1e-6 if architecture in PACKED else 0.05 if bfloat16 else 1e-5
    difference = gradient(model, method, bfloat16) - expected
    assert difference.norm() / expected.norm() < bound


LOST = [("bloom", PROMPT), ("llama, eager", PROMPT), ("llama, untested", PROMPT), *((name, 7) for name in WINDOWS)]


@pytest.mark.parametrize("method", ["prefix_tuning", "prefix_tuning, projected"])
@pytest.mark.parametrize(("architecture", "length"), LOST)
def test_a_prefix_that_checkpointed_layers_would_lose_is_refused(architecture, length, method):
    message = "activation_checkpointing: checkpointed layers take no cache"
    model = prompted(base_model(architecture), method, length)
    model(**right_padded()).loss.backward()
    base = model.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(AdapterError, match=message):
        model.train()(**right_padded())
    assert model.eval()(**right_padded()).loss  # A layer is checkpointed only while it is trained.
    base = base_model(architecture)
    base.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(AdapterError, match=message):
        prompted(base, method, length)


def test_a_call_by_pefts_forward_is_refused_behind_a_prefix_in_checkpointed_layers():
    model = prompted(build("llama"), "prefix_tuning").train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    batch = right_padded()
    assert model(**batch).loss
    with pytest.raises(AdapterError, match=r"take no cache.*\(PEFT's forward runs for these arguments\)"):
        model(**batch, output_hidden_states=True)
    with pytest.raises(AdapterError, match="take no cache"):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_a_trainer_and_a_recipe_refuse_it_before_a_step(tokenizer, recipe_file, tmp_path, capsys, monkeypatch):
    base = build("bloom", len(tokenizer))
    bloom = tmp_path / "bloom"
    base.save_pretrained(bloom)
    model = prompted(base, "prefix_tuning")
    with pytest.raises(AdapterError, match="BloomForCausalLM has no replaceable attention"):
        trainer(model, tokenizer, tmp_path, activation_checkpointing=True)
    trainer(model, tokenizer, tmp_path, max_steps=1).train()
    soft_trainer(build("bloom", len(tokenizer)), tokenizer, tmp_path, activation_checkpointing=True).train()

    tokenizer.save_pretrained(bloom)
    forbid_model_loading(monkeypatch)
    path = str(recipe_file(model_name_or_path=bloom, method="prefix_tuning", activation_checkpointing="true"))
    message = "only packed rows read a prefix without one (rows of a bloom model are not packed). Leave"
    for command in ("check", "train"):
        assert main([command, path]) == 2
        assert message in capsys.readouterr().err
