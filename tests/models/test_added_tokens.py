import pytest
import torch
from helpers.architectures import ROWS, WINDOWS, build, reference_greedy
from helpers.architectures import SETTINGS as ARCHITECTURES
from helpers.models import tiny_llama, tiny_sentencepiece, tiny_tokenizer
from transformers import AutoModelForCausalLM

from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.models.added_tokens import (
    add_embeddings,
    add_tokens,
    check_rows_are_read,
    embedding_scale,
    silence,
)

PROMPT = 5
NAMES = [f"<|prompt:qa:{number}|>" for number in range(PROMPT)]


def tied(architecture):
    model = build(architecture)
    model.config.tie_word_embeddings = True
    if model._tied_weights_keys:
        model.tie_weights()
    return model


def prompt_of(model, seed=3):
    torch.manual_seed(seed)
    embedded = model.get_input_embeddings()(torch.arange(PROMPT) + 9)
    return embedded + torch.randn_like(embedded) * embedded.std()


def added(model, prompt):
    """Add a prompt behind the vocabulary and return its ids, and what was measured of the head."""
    size = len(model.get_input_embeddings().weight)
    ids = list(range(size, size + len(prompt)))
    silent = add_embeddings(model, ids, prompt)
    check_rows_are_read(model, ids, prompt, ROWS[0])
    return ids, silence(model, silent, size, [ids + row for row in ROWS])


def greedy(model, ids, steps=6):
    ids = torch.tensor([ids])
    settings = dict(max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in WINDOWS])
def test_a_saved_export_writes_what_the_embeddings_write(architecture, tmp_path):
    model = tied(architecture)
    prompt = prompt_of(model)
    expected = [reference_greedy(model, prompt, row, 4) for row in ROWS[:2]]
    ids, head = added(model, prompt)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight
    assert [greedy(loaded, ids + row, 4) for row in ROWS[:2]] == expected
    for row in ROWS:
        probabilities = loaded(torch.tensor([ids + row])).logits[0].softmax(-1)[:, ids]
        assert probabilities.max() <= head.probability * 1.001


def test_a_tied_head_writes_tokens_of_the_prompt():
    """Show why the head is untied: with rows of the embeddings in it, the prompt's own tokens win."""
    model = tied("llama")
    prompt = 4 * prompt_of(model)
    ids, _ = added(model, prompt)
    expected = [greedy(model, ids + row) for row in ROWS]
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    assert [greedy(model, ids + row) for row in ROWS] != expected
    assert any(id in ids for row in ROWS for id in greedy(model, ids + row))


def test_the_head_row_makes_a_token_unlikely_where_zeros_do_not():
    model = tiny_llama(400, initializer_range=0.8)
    hidden = model.model(torch.tensor([ROWS[2]])).last_hidden_state[0].mean(0)
    model.lm_head.weight -= 40 * hidden / hidden.norm()  # All logits are below 0, as in some trained models.
    prompt = prompt_of(model)
    size, ids = 400, list(range(400, 400 + PROMPT))
    silent = add_embeddings(model, ids, prompt)
    rows = [ids + row for row in ROWS]

    def most_likely():
        return max(model(torch.tensor([row])).logits[0].softmax(-1)[:, ids].max().item() for row in rows)

    model.get_output_embeddings().weight[silent] = 0
    with_zeros = most_likely()
    assert silence(model, silent, size, rows).probability < 1e-4
    assert most_likely() < 1e-4 < with_zeros


@pytest.mark.parametrize("architecture, scale", [("gemma", 32**0.5), ("gemma3_text", 32**0.5), ("granite", 1)])
def test_the_scale_of_embeddings_is_measured(architecture, scale):
    assert embedding_scale(build(architecture)) == pytest.approx(scale, rel=1e-4)


def test_an_embedding_layer_that_does_more_is_refused(llama):
    llama.get_input_embeddings().register_forward_hook(lambda module, args, output: output.tanh())
    with pytest.raises(ModelError, match="more than to scale"):
        embedding_scale(llama)


def test_tokens_take_the_rows_that_a_short_tokenizer_leaves_over():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    model = tiny_llama(size + 64, tie_word_embeddings=True)
    model.get_input_embeddings().weight[size:] = 0  # A trained model does not write them either.
    ids = add_tokens(tokenizer, NAMES)
    assert ids == list(range(size, size + PROMPT))
    prompt = prompt_of(model)
    expected = [reference_greedy(model, prompt, row, 6) for row in ROWS]
    silent = add_embeddings(model, ids, prompt)
    assert len(model.get_input_embeddings().weight) == size + 64
    head = silence(model, silent, size, [ids + row for row in ROWS])
    assert head.token < size
    assert [greedy(model, ids + row) for row in ROWS] == expected


def test_a_tokenizer_longer_than_the_table_gets_rows_for_its_own_tokens():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer) - 3
    model = tiny_llama(size)
    ids = add_tokens(tokenizer, NAMES)
    silent = add_embeddings(model, ids, prompt_of(model))
    assert silent == [size, size + 1, size + 2, *ids]
    assert len(model.get_output_embeddings().weight) == ids[-1] + 1


def test_a_name_that_the_tokenizer_has_is_refused():
    tokenizer = tiny_tokenizer()
    add_tokens(tokenizer, NAMES)
    with pytest.raises(AdapterError, match=r"token <\|prompt:qa:0\|> already. Name the task otherwise"):
        add_tokens(tokenizer, NAMES)


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_sentencepiece()], ids=["bytes", "dummy prefix"])
def test_other_texts_keep_their_tokens(tokenizer):
    texts = ["Ada lives in Turin.\n", " x", "<|prompt:qa|>"]
    before = [tokenizer(text).input_ids for text in texts]
    add_tokens(tokenizer, NAMES)
    assert [tokenizer(text).input_ids for text in texts] == before
