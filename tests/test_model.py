"""The soft prompt: where it starts, how long it is, and which model it belongs to."""

import pytest
import torch
from conftest import tiny_llama, tiny_t5
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from prompt_tuning.config import ModelArguments, PromptArguments
from prompt_tuning.errors import AdapterError, ModelError, RecipeError
from prompt_tuning.model import (
    add_soft_prompt,
    check_adapter,
    count_virtual_tokens,
    initial_prompt,
    load_adapter,
    load_adapter_config,
    load_config,
    load_tokenizer,
    prompt_config,
)

TEXT = "Answer the question."


def test_init_random_is_as_wide_as_the_embeddings(llama, tokenizer):
    prompt = initial_prompt(llama, tokenizer, PromptArguments(init="random", num_virtual_tokens=400), seed=0)
    embeddings = llama.get_input_embeddings().weight
    assert prompt.shape == (400, 32) and prompt.std().item() == pytest.approx(embeddings.std().item(), rel=0.1)


def test_init_vocab_takes_different_ordinary_tokens_by_the_seed(llama, tokenizer):
    arguments = PromptArguments(init="vocab", num_virtual_tokens=30)
    prompt = initial_prompt(llama, tokenizer, arguments, seed=0)
    rows = [(llama.get_input_embeddings().weight == row).all(1).nonzero()[0].item() for row in prompt]
    assert len(set(rows)) == 30 and not set(rows) & set(tokenizer.all_special_ids)
    assert torch.equal(prompt, initial_prompt(llama, tokenizer, arguments, seed=0))
    assert not torch.equal(prompt, initial_prompt(llama, tokenizer, arguments, seed=1))


def test_init_text_follows_the_text_or_repeats_it_and_never_cuts_it(llama, tokenizer):
    ids = tokenizer(TEXT).input_ids
    embeddings = llama.get_input_embeddings().weight
    arguments = PromptArguments(init="text", init_text=TEXT)
    assert torch.equal(initial_prompt(llama, tokenizer, arguments, seed=0), embeddings[ids])
    longer = PromptArguments(init="text", init_text=TEXT, num_virtual_tokens=len(ids) + 2)
    assert torch.equal(initial_prompt(llama, tokenizer, longer, seed=0), embeddings[ids + ids[:2]])
    shorter = PromptArguments(init="text", init_text=TEXT, num_virtual_tokens=len(ids) - 1)
    with pytest.raises(RecipeError, match="leave num_virtual_tokens out to follow the text"):
        count_virtual_tokens(shorter, tokenizer)


@pytest.mark.parametrize("build", [tiny_llama, tiny_t5])
def test_the_prompt_is_float32_and_alone_in_learning_whatever_the_model_is(build, tokenizer):
    base = build(len(tokenizer)).to(torch.bfloat16)
    model = add_soft_prompt(base, prompt_config(base, 3), torch.ones(3, 32))
    (trained,) = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained.dtype == torch.float32 and trained.shape == (3, 32)


def test_a_saved_prompt_comes_back_on_its_own_model_alone(llama, tokenizer, tmp_path, model_folders):
    config = load_config(ModelArguments(model_name_or_path=str(model_folders["llama"])))
    llama.config._name_or_path = llama.name_or_path = str(model_folders["llama"])
    model = add_soft_prompt(llama, prompt_config(llama, 4))
    model.save_pretrained(tmp_path)
    base = tiny_llama(len(tokenizer))
    base.config._name_or_path = "somewhere/else/tiny-llama"  # a folder may move
    loaded = load_adapter(base, tmp_path)
    weights = [each.prompt_encoder["default"].embedding.weight for each in (model, loaded)]
    assert torch.equal(*weights)
    saved = PeftConfig.from_pretrained(tmp_path)
    check_adapter(saved, tmp_path, config)
    config._name_or_path = "another/model"
    with pytest.raises(
        AdapterError, match=r"was trained on .*tiny-llama \(hidden size 32\), the model here is another"
    ):
        check_adapter(saved, tmp_path, config)


def test_an_adapter_of_another_method_is_refused(llama, tmp_path):
    get_peft_model(llama, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"a LORA adapter; expected PROMPT_TUNING"):
        load_adapter_config(tmp_path)


def test_a_tokenizer_that_cannot_end_a_target_is_refused(tokenizer, tmp_path):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    bare.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer has no eos_token"):
        load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path)))


def test_a_text_without_tokens_is_refused(tokenizer):
    with pytest.raises(RecipeError, match="init_text has no tokens"):
        count_virtual_tokens(PromptArguments(init="text", init_text=""), tokenizer)


def test_a_model_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_config(ModelArguments(model_name_or_path=str(tmp_path / "none")))
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path)))
