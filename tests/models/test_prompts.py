"""Add prompts to base models, load them from a folder, and refuse them on another model."""

import json

import pytest
import torch
from helpers.models import tiny_llama, tiny_t5
from peft import PeftConfig
from transformers import AutoModelForCausalLM, MptConfig, PreTrainedTokenizerFast, XGLMConfig

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.models.base_model import check_adapter
from prompt_tuning.models.loading import load_config, load_tokenizer
from prompt_tuning.models.prompts import add_adapter, add_soft_prompt, load_adapter, prompt_config


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
def test_only_the_prompt_is_trained_in_float32_whatever_the_models_type(build, tokenizer):
    base = build(len(tokenizer)).to(torch.bfloat16)
    model = add_soft_prompt(base, prompt_config(base, 3), torch.ones(3, 32))
    (trained,) = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained.dtype == torch.float32 and trained.shape == (3, 32)


def test_a_saved_prompt_loads_only_on_its_own_model(llama, tokenizer, tmp_path, model_folders, caplog):
    config = load_config(ModelArguments(model_name_or_path=str(model_folders["llama"])))
    llama.config._name_or_path = llama.name_or_path = str(model_folders["llama"])
    model = add_soft_prompt(llama, prompt_config(llama, 4))
    model.save_pretrained(tmp_path)
    base = tiny_llama(len(tokenizer))
    base.config._name_or_path = "somewhere/else/tiny-llama"  # The folder of a model may move.
    loaded = load_adapter(base, tmp_path)
    weights = [prompted.prompt_encoder["default"].embedding.weight for prompted in (model, loaded)]
    assert torch.equal(*weights)
    saved = PeftConfig.from_pretrained(tmp_path)
    check_adapter(saved, tmp_path, config)
    config._name_or_path = "another/model"
    with pytest.raises(
        AdapterError, match=r"was trained on .*tiny-llama \(hidden size 32\), the model here is another"
    ):
        check_adapter(saved, tmp_path, config)
    # A model that the user names for an adapter may have any name.
    base.config._name_or_path = base.name_or_path = "served/prod"
    assert torch.equal(load_adapter(base, tmp_path).prompt_encoder["default"].embedding.weight, weights[0])
    assert "the model here is served/prod (hidden size 32). The adapter fits only if" in caplog.text


def test_training_continues_a_prompt_of_a_text_without_the_tokenizer(llama, tmp_path):
    add_soft_prompt(llama, prompt_config(llama, 4)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    started = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Answer", "tokenizer_name_or_path": "/gone"}
    file.write_text(json.dumps(saved | started))
    assert load_adapter(llama, tmp_path, is_trainable=True).prompt_encoder["default"].embedding.weight.requires_grad


@pytest.mark.parametrize(
    "config",
    [
        MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=99, max_seq_len=64),
        XGLMConfig(vocab_size=99, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=64),
    ],
)
def test_a_model_with_another_name_for_its_heads_takes_a_prompt(config):
    base = AutoModelForCausalLM.from_config(config)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert add_soft_prompt(base, prompt_config(base, 4))(input_ids=ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "scale"), [({}, 16 / 8), ({"lora_use_rslora": True, "lora_use_dora": True}, 16 / 8**0.5)]
)
def test_a_saved_lora_adapter_loads_on_its_own_model(settings, scale, llama, tokenizer, tmp_path, model_folders):
    llama.name_or_path = str(model_folders["llama"])
    model = add_adapter(llama, prompt_config(llama, 0, PromptArguments(method="lora", **settings)))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling == {"default": scale} and layer.use_dora["default"] == bool(settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    base = tiny_llama(len(tokenizer))
    base.config._name_or_path = "tiny-llama"
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_adapter(base, tmp_path)(ids).logits, model.eval()(ids).logits)


def test_a_tokenizer_that_cannot_end_a_target_is_refused(tokenizer, tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    bare.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer has no eos_token"):
        load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path)))


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_config(ModelArguments(model_name_or_path=str(tmp_path / "none")))
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        load_config(ModelArguments(model_name_or_path=str(tmp_path)))
    with pytest.raises(ModelError, match="its files have no tokenizer"):
        load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path)))
