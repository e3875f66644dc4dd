"""Check that kept keys and values of a prompt are taken again only while nothing that they depend on has changed."""

from contextlib import nullcontext

import pytest
import torch
from helpers.architectures import ROWS, build
from peft import PromptTuningConfig

from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine.dispatch import autocasting
from prompt_tuning.engine.shared_prefix import SharedPrefixModel, compute_prompt_once, reuse_prompts

GREEDY = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)


def two_prompts(architecture="llama"):
    torch.manual_seed(1)
    model = SharedPrefixModel(build(architecture), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    model.add_adapter("other", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.requires_grad_(False).eval()


def written(model, rows=ROWS, **settings):
    batch = pad_left(rows, 0)
    return model.generate(**batch, **GREEDY, **settings)[:, batch["input_ids"].shape[1] :].tolist()


def counted(model):
    """Return a list that grows with each prompt that the model computes."""
    computed = []
    compute = model._prompt_caches
    model._prompt_caches = lambda names, ids: computed.extend(names) or compute(names, ids)
    return computed


@pytest.mark.parametrize("architecture", ["llama", "mistral, window 6", "bloom"])
def test_the_next_context_computes_no_prompt_again(architecture):
    model = two_prompts(architecture)
    mixed = {"adapter_names": ["default", "other"] * 2}
    expected = written(model), written(model, **mixed)
    computed = counted(model)
    for _ in range(3):
        with torch.inference_mode(), reuse_prompts(model):
            assert (written(model), written(model, **mixed)) == expected
    if "window" not in architecture:  # Rows that pass the window are read one at a time.
        assert [name.adapter for name in computed] == ["default", "other"]
    with compute_prompt_once(model, ROWS[0][:1]), reuse_prompts(model):
        assert written(model, ROWS[:1]) == expected[0][:1]


def test_a_row_alone_takes_one_forward_for_each_new_token():
    model = two_prompts()
    expected = written(model)[:1]
    forwards = []
    model.get_base_model().register_forward_hook(lambda *args: forwards.append(args))
    for prompts in (1, 0):
        forwards.clear()
        with torch.inference_mode(), reuse_prompts(model):
            assert written(model, ROWS[:1]) == expected
        assert len(forwards) == prompts + GREEDY["max_new_tokens"]


def with_data(model):
    model.prompt_encoder["default"].embedding.weight.data.mul_(-1)


def by_optimizer(model):
    weight = model.get_base_model().model.layers[0].self_attn.k_proj.weight
    weight.grad = torch.full_like(weight, 5.0)
    torch.optim.SGD([weight], lr=1.0).step()


def loaded(model):
    weights = model.get_base_model().state_dict()
    model.get_base_model().load_state_dict({name: weight.roll(1, 0) for name, weight in weights.items()})


CHANGES = {
    "the prompt": with_data,
    "a step": by_optimizer,
    "other weights": loaded,
    "a move": lambda model: [setattr(weight, "data", weight.data.clone()) for weight in model.parameters()],
    "float64": lambda model: model.double(),
    "another prompt": lambda model: model.set_adapter("other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    model = two_prompts()
    with reuse_prompts(model):
        before = written(model)
    CHANGES[change](model)
    computed = counted(model)
    with reuse_prompts(model):
        texts = written(model)
    assert len(computed) == 1 and texts == written(model)
    assert (texts == before) == (change in ("a move", "float64"))


def test_keys_of_other_numbers_are_not_taken():
    model = two_prompts()
    computed = counted(model)
    for numbers in (None, torch.bfloat16, torch.bfloat16, None):
        with autocasting("cpu", numbers), reuse_prompts(model):
            texts = written(model)
        with autocasting("cpu", numbers) if numbers else nullcontext():
            assert texts == written(model)
    # Each text outside of the context computes one, too.
    assert len(computed) == 4 + 3
