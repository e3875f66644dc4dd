"""Load, switch, delete, disable and unload adapters as in PEFT, with the right outputs or a refusal."""

import copy

import pytest
import torch
from helpers.models import tiny_llama, tiny_t5
from helpers.trainers import trainer
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from prompt_tuning import SharedPrefixModel, add_soft_prompt, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.models.encoder_decoder import EncoderDecoderPromptModel
from prompt_tuning.models.prompts import add_adapter

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
LABELS = IDS.masked_fill(torch.arange(5) < 1, -100)  # To PEFT a row's first token is a target behind a prompt.
SIZE = 40


def prompted(length=4, seed=1):
    base = tiny_llama(SIZE)
    torch.manual_seed(seed)
    return add_soft_prompt(base, prompt_config(base, length), torch.randn(length, 32)).eval()


def loss(model):
    return model(input_ids=IDS, labels=LABELS).loss.item()


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "lora"])
def test_from_pretrained_returns_this_class_with_the_saved_outputs(method, tmp_path):
    base = tiny_llama(SIZE)
    config = prompt_config(base, 4, PromptArguments(method=method), [5, 6, 7, 8])
    model = SharedPrefixModel(base, config).eval()
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    loaded = SharedPrefixModel.from_pretrained(tiny_llama(SIZE), tmp_path, adapter_name="mine")
    assert type(loaded) is SharedPrefixModel and loaded.active_adapters == ["mine"] and not loaded.training
    assert loss(loaded) == pytest.approx(loss(model), abs=1e-5)
    assert torch.equal(loaded.generate(IDS, max_new_tokens=4), model.generate(IDS, max_new_tokens=4))


def test_from_pretrained_continues_a_prompt_and_refuses_one_of_another_task(tmp_path):
    model = prompted()
    model.save_pretrained(tmp_path / "causal")
    loaded = SharedPrefixModel.from_pretrained(tiny_llama(SIZE), tmp_path / "causal", is_trainable=True)
    loaded(input_ids=IDS, labels=IDS).loss.backward()
    assert loaded.prompt_encoder["default"].embedding.weight.grad.norm() > 0
    t5 = tiny_t5(SIZE)
    add_soft_prompt(t5, prompt_config(t5, 4)).save_pretrained(tmp_path / "t5")
    with pytest.raises(AdapterError, match=r"task type SEQ_2_SEQ_LM, and SharedPrefixModel takes CAUSAL_LM"):
        SharedPrefixModel.from_pretrained(tiny_llama(SIZE), tmp_path / "t5")
    with pytest.raises(AdapterError, match=r"task type CAUSAL_LM, and EncoderDecoderPromptModel takes SEQ_2_SEQ_LM"):
        EncoderDecoderPromptModel.from_pretrained(tiny_t5(SIZE), tmp_path / "causal")


@pytest.mark.parametrize(("method", "residual"), [("p_tuning", None), ("cpt", None), ("prompt_tuning", 8)])
def test_a_saved_prompt_replaces_the_network_of_an_adapter_of_its_name(method, residual, tmp_path):
    """PEFT would read what a network wrote as the input of the network that is there."""
    models = []
    for seed in (1, 2):
        base = tiny_llama(SIZE)
        config = prompt_config(base, 4, PromptArguments(method=method), [5, 6, 7, 8])
        model = add_soft_prompt(base, config, residual=residual).eval()
        torch.manual_seed(seed)
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            torch.nn.init.normal_(parameter, std=0.3)
        models.append(model)
    saved, model = models
    saved.save_pretrained(tmp_path)
    assert loss(model) != pytest.approx(loss(saved), abs=1e-5)
    model.load_adapter(tmp_path, "default")
    assert loss(model) == pytest.approx(loss(saved), abs=1e-5)


def test_adapters_are_switched_deleted_and_disabled_as_in_peft(tmp_path):
    first, second = prompted(4, 1), prompted(7, 2)
    second.save_pretrained(tmp_path)
    expected = loss(first), loss(second)
    plain = PeftModel.from_pretrained(tiny_llama(SIZE), tmp_path)
    assert loss(plain) == pytest.approx(expected[1], abs=1e-5)
    model = prompted(4, 1)
    model.load_adapter(tmp_path, "second")
    assert model.active_adapters == ["default"] and loss(model) == pytest.approx(expected[0], abs=1e-5)
    model.set_adapter("second")
    assert model.active_adapters == ["second"] and loss(model) == pytest.approx(expected[1], abs=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, tiny_llama(SIZE)(input_ids=IDS).logits)
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("second")
    assert loss(model) == pytest.approx(expected[0], abs=1e-5)
    with pytest.raises(ValueError, match="second not found"):
        model.set_adapter("second")
    model.load_adapter(tmp_path, "second")
    model.set_adapter("second")
    model.delete_adapter("default")
    assert loss(model) == pytest.approx(expected[1], abs=1e-5)
    with pytest.raises(AdapterError, match=r"second is the only adapter\. Call unload\(\)"):
        model.delete_adapter("second")
    assert loss(model) == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
def test_a_prompt_is_not_merged_and_unload_returns_the_base_model(build):
    base = build(SIZE)
    expected = build(SIZE)(input_ids=IDS, labels=IDS).logits
    model = add_soft_prompt(base, prompt_config(base, 4))
    with pytest.raises(AdapterError, match=r"a PROMPT_TUNING adapter has no weights to merge"):
        model.merge_and_unload()
    unloaded = model.unload()
    assert unloaded is base and torch.equal(unloaded(input_ids=IDS, labels=IDS).logits, expected)


def test_lora_in_this_class_is_merged_and_unloaded_as_in_peft():
    base = tiny_llama(SIZE)
    model = SharedPrefixModel(base, prompt_config(base, 0, PromptArguments(method="lora")))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = model.eval()(input_ids=IDS).logits
    assert torch.allclose(model.merge_and_unload()(input_ids=IDS).logits, expected, atol=1e-4)
    base = tiny_llama(SIZE)
    model = SharedPrefixModel(base, prompt_config(base, 0, PromptArguments(method="lora")))
    assert torch.equal(model.unload()(input_ids=IDS).logits, tiny_llama(SIZE)(input_ids=IDS).logits)


def test_an_adapter_of_another_kind_is_refused_and_changes_nothing(tmp_path):
    model = prompted()
    expected = loss(model)
    other = tiny_llama(SIZE)
    prefix = PromptArguments(method="prefix_tuning")
    add_soft_prompt(other, prompt_config(other, 3, prefix)).save_pretrained(tmp_path)
    for config in (
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    ):
        with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
            model.add_adapter("other", config)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.load_adapter(tmp_path, "other")
    assert list(model.peft_config) == ["default"] and loss(model) == expected


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
def test_a_prompt_over_a_lora_adapter_is_refused_until_it_is_merged(build):
    base = build(SIZE)
    lora = add_adapter(base, prompt_config(base, 0, PromptArguments(method="lora")))
    config = PromptTuningConfig(task_type=lora.active_peft_config.task_type, num_virtual_tokens=4)
    # The first has the adapter around it, the second within it.
    for model in (lora, lora.get_base_model()):
        with pytest.raises(AdapterError, match="the base model has an adapter already"):
            add_soft_prompt(model, config)
    merged = lora.merge_and_unload()
    assert add_soft_prompt(merged, prompt_config(merged, 4)).active_adapters == ["default"]


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
def test_a_base_model_on_several_devices_is_refused_by_prompts_and_by_the_trainer(build, tokenizer, tmp_path):
    base = build(len(tokenizer))
    base.hf_device_map = {"": 0}  # transformers sets it for device_map.
    assert add_soft_prompt(base, prompt_config(base, 4)).active_adapters == ["default"]
    base.hf_device_map = {"shared": 0, "lm_head": 1}
    with pytest.raises(ModelError, match=r"layers are on several devices \(0, 1\)"):
        add_soft_prompt(base, prompt_config(base, 4))
    lora = add_adapter(base, prompt_config(base, 0, PromptArguments(method="lora")))
    for model in (base, lora):
        with pytest.raises(ModelError, match=r"layers are on several devices \(0, 1\)"):
            trainer(model, tokenizer, tmp_path)


def test_a_prompt_over_a_prompt_is_refused():
    with pytest.raises(AdapterError, match="the base model has an adapter already"):
        add_soft_prompt(prompted(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(AdapterError, match="the base model has an adapter already"):
        SharedPrefixModel(prompted(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    lora = get_peft_model(tiny_llama(SIZE), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    with pytest.raises(AdapterError, match="the base model has an adapter already"):
        SharedPrefixModel(lora, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


def test_a_second_adapter_is_packed_if_the_first_is_too_long_for_it():
    """The first prefix is longer than the sliding window, the second is not."""
    config = Qwen2Config(
        vocab_size=SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16, use_sliding_window=True, max_window_layers=0,
        initializer_range=0.3,
    )  # fmt: skip

    def build(*lengths):
        torch.manual_seed(0)
        base = Qwen2ForCausalLM(copy.deepcopy(config)).requires_grad_(False).eval()
        arguments = PromptArguments(method="prefix_tuning")
        model = add_soft_prompt(base, prompt_config(base, lengths[0], arguments)).eval()
        for length in lengths[1:]:
            model.add_adapter("short", prompt_config(base, length, arguments))
            model.set_adapter("short")
        with torch.no_grad():
            torch.manual_seed(3)
            model.prompt_encoder[model.active_adapter].embedding.weight.normal_()
        return model

    both, alone = build(20, 4), build(4)
    assert both.execution_path.name == "packed"
    assert loss(both) == pytest.approx(loss(alone), abs=1e-5)
