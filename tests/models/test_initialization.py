"""Check where a prompt starts and how long it is."""

import pytest
import torch
from datasets import Dataset
from helpers.architectures import build
from helpers.models import tiny_llama
from helpers.rows import question_rows
from transformers import DynamicCache

from prompt_tuning import Encoder, Template, add_soft_prompt, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import AdapterError, OverlongError, RecipeError
from prompt_tuning.models.initialization import (
    frequent_ids,
    initial_ids,
    initial_prefix,
    initial_prompt,
    initial_text,
    prompt_length,
)

TEXT = "Answer the question."


def started(args, tokenizer):
    ids = initial_ids(initial_text(args, None, None, 0), tokenizer, args.init)
    return ids, prompt_length(args, ids)


def test_a_random_prompt_has_the_deviation_of_the_embeddings(llama, tokenizer):
    prompt = initial_prompt(llama, tokenizer, PromptArguments(init="random"), 400, seed=0)
    embeddings = llama.get_input_embeddings().weight
    assert prompt.shape == (400, 32) and prompt.std().item() == pytest.approx(embeddings.std().item(), rel=0.1)


def test_init_vocab_draws_different_ordinary_tokens_by_the_seed(llama, tokenizer):
    arguments = PromptArguments(init="vocab")
    prompt = initial_prompt(llama, tokenizer, arguments, 30, seed=0)
    rows = [(llama.get_input_embeddings().weight == row).all(1).nonzero()[0].item() for row in prompt]
    assert len(set(rows)) == 30 and not set(rows) & set(tokenizer.all_special_ids)
    assert torch.equal(prompt, initial_prompt(llama, tokenizer, arguments, 30, seed=0))
    assert not torch.equal(prompt, initial_prompt(llama, tokenizer, arguments, 30, seed=1))


def test_a_text_sets_the_length_or_is_repeated_and_is_never_cut(llama, tokenizer):
    embeddings = llama.get_input_embeddings().weight
    arguments = PromptArguments(init="text", init_text=TEXT)
    ids, length = started(arguments, tokenizer)
    assert ids == tokenizer(TEXT).input_ids and length == len(ids)
    assert torch.equal(initial_prompt(llama, tokenizer, arguments, length, seed=0, ids=ids), embeddings[ids])
    longer = initial_prompt(llama, tokenizer, arguments, length + 2, seed=0, ids=ids)
    assert torch.equal(longer, embeddings[ids + ids[:2]])
    shorter = PromptArguments(init="text", init_text=TEXT, num_virtual_tokens=length - 1)
    with pytest.raises(RecipeError, match="Leave num_virtual_tokens out to follow the text"):
        started(shorter, tokenizer)
    with pytest.raises(RecipeError, match="init text: its text has no tokens"):
        started(PromptArguments(init="text", init_text=""), tokenizer)


def test_prompts_start_from_class_labels_or_from_the_targets_most_frequent_tokens(tokenizer):
    labels = PromptArguments(init="class_labels", init_labels=["Turin", "Oslo"])
    assert tokenizer.decode(started(labels, tokenizer)[0]) == "Turin Oslo"
    rows = [[-100, 7, 8, 1], [-100, 8, 9, 8, 1], [7, 1]]  # Token 1 is the end of a target.
    assert frequent_ids(rows, tokenizer, 2) == [8, 7]
    assert frequent_ids(rows, tokenizer, 9) == [8, 7, 9]


def test_demonstrations_are_training_rows_written_by_the_template(tokenizer):
    rows = Dataset.from_list(question_rows(10))
    encoder = Encoder(Template.load("question_answering/plain"), tokenizer)
    arguments = PromptArguments(init="demonstrations", init_demonstrations=3)
    text = initial_text(arguments, encoder, rows, seed=0)
    assert text.count("Question: Where does") == text.count("Answer: ") == 3 and text.endswith("\n\n")
    shown = [row for row in question_rows(10) if f"Answer: {row['answers']['text'][0]}" in text]
    assert all(row["context"] in text for row in shown[:1])
    assert initial_text(arguments, encoder, rows, seed=0) == text
    assert initial_text(arguments, encoder, rows, seed=1) != text


def test_a_demonstration_over_its_budget_is_replaced_and_logged(tokenizer, caplog):
    long = {"context": "The story goes on and on. " * 30, "question": "Which?", "answers": {"text": ["it"]}}
    short = question_rows(3)
    encoder = Encoder(Template.load("question_answering/plain"), tokenizer, max_source_tokens=64, truncate=())
    arguments = PromptArguments(init="demonstrations", init_demonstrations=2)
    for seed in range(8):
        text = initial_text(arguments, encoder, Dataset.from_list([long, *short, long]), seed)
        assert text.count("Answer: ") == 2 and "goes on and on" not in text
    caplog.clear()
    initial_text(arguments, encoder, Dataset.from_list(short), seed=0)
    assert not caplog.text
    initial_text(arguments, encoder, Dataset.from_list([long, *short[:2], long]), seed=0)
    assert "over budget or empty replaced by others" in caplog.text
    with pytest.raises(RecipeError, match="init_demonstrations is 2, and 1 training row fits max_source_tokens"):
        initial_text(arguments, encoder, Dataset.from_list([long, short[0], long]), seed=0)
    with pytest.raises(OverlongError, match="max_source_tokens is 64"):
        initial_text(arguments, encoder, Dataset.from_list([long, long]), seed=0)


def test_demonstrations_may_have_a_limit_of_their_own_over_which_no_row_is_cut(tokenizer):
    long = {"context": "The story goes on and on. " * 30, "question": "Which?", "answers": {"text": ["it"]}}
    rows = Dataset.from_list([long, *question_rows(2), long])
    encoder = Encoder(Template.load("question_answering/plain"), tokenizer)
    arguments = PromptArguments(init="demonstrations", init_demonstration_tokens=64)
    for seed in range(8):
        assert "goes on and on" not in initial_text(arguments, encoder, rows, seed)
    arguments.init_demonstrations = 3
    with pytest.raises(RecipeError, match="3, and 2 training rows fit init_demonstration_tokens"):
        initial_text(arguments, encoder, rows, seed=0)


def test_a_prompt_starts_from_another_adapter_of_any_length(llama, tokenizer, tmp_path):
    saved = add_soft_prompt(llama, prompt_config(llama, 4), torch.arange(128.0).reshape(4, 32))
    saved.save_pretrained(tmp_path)
    arguments = PromptArguments(init="adapter", init_adapter=str(tmp_path))
    assert prompt_length(arguments, None) == 4
    start = torch.arange(128.0).reshape(4, 32)
    assert torch.equal(initial_prompt(llama, tokenizer, arguments, 4, seed=0), start)
    assert torch.equal(initial_prompt(llama, tokenizer, arguments, 6, seed=0), start[[0, 1, 2, 3, 0, 1]])
    assert torch.equal(initial_prompt(llama, tokenizer, arguments, 3, seed=0), start[:3])
    wider = tiny_llama(len(tokenizer), hidden_size=64)
    with pytest.raises(AdapterError, match="has prompts of width 32, the model's embeddings have 64"):
        initial_prompt(wider, tokenizer, arguments, 4, seed=0)
    with pytest.raises(AdapterError, match="no soft prompt there"):
        initial_prompt(
            llama, tokenizer, PromptArguments(init="adapter", init_adapter=str(tmp_path / "none")), 4, seed=0
        )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "qwen3"])
def test_a_prefix_of_a_text_equals_the_text_before_the_row(architecture, tokenizer):
    base = build(architecture)
    ids = [5, 6, 7, 8]
    row = torch.tensor([[9, 10, 11]])
    arguments = PromptArguments(method="prefix_tuning", init="text")
    model = add_soft_prompt(
        base, prompt_config(base, 4, arguments), initial_prefix(base, tokenizer, arguments, 4, seed=0, ids=ids)
    )
    whole = base(torch.cat([torch.tensor([ids]), row], 1)).logits[:, 4:]
    cache = model.get_prompt(batch_size=1)
    assert isinstance(cache, DynamicCache)
    assert torch.allclose(base(row, cache=cache).logits, whole, atol=1e-5)


def test_a_random_prefix_has_the_scale_of_the_models_own_keys_and_values(tokenizer):
    base = tiny_llama(len(tokenizer))
    arguments = PromptArguments(method="prefix_tuning", init="random")
    noise = initial_prefix(base, tokenizer, arguments, 200, seed=0)
    sampled = initial_prefix(base, tokenizer, PromptArguments(method="prefix_tuning", init="vocab"), 200, seed=0)
    assert noise.shape == sampled.shape == (200, 2 * 2 * 2 * 8)
    assert noise.std().item() == pytest.approx(sampled.std().item(), rel=0.1)
    assert not torch.equal(noise, sampled)


def test_a_prefix_longer_than_a_sliding_window_is_refused(tokenizer):
    arguments = PromptArguments(method="prefix_tuning", init="text")
    with pytest.raises(RecipeError, match="longer than the model's sliding window"):
        initial_prefix(build("mistral, window 3"), tokenizer, arguments, 6, seed=0, ids=[5, 6, 7])


def test_a_random_prompt_has_the_deviation_of_scaled_embeddings(tokenizer):
    base = build("gemma", vocabulary=len(tokenizer))
    noise = initial_prompt(base, tokenizer, PromptArguments(init="random"), 200, seed=0)
    taken = base.get_input_embeddings()(torch.arange(len(tokenizer)))
    assert noise.std().item() == pytest.approx(taken.std().item(), rel=0.1)
